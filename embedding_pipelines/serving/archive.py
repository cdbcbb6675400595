"""Bundles as files: a plain tar archive, or a folder with the same content.

An archive is not compressed, so that it unpacks to no more than it is long. The description comes
first and names every file that follows with size and digest; whatever else comes is refused. So
nothing is written, and nothing held in memory, that it does not account for.
"""

import hashlib
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from embedding_pipelines.errors import BundleError

DESCRIPTION = "bundle.json"
MAX_DESCRIPTION_BYTES = 32 << 20  # of 100,000 files
MAX_FILES = 100_000
MAX_PATH = 240  # characters; as many as every file system takes
BLOCK = tarfile.BLOCKSIZE
USTAR_BYTES = 8 << 30  # of one file; above, tar has another notation
READ_BYTES = 1 << 20


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


Member = tuple[str, int, Readable]  # path, size and content


class Entry(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size_bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def entries_below(folder: Path) -> dict[str, Entry]:
    """All files below a folder, by their paths from there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        entries[path.relative_to(folder).as_posix()] = Entry(size_bytes=size, sha256=digest)
    return entries


def write_archive(folder: Path, paths: list[str], archive: Path) -> None:
    """Write a folder's description and these files, in this order, as one archive."""
    with archive.open("wb") as target:
        for name in (DESCRIPTION, *paths):
            size = (folder / name).stat().st_size
            target.write(_header(name, size))
            with (folder / name).open("rb") as file:
                shutil.copyfileobj(file, target, READ_BYTES)
            target.write(bytes(-size % BLOCK))
        target.write(bytes(2 * BLOCK))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    # tarfile's formats: ustar, and GNU's
    kind: Literal[0, 1] = 0 if size < USTAR_BYTES else 1
    try:
        header = info.tobuf(kind, "utf-8", "strict")
    except ValueError:
        header = b""
    if len(header) != BLOCK:
        raise BundleError(f"{name!r} is too long a name for a file of {size:,} bytes in a bundle.")
    return header


def members(source: Path) -> Iterator[Member]:
    """The files of an archive or a folder, the description first. Raises BundleError for one that
    holds anything but plain files."""
    if source.is_dir():
        yield from _of_folder(source)
        return
    with source.open("rb") as file:
        yield from _of_archive(file)


def _of_folder(folder: Path) -> Iterator[Member]:
    names = list[str]()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise BundleError(f"{path} is neither a file nor a folder. {REFUSED}")
        names += [Path(place, name).relative_to(folder).as_posix() for name in files]
        if len(names) > MAX_FILES:
            raise BundleError(f"{folder} holds more than {MAX_FILES:,} files. {REFUSED}")
    names.sort(key=lambda name: (name != DESCRIPTION, name))
    for name in names:
        with (folder / name).open("rb") as file:
            yield name, os.fstat(file.fileno()).st_size, file


def _of_archive(file: IO[bytes]) -> Iterator[Member]:
    while True:
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise BundleError(f"The archive ends before its end mark. {REFUSED}")
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise BundleError(f"This is no archive of a bundle ({error}). {REFUSED}") from None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size < 0:
            raise BundleError(
                f"The archive's {info.name[:80]!r} is no plain file, but a link, a folder or "
                f"something else. {REFUSED}"
            )
        content = _Part(file, info.size)
        yield info.name, info.size, content
        content.skip(-info.size % BLOCK)


class _Part:
    """The next bytes of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = self._file.read(size) if size else b""
        if len(data) < size:
            raise BundleError(f"The archive ends in the middle of a file. {REFUSED}")
        self._left -= len(data)
        return data

    def skip(self, padding: int) -> None:
        """Read what was left, and the padding behind it."""
        self._left += padding
        while self.read(READ_BYTES):
            pass


REFUSED = (
    "Nothing of it was taken over. Have the bundle made again by `embedding-pipelines bundle`."
)


def check_paths(entries: Mapping[str, Entry], is_allowed: Callable[[str], bool]) -> None:
    """Raise BundleError unless all paths are plain, stay below the bundle and do not stand in each
    other's way, on any system."""
    if len(entries) > MAX_FILES:
        raise BundleError(f"The bundle names more than {MAX_FILES:,} files. {REFUSED}")
    names = {name.casefold() for name in entries}
    for name in entries:
        parts = name.split("/")
        is_plain = (
            len(name) <= MAX_PATH
            and name.isprintable()
            and not set(name) & set('\\:*?"<>|')
            and all(part.strip(". ") and part == part.strip() for part in parts)
        )
        above = {str(parent).casefold() for parent in PurePosixPath(name).parents}
        if not is_plain or above & names or name == DESCRIPTION or not is_allowed(name):
            raise BundleError(f"The bundle names a file {name[:120]!r}. {REFUSED}")
    if len(names) < len(entries):
        raise BundleError(f"The bundle names one file twice. {REFUSED}")


def unpack_rest(rest: Iterator[Member], entries: Mapping[str, Entry], folder: Path) -> None:
    """Write the files that a description names to a folder, comparing each with its digest. Raises
    BundleError for one that is missing, not named, or not as it was written."""
    size, free = sum(entry.size_bytes for entry in entries.values()), shutil.disk_usage(folder).free
    if size > free:
        raise BundleError(
            f"The bundle takes {size:,} bytes, and the disk of {folder} has {free:,} left. Free some "
            "space, then try again."
        )
    missing = set(entries)
    for name, length, content in rest:
        entry = entries.get(name)
        if entry is None or name not in missing or length != entry.size_bytes:
            raise BundleError(
                f"The bundle's {name[:120]!r} is not as its description says. {REFUSED}"
            )
        missing.remove(name)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("xb") as file:
            while block := content.read(READ_BYTES):
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != entry.sha256:
            raise BundleError(
                f"The bundle's {name!r} is damaged: its checksum is another one. {REFUSED}"
            )
    if missing:
        raise BundleError(f"The bundle lacks {min(missing)!r}. {REFUSED}")
