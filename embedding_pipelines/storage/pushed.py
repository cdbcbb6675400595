"""The log of the documents that programs have pushed to a pipeline: what they put, deleted and
withdrew, in order. It is a source, so that nothing here can be made anew from anything else.

A segment is a file that is created once, under the next number, and never changed: of two writers
one creates it, the other goes on to the number after it. Its lines are changes, each with the
number of the request that it came with and a checksum of itself; the last word on an id counts.
When there are many segments, neighbours are merged into one that covers their numbers.

With a warehouse in a bucket the log is there, in the same segments, and every machine keeps a copy.

The log lies beside the pipelines' folders, for it outlives what runs make, and a deletion that
keeps the pipeline's file keeps it, too.
"""

import contextlib
import errno
import fcntl
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from embedding_pipelines.errors import BucketError, ConfigError, StoreError
from embedding_pipelines.files import (
    create_only,
    delete,
    delete_drafts,
    list_names,
    read_json,
    seal,
    sync,
    unseal,
    write_atomic,
    write_json,
)
from embedding_pipelines.objects import RETRY_SECONDS, Bucket, Object
from embedding_pipelines.storage.bucket import bucket_of, open_uri, require_commits
from embedding_pipelines.storage.warehouse import Warehouse

Result = TypeVar("Result")
Kind = Literal["put", "delete", "withdraw"]

NAME = re.compile(r"(\d{10})-(\d{10})-(\d{4})\.jsonl")
RECORDS = (dict, type(None))
MOST_SEGMENTS = 16  # that are left as they are
LARGER = 4  # times all that follows: a segment of that size is not written again
COPY_OF = "copy.json"  # in the folder: of which bucket it is a copy
FETCH_SECONDS = 1.0
CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)
CLOCK_NS = 2 * 10**9  # that the times of folders may be coarse
ATTEMPTS = 20  # to read what another process merges meanwhile


@dataclass(frozen=True)
class Change:
    """One word on one document. `record` is what was put, as JSON, under the names of the source's
    columns."""

    id: str
    kind: Kind
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True, order=True)
class Segment:
    """The changes of numbers `first` to `last`; of two with the same numbers the later edition is
    in force."""

    first: int
    last: int
    edition: int = 0

    @property
    def name(self) -> str:
        return f"{self.first:010}-{self.last:010}-{self.edition:04}.jsonl"

    def covers(self, other: "Segment") -> bool:
        """Whether it stands in the place of another one."""
        is_wider = self.first <= other.first and other.last <= self.last
        return is_wider and self != other and self.edition >= other.edition


@dataclass(frozen=True)
class Word:
    """The last word on an id, and where it stands."""

    kind: Kind
    number: int  # of the request
    segment: str
    line: int  # from 1


class PushedWatch:
    """Tells a reader who looks often when there is something new in a log."""

    def __init__(self, log: "PushedLog") -> None:
        self._log = log
        self.problem = ""  # a sentence, if the bucket does not answer
        self._fetch_at = float("-inf")
        self._changed_at: int | None = None  # of the folder; None: to be looked into in any case

    def segments(self) -> list[Segment] | None:
        """Those in force; None if they are those of the last look. What other machines push is
        looked for every FETCH_SECONDS."""
        self._fetch()
        try:
            changed_at = self._log.folder.stat().st_mtime_ns
        except FileNotFoundError:
            changed_at = 0
        if changed_at == self._changed_at:
            return None
        # A time that is no older than a clock's tick may stay the same when there is more.
        is_old = abs(time.time_ns() - changed_at) > CLOCK_NS
        self._changed_at = changed_at if is_old else None
        return self._log.segments()

    def _fetch(self) -> None:
        now = time.monotonic()
        if now < self._fetch_at:
            return
        self._fetch_at, self.problem = now + FETCH_SECONDS, ""
        try:
            self._log.fetch()
        except (BucketError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in CANNOT_WRITE:
                raise
            self.problem = f"What other machines have pushed may be missing: {error}"

    def look_again(self) -> None:
        """Count the last look as none."""
        self._changed_at = None


class PushedLog:
    """The log of one pipeline, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def segments(self) -> list[Segment]:
        """Those in force, in order, from number 1 on without a gap. Raises StoreError if one is
        lost."""
        for attempt in range(ATTEMPTS):
            segments = in_force(list_names(self.folder))
            lacking = first_lacking(segments)
            if lacking is None:
                return segments
            # A folder's names are listed one by one: of two that come meanwhile, the second may be
            # seen and the first may not.
            time.sleep(0.001 * attempt)
        raise StoreError(
            f"{self.folder} lacks what was pushed under the number {lacking}. Nothing else has it: "
            "put back a copy of the folder."
        )

    def last(self) -> int:
        """The number of the newest change, 0 before the first."""
        return max((segment.last for segment in self.segments()), default=0)

    def size_bytes(self, segment: Segment) -> int:
        return self.path(segment).stat().st_size

    def path(self, segment: Segment) -> Path:
        return self.folder / segment.name

    def append(self, changes: Sequence[Change], after: int = 0) -> int:
        """Add changes under one number, which is returned: on the disk, for every reader. Raises
        StoreError if the log does not reach to `after`, a number that it once gave."""
        number = self.last()
        self.require(after)
        while True:
            number += 1
            lines = (to_line(number, change) for change in changes)
            if self._create(Segment(number, number), b"".join(lines)):
                return number
            number = max(number, self.last())

    @contextlib.contextmanager
    def hold(self, is_alone: bool = False) -> Iterator[None]:
        """Keep writers out who are alone, while the body runs; `is_alone`: all others. So whoever
        erases has seen what was appended before, and whoever appends sees what is forgotten. It is
        for the processes of one machine."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_name(f"{self.folder.name}.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
            yield

    def require(self, number: int) -> None:
        """Raise StoreError if the log ends before a number that it once gave."""
        last = self.last()
        if last < number:
            name = self.folder.name
            raise StoreError(
                f"{self.folder} holds what was pushed up to the number {last}, and a release of "
                f"{name!r} holds more, up to {number}: the folder is lost, or an old copy. Put back "
                f"a copy. If there is none, `embedding-pipelines delete {name} --keep-file`, then "
                "push all documents again."
            )

    def _create(self, segment: Segment, content: bytes) -> bool:
        """Create a segment of one number. It may have been there, and be merged by now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not create_only(self.path(segment), content, durable=True):
            return False
        return segment in self.segments()

    def changes(self, after: int = 0) -> list[tuple[int, Change]]:
        """All changes behind a number that still matter, oldest first, each with its own. Raises
        StoreError for a damaged segment."""
        return self._reading(lambda: list(self._changes(after)))

    def last_changes(self, last: int) -> list[Change]:
        """What is left to be said of each document by the number `last`. Raises as `changes`."""
        words = {change.id: change for number, change in self.changes() if number <= last}
        return [change for change in words.values() if change.kind != "withdraw"]

    def words(self, last: int | None = None) -> dict[str, Word]:
        """The last word on each id, of numbers up to `last` if that is given. Raises as
        `changes`."""
        return self._reading(lambda: self._words(last))

    def _changes(self, after: int) -> Iterator[tuple[int, Change]]:
        for segment in self.segments():
            for number, change, _, _ in self._lines(segment) if segment.last > after else ():
                if number > after:
                    yield number, change

    def _words(self, last: int | None) -> dict[str, Word]:
        words = dict[str, Word]()
        for segment in self.segments():
            if last is not None and segment.first > last:
                break
            for number, change, line, _ in self._lines(segment):
                words[change.id] = Word(change.kind, number, segment.name, line)
        return words

    def _reading(self, read: Callable[[], Result]) -> Result:
        """What `read` returns, begun again where segments were merged meanwhile."""
        for attempt in range(ATTEMPTS):
            try:
                return read()
            except FileNotFoundError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _lines(self, segment: Segment) -> Iterator[tuple[int, Change, int, bytes]]:
        """Number, change, line from 1 and the line's bytes."""
        path = self.path(segment)
        for at, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            number, change = parse_line(line, path, at)
            yield number, change, at, line

    def fetch(self) -> None:
        """Bring the folder to what other machines have pushed, where there is a bucket."""

    def delete_shared(self) -> None:
        """Delete what other machines see of it, where there is a bucket. The folder stays."""

    def delete_drafts(self) -> None:
        """Delete what pushes left that were killed before they counted."""
        delete_drafts(self.folder)

    def merge(self, settled: int = 0, is_only_source: bool = False) -> bool:
        """Merge neighbours, once there are many; whether there was something to merge. Withdrawals
        up to the number `settled`, which every release holds, go, and so does all that later words
        have replaced; deletions, too, where no other source can bring back a document. The
        pipeline's lock is held."""
        self.fetch()
        segments = self.segments()
        self._delete_covered(segments)
        if len(segments) <= MOST_SEGMENTS:
            return False
        sizes = [self.size_bytes(segment) for segment in segments]
        start = next(
            (at for at in range(len(sizes)) if sizes[at] <= LARGER * sum(sizes[at + 1 :])),
            len(sizes),
        )
        merged = segments[start:]
        if len(merged) <= MOST_SEGMENTS // 2:
            return False
        settled_kinds = ("withdraw", "delete") if is_only_source else ("withdraw",)
        lines = dict[str, tuple[int, bytes]]()  # in the order of their last words
        for segment in merged:
            for number, change, _, line in self._lines(segment):
                lines.pop(change.id, None)
                if start == 0 and change.kind in settled_kinds and number <= settled:
                    continue  # a reader who has not seen a newer one would go on with what was put
                lines[change.id] = number, line
        content = b"".join(line for _, line in lines.values())
        edition = max(segment.edition for segment in merged)  # something was erased, to readers
        self._replace(merged, Segment(merged[0].first, merged[-1].last, edition), content)
        return True

    def erase(self, ids: Collection[str]) -> int:
        """Take all changes of some documents out of all segments; how many. The pipeline's lock is
        held."""
        self.fetch()  # another machine may have merged or erased what this one has
        count, segments = 0, self.segments()
        self._delete_covered(segments)
        for segment in segments:
            lines = [(change, line) for _, change, _, line in self._lines(segment)]
            rest = [line for change, line in lines if change.id not in ids]
            if len(rest) < len(lines):
                count += len(lines) - len(rest)
                edition = Segment(segment.first, segment.last, segment.edition + 1)
                self._replace([segment], edition, b"".join(rest))
        return count

    def _replace(self, segments: Sequence[Segment], by: Segment, content: bytes) -> None:
        """Put one segment in the place of others; a process that dies here leaves either in
        force."""
        if not create_only(self.path(by), content, durable=True):
            raise StoreError(
                f"{self.path(by)} is there already: another process merges the same log. Try again."
            )
        for segment in segments:
            delete(self.path(segment))
        sync(self.folder)

    def _delete_covered(self, segments: Sequence[Segment]) -> None:
        """Delete what a process left that was killed between a segment and those it replaces."""
        for segment in map(parse_name, list_names(self.folder)):
            if segment is not None and any(each.covers(segment) for each in segments):
                delete(self.path(segment))


class SharedLog(PushedLog):
    """A log in a bucket, which machines share; the folder is this machine's copy of it.

    Every method but `fetch`, `append`, `merge`, `erase` and `delete_shared` knows the copy alone. Those
    raise BucketError where the store refuses, or does not answer.
    """

    def __init__(self, folder: Path, uri: str, opened: tuple[Bucket, str]) -> None:
        super().__init__(folder)
        self._uri, (self._bucket, self._prefix) = uri, opened
        self._keys = f"{self._prefix}pushed/{folder.name}"

    def fetch(self) -> None:
        """Bring the copy to what the bucket has. Raises ConfigError for a copy that holds what was
        never in this bucket."""
        if (read_json(self.folder / COPY_OF) or {}).get("bucket") != self._uri:
            self._upload()
        # First what is here, then what is there: what came in between is no surprise.
        here = [each for each in map(parse_name, list_names(self.folder)) if each is not None]
        there = in_force(entry.key.rpartition("/")[2] for entry in self._listed())
        newest = there[-1].last if there else 0
        if here and max(each.last for each in here) > newest:
            raise BucketError(
                f"{self._uri} does not hold any more what was pushed to {self.folder.name!r} behind "
                f"the number {newest}. Put it back; or, if it was deleted, delete {self.folder}."
            )
        for segment in there:
            if segment not in here:
                content = self._bucket.read(self._key(segment))
                if content is None:  # merged meanwhile
                    return self.fetch()
                write_atomic(self.path(segment), content)
        for segment in set(here) - set(there):
            delete(self.path(segment))
        return None

    def _listed(self) -> list[Object]:
        return self._bucket.list_after(self._keys)

    def _upload(self) -> None:
        """Put what was pushed here before there was a bucket into it."""
        own = super().segments()
        if own and self._listed():
            raise ConfigError(
                f"{self.folder} holds documents that were pushed on this machine and never in "
                f"{self._uri}, which has others. Name another folder of the bucket, or move that "
                "folder away and push its documents again."
            )
        if own:
            require_commits(self._bucket, self._prefix)
        for segment in own:
            self._bucket.create(self._key(segment), self.path(segment))
        write_json(self.folder / COPY_OF, {"bucket": self._uri})

    def append(self, changes: Sequence[Change], after: int = 0) -> int:
        self.fetch()
        if not self.last():
            require_commits(self._bucket, self._prefix)
        return super().append(changes, after)

    def _create(self, segment: Segment, content: bytes) -> bool:
        key = self._key(segment)
        # A store may have taken a request whose answer was lost: then it is there, and of us.
        is_ours = self._bucket.create(key, content) or self._bucket.read(key) == content
        self.fetch()
        return is_ours and segment in self.segments()

    def _replace(self, segments: Sequence[Segment], by: Segment, content: bytes) -> None:
        key = self._key(by)
        if not self._bucket.create(key, content) and self._bucket.read(key) != content:
            raise StoreError(
                f"{self._bucket.uri(key)} is there already: another machine merges the same log. "
                "Try again."
            )
        self._bucket.delete([self._key(segment) for segment in segments])
        self.fetch()

    def _delete_covered(self, segments: Sequence[Segment]) -> None:
        names = {entry.key: parse_name(entry.key.rpartition("/")[2]) for entry in self._listed()}
        self._bucket.delete(
            [
                key
                for key, segment in names.items()
                if segment is not None and any(each.covers(segment) for each in segments)
            ]
        )

    def delete_shared(self) -> None:
        self._bucket.delete([entry.key for entry in self._listed()])

    def _key(self, segment: Segment) -> str:
        return f"{self._keys}/{segment.name}"


def pushed_log(
    warehouse: Warehouse, pipeline: str, patience_seconds: float = RETRY_SECONDS
) -> PushedLog:
    """The log of a pipeline, whether anything was pushed to it or not. Raises as
    `storage/bucket.py`."""
    folder = warehouse.pushed / pipeline
    uri = None if warehouse.is_copy else bucket_of(warehouse.home)
    return SharedLog(folder, uri, open_uri(uri, patience_seconds)) if uri else PushedLog(folder)


def in_force(names: Iterable[str]) -> list[Segment]:
    """The segments of these names that are in force, in order: those that no other one covers."""
    segments = [segment for segment in map(parse_name, names) if segment is not None]
    segments.sort(key=lambda each: (each.first, -each.last, -each.edition))
    chosen = list[Segment]()
    for segment in segments:
        if not chosen or segment.last > chosen[-1].last:
            chosen.append(segment)
    return chosen


def parse_name(name: str) -> Segment | None:
    match = NAME.fullmatch(name)
    return Segment(*map(int, match.groups())) if match else None


def first_lacking(segments: Sequence[Segment]) -> int | None:
    """The first number from 1 on that no segment covers; None if each one up to the last is."""
    last = 0
    for segment in segments:
        if segment.first > last + 1:
            return last + 1
        last = segment.last
    return None


def to_line(number: int, change: Change) -> bytes:
    value: dict[str, Any] = {"number": number, "id": change.id, change.kind: True}
    if change.record is not None:
        value["put"] = change.record
    return seal(json.dumps(value, ensure_ascii=False)) + b"\n"


def parse_line(line: bytes, path: Path, at: int) -> tuple[int, Change]:
    """A line's number and change. Raises StoreError if it is not what was written."""
    try:
        value = unseal(line)
        kinds: tuple[Kind, ...] = ("put", "delete", "withdraw")
        kind = next(kind for kind in kinds if kind in value)
        record = value["put"] if kind == "put" else None
        number, name = value["number"], value["id"]
        if not isinstance(name, str) or type(number) is not int or type(record) not in RECORDS:
            raise ValueError("a value is of another type")  # by hand, or in a bundle
        return number, Change(name, kind, record)
    except (ValueError, KeyError, StopIteration):
        raise StoreError(
            f"{path}:{at} is damaged. It holds documents that were pushed, which nothing else has: "
            "put back a copy of the file."
        ) from None
