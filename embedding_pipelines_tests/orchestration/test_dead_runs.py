"""Dead runs: of jobs that hold no lock silence tells; other cases are in `test_launch.py`."""

from pathlib import Path

import dagster as dg
import pytest

from embedding_pipelines.orchestration import dead_runs
from embedding_pipelines.orchestration.dead_runs import CLEANS, HOLDS_LOCK, end_dead_runs
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.serving.runs import JOBS
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.conftest import HASHING


def test_a_killed_job_without_a_lock_is_ended_after_a_day_and_no_stranger_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = Warehouse(home)
    warehouse.pipeline("p").folder.mkdir(parents=True)
    with open_instance(home) as instance:
        ids = []
        write_pipeline(home, "new", HASHING)  # which has never run
        lockless = [f"p__{kind}" for kind, has_lock in HOLDS_LOCK.items() if not has_lock]
        ours = [CLEANS, *lockless, "new__compare"]
        assert len(ours) == 5
        for name in (*ours, "other__deploy", "other__compare", "__deploy"):
            job = dg.GraphDefinition(name=name).to_job()
            run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
            instance.report_engine_event("It begins.", run)
            ids.append(run.run_id)
        monkeypatch.setattr(dead_runs, "SILENT_SECONDS", 0.0)
        assert end_dead_runs(instance, warehouse) == []
        monkeypatch.setattr(dead_runs, "SILENT_ELSEWHERE_SECONDS", 0.0)
        assert set(end_dead_runs(instance, warehouse)) == set(ids[: len(ours)])


def test_all_that_a_server_does_by_jobs_is_known() -> None:
    assert {"run", *HOLDS_LOCK} == {*JOBS}
