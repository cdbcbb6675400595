"""What a process for long work does, in this process: its Dagster runs, its record, its errors."""

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from embedding_pipelines.orchestration import dead_runs
from embedding_pipelines.orchestration.dead_runs import ENDED, end_dead_runs
from embedding_pipelines.orchestration.history import end_run, past_runs
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.serving import work
from embedding_pipelines.serving.runs import GROUPS, Record, Runs
from embedding_pipelines.serving.wire import RunKind, RunReply
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_csv, write_pipeline
from embedding_pipelines_tests.conftest import PLAIN, UNMEASURED


@pytest.fixture
def home(home: Path, own_instance: Path) -> Path:
    write_pipeline(home, "p", PLAIN + UNMEASURED)
    write_csv(home, "a.csv", [(n, f"text {n} of {n % 5}", "c") for n in range(20)])
    return home


def do(home: Path, kind: RunKind, **options: Any) -> RunReply:
    """Work as the process of a server does it, with its own record and lock."""
    runs = Runs(home)
    record = Record(
        run_id=str(uuid.uuid4()),
        pipeline="p",
        pipeline_id=1,
        kind=kind,
        options=options,
        asked_at=datetime.now(UTC),
    )
    runs.folder.mkdir(parents=True, exist_ok=True)
    runs.write(record)
    lock = os.open(runs.folder / "p.test", os.O_RDWR | os.O_CREAT)
    code = work.main(home, record.run_id, lock)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(lock)  # it is closed
    reply = runs.get(record.run_id)
    assert code == (1 if reply.status == "failed" else 0)
    assert runs.read(record.run_id).options == {}  # they may name what was forgotten
    return reply


GOAL: dict[str, Any] = {"dimensions": None, "floor": None, "most_ms": 500.0}


def test_a_run_and_optimize_are_dagster_runs_with_the_ids_that_were_promised(home: Path) -> None:
    run = do(home, "run")
    assert (run.status, run.result["release"], run.result["rows"]) == ("succeeded", 1, 20)
    steps = run.result["steps"]
    assert isinstance(steps, list)
    assert [step["step"] for step in steps if isinstance(step, dict)][-1] == "release"
    optimized = do(home, "optimize", methods=["int8"], **GOAL)
    assert optimized.status == "succeeded", optimized.error
    assert optimized.result["release"] == 2
    assert [each.kind for each in find_pipeline("p", home).compression] == ["int8"]
    past = past_runs(home, "p", GROUPS, 10)
    assert {each.run_id for each in past} > {run.run_id, optimized.run_id}
    assert sorted(each.kind for each in past) == ["optimize", "run", "run"]
    assert {each.status for each in past} == {"succeeded"}
    assert all(each.ended_at and each.began_at <= each.ended_at for each in past)
    replies = Runs(home).of("p", 10)
    assert [each.run_id for each in replies] == [each.run_id for each in past]
    assert Runs(home).of("p", 1) == replies[:1]


def test_what_a_user_can_correct_is_a_sentence_and_the_file_stays(home: Path) -> None:
    (home / "data" / "a.csv").unlink()
    run = do(home, "run")
    assert run.status == "failed"
    assert run.error
    assert "data/*.csv" in run.error
    assert "Traceback" not in run.error
    before = (home / "pipelines" / "p.yaml").read_text()
    optimized = do(home, "optimize", methods=["int8"], **GOAL)
    assert optimized.status == "failed"
    assert (home / "pipelines" / "p.yaml").read_text() == before
    assert {each.status for each in past_runs(home, "p", GROUPS, 10)} == {"failed"}
    (home / "pipelines" / "p.yaml").unlink()
    gone = do(home, "run")
    assert "There is no pipeline 'p'" in str(gone.error)


def test_a_fault_of_this_program_is_on_record_too(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("an error that nobody expected")

    monkeypatch.setattr(work, "perform", fail)
    with pytest.raises(RuntimeError):
        do(home, "run")
    (reply,) = Runs(home).of("p", 10)
    assert reply.status == "failed"
    assert "RuntimeError: an error that nobody expected" in str(reply.error)
    assert ".log" in str(reply.error)


def test_a_killed_optimize_is_ended_by_whoever_asks_and_by_the_sensors(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.op
    def nothing() -> None:
        pass

    @dg.job(name="p__optimize")
    def job() -> None:
        nothing()

    def begin(instance: dg.DagsterInstance) -> str:
        run_id = str(uuid.uuid4())
        instance.create_run_for_job(job, run_id=run_id, status=dg.DagsterRunStatus.STARTED)
        return run_id

    with open_instance(home) as instance:
        first, second = begin(instance), begin(instance)
        end_run(home, first)
        end_run(home, str(uuid.uuid4()))  # which Dagster does not know
        by_id = {each.run_id: each.status for each in past_runs(home, "p", GROUPS, 10)}
        assert by_id == {first: "failed", second: "running"}
        monkeypatch.setattr(dead_runs, "SILENT_SECONDS", 0.0)
        with Warehouse(home).pipeline("p").lock("run"):
            assert end_dead_runs(instance, Warehouse(home)) == []
        assert end_dead_runs(instance, Warehouse(home)) == [second]
        assert any(ENDED in str(entry.message) for entry in instance.all_logs(second))


def test_without_records_there_are_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert past_runs(tmp_path, "p", GROUPS, 10) == []
    end_run(tmp_path, str(uuid.uuid4()))
    assert not list(tmp_path.iterdir())
