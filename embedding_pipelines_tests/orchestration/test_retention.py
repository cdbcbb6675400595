"""Of Dagster's history in a home's own instance the newest runs stay, and whatever is in force."""

from pathlib import Path

import dagster as dg
import pytest

from embedding_pipelines.home import warehouse_folder
from embedding_pipelines.orchestration import retention
from embedding_pipelines.orchestration.launch import run_pipeline
from embedding_pipelines.orchestration.retention import delete_old_runs
from embedding_pipelines.progress import Silent
from embedding_pipelines_tests.orchestration.support import notes, run, unmeasured

PARTS = dg.StaticPartitionsDefinition(["b00", "b01"])
CHUNKS, RELEASE = dg.AssetKey(["p", "chunks"]), dg.AssetKey(["p", "release"])


@dg.asset(key=CHUNKS, partitions_def=PARTS)
def chunks() -> None:
    pass


@dg.asset(key=RELEASE)
def release() -> None:
    pass


DEFINITIONS = dg.Definitions(
    assets=[chunks, release],
    jobs=[dg.define_asset_job("p", [chunks]), dg.define_asset_job("q", [release])],
)


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "KEPT_RUNS", 2)
    monkeypatch.setattr(retention, "MORE_RUNS", 2)


def run_part(instance: dg.DagsterInstance, part: str) -> str:
    job = DEFINITIONS.resolve_job_def("p")
    return job.execute_in_process(instance=instance, partition_key=part).run_id


def ids(instance: dg.DagsterInstance) -> list[str]:
    return [entry.run_id for entry in instance.get_runs()]


def test_the_newest_runs_stay_and_those_of_newest_materializations(
    home: Path, instance: dg.DagsterInstance
) -> None:
    released = DEFINITIONS.resolve_job_def("q").execute_in_process(instance=instance).run_id
    only = run_part(instance, "b00")
    others = [run_part(instance, "b01") for _ in range(4)]
    files = warehouse_folder(home) / "dagster" / "history" / "runs"
    assert len(list(files.glob("*-*.db"))) == 6
    assert delete_old_runs(instance, home, "p") == others[:2]
    assert ids(instance) == [others[3], others[2], only, released]
    assert {path.stem for path in files.glob("*-*.db")} == set(ids(instance))
    assert instance.get_materialized_partitions(CHUNKS) == {"b00", "b01"}
    event = instance.get_latest_materialization_event(RELEASE)
    assert event is not None
    assert event.run_id == released
    assert delete_old_runs(instance, home, "p") == []  # of 3


def test_an_unfinished_run_and_an_instance_of_the_users_stay(
    home: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for _ in range(5):
        run_part(instance, "b01")
    assert delete_old_runs(instance, tmp_path / "another home", "p") == []
    with dg.DagsterInstance.ephemeral() as other:
        for _ in range(5):
            run_part(other, "b01")
        assert delete_old_runs(other, home, "p") == []
    assert len(ids(instance)) == 5
    started = instance.create_run_for_job(DEFINITIONS.resolve_job_def("p"))
    assert len(delete_old_runs(instance, home, "p")) == 3
    assert started.run_id in ids(instance)


def test_the_end_of_a_run_deletes_old_ones_and_a_failure_to_do_so_is_no_failure_of_the_run(
    home: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(retention, "KEPT_RUNS", 1)
    monkeypatch.setattr(retention, "MORE_RUNS", 1)
    spec = unmeasured(notes(home))
    first, second = (run(spec, instance).run_id for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(instance, "delete_run", refuse)
        third = run(spec, instance)
    assert third.success
    assert "could not be deleted from Dagster's history: the disk is full" in capfd.readouterr().err
    assert ids(instance) == [third.run_id, second, first]
    outcome = run_pipeline(home, spec, Silent())  # from the command line
    assert outcome.problem == ""
    assert ids(instance) == [outcome.run_id, third.run_id]


def refuse(run_id: str) -> None:
    raise OSError("the disk is full")
