"""Dead runs: of jobs that hold no lock silence tells; other cases are in `test_launch.py`."""

from pathlib import Path

import dagster as dg
import pytest

from embedding_pipelines.orchestration import dead_runs
from embedding_pipelines.orchestration.dead_runs import CLEANS, end_dead_runs
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.storage.warehouse import Warehouse


def test_a_killed_job_without_a_lock_is_ended_after_a_day_and_no_stranger_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = Warehouse(home)
    warehouse.pipeline("p").folder.mkdir(parents=True)
    with open_instance(home) as instance:
        ids = []
        for name in (CLEANS, "p__deploy", "other__deploy"):
            job = dg.GraphDefinition(name=name).to_job()
            run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
            instance.report_engine_event("It begins.", run)
            ids.append(run.run_id)
        monkeypatch.setattr(dead_runs, "SILENT_SECONDS", 0.0)
        assert end_dead_runs(instance, warehouse) == []
        monkeypatch.setattr(dead_runs, "SILENT_ELSEWHERE_SECONDS", 0.0)
        assert set(end_dead_runs(instance, warehouse)) == set(ids[:2])
