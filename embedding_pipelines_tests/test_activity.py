"""What is at work on a pipeline, and how it ended: running, failed, stopped, held back, new."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from embedding_pipelines.activity import Activity, last_activity, recorded
from embedding_pipelines.embedding.batch_jobs import BatchPending
from embedding_pipelines.files import write_json
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.orchestration.launch import run_pipeline
from embedding_pipelines.progress import Silent
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_of, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING


@pytest.fixture
def pipeline(home: Path, own_instance: Path) -> Path:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(1, "one", "x"), (2, "two", "y")])
    return home


def state(home: Path) -> tuple[str, str]:
    row = pipeline_status(find_pipeline("p", home), Warehouse(home))
    return row["status"], row["last_step"] or row["last_error"] or ""


def run(home: Path) -> str:
    return run_pipeline(home, find_pipeline("p", home), Silent()).problem


def test_a_run_that_failed_says_where_and_why_until_one_ends_well(pipeline: Path) -> None:
    assert state(pipeline) == ("new", "")
    write_csv(pipeline, "a.csv", [(1, "one", "x"), (1, "two", "y")])
    problem = run(pipeline)
    status, last_step = state(pipeline)
    assert status == "failed"
    assert last_step.startswith("documents, begun 20")
    assert last_step.endswith(problem)
    write_csv(pipeline, "a.csv", [(1, "one", "x")])
    assert run(pipeline) == ""
    assert state(pipeline) == ("active", "")
    assert not run_of(pipeline, "p").folder.activity.exists()


def test_a_candidate_that_is_held_back_has_that_status(pipeline: Path) -> None:
    weak = HASHING.replace("known_items: 8", "known_items: 8, require: {known_item_mrr: 1.5}")
    write_pipeline(pipeline, "p", weak)
    words = "red blue green fox whale tea cup road sea"
    write_csv(pipeline, "a.csv", [(n, f"{words} {n} of {words}", "x") for n in range(9)])
    assert "required_metrics_hold" in run(pipeline)
    assert state(pipeline)[0] == "held back"


def test_a_step_at_work_is_running_and_a_dead_one_is_stopped(pipeline: Path) -> None:
    with run_of(pipeline, "p") as opened:
        with opened.folder.lock(), recorded(opened, "chunks"):
            status, last_step = state(pipeline)
            assert status == "running"
            assert f" by process {os.getpid()} on " in last_step
            activity = last_activity(opened)
        assert state(pipeline) == ("new", "")
        assert activity is not None
        # Its process was killed, whether another one has its number since, or nobody here can know.
        for host in (activity.host, "another machine"):
            write_json(opened.folder.activity, asdict(replace(activity, host=host)))
            status, last_step = state(pipeline)
            assert status == "stopped"
            assert last_step.endswith("was ended from outside; the next run goes on from there")
        with opened.folder.lock():  # of a step on another machine with the same disk
            assert state(pipeline)[0] == "running"


def test_what_forgets_is_no_step_that_was_killed_before(pipeline: Path) -> None:
    assert run(pipeline) == ""
    seen = list[str]()

    def look(_: object) -> int:
        seen.append(state(pipeline)[0])
        return 0

    with run_of(pipeline, "p") as opened:
        activity = Activity("chunks", "2026-11-27T05:00:00+00:00", 1, "here")
        write_json(opened.folder.activity, asdict(activity))
        forget(opened, ["1"], [], look)
    assert (seen, state(pipeline)[0]) == (["stopped"], "active")


def test_a_killed_step_is_stopped_at_once(pipeline: Path) -> None:
    code = (
        "import os, sys\n"
        "from embedding_pipelines.activity import recorded\n"
        "from embedding_pipelines_tests.chain import run_of\n"
        "run = run_of(sys.argv[1], 'p')\n"
        "with run.folder.lock(), recorded(run, 'chunks'):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, pipeline], check=False)
    assert state(pipeline)[0] == "stopped"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("it broke"), "failed", "failed: it broke"),
        (ValueError(), "failed", "failed: ValueError"),
        (KeyboardInterrupt(), "failed", "failed: it was stopped"),
        (BatchPending("later"), "new", ""),
    ],
)
def test_every_end_of_a_step_is_on_record(
    pipeline: Path, error: BaseException, status: str, words: str
) -> None:
    with run_of(pipeline, "p") as opened:
        with pytest.raises(type(error)), recorded(opened, "chunks"):
            raise error
        assert state(pipeline)[0] == status
        assert words in state(pipeline)[1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 1}', "null"])
def test_a_damaged_record_decides_nothing(pipeline: Path, content: str) -> None:
    with run_of(pipeline, "p") as opened:
        opened.folder.folder.mkdir(parents=True)
        opened.folder.activity.write_text(content)
        assert last_activity(opened) is None
    assert state(pipeline) == ("new", "")
    assert run(pipeline) == ""
