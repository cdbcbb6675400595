"""Which step is at work on a pipeline, or how the last one ended: a small file that `status` reads.

It is there from a run's first step until its release, so that what failed, was stopped or was
killed on the way can be told apart from what is at work.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from embedding_pipelines.embedding.batch_jobs import BatchPending
from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import delete, read_json, write_json
from embedding_pipelines.progress import Paused
from embedding_pipelines.run import Run
from embedding_pipelines.storage.warehouse import parse_state

State = Literal["running", "failed", "stopped", ""]  # "": it ended well


@dataclass(frozen=True)
class Activity:
    """One step at work, or as it ended. What is on record as running and holds no lock any more was
    stopped."""

    step: str
    began_at: str  # ISO 8601, UTC
    process: int
    host: str
    state: State = "running"
    problem: str = ""  # why it failed

    def __str__(self) -> str:
        """A sentence for every state but the one that ended well."""
        began = f"{self.step}, begun {self.began_at}"
        if self.state == "failed":
            return f"{began}, failed: {self.problem}"
        if self.state == "stopped":
            return f"{began}, was ended from outside; the next run goes on from there"
        return f"{began} by process {self.process} on {self.host}"


def last_activity(run: Run) -> Activity | None:
    """None after a release, before the first run, and if the file is damaged: it decides nothing.

    The lock that a step holds says whether it is at work, not the number of its process: the system
    gives that to others, and another machine, or container, does not know it.
    """
    try:
        activity = parse_state(Activity, read_json(run.folder.activity))
    except (OSError, StoreError):
        return None
    if activity is not None and activity.state == "running" and not run.folder.is_locked():
        return replace(activity, state="stopped")
    return activity


def end_killed(run: Run) -> None:
    """Put on record that a step that a kill left as running was stopped. The pipeline's lock is held,
    by which it would count as at work: so no other step is."""
    with contextlib.suppress(OSError, StoreError):  # it decides nothing
        activity = parse_state(Activity, read_json(run.folder.activity))
        if activity is not None and activity.state == "running":
            _write(run, replace(activity, state="stopped"))


@contextlib.contextmanager
def recorded(run: Run, step: str, is_last: bool = False) -> Iterator[None]:
    """Keep on record that a step is at work, and how it ended. After the `is_last` step nothing
    stays on record. The pipeline's lock is held."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    activity = Activity(step, now, os.getpid(), socket.gethostname())
    _write(run, activity)
    try:
        yield
    except (BatchPending, Paused):  # it ends well, and more is to come
        _write(run, replace(activity, state=""))
        raise
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        problem = "it was stopped" if stopped else str(error) or type(error).__name__
        ended = replace(activity, state="failed", problem=problem)
        with contextlib.suppress(OSError):  # what went wrong is raised
            _write(run, ended)
        raise
    if is_last:
        forget_activity(run)
    else:
        _write(run, replace(activity, state=""))


def _write(run: Run, activity: Activity) -> None:
    """Not synced: it decides nothing, and is written twice a step."""
    write_json(run.folder.activity, asdict(activity), durable=False)


def forget_activity(run: Run) -> None:
    """All is up to date again."""
    delete(run.folder.activity)
