"""From the paths in a pipeline file to the files they stand for; no file is opened here.

A path is a file, a folder (all files below it with the source's suffixes) or a glob. Symbolic links
to files count; links to folders are entered when a path names them and not when `**` or a folder
walks, so a loop cannot hang. Hidden names (leading dot) are skipped unless the path spells the dot.
"""

import fnmatch
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from embedding_pipelines.errors import SourceError, did_you_mean
from embedding_pipelines.home import warehouse_folder

_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class SourceFile:
    """One input file. `name` is posix and below the home folder, or absolute when outside of it."""

    name: str
    path: Path
    size_bytes: int
    mtime_ns: int
    ctime_ns: int = (
        0  # when the file system last changed the file or its name; nobody can set it back
    )

    @property
    def stamp(self) -> tuple[int, ...]:
        """What changes whenever the content does. A copy that keeps size and times still has
        another ctime."""
        return (self.size_bytes, self.mtime_ns, self.ctime_ns)


def find(entries: Iterable[str], home: Path, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """Files of all entries, sorted by name, each once. Raises SourceError if an entry has none."""
    home = Path(os.path.abspath(home))
    produced = warehouse_folder(
        home
    )  # what the pipelines made is no source, even where a folder holds it
    found: dict[str, SourceFile] = {}
    for entry in entries:
        paths = (
            path for path in _expand(entry, home, suffixes) if not path.is_relative_to(produced)
        )
        matches = [_source_file(path, home) for path in paths]
        if not matches:
            raise _nothing(entry, home, suffixes)
        found |= {file.name: file for file in matches}
    return [found[name] for name in sorted(found)]


def _expand(entry: str, home: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    whole = Path(os.path.abspath(home / entry))
    if _is(whole, "file"):  # before it is taken for a glob: 'a[1].csv' is a name, too
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
    """Files at `path` joined with the glob `parts`; a `**` may be matched by several ways."""
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
        raise SourceError(f"{path}: the folder cannot be listed ({error.strerror}).") from error


def _is(path: Path, what: str) -> bool:
    try:
        return path.is_file() if what == "file" else path.is_dir()
    except OSError as error:  # a folder above it may not be entered
        raise SourceError(f"{path}: cannot be looked at ({error.strerror}).") from error


def _source_file(path: Path, home: Path) -> SourceFile:
    name = path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{os.fsencode(path)!r}: the file's name is not valid UTF-8; rename it."
        ) from error
    status = path.stat()
    return SourceFile(name, path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _nothing(entry: str, home: Path, suffixes: tuple[str, ...]) -> SourceError:
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
    return SourceError(f"source.path {entry!r} matches no file; looked in {str(folder)!r}.{guess}")
