"""How a sensor looks at its source: it lists it or, where a queue has the events of its bucket, takes
those and lists it now and then.

With a queue the source is listed once an hour, after each run that it asked for, and whenever the
events do not say enough; so an event that was lost costs an hour, not a change. An event is deleted
once what it names is as it was last read: until then it comes again at each look, whatever became
of the run, or of the look itself.
"""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from embedding_pipelines.errors import BucketError
from embedding_pipelines.objects import Bucket, open_bucket
from embedding_pipelines.run import Run
from embedding_pipelines.sources.base import FileSource, Input, SourceFile, Stamp
from embedding_pipelines.sources.events import Event, Queue
from embedding_pipelines.sources.inputs import SourceObject
from embedding_pipelines.sources.paths import covers
from embedding_pipelines.steps.documents import inputs_of, read_files, segments_of
from embedding_pipelines.steps.reading import is_pushed
from embedding_pipelines.storage.warehouse import parse_state

LISTED_SECONDS = 3_600.0  # between two listings of a source whose events come through a queue
MOST_NAMES = 100  # objects that are looked at one by one; a listing has a thousand in a request


@dataclass(frozen=True)
class Memory:
    """A cursor of a sensor with a queue: when it listed last, in seconds since 1970, and the cursor
    of `decide`."""

    listed_at: float = 0.0
    decision: str | None = None

    @classmethod
    def of(cls, cursor: str | None) -> "Memory":
        """An empty one of a cursor that was reset, and of one that somebody else wrote."""
        try:
            memory = parse_state(cls, json.loads(cursor or "null"))
            return cls(float(memory.listed_at), memory.decision) if memory else cls()
        except (ValueError, TypeError):
            return cls()

    @property
    def is_calm(self) -> bool:
        """Whether all was released at the last look."""
        return self.decision == "null"

    def dump(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Look:
    """The source as it is now, and what to remember of the look."""

    files: list[Input]
    listed_at: float
    note: str = ""  # why the queue was of no use


def look(run: Run, memory: Memory, now: float) -> Look:
    """The source by its queue's events, or by a listing. Raises SourceError."""
    assert run.spec.events is not None
    try:
        queue = Queue(run.spec.events)
        events, note = queue.receive(), ""
    except BucketError as error:
        return list_source(run, now, f"{error} Until then the bucket is listed.")
    record = {name: tuple(entry.stamp) for name, entry in read_files(run).items()}
    names = {name for event in events for name in event.names or ()}
    is_due = not 0 <= now - memory.listed_at < LISTED_SECONDS
    says_all = len(names) <= MOST_NAMES and all(event.names is not None for event in events)
    seen = None
    # Without a record nothing was read with the source's options as they are now.
    is_told = says_all and not run.spec.source.is_joined
    if memory.is_calm and is_told and not is_due and record:
        with contextlib.suppress(BucketError):  # of an object, say: the listing tells
            seen = _look_at(run, names, record, memory.listed_at)
    seen = seen or list_source(run, now)
    try:
        listing = {file.name: file.stamp for file in seen.files}
        queue.delete([event for event in events if _is_read(event, listing, record)])
    except BucketError as error:
        note = str(error)
    finally:
        queue.close()
    return Look(seen.files, seen.listed_at, note)


def list_source(run: Run, now: float, note: str = "") -> Look:
    """The source as it is listed. Raises SourceError."""
    return Look(inputs_of(run), now, note)


def _look_at(run: Run, names: set[str], record: dict[str, Stamp], listed_at: float) -> Look:
    """What was read last, with these objects as they are now. Raises BucketError."""
    source = run.spec.source
    assert isinstance(source, FileSource)
    files: dict[str, Input] = {
        name: SourceFile(name, int(stamp[0]), stamp, Path())  # as it is on record
        for name, stamp in record.items()
        if not is_pushed(run, name)
    }
    buckets: dict[str, Bucket] = {}
    for name in names:
        if not covers(source.path, source.suffixes, name):
            continue
        address, _, key = name.removeprefix("s3://").partition("/")
        bucket = buckets.get(address) or open_bucket(name)[0]
        buckets[address] = bucket
        if (entry := bucket.find(key)) is None:
            files.pop(name, None)
        else:
            files[name] = SourceObject.of(bucket, entry)
    return Look([*files.values(), *segments_of(run)], listed_at)


def _is_read(event: Event, listing: dict[str, Stamp], record: dict[str, Stamp]) -> bool:
    """Whether what an event names is as it was last read; all, if it names nothing that is known."""
    names = listing.keys() | record.keys() if event.names is None else event.names
    return all(listing.get(name) == record.get(name) for name in names)
