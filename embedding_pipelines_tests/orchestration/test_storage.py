"""Dagster's storages as a run in this process uses them: the same records, in fewer steps."""

import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from dagster._core.storage.event_log import SqliteEventLogStorage

from embedding_pipelines.environment import instance_folder
from embedding_pipelines.orchestration import instance as instances
from embedding_pipelines.orchestration import storage
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.orchestration.launch import run_pipeline
from embedding_pipelines.progress import Silent
from embedding_pipelines_tests.orchestration.support import notes

Row = tuple[Any, ...]
CHUNKS = dg.AssetKey(["notes", "chunks"])


def records(home: Path, run_id: str) -> dict[str, Counter[Row]]:
    """What is on record of a run, without what is never the same twice."""
    folder = instance_folder(home) / "history" / "runs"
    events = "SELECT dagster_event_type, step_key, asset_key, partition FROM event_logs"
    assets = "SELECT asset_key, last_run_id IS NOT NULL, last_materialization IS NOT NULL, "
    assets += "last_materialization_timestamp IS NOT NULL FROM asset_keys"
    tags = "SELECT asset_key, key FROM asset_event_tags"
    checks = "SELECT asset_key, check_name, execution_status FROM asset_check_executions"
    tables = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    queries = {
        "events": (run_id, events),
        "tables": (run_id, tables),
        "revision": (run_id, "SELECT version_num FROM alembic_version"),
        "mirrored": ("index", events),
        "assets": ("index", assets),
        "tags": ("index", tags),
        "checks": ("index", checks),
    }
    rows = {}
    for name, (file, query) in queries.items():
        with closing(sqlite3.connect(folder / f"{file}.db")) as database:
            rows[name] = Counter(database.execute(query).fetchall())
    return rows


@contextmanager
def connections() -> Iterator[Counter[str]]:
    """How often each file of Dagster's is opened, by name."""
    opened = Counter[str]()

    def count(connection: sqlite3.Connection, record: object) -> None:
        _, _, path = connection.execute("PRAGMA database_list").fetchone()
        opened[Path(path).name] += 1

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", count)
    yield opened
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", count)


def test_a_run_leaves_the_records_that_dagsters_own_storages_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    left = {}
    for name in ("quick", "plain"):
        home = tmp_path / name
        if name == "plain":
            monkeypatch.setattr(instances, "storages", lambda folder: {})
            monkeypatch.setenv(storage.BATCHES, "0")
        left[name] = records(home, run_pipeline(home, notes(home), Silent()).run_id)
    assert left["quick"] == left["plain"]
    assert left["quick"]["mirrored"]["ASSET_MATERIALIZATION", "notes__chunks", "x", "b00"] == 0


def test_each_file_is_opened_once_for_a_run_and_no_commit_waits_for_the_disk(
    home: Path, own_instance: Path
) -> None:
    spec = notes(home)
    with connections() as opened:
        run_id = run_pipeline(home, spec, Silent()).run_id
    assert opened == {"runs.db": 1, "index.db": 1, f"{run_id}.db": 1}
    with open_instance(home) as instance, instance.run_storage.connect() as connection:  # type: ignore
        assert connection.scalar(sqlalchemy.text("PRAGMA synchronous")) == 1


def test_other_processes_read_what_a_run_has_recorded_so_far(
    home: Path, own_instance: Path
) -> None:
    with (
        open_instance(home) as instance,
        dg.DagsterInstance.local_temp(str(own_instance)) as other,  # as the web interface reads it
    ):
        job = dg.GraphDefinition(name="p").to_job()
        run = instance.create_run_for_job(job)
        instance.report_run_failed(run, "enough")
        assert [entry.message for entry in other.all_logs(run.run_id)] == ["enough"]
        assert [each.status for each in other.get_runs()] == [dg.DagsterRunStatus.FAILURE]
        other.report_engine_event("so do I", run)
        assert len(instance.all_logs(run.run_id)) == 2


def test_a_batch_that_fails_leaves_nothing_behind_and_is_recorded_one_by_one(
    home: Path, own_instance: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    store, calls = SqliteEventLogStorage.store_event, Counter[str]()

    def third_fails(self: Any, event: Any) -> None:
        calls[event.dagster_event.event_type_value] += 1
        if calls["ASSET_MATERIALIZATION"] == 3:
            raise RuntimeError("no more")
        store(self, event)

    monkeypatch.setattr(SqliteEventLogStorage, "store_event", third_fails)
    spec = notes(home)
    outcome = run_pipeline(home, spec, Silent())
    assert outcome.problem == ""
    with open_instance(home) as instance:
        page = instance.fetch_materializations(CHUNKS, limit=100).records
        logs = instance.all_logs(outcome.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert Counter(record.partition_key for record in page) == Counter(spec.partition_names)
    ours = [entry for entry in logs if entry.dagster_event.asset_key == CHUNKS]
    assert len(ours) == len(spec.partition_names)


def test_the_file_of_a_run_is_made_where_a_power_cut_left_it_empty(
    home: Path, own_instance: Path
) -> None:
    run_id = dg.DagsterRun("p").run_id
    path = own_instance / "history" / "runs" / f"{run_id}.db"
    path.touch()
    with open_instance(home) as instance:
        assert instance.all_logs(run_id) == []
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("SELECT count(*) FROM event_logs").fetchone() == (0,)


def test_the_file_of_a_run_waits_for_another_process_that_is_making_it(
    home: Path, own_instance: Path
) -> None:
    path = own_instance / "history" / "runs" / "other.db"
    with (
        open_instance(home) as instance,
        closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.3, other.execute, ["COMMIT"]).start()
        assert instance.all_logs("other") == []


@pytest.mark.parametrize("file", ["history/runs.db", "history/runs/index.db"])
def test_files_that_are_gone_are_made_anew(home: Path, own_instance: Path, file: str) -> None:
    (own_instance / file).unlink()
    assert storage.storages(own_instance) == {}
    assert run_pipeline(home, notes(home), Silent()).problem == ""
    assert (own_instance / file).stat().st_size


def test_another_series_of_dagster_has_its_storages_as_they_come(
    home: Path, own_instance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dg, "__version__", "1.14.0")
    assert storage.storages(own_instance) == {}


def test_who_says_how_much_dagster_writes_at_once_is_heard(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(storage.BATCHES, raising=False)
    with storage.batches():
        assert os.environ[storage.BATCHES] == storage.BATCH
    assert storage.BATCHES not in os.environ
    monkeypatch.setenv(storage.BATCHES, "7")
    with storage.batches():
        assert os.environ[storage.BATCHES] == "7"
    assert os.environ[storage.BATCHES] == "7"
