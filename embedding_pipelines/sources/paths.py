"""Finds the files that the paths of a pipeline file name.

A path is a file, a folder (all files below it with the source's suffixes) or a glob. Links to files
count. Links to folders are entered when a path names them, but not by `**` or a folder's walk, so a
loop of links cannot hang it. Hidden names (leading dot) are skipped unless the path spells the dot.
"""

import contextlib
import fnmatch
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embedding_pipelines.errors import SourceError, did_you_mean
from embedding_pipelines.home import warehouse_folder

_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class SourceFile:
    """An input file. `name` is posix, relative to the home folder or, outside of it, absolute."""

    name: str
    path: Path
    size_bytes: int
    mtime_ns: int
    ctime_ns: int = 0  # when the file system last changed file or name; nobody can set it back

    @property
    def stamp(self) -> tuple[int, ...]:
        """Changes whenever the content does: a copy that keeps size and times has another ctime."""
        return (self.size_bytes, self.mtime_ns, self.ctime_ns)


def find(entries: Iterable[str], home: Path, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """The files of all entries, once each, by name. Raises SourceError for an entry without any.

    Files in the warehouse are the pipelines' own output and never count as input.
    """
    home = Path(os.path.abspath(home))
    warehouse = warehouse_folder(home)
    files: dict[str, SourceFile] = {}
    for entry in entries:
        paths = _expand(entry, home, suffixes)
        matches = [_source_file(path, home) for path in paths if not path.is_relative_to(warehouse)]
        if not matches:
            raise _no_match_error(entry, home, suffixes)
        files |= {file.name: file for file in matches}
    return [files[name] for name in sorted(files)]


@contextlib.contextmanager
def explain_errors(file: SourceFile, damage: str) -> Iterator[None]:
    """Turn errors of reading `file` into SourceError; `damage` is what else is wrong with it."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{file.name}: the file is gone. Put it back, or run again.") from error
    except PermissionError as error:
        raise SourceError(
            f"{file.name}: permission denied. Let this user read the file."
        ) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(
            f"{file.name}: {damage} ({error}). Put a whole copy in its place."
        ) from error


def _expand(entry: str, home: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    whole = Path(os.path.abspath(home / entry))
    if _is(whole, "file"):  # before the glob: 'a[1].csv' may be a name
        yield whole
    elif _is(whole, "folder"):
        for path in _match(whole, ("**", "*")):
            if path.name.lower().endswith(suffixes):
                yield path
    else:
        root, parts = _split(whole)
        yield from _match(root, (*parts, "*") if parts and parts[-1] == "**" else parts)


def _split(whole: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder above the first part with a wildcard, and that part with those after it."""
    parts = whole.parts
    plain = next((at for at, part in enumerate(parts) if _MAGIC & set(part)), len(parts))
    return Path(*parts[:plain]), parts[plain:]


def _match(path: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Files at `path` joined with the glob `parts`; `**` may yield a file more than once."""
    if not parts:
        if _is(path, "file"):
            yield path
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _match(path, rest)
        for child in _list(path):
            if child.is_dir(follow_symlinks=False) and not child.name.startswith("."):
                yield from _match(path / child.name, parts)
    elif _MAGIC & set(part):
        for child in _list(path):
            hidden = child.name.startswith(".") and not part.startswith(".")
            if not hidden and fnmatch.fnmatchcase(child.name, part):
                yield from _match(path / child.name, rest)
    else:
        yield from _match(path / part, rest)


def _list(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SourceError(
            f"{path}: cannot list the folder ({error.strerror}). Let this user read it."
        ) from error


def _is(path: Path, what: str) -> bool:
    try:
        return path.is_file() if what == "file" else path.is_dir()
    except OSError as error:  # such as a folder above that this user may not enter
        raise SourceError(
            f"{path}: cannot look at it ({error.strerror}). Let this user enter the folders above."
        ) from error


def _source_file(path: Path, home: Path) -> SourceFile:
    name = path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{os.fsencode(path)!r}: the file's name is not valid UTF-8. Rename it."
        ) from error
    status = path.stat()
    return SourceFile(name, path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _no_match_error(entry: str, home: Path, suffixes: tuple[str, ...]) -> SourceError:
    whole = Path(os.path.abspath(home / entry))
    if _is(whole, "folder"):
        return SourceError(
            f"source.path {entry!r}: no file in {str(whole)!r} ends with {', '.join(suffixes)}. "
            "Name the files, or choose the source.kind that reads them."
        )
    folder, parts = _split(whole)
    while not folder.is_dir() or folder == whole:
        folder, parts = folder.parent, (folder.name, *parts)
    guess = did_you_mean(parts[0], [child.name for child in _list(folder)])
    return SourceError(
        f"source.path {entry!r} matches no file; looked in {str(folder)!r}.{guess} "
        "Correct the path."
    )
