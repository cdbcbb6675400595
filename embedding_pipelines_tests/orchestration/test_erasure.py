"""Runs whose events quote a forgotten text leave Dagster's history, and no others do."""

from pathlib import Path

import dagster as dg

from embedding_pipelines.environment import instance_folder
from embedding_pipelines.orchestration.erasure import delete_runs_that_quote
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.storage.quotes import Needles
from embedding_pipelines_tests.decoded import files_with

TEXT = 'Ada Lovelace lives in the "blue" house, and nobody else does; not even Menabrea.'
EXCERPT = TEXT[:60]


@dg.asset
def quoting(context: dg.AssetExecutionContext) -> None:
    context.log.info(f"texts[3] ({EXCERPT!r}) is too long")


@dg.asset
def silent() -> None:
    pass


def test_runs_that_quote_it_go_and_others_stay(home: Path) -> None:
    jobs = dg.Definitions(
        assets=[quoting, silent],
        jobs=[dg.define_asset_job("p", [quoting]), dg.define_asset_job("q", [silent])],
    )
    with open_instance(home) as instance:
        runs = [
            jobs.resolve_job_def(name).execute_in_process(instance=instance).run_id for name in "pq"
        ]
        at_work = jobs.resolve_job_def("p")
        waiting = instance.create_run_for_job(at_work, status=dg.DagsterRunStatus.STARTED).run_id
        instance.report_engine_event(f"quotes {EXCERPT!r}", run_id=waiting, job_name="p")
    needles = Needles({TEXT})
    assert files_with(instance_folder(home), EXCERPT)
    assert delete_runs_that_quote(home, "q", needles.are_in) == 1
    assert delete_runs_that_quote(home, "q", needles.are_in) == 0
    with open_instance(home) as instance:
        assert {run.run_id for run in instance.get_runs()} == {runs[1], waiting}
        instance.report_run_failed(instance.get_run_by_id(waiting))
    assert delete_runs_that_quote(home, "q", needles.are_in) == 1
    assert files_with(instance_folder(home), EXCERPT) == []


def test_a_home_without_history_has_none_afterwards(home: Path) -> None:
    assert delete_runs_that_quote(home, "p", lambda text: True) == 0
    assert not instance_folder(home).exists()
