"""The generations of a pipeline in a bucket: each names every file of the pipeline's at one moment.

An object is created and never replaced. Contents come first, and then the generation that names
them, under the next number: of two writers one creates it. Readers follow the newest.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import TypeVar

from embedding_pipelines.errors import BucketError
from embedding_pipelines.files import draft_beside, move, seal, unseal
from embedding_pipelines.objects import Bucket, Object
from embedding_pipelines.storage.lease import Holder
from embedding_pipelines.storage.warehouse import file_digest

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 8  # requests that are sent at once
KEPT_GENERATIONS = 3
KEPT = timedelta(days=1)  # for readers that are under way
DIGITS = 10  # of a number in a name, so that names sort as numbers do
NAMED_DIGITS = 16  # of its digest in a shard's name
TABLE = ".lance"  # in the path of a table's files
VERSIONS = f"{TABLE}/_versions/"
MUTABLE = ".json"  # the end of names under which other content may stand later


@dataclass(frozen=True)
class Entry:
    """One file, by its place in the bucket."""

    key: str  # below the warehouse's prefix
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Generation:
    """What a writer published at one moment."""

    number: int
    mark: str  # that no other generation has
    follows: str  # the mark of the generation before, empty for the first
    writer: Holder
    published_at: str  # ISO 8601, UTC
    files: Mapping[str, Entry]  # by path below the warehouse

    @property
    def day(self) -> str:
        return f"generation {self.number}, published {self.published_at} by {self.writer.host}"


@dataclass(frozen=True)
class File:
    """A file of the local copy."""

    path: Path
    size_bytes: int
    digest: str


class OvertakenError(Exception):
    """Another writer has published since."""


class Generations:
    """Those of one pipeline; `prefix` is the warehouse's in the bucket, empty or ending in a
    slash."""

    def __init__(self, bucket: Bucket, prefix: str, pipeline: str) -> None:
        self.bucket, self.prefix, self.pipeline = bucket, prefix, pipeline
        self.folder = f"{prefix}pipelines/{pipeline}"

    def newest(self, least: int = 0) -> int | None:
        """The number of the newest one, None if there is none from `least` on."""
        listed = self.bucket.list_after(self._folder, self._key(max(least, 1) - 1))
        return _number(listed[-1]) if listed else None

    def read(self, number: int) -> Generation:
        """Raises BucketError for one that is gone or damaged."""
        key = self._key(number)
        content = self.bucket.read(key)
        if content is None:
            raise BucketError(f"{self.bucket.uri(key)} is gone. Try again.")
        try:
            value = unseal(content)
            files = {path: Entry(**entry) for path, entry in value.pop("files").items()}
            if not all(map(_is_below, files)):
                raise ValueError("a path leads out of the warehouse")
            return Generation(files=files, writer=Holder(**value.pop("writer")), **value)
        except (ValueError, TypeError, KeyError):
            raise BucketError(
                f"{self.bucket.uri(key)} is damaged, or of another version of this package. Delete "
                "it to go back to the generation before, and run the pipeline."
            ) from None

    def ever_named(self, path: str, digest: str) -> bool:
        """Whether a generation that is still there names a file of this content, the newest first."""
        for entry in reversed(self.bucket.list_after(self._folder)):
            file = self.read(_number(entry)).files.get(path)
            if file is not None and file.digest == digest:
                return True
        return False

    def publish(self, generation: Generation) -> None:
        """Create a generation. Raises OvertakenError if its number is taken, or others are above
        it."""
        value = asdict(generation)
        content, key = seal(json.dumps(value, ensure_ascii=False)), self._key(generation.number)
        # Of a request whose answer was lost, the content tells whose it was.
        if not self.bucket.create(key, content) and self.bucket.read(key) != content:
            raise OvertakenError
        if self.newest(generation.number) != generation.number:
            # Numbers that were swept can be created again, and mean nothing; others have followed
            # this one if its process slept since it created it.
            follower = self.bucket.read(self._key(generation.number + 1))
            if follower is None or unseal(follower)["follows"] != generation.mark:
                raise OvertakenError

    def upload(self, files: Mapping[str, File], before: Mapping[str, Entry]) -> dict[str, Entry]:
        """Put files where a generation can name them; their entries.

        `before` are those of the generation before, whose objects stay. Another object that is
        there already is used if it has the content and no sweep can take it away; else the file
        gets a name of its own. All files of a table are in one folder, so that LanceDB can open it
        in the bucket.
        """
        folders = {_table_of(path): _table_of(entry.key) for path, entry in before.items()}
        entries, others = dict[str, Entry](), dict[str, Entry]()
        for path, file in files.items():
            entry = before.get(path)
            if entry is not None and entry.digest == file.digest:
                entries[path] = entry
            else:
                key = _key_of(path, file.digest, self.pipeline)
                if folder := folders.get(_table_of(path)):
                    key = folder + key.removeprefix(_table_of(path))
                others[path] = Entry(key, file.size_bytes, file.digest)
        is_placed = _each(lambda path: self._create(files[path].path, others[path]), others)
        entries |= others
        moved = [path for path, placed in zip(others, is_placed, strict=True) if not placed]
        if moved:
            tables, mark = {_table_of(path) for path in moved} - {""}, uuid.uuid4().hex[:8]
            moved += [path for path in files if path not in moved and _table_of(path) in tables]
            entries |= {path: _renamed(entries[path], mark) for path in moved}
            _each(lambda path: self._create(files[path].path, entries[path]), moved)
        return entries

    def _create(self, source: Path, entry: Entry) -> bool:
        """Whether an object with a file's content is there now."""
        key = self.prefix + entry.key
        if self.bucket.create(key, source):
            return True
        there = self.bucket.find(key)
        if there is None or there.size_bytes != entry.size_bytes or self._is_old(there):
            return False
        # Other names are of their content: they hold its digest, or a number that nobody has again.
        return VERSIONS not in key or self.bucket.read(key) == source.read_bytes()

    def _is_old(self, entry: Object) -> bool:
        """Whether somebody may just be sweeping an object that no generation names."""
        return entry.modified_at < self._now - KEPT

    @cached_property
    def _now(self) -> datetime:
        """By the store's clock."""
        return self.bucket.touch(f"{self.folder}/clock")

    def download(self, files: Mapping[Path, Entry]) -> None:
        """Write the content of entries to files, each replaced in one rename once it is whole.
        Raises BucketError for one that is gone or not what was published."""
        _each(lambda item: self._download(*item), files.items())

    def _download(self, path: Path, entry: Entry) -> None:
        key = self.prefix + entry.key
        with draft_beside(path) as draft:
            for _ in range(2):  # a bit that flips on its way is no damage
                with draft.open("wb") as file:
                    is_there = self.bucket.fetch(key, file)
                if is_there and file_digest(draft) == entry.digest:
                    move(draft, path)
                    return
        what = "is damaged: its content is not what was published" if is_there else "is gone"
        raise BucketError(
            f"{self.bucket.uri(key)} {what}. Try again; if it stays so, put it back from a copy of "
            "the bucket; or publish all anew from a machine whose copy is whole, by "
            f"`embedding-pipelines delete {self.pipeline} --keep-file` and a run, which takes its "
            "vectors from the cache."
        )

    def sweep(
        self, newest: int, tables: Callable[[str], bool], may_go_on: Callable[[], bool]
    ) -> None:
        """Delete old generations and the objects that none names any more, about once in KEPT.

        The newest KEPT_GENERATIONS stay, and those and the objects that were younger than KEPT when
        the newest was published. `tables` tells the folders of this pipeline's tables. Nothing is
        deleted unless `may_go_on` says, just before, that the lease is held.
        """
        generations = self.bucket.list_after(self._folder)
        dates = {_number(entry): entry.modified_at for entry in generations}
        now = dates.get(newest)
        if now is None or min(dates.values()) > now - 2 * KEPT:
            return
        numbers = sorted(dates)[-KEPT_GENERATIONS:]
        recent = {number for number in dates if number in numbers or dates[number] > now - KEPT}
        named = {
            f"{self.prefix}{entry.key}"
            for generation in _each(self.read, recent)
            for entry in generation.files.values()
        }
        gone = [entry.key for entry in generations if _number(entry) not in recent]
        for listed in self._contents(tables):
            gone += [e.key for e in listed if e.key not in named and e.modified_at < now - KEPT]
        if may_go_on():
            self.bucket.delete(gone)

    def erase(
        self, number: int, tables: Callable[[str], bool], may_go_on: Callable[[], bool]
    ) -> bool:
        """Delete all generations before one, the newest, and all contents that it does not name,
        however young they are: somebody may have asked for that. Deletes nothing and returns False
        if others have followed, or unless `may_go_on` says, just before, that the lease is held."""
        named = {f"{self.prefix}{entry.key}" for entry in self.read(number).files.values()}
        gone = [e.key for e in self.bucket.list_after(self._folder) if _number(e) < number]
        for listed in self._contents(tables):
            gone += [entry.key for entry in listed if entry.key not in named]
        if not may_go_on() or self.newest(number) != number:
            return False
        self.bucket.delete(gone)
        return True

    def lost(self, generation: Generation, tables: Callable[[str], bool]) -> dict[str, Entry]:
        """The files of a generation, by path, whose objects are gone or of another size. `tables`
        is as that of `sweep`."""
        sizes = {each.key: each.size_bytes for listed in self._contents(tables) for each in listed}
        lost = {}
        for path, entry in generation.files.items():
            key = self.prefix + entry.key
            if key not in sizes:  # of what all pipelines share
                there = self.bucket.find(key)
                sizes[key] = there.size_bytes if there else -1
            if sizes[key] != entry.size_bytes:
                lost[path] = entry
        return lost

    def put_back(self, entry: Entry, source: Path) -> None:
        """Create an object anew that is lost or damaged."""
        key = self.prefix + entry.key
        self.bucket.delete([key])
        self.bucket.create(key, source)

    def _contents(self, tables: Callable[[str], bool]) -> Iterable[list[Object]]:
        folders, _ = self.bucket.list_folder(f"{self.prefix}tables")
        own = [folder for folder in folders if tables(folder.rpartition("/")[2])]
        for folder in (self.folder, *own):
            skipped = (f"{self._folder}/", f"{self.folder}/lease/")
            listed = self.bucket.list_after(folder)
            yield [entry for entry in listed if not entry.key.startswith(skipped)]

    @property
    def _folder(self) -> str:
        return f"{self.folder}/generations"

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number:0{DIGITS}}.json"


def _is_below(path: str) -> bool:
    """Whether a path stays below the folder that it is relative to, on any system."""
    windows = PureWindowsPath(path)
    return not windows.anchor and ".." not in windows.parts


def _key_of(path: str, digest: str, pipeline: str) -> str:
    """The place of a file that is published for the first time: its own path, if its name can have
    no other content; else one that holds its digest."""
    name = path.rpartition("/")[2]
    if digest[:NAMED_DIGITS] in name or (f"{TABLE}/" in path and not name.endswith(MUTABLE)):
        return path
    return f"pipelines/{pipeline}/contents/{digest}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _number(entry: Object) -> int:
    return int(entry.key.rpartition("/")[2].removesuffix(".json"))


def _table_of(path: str) -> str:
    """The folder of the table that a file belongs to, empty for other files."""
    folder, mark, _ = path.partition(f"{TABLE}/")
    return folder if mark and not path.endswith(MUTABLE) else ""


def _renamed(entry: Entry, mark: str) -> Entry:
    """A place for a file whose own place is taken."""
    folder, slash, rest = entry.key.partition(f"{TABLE}/")
    return replace(entry, key=f"{folder.partition('~')[0]}~{mark}{slash}{rest}")


def _each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """A function of each item, several at once. Raises what the first failure raises."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(function, items))
