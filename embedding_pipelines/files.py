"""The one place that writes, lists, deletes and syncs the files of state; it replaces a file as a
whole or not at all."""

import contextlib
import errno
import fcntl
import fnmatch
import functools
import glob
import json
import os
import re
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from embedding_pipelines.errors import BusyError, StoreError

# The end of a JSON object that holds its own checksum; see `seal`.
SEAL = re.compile(rb',?(?:\n  | )"checksum": "([0-9a-f]{8})"\n?}\Z')
SEAL_BYTES = 40  # it is not longer
SEAL_DIGITS = 8
BLOCK_BYTES = 1 << 20  # that are read at once to compute a checksum
SYNC_THREADS = 8  # a file system writes what several of them wait for in one go
CLOCK_SECONDS = 2  # that a file's times may lag behind


@contextlib.contextmanager
def draft_beside(path: Path) -> Iterator[Path]:
    """An empty draft in the folder of `path`, which is created; a draft that was not moved is
    deleted in the end.

    Names are unique, so that writers need no lock. A draft is locked as long as its writer lives:
    those of killed writers of `path` are deleted here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    delete_drafts(path.parent, path.name)
    draft, file = _locked_draft(path)
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)
        file.close()


def _locked_draft(path: Path) -> tuple[Path, IO[bytes]]:
    while True:
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        file = draft.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return draft, file
        file.close()  # somebody took it for abandoned before it was locked


def delete_drafts(folder: Path, name: str | None = None) -> None:
    """Delete the drafts that killed writers left in a folder: of one file, or of all."""
    for draft in abandoned_drafts(folder, name):
        draft.unlink(missing_ok=True)


def abandoned_drafts(folder: Path, name: str | None = None) -> Iterator[Path]:
    """The drafts in a folder that no process has locked, each locked until the next is asked for."""
    pattern = "*" if name is None else glob.escape(name)
    for draft in folder.glob(f".{pattern}.*.tmp"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), draft.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield draft


def move(draft: Path, path: Path) -> None:
    """Replace `path` by a draft, in one rename."""
    os.replace(draft, path)


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A draft to write, which replaces `path` once the body has succeeded. `durable`: after it has
    reached the disk, so that a power cut leaves the old file or the new one.
    """
    with draft_beside(path) as draft:
        yield draft
        if durable:
            sync(draft)
        move(draft, path)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        # Some network file systems sync no folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(file)


def sync_since(folders: Iterable[Path], since: float) -> None:
    """Wait until all that was written below these folders since a time (seconds since 1970) is on
    the disk: contents, then names in the folders and in those above them.

    A time in the future, of a clock that was put right, means all.
    """
    if since > time.time():
        since = 0.0
    files, places = list[Path](), dict[Path, None]()
    for folder in folders:
        for place, _, names in os.walk(folder):
            places[Path(place)] = None
            files += [Path(place, name) for name in names]
        places.update(dict.fromkeys(folder.parents))
    with ThreadPoolExecutor(SYNC_THREADS) as threads:
        for paths in (files, places):
            list(threads.map(functools.partial(_sync_if_changed, since), paths))


def _sync_if_changed(since: float, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # deleted by now
        if path.stat().st_ctime >= since - CLOCK_SECONDS:
            sync(path)


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """An empty folder, removed in the end. It is locked as long as this process lives: those of
    the same prefix that killed processes left are removed here."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        if (lock := _lock_folder(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    folder, lock = Path(), None
    while lock is None:  # else somebody took it for abandoned before it was locked
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = _lock_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock_folder(folder: Path) -> int | None:
    """Lock a folder of this user's; None if that is not to be had. Closing it lets go."""
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(lock)
            if status.st_uid == os.getuid() and os.path.samestat(status, folder.lstat()):
                return lock
        except OSError:
            pass
        os.close(lock)
    return None


@contextlib.contextmanager
def fill_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A draft to fill, which becomes `folder` once the body has succeeded; for caches.

    A folder without the file `marker` counts as damaged and is replaced. Of several processes the
    first one wins, since others may have its files open by then.
    """
    with temporary_folder(folder.parent, f".{folder.name}-") as draft:
        yield draft
        try:
            os.rename(draft, folder)
        except OSError:  # the folder exists
            if not (folder / marker).exists():
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # another process was first
                    os.rename(draft, folder)


@contextlib.contextmanager
def hold_to_read(path: Path, problem: str) -> Iterator[None]:
    """Hold the lock of `filelock` on a file that is there, which needs no right to write it.
    Raises BusyError with the problem if another process does."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(problem) from error
        yield


def write_atomic(path: Path, data: bytes | str, durable: bool = False) -> None:
    """Replace a file in one rename; text becomes UTF-8. `durable`: wait until it is on the disk
    under its name, so that a power cut does not lose it.
    """
    with replacing(path, durable) as draft:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)
    if durable:
        sync(path.parent)


def create_only(path: Path, data: bytes | str, durable: bool = False) -> bool:
    """Write a file unless it exists; True if it did not. Of several writers one succeeds.
    `durable`: it is on the disk under its name when this returns."""
    if os.path.lexists(path):
        return False
    with draft_beside(path) as draft, contextlib.suppress(FileExistsError):
        draft.write_bytes(data.encode() if isinstance(data, str) else data)
        if durable:
            sync(draft)
        os.link(draft, path)
        if durable:
            sync(path.parent)
        return True
    return False


def is_absent(path: Path) -> bool:
    """Whether there is nothing of that name, in a folder that is there and can be read or whose own
    absence is as sure. A link that leads nowhere is not absent: a disk may be missing.

    Raises OSError where it cannot be known.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        if path.parent != path and not is_absent(path.parent):
            os.listdir(path.parent)
        return True
    return False


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that `write_json` wrote; None without the file. Raises StoreError for a file that
    is not just what was written: a bit that has flipped, an edit, half a file."""
    try:
        return unseal(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged: {error}. Run the pipeline, which makes it anew, or put back a "
            "copy of it."
        ) from error


def write_json(path: Path, value: dict[str, Any], durable: bool = True) -> None:
    """Replace a JSON file in one rename. A power cut leaves the old file or the new one if it is
    `durable`. Its last key is the checksum of all before it."""
    with replacing(path, durable) as draft:
        draft.write_bytes(seal(json.dumps(value, indent=2, ensure_ascii=False)) + b"\n")


def seal(text: str) -> bytes:
    """A JSON object with a checksum of its own bytes as its last key."""
    is_lines = text.endswith("\n}")
    body = text.removesuffix("}").rstrip("\n").encode()
    comma, space = b"" if body == b"{" else b",", b"\n  " if is_lines else b" "
    end = b"\n}" if is_lines else b"}"
    return body + comma + space + b'"checksum": "%08x"' % zlib.crc32(body) + end


def unseal(data: bytes) -> dict[str, Any]:
    """The object of `seal`, without the checksum; ValueError if the bytes are others."""
    data = data.removesuffix(b"\n")
    match = SEAL.search(data[-SEAL_BYTES:])
    body = data[: -len(match[0])] if match else b""
    if not match or zlib.crc32(body) != int(match[1], 16):
        raise ValueError("its content is not what was written")
    value: dict[str, Any] = json.loads(body + b"}")
    return value


def parse_unsealed(data: bytes) -> dict[str, Any] | None:
    """The object of a version that wrote no checksums; None for bytes that are none, or whose last
    entry may be a checksum that is damaged itself."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not value:
        return None
    name, last = list(value.items())[-1]
    is_seal = len(name) == len("checksum") and isinstance(last, str) and len(last) == SEAL_DIGITS
    return None if is_seal else value


def is_whole(path: Path) -> bool:
    """Whether a file of `write_json` is there and just what was written."""
    try:
        unseal(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True


def file_checksum(path: Path) -> int:
    """CRC-32 of a file's bytes: against damage, at 3 GB a second where BLAKE2b does 0.6."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def list_names(folder: Path) -> list[str]:
    """All names in a folder; none without the folder. Raises OSError for one that cannot be read,
    which a glob takes for empty."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        if is_absent(folder):
            return []
        return os.listdir(folder)  # another process has made it just now


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match a pattern of `fnmatch`, sorted, without drafts.
    Raises as `list_names`."""
    names = [name for name in list_names(folder) if not name.startswith(".")]
    return sorted(folder / name for name in fnmatch.filter(names, pattern))


def delete(path: Path) -> None:
    """Delete a file, if it exists."""
    path.unlink(missing_ok=True)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Add an object to a file of JSON lines; a line that a killed writer left torn stays alone on
    its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        end = b""
        if file.tell():  # at the end
            file.seek(-1, os.SEEK_END)
            end = b"" if file.read(1) == b"\n" else b"\n"
        file.write(end + seal(json.dumps(value, ensure_ascii=False)) + b"\n")


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Replace a file of `append_line` in one rename."""
    lines = (seal(json.dumps(value, ensure_ascii=False)) + b"\n" for value in values)
    write_atomic(path, b"".join(lines), durable=True)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of `append_line`, and how many lines are torn or damaged; none without the
    file."""
    values: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in lines:
        with contextlib.suppress(ValueError):
            values.append(unseal(line))
    return values, len(lines) - len(values)
