"""Dagster's records on a PostgreSQL server that several processes share: a real one on loopback."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest

from embedding_pipelines.environment import instance_folder
from embedding_pipelines.errors import StoreError
from embedding_pipelines.orchestration import dead_runs
from embedding_pipelines.orchestration.erasure import delete_runs_that_quote
from embedding_pipelines.orchestration.instance import LEAN, open_instance, start
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.orchestration.records import MACHINE_TAG, keeps_records_elsewhere
from embedding_pipelines.storage.quotes import Needles
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.orchestration.dev import (
    dagster_dev,
    have_ended,
    launch_run,
    runs,
    wait,
    webserver,
)
from embedding_pipelines_tests.orchestration.support import (
    command,
    notes,
    run,
    write_notes,
    write_pipeline,
)
from embedding_pipelines_tests.orchestration.test_erasure import EXCERPT, TEXT
from embedding_pipelines_tests.orchestration.test_instance import FIRST_RUNS
from embedding_pipelines_tests.postgres import PASSWORD, Server, serve

pytestmark = pytest.mark.slow

STORAGE = """\
storage:
  postgres:
    postgres_url: {env: DAGSTER_POSTGRES_URL}
"""
SLOW_MODEL = """
import time


class Model:
    dimensions = 8

    def embed(self, texts, input_type):
        time.sleep(3)
        return [[float(len(text)), *map(float, text.encode()[:7].ljust(7))] for text in texts]
"""
CHECKS = ("vectors_belong_to_their_texts", "provider_is_unchanged", "input_types_differ")
SLOW = f"""\
source: {{kind: jsonl, path: data/notes/*.jsonl, id: id, text: [text]}}
model: {{provider: custom, cls: "slow_model:Model", trusted: true}}
partitions: 2
evaluation: {{known_items: 0, checks: {{{", ".join(f"{check}: off" for check in CHECKS)}}}}}
"""


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def address(running: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty database, which the environment alone holds."""
    running.run("drop schema if exists public cascade; create schema public")
    url = (
        f"postgresql+psycopg2://owner:{quote(PASSWORD, safe='')}@127.0.0.1:{running.port}/postgres"
    )
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", url)
    return url


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the home's own instance, which is not made yet."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return instance_folder(home)


def on_server(folder: Path) -> Path:
    """An instance's folder whose records are on the server."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dagster.yaml").write_text(LEAN + STORAGE)
    return folder


def test_runs_of_one_pipeline_wait_and_of_two_go_side_by_side_whoever_launched_them(
    home: Path, folder: Path, address: str
) -> None:
    spec = notes(home)
    (home / "slow_model.py").write_text(SLOW_MODEL)
    for name in ("first", "second"):
        write_pipeline(home, name, SLOW)
    log, variables = home / "dev.log", {"DAGSTER_POSTGRES_URL": address}
    one, other = on_server(home / "one"), on_server(home / "other")
    with (
        dagster_dev(home, DAGSTER_HOME=str(one), **variables) as ask,
        webserver(home, DAGSTER_HOME=str(other), **variables) as ask_other,
    ):
        tags = all_partitions(spec.model_copy(update={"partitions": 2}))
        # Dagster's queue knows a pool's limit from the pool's first run on (ARCHITECTURE.md).
        for name in ("first", "second"):
            launch_run(ask, name, tags)
        wait(lambda: have_ended(ask_other), 300, log)
        write_notes(home, "b", range(40, 50))
        for name in ("first", "second"):
            launch_run(ask, name, tags)
            launch_run(ask_other, name, tags)
        wait(lambda: have_ended(ask), 300, log)
        done = runs(ask_other)
    assert [entry["status"] for entry in done] == ["SUCCESS"] * 6
    firsts, seconds = (
        [entry for entry in done if entry["jobName"] == name] for name in ("first", "second")
    )
    for of_one in (firsts, seconds):
        for before, after in itertools.pairwise(of_one):
            assert before["endTime"] <= after["startTime"]
    assert any(
        left["startTime"] < right["endTime"] and right["startTime"] < left["endTime"]
        for left, right in itertools.product(firsts[1:], seconds[1:])
    )
    assert all(PASSWORD not in path.read_text("utf-8", "replace") for path in home.glob("*.log"))


def test_first_runs_at_the_same_moment_share_the_server(tmp_path: Path, address: str) -> None:
    on_server(tmp_path / "data" / "warehouse" / "dagster")
    kept = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_RUNS, str(tmp_path)],
        capture_output=True,
        text=True,
        env=kept,
        timeout=300,
    )
    assert done.stdout.strip() == "[0, 0, 0, 0] 4", done.stderr[-2_000:]


def test_the_command_line_runs_on_it_and_forget_erases_from_it(
    home: Path, folder: Path, address: str
) -> None:
    notes(home)
    on_server(folder)
    assert keeps_records_elsewhere(folder)
    done = command(home, "embedding-pipelines", "run", "notes", DAGSTER_POSTGRES_URL=address)
    assert done.returncode == 0, done.stderr
    with open_instance(home) as instance:
        (kept,) = instance.get_runs()
        assert kept.tags[MACHINE_TAG]
        quoting = run(notes(home), instance).run_id
        instance.report_engine_event(f"quotes {EXCERPT!r}", run_id=quoting, job_name="notes")
    needles = Needles({TEXT})
    assert delete_runs_that_quote(home, "notes", needles.are_in) == 1
    with open_instance(home) as instance:
        assert [run.run_id for run in instance.get_runs()] == [kept.run_id]
    assert not (folder / "history").exists()


def test_a_run_of_another_machine_is_left_alone(
    home: Path, folder: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_server(folder)
    with Warehouse(home).pipeline("notes").lock("run"):
        pass
    monkeypatch.setattr(dead_runs, "SILENT_SECONDS", 0.0)
    with open_instance(home) as instance:
        for machine in ("another", None):
            job = dg.GraphDefinition(name="notes").to_job()
            tags = {MACHINE_TAG: machine} if machine else {}
            made = instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
            instance.report_engine_event("began", run_id=made.run_id, job_name="notes")
    start()
    with open_instance(home) as instance:
        states = {run.tags.get(MACHINE_TAG): run.status for run in instance.get_runs()}
    assert states == {"another": dg.DagsterRunStatus.STARTED, None: dg.DagsterRunStatus.FAILURE}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (None, "names the variable DAGSTER_POSTGRES_URL of the environment. Set it."),
        ("postgresql://owner:secret@127.0.0.1/postgres", "begin with postgresql+psycopg2://"),
        (
            "postgresql+psycopg2://owner:secret@127.0.0.1:{port}/postgres",
            'password authentication failed for user "owner"',
        ),
    ],
)
def test_what_is_wrong_with_the_server_is_a_sentence_without_the_password(
    home: Path,
    folder: Path,
    running: Server,
    monkeypatch: pytest.MonkeyPatch,
    url: str | None,
    words: str,
) -> None:
    on_server(folder)
    monkeypatch.delenv("DAGSTER_POSTGRES_URL", raising=False)
    if url:
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", url.format(port=running.port))
    with pytest.raises(StoreError) as caught:
        start()
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
