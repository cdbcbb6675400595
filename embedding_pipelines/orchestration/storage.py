"""Dagster's own files of runs and events, for a run in this process: each is opened once.

Dagster opens a file for every event, compiles its statements anew, reads all its migrations to see
whether the file is new, and closes it, at which SQLite waits for the disk. These are the same
storages on the same files, which other processes read and write as ever, with one connection to each
until the instance is closed.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import dagster
import sqlalchemy
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from sqlalchemy import Connection

SERIES = "1.13."  # of Dagster, whose storages were read; others have theirs as they come
BATCHES = "DAGSTER_EVENT_BATCH_SIZE"  # what Dagster writes at once, by its own variable
BATCH = "1000"
BUSY_SECONDS = 60  # another process writes one event at a time
INDEX = "index"  # the file with the events of assets, of all runs


def storages(folder: Path) -> dict[str, Any]:
    """What an instance in this folder is told to take for its storages; nothing where its files are
    still to be made, or Dagster is another one."""
    files = {
        "run_storage": (Runs, folder / "history" / "runs.db"),
        "event_log_storage": (Events, folder / "history" / "runs" / f"{INDEX}.db"),
        "schedule_storage": (Schedules, folder / "schedules" / "schedules.db"),
    }
    are_there = all(path.exists() and path.stat().st_size for _, path in files.values())
    if not are_there or not dagster.__version__.startswith(SERIES):
        return {}
    return {
        name: {"module": __name__, "class": kind.__name__, "config": {"base_dir": str(path.parent)}}
        for name, (kind, path) in files.items()
    }


@contextlib.contextmanager
def batches() -> Iterator[None]:
    """Has Dagster hand over at once the events of all partitions."""
    before = os.environ.get(BATCHES)
    os.environ.setdefault(BATCHES, BATCH)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(BATCHES, None)


class _Database:
    """One file, by one connection that the threads of this process take in turns."""

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.StaticPool,
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        )
        sqlalchemy.event.listen(self._engine, "connect", _do_not_wait)
        self._lock = threading.RLock()
        self._connection: Connection | None = None  # of the transaction that is on

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction, or the one that this thread has begun."""
        with self._lock:
            if self._connection is not None:
                yield self._connection
                return
            with self._engine.begin() as connection:
                self._connection = connection
                try:
                    yield connection
                finally:
                    self._connection = None

    def close(self) -> None:
        with self._lock:  # no thread's transaction is cut off
            self._engine.dispose()


def _do_not_wait(connection: sqlite3.Connection, record: object) -> None:
    """For the disk, at each commit: the files are in WAL mode, so a power cut may lose the last events
    of a run, not the file."""
    connection.execute("PRAGMA synchronous=NORMAL")


class Runs(SqliteRunStorage):
    """`history/runs.db`."""

    def __init__(self, conn_string: str, inst_data: Any = None) -> None:
        super().__init__(conn_string, inst_data)
        self._database = _Database(conn_string)

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Self:
        return cls(f"sqlite:///{config_value['base_dir']}/runs.db", inst_data)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._database.transaction() as connection:
            yield connection

    def dispose(self) -> None:
        self._database.close()
        super().dispose()


class Schedules(SqliteScheduleStorage):
    """`schedules/schedules.db`, which runs do not look at: it is opened when somebody asks."""

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Self:
        return cls(f"sqlite:///{config_value['base_dir']}/schedules.db", inst_data)


class Events(SqliteEventLogStorage):
    """`history/runs/`: a file for each run, and one with the events of assets, of all runs."""

    def __init__(self, base_dir: str, inst_data: Any = None) -> None:
        super().__init__(base_dir, inst_data)
        self._index = _Database(self.conn_string_for_shard(INDEX))
        self._run: tuple[str, _Database] | None = None  # which was used last
        self._last: dict[tuple[Any, Any], tuple[EventLogEntry, int]] | None = None
        self._tables: set[str] | None = None
        self._has_columns: bool | None = None

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Self:
        return cls(config_value["base_dir"], inst_data)

    def index_connection(self) -> contextlib.AbstractContextManager[Connection]:
        return self._index.transaction()

    def run_connection(self, run_id: str | None = None) -> Any:
        assert run_id is not None
        if self._run is None or self._run[0] != run_id:
            if self._run is not None:
                self._run[1].close()
            _ensure_run_file(Path(self.path_for_shard(run_id)), self.path_for_shard(INDEX))
            self._run = run_id, _Database(self.conn_string_for_shard(run_id))
        return self._run[1].transaction()

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """All in one transaction for each of the two files; the last one stays with its asset."""
        with self.run_connection(events[0].run_id), self.index_connection() as index:
            self._last = {}
            try:
                super().store_event_batch(events)
                last = self._last.values()
            finally:
                self._last = None
            for event, event_id in last:
                self._store_asset_event(index, event, event_id)

    def _store_asset_event(self, conn: Connection, event: EventLogEntry, event_id: int) -> None:
        if self._last is None:
            super()._store_asset_event(conn, event, event_id)
        else:
            what = event.get_dagster_event()
            self._last[what.event_type, what.asset_key] = event, event_id

    def has_table(self, table_name: str) -> bool:
        if self._tables is None:
            with self.index_connection() as connection:
                self._tables = set(sqlalchemy.inspect(connection).get_table_names())
        return table_name in self._tables

    def _has_asset_key_index_cols_on_connection(self, conn: Connection) -> bool:
        if self._has_columns is None:
            self._has_columns = super()._has_asset_key_index_cols_on_connection(conn)
        return self._has_columns

    def dispose(self) -> None:
        super().dispose()
        self._index.close()
        if self._run is not None:
            self._run[1].close()


def _ensure_run_file(path: Path, index: str) -> None:
    """The file of a run, with the tables of the index, as Dagster makes both of them. A process that
    shows the run may be making them at the same moment."""
    with closing(sqlite3.connect(path, BUSY_SECONDS, isolation_level=None)) as database:
        if _has_tables(database):
            return
        _use_wal(database)
        database.execute("PRAGMA synchronous=NORMAL")
        database.execute("ATTACH ? AS made", (index,))
        database.execute("BEGIN IMMEDIATE")
        if not _has_tables(database):
            made = "SELECT sql FROM made.sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
            for (sql,) in database.execute(made).fetchall():
                database.execute(sql)
            database.execute("INSERT INTO alembic_version SELECT * FROM made.alembic_version")
        database.execute("COMMIT")


def _use_wal(database: sqlite3.Connection) -> None:
    """Of two processes that do this at the same moment, SQLite refuses one, and does not wait."""
    last = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > last:
                raise
            time.sleep(0.05)
        else:
            return


def _has_tables(database: sqlite3.Connection) -> bool:
    name = "SELECT 1 FROM main.sqlite_master WHERE name = 'event_logs'"
    return database.execute(name).fetchone() is not None
