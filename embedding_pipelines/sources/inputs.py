"""What a source reads: a file on this machine, or an object in a bucket, which is read from a copy."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pyarrow as pa

from embedding_pipelines.errors import BucketError, ObjectGoneError, SourceError, SourceGoneError
from embedding_pipelines.files import temporary_folder
from embedding_pipelines.objects import Bucket, Object, is_uri, open_bucket
from embedding_pipelines.sources.parts import Part

DOWNLOADS = 8  # at once: small objects cost the way to the store and back, not their bytes
AHEAD_BYTES = 256 * 2**20  # of copies at once, unless one object is larger

Stamp = tuple[int | str, ...]


@dataclass(frozen=True)
class SourceFile:
    """An input that can be read at `path`. `name` is posix, relative to the home folder or, outside
    of it, absolute; of an object it is the URI."""

    name: str
    size_bytes: int
    stamp: Stamp
    """Changes whenever the content does. Of a file it holds size, mtime and ctime: a copy that
    keeps size and times has another ctime. Of an object it holds size and ETag. A source may add to
    it what else decides the documents of this part."""
    path: Path
    below: str = field(default="", kw_only=True)  # its path below the folder that was named
    joined: Any = field(default=None, kw_only=True)  # what the source knows of it from elsewhere
    part: Part | None = field(default=None, kw_only=True)  # of the file, if this is not all of it


@dataclass(frozen=True)
class SourceObject:
    """An object as it was listed. `name` is its URI; `stamp` as in SourceFile."""

    name: str
    size_bytes: int
    stamp: Stamp
    bucket: Bucket
    listed: Object
    below: str = field(default="", kw_only=True)  # as in SourceFile
    joined: Any = field(default=None, kw_only=True)

    @classmethod
    def of(cls, bucket: Bucket, listed: Object, below: str = "") -> "SourceObject":
        stamp = (listed.size_bytes, listed.tag)
        return cls(bucket.uri(listed.key), listed.size_bytes, stamp, bucket, listed, below=below)


Input = SourceFile | SourceObject


@contextlib.contextmanager
def fetched(inputs: Sequence[Input], parent: Path | None = None) -> Iterator[Iterator[SourceFile]]:
    """Inputs one after the other, each to be read before the next one is asked for.

    Objects are copied to a folder in `parent` (by default where the system has such files), some of
    them ahead. A copy is whole and of one version, whose stamp it has: the one that was listed or,
    if it has been replaced since, the newer one. Asking for it raises SourceError for an object
    that is gone, or cannot be read.
    """
    if not any(isinstance(each, SourceObject) for each in inputs):
        yield iter([each for each in inputs if isinstance(each, SourceFile)])
        return
    place = parent or Path(gettempdir())
    with (
        temporary_folder(place, ".embedding-pipelines-copies-") as folder,
        ThreadPoolExecutor(DOWNLOADS) as threads,
    ):
        try:
            yield _copies(inputs, folder, threads)
        finally:
            threads.shutdown(cancel_futures=True)


class Contents:
    """Reads files and objects by the names that their documents have; threads may share it."""

    def __init__(self, home: Path) -> None:
        self._home, self._lock = home, threading.Lock()
        self._buckets: dict[str, Bucket] = {}  # by address, once for all of their objects

    def read(self, name: str) -> bytes | Path:
        """The content of an object, or a file. Raises SourceGoneError for an object that is gone,
        SourceError if the store refuses, or does not answer."""
        if not is_uri(name):
            return self._home / name
        try:
            with self._lock:
                address = "/".join(name.split("/", 3)[:3])
                if address not in self._buckets:
                    self._buckets[address] = open_bucket(name)[0]
                bucket = self._buckets[address]
            content = bucket.read(name.removeprefix(f"{address}/"))
        except BucketError as error:
            raise SourceError(str(error)) from error
        if content is None:
            raise SourceGoneError("the object is gone")
        return content


def _copies(
    inputs: Sequence[Input], folder: Path, threads: ThreadPoolExecutor
) -> Iterator[SourceFile]:
    started: list[Future[SourceFile]] = []
    for at in range(len(inputs)):
        while len(started) < len(inputs) and (
            len(started) == at or _fits(inputs[at : len(started) + 1])
        ):
            number = len(started)
            started.append(threads.submit(_copy, inputs[number], folder / str(number)))
        file = started[at].result()
        yield file
        if isinstance(inputs[at], SourceObject):
            file.path.unlink()


def _copy(each: Input, path: Path) -> SourceFile:
    if isinstance(each, SourceFile):
        return each
    try:
        now = SourceObject.of(each.bucket, each.bucket.download(each.listed, path))
    except ObjectGoneError as error:
        raise SourceGoneError(str(error)) from error
    except BucketError as error:
        raise SourceError(str(error)) from error
    stamp = (*now.stamp, *each.stamp[len(now.stamp) :])
    return SourceFile(now.name, now.size_bytes, stamp, path, below=each.below, joined=each.joined)


def _fits(inputs: Sequence[Input]) -> bool:
    """Whether copies of these may be here at once."""
    sizes = [each.size_bytes for each in inputs if isinstance(each, SourceObject)]
    return len(inputs) <= DOWNLOADS and sum(sizes) <= AHEAD_BYTES


@contextlib.contextmanager
def explain_errors(file: SourceFile, damage: str) -> Iterator[None]:
    """Turn errors of reading `file` into SourceError; `damage` is what else is wrong with it."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceGoneError(
            f"{file.name}: the file is gone. Put it back, or run again."
        ) from error
    except PermissionError as error:
        raise SourceError(
            f"{file.name}: permission denied. Let this user read the file."
        ) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(
            f"{file.name}: {damage} ({error}). Put a whole copy in its place."
        ) from error
