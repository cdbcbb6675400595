"""The Dagster instance: where runs, events and schedules are kept. `python -m` this prints the
folder."""

import contextlib
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from filelock import FileLock
from sqlalchemy import Connection, Dialect, Engine, event

from embedding_pipelines.dagster_files import keeps_records_elsewhere
from embedding_pipelines.environment import home, instance_folder
from embedding_pipelines.errors import EmbeddingPipelinesError, StoreError
from embedding_pipelines.files import create_only
from embedding_pipelines.orchestration.dead_runs import end_dead_runs
from embedding_pipelines.orchestration.failures import readable_records
from embedding_pipelines.schemas import digest
from embedding_pipelines.storage.warehouse import Warehouse

LEAN = """\
# Written once; yours to change.
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 4
  # Each pipeline is a pool: one run of it at a time, the others wait in the queue.
  pools:
    granularity: run
    default_limit: 1
run_monitoring:
  enabled: true
# A run whose process died is started again; one whose log says why it failed is not.
run_retries:
  enabled: true
  max_retries: 2
  retry_on_asset_or_op_failure: false
# Looks of sensors and schedules; of the runs the newest stay (docs/dagster.md).
retention:
  schedule:
    purge_after_days: 90
  sensor:
    purge_after_days:
      skipped: 7
      failure: 30
      success: 90
"""

# Dagster sends what a step prints through a file and two processes that follow it, which tears a
# progress bar to pieces. A run on the command line has a terminal of its own, and its events are
# recorded in any case. Configuration, by the address that Dagster documents.
COMPUTE_LOGS = {
    "module": "dagster.core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}
MADE = ".made"  # a file that says so of the databases
BUSY_SECONDS = 60  # another process writes one event at a time


def ensure_instance_folder(home: Path) -> Path:
    """The instance's folder; made, with a lean dagster.yaml and Dagster's databases, if it is not
    there.

    Dagster makes its databases at their first use, without a lock: of several processes that do so
    at once, most fail, and leave databases that no process can use any more. So they are made here,
    by one process at a time.
    """
    folder = _without_url_marks(instance_folder(home))
    create_only(folder / "dagster.yaml", LEAN)
    if not (folder / MADE).exists():
        with FileLock(folder / "making.lock"):
            if not (folder / MADE).exists():
                with dg.DagsterInstance.from_config(str(folder)) as instance:
                    instance.get_runs(limit=1)
                    instance.get_asset_keys(limit=1)
                    instance.all_instigator_state()
                create_only(folder / MADE, "Dagster's databases were made.\n")
    return folder


def _without_url_marks(folder: Path) -> Path:
    """The folder under a path that Dagster can use: it makes URLs of paths without quoting them, so
    that what follows a `?` is cut off and `%20` becomes a space. Such a folder gets a link in the
    system's temporary folder, by which all processes of this user reach it.

    Raises StoreError if there is something else of the link's name.
    """
    if not set("?%") & set(str(folder)):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    name = f"embedding-pipelines-{os.getuid()}-{digest(os.fsencode(folder)).hex()}"
    link = Path(tempfile.gettempdir(), name)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    if link.lstat().st_uid != os.getuid() or link.resolve() != folder.resolve():
        raise StoreError(f"{link} is not a link to {folder}. Remove it, and try again.")
    return link


@contextlib.contextmanager
def open_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """The instance for a run in this process. `local_temp` is Dagster's public way to open one in a
    folder; nothing about it is temporary."""
    folder = str(ensure_instance_folder(home))
    with (
        _quick_commits(instance_folder(home).resolve()),
        dg.DagsterInstance.local_temp(folder, overrides={"compute_logs": COMPUTE_LOGS}) as instance,
    ):
        yield instance


class _Statements(dict[Any, Any]):
    """SQLAlchemy's cache of statements that are compiled to SQL, for many engines of one dialect.

    Dagster makes an engine for each event and step of one, each with a cache of its own and an
    object for its dialect, which is part of a statement's key; here it is left out.
    """

    def get(self, key: tuple[Any, ...], default: Any = None) -> Any:
        return super().get(self._without_dialect(key), default)

    def __setitem__(self, key: tuple[Any, ...], value: Any) -> None:
        super().__setitem__(self._without_dialect(key), value)

    @staticmethod
    def _without_dialect(key: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(part for part in key if not isinstance(part, Dialect))


@contextlib.contextmanager
def _quick_commits(folder: Path) -> Iterator[None]:
    """Makes commits to the files of a folder quick.

    Dagster opens and closes an SQLite file for every event, and SQLite waits for the disk at each
    commit, and again when the last connection to a file closes. Here commits do not wait, and one
    more connection to each file stays open until the run ends.

    Statements are compiled once for all of these files.

    The files are in WAL mode: a power cut may lose the last events of a run, not the file. Files of
    other programs in this process, outside the instance's folder, stay as they are.
    """
    connections: dict[str, sqlite3.Connection] = {}
    statements = _Statements()

    def use_statements(connection: Connection) -> None:
        path = connection.engine.url.database
        if connection.dialect.name == "sqlite" and path and Path(path).is_relative_to(folder):
            connection.execution_options(compiled_cache=statements)

    def connect(connection: Any, record: Any) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        _, _, path = connection.execute("PRAGMA database_list").fetchone()
        if not Path(path).is_relative_to(folder):
            return
        connection.execute("PRAGMA synchronous=NORMAL")
        if path in connections:
            return
        other = sqlite3.connect(path, BUSY_SECONDS, check_same_thread=False)
        if other.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            connections[path] = other
        else:  # Dagster is just making the file
            other.close()

    event.listen(Engine, "connect", connect)
    event.listen(Engine, "engine_connect", use_statements)
    try:
        yield
    finally:
        event.remove(Engine, "engine_connect", use_statements)
        event.remove(Engine, "connect", connect)
        for connection in connections.values():
            connection.close()


def has_records(folder: Path) -> bool:
    """Whether an instance may have runs on record. Without files of a history nothing ever ran."""
    return (folder / "history").is_dir() or keeps_records_elsewhere(folder)


def start() -> Path:
    """The instance's folder, for Dagster's services to start on: without runs that a crash left as
    started, which would keep those of the same pipeline waiting."""
    with readable_records(instance_folder(home())):
        folder = ensure_instance_folder(home())
        if has_records(folder):
            with open_instance(home()) as instance:
                end_dead_runs(instance, Warehouse(home()))
    return folder


if __name__ == "__main__":
    try:
        print(start())
    except EmbeddingPipelinesError as error:
        sys.exit(f"error: {error}")
