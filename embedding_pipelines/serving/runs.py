"""Long work on pipelines, each piece in a process of its own, so that it outlives the server that
started it: what is at work, and how it ended.

data/warehouse/runs/
├── ID.json             what was asked for; in the end, how it ended
├── ID.log              what the process printed, which is nothing if all goes well
└── PIPELINE.build      locked by the process that works on the pipeline, for as long as it lives;
                        PIPELINE.deploy, .compare, .plan and .rollback the same for these
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from embedding_pipelines.errors import BusyError
from embedding_pipelines.files import delete, list_files, read_json, write_json
from embedding_pipelines.serving.wire import Conflict, NotFound, RunKind, RunReply, RunStatus
from embedding_pipelines.storage.warehouse import Warehouse

GROUPS: Mapping[RunKind, str] = {  # of two in one group, the second is refused
    "run": "build",
    "release": "build",
    "forget": "build",
    "rollback": "rollback",  # it does not wait for the end of a run
    "plan": "plan",
    "optimize": "build",
    "compare": "compare",
    "deploy": "deploy",
    "undeploy": "deploy",
}
JOBS: tuple[RunKind, ...] = ("run", "optimize", "compare", "deploy", "undeploy")  # of Dagster
WORK = (sys.executable, "-m", "embedding_pipelines.serving.work")
KEPT = 200  # records, and their logs
LOOK_SECONDS = 0.05  # who looks whether a lock is free has it for less
ENDING_SECONDS = 2.0  # from the record of an end until the lock is free


class Record(BaseModel):
    """One piece of work, as it was asked for and as it ended."""

    run_id: str
    pipeline: str
    pipeline_id: int | None
    kind: RunKind
    # Of the kind, e.g. a method; no secrets. Gone once the work begins: they may name what it forgets.
    options: dict[str, Any]
    asked_at: datetime
    ended_at: datetime | None = None
    problem: str = ""  # why it failed
    result: dict[str, Any] = {}


class Runs:
    """The long work of a home. Any number of servers may have one home."""

    def __init__(self, home: Path, command: Sequence[str] = WORK) -> None:
        """`command` is called with the home folder, the run's id and the number of the open, locked
        file."""
        self.home, self.warehouse, self._command = home, Warehouse(home), command
        self.folder = self.warehouse.runs

    def start(
        self,
        pipeline: str,
        pipeline_id: int | None,
        kind: RunKind,
        options: Mapping[str, Any],
        run_id: str | None = None,
    ) -> RunReply:
        """Begin work, and say under which id to ask for it.

        With the id of one that there is already, nothing begins: so the same request may be sent
        again. Raises Conflict if the pipeline is at work, here or in another process.
        """
        run_id = str(uuid.UUID(run_id) if run_id else uuid.uuid4())
        if (self.folder / f"{run_id}.json").exists():
            before = self.read(run_id)
            if (before.pipeline, before.kind) != (pipeline, kind):
                raise Conflict(f"Run {run_id} is another piece of work. Send another key.")
            return self._reply(before)
        with self.holding(pipeline, GROUPS[kind]) as lock:
            if GROUPS[kind] == "build":
                self._require_free(pipeline)
            record = Record(
                run_id=run_id,
                pipeline=pipeline,
                pipeline_id=pipeline_id,
                kind=kind,
                options=dict(options),
                asked_at=datetime.now(UTC),
            )
            os.ftruncate(lock, 0)
            os.pwrite(lock, run_id.encode(), 0)  # before the record, which is alive by it
            self.write(record)
            self._spawn(run_id, lock)
        self._delete_old()
        return self._reply(record)

    def get(self, run_id: str) -> RunReply:
        """How a piece of work stands. Raises NotFound."""
        return self._reply(self.read(run_id))

    def of(self, pipeline: str, limit: int) -> list[RunReply]:
        """The newest runs of a pipeline, newest first, with those that a schedule, the command line
        or Dagster's interface has started. Raises StoreError if Dagster's records are damaged."""
        from embedding_pipelines.orchestration.history import past_runs

        replies = {reply.run_id: reply for reply in map(self._reply, self._records(pipeline))}
        for past in past_runs(self.home, pipeline, JOBS, limit):
            if past.run_id not in replies:
                replies[past.run_id] = RunReply(pipeline=pipeline, **vars(past))
        newest = sorted(replies.values(), key=lambda reply: reply.began_at, reverse=True)
        return newest[:limit]

    @contextlib.contextmanager
    def holding(self, pipeline: str, group: str) -> Iterator[int]:
        """Keep other work on a pipeline out while the body runs, and while a process that was
        started in it, and given the lock that this yields, lives. Raises Conflict if some is at
        work."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._lock(pipeline, group), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            began = time.monotonic()
            while not _take(lock):
                run_id = os.pread(lock, 64, 0).decode("ascii", "replace")
                wait = ENDING_SECONDS if self._has_ended(run_id) else LOOK_SECONDS
                if time.monotonic() - began > wait:
                    at_work = f" by run {run_id}" if run_id else ""
                    raise Conflict(
                        f"Pipeline {pipeline!r} is at work{at_work}. Wait until that has ended."
                    )
                time.sleep(0.01)
            yield lock
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def holding_all(self, pipeline: str) -> Iterator[None]:
        """Keep all other work on a pipeline out while the body runs. Raises Conflict if some is at
        work."""
        with contextlib.ExitStack() as stack:
            for group in sorted({*GROUPS.values()}):
                lock = stack.enter_context(self.holding(pipeline, group))
                os.ftruncate(lock, 0)  # no run is at work
            yield

    def at_work(self, pipeline: str, group: str = "build") -> RunKind | None:
        """What a process of a server does to a pipeline now; None if it does nothing."""
        try:
            lock = os.open(self._lock(pipeline, group), os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            if _take(lock):
                return None
            run_id = os.pread(lock, 64, 0).decode("ascii", "replace")
        finally:
            os.close(lock)
        try:
            record = self.read(run_id)
        except NotFound:  # it is about to begin, or what is at work is no run
            return None
        return record.kind if record.ended_at is None else None

    def write(self, record: Record) -> None:
        """Keep a record."""
        write_json(self.folder / f"{record.run_id}.json", record.model_dump(mode="json"))

    def _require_free(self, pipeline: str) -> None:
        """Raises Conflict if the command line, a schedule or Dagster's interface runs it."""
        folder = self.warehouse.pipeline(pipeline)
        if folder.has_lock("run"):
            try:
                with folder.lock("run", timeout_seconds=0):
                    pass
            except BusyError as error:
                raise Conflict(str(error)) from None

    def _spawn(self, run_id: str, lock: int) -> None:
        """A process that does what the record says. The lock is its own from then on: it is locked
        as long as the process lives, whatever becomes of this one."""
        with (self.folder / f"{run_id}.log").open("wb") as log:
            process = subprocess.Popen(
                [*self._command, str(self.home), run_id, str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,  # a Ctrl-C for the server is none for it
            )
        threading.Thread(target=process.wait, name=f"run {run_id}", daemon=True).start()

    def read(self, run_id: str) -> Record:
        """The record of an id, as it was written last. Raises NotFound."""
        try:
            values = read_json(self.folder / f"{uuid.UUID(run_id)}.json")
        except ValueError:  # and so nothing else is ever part of a path
            values = None
        if values is None:
            raise NotFound(f"There is no run {run_id[:64]!r}. Ids are those that a 202 names.")
        return Record.model_validate(values)

    def _records(self, pipeline: str) -> Iterator[Record]:
        for path in list_files(self.folder, "*.json"):
            if (values := read_json(path)) is not None and values.get("pipeline") == pipeline:
                yield Record.model_validate(values)

    def _reply(self, record: Record) -> RunReply:
        if record.ended_at is None and not self._is_alive(record):
            record = self._end(record)
        status: RunStatus = "running"
        if record.ended_at is not None:
            status = "failed" if record.problem else "succeeded"
        return RunReply(
            run_id=record.run_id,
            pipeline=record.pipeline,
            kind=record.kind,
            status=status,
            began_at=record.asked_at,
            ended_at=record.ended_at,
            error=record.problem or None,
            result=record.result,
        )

    def _end(self, record: Record) -> Record:
        """A record whose process is gone: as the process wrote it last, or as killed."""
        from embedding_pipelines.orchestration.dead_runs import ENDED
        from embedding_pipelines.orchestration.history import end_run

        record = self.read(record.run_id)
        if record.ended_at is None:
            record.ended_at, record.problem, record.options = datetime.now(UTC), ENDED, {}
            self.write(record)
            end_run(self.home, record.run_id)
        return record

    def _is_alive(self, record: Record) -> bool:
        """Whether the process of a record lives: it alone holds the lock, in which its id stands."""
        try:
            lock = os.open(self._lock(record.pipeline, GROUPS[record.kind]), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _take(lock) and os.pread(lock, 64, 0) == record.run_id.encode()
        finally:
            os.close(lock)

    def _has_ended(self, run_id: str) -> bool:
        """Whether the process that holds a lock has only to end: its work is on record."""
        values = read_json(self.folder / f"{run_id}.json") if run_id else None
        return values is not None and values.get("ended_at") is not None

    def _lock(self, pipeline: str, group: str) -> Path:
        return self.folder / f"{pipeline}.{group}"

    def _delete_old(self) -> None:
        """Records and logs beyond the newest; those at work are among them."""
        paths = list_files(self.folder, "*.json")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            delete(path)
            delete(path.with_suffix(".log"))


def _take(lock: int) -> bool:
    """Lock an open file, unless another process has it; closing it lets go."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
