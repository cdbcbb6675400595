"""Finds the files that the paths of a pipeline file name.

A path is a file, a folder (all files below it with the source's suffixes) or a glob. Links to files
count. Links to folders are entered when a path names them, but not by `**` or a folder's walk, so a
loop of links cannot hang it and no file is read twice. Hidden names (leading dot) are skipped unless
the path spells the dot; what else a walk leaves out is told.
"""

import contextlib
import fnmatch
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embedding_pipelines.errors import SourceError, did_you_mean
from embedding_pipelines.home import warehouse_folder

_MAGIC = frozenset("*?[")
_NAMES_SHOWN = 3  # of what is passed over for one reason
_OTHER_NAME = "does not end with {}"
_LINK = "is a link to a folder, which a walk does not enter; name it in source.path to read it"
_DEAD_LINK = "is a link that leads nowhere"
_NO_FILE = "is neither a file nor a folder"

Omissions = dict[str, list[Path]]  # reason -> paths


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
    """The files of all entries, once each, by name. Raises SourceError for an entry without any,
    or one in the warehouse.

    Files in the warehouse are the pipelines' own output and never count as input.
    """
    return _survey(entries, home, suffixes, {})


def omissions(entries: Iterable[str], home: Path, suffixes: tuple[str, ...]) -> list[str]:
    """What walks through folders leave out, hidden names apart: a sentence for each reason."""
    home, places = Path(os.path.abspath(home)), Omissions()
    files = {file.path for file in _survey(entries, home, suffixes, places)}
    notes = []
    for reason, paths in places.items():
        names = sorted({_name(path, home) for path in paths if path not in files})
        if names:
            count = len(names)
            rest = f" and {count - _NAMES_SHOWN} more" if count > _NAMES_SHOWN else ""
            notes.append(f"passed over: {', '.join(names[:_NAMES_SHOWN])}{rest} ({reason})")
    return notes


def _survey(
    entries: Iterable[str], home: Path, suffixes: tuple[str, ...], places: Omissions
) -> list[SourceFile]:
    home = Path(os.path.abspath(home))
    warehouse = warehouse_folder(home)
    files: dict[str, SourceFile] = {}
    for entry in entries:
        whole = Path(os.path.abspath(home / Path(entry).expanduser()))
        try:
            _refuse_warehouse(entry, whole, warehouse)
            expanded = _expand(whole, home, suffixes, places)
            paths = [path for path in expanded if warehouse not in path.parents]
            if not paths:
                raise _no_match_error(entry, whole, suffixes)
        except OSError as error:
            raise SourceError(
                f"{error.filename}: cannot look at it ({error.strerror}). Let this user read it, "
                "and enter the folders above."
            ) from error
        files |= {file.name: file for file in (_source_file(path, home) for path in paths)}
    for reason, outside in places.items():
        places[reason] = [path for path in outside if warehouse not in path.parents]
    return [files[name] for name in sorted(files)]


def _refuse_warehouse(entry: str, whole: Path, warehouse: Path) -> None:
    for path in (whole, Path(os.path.realpath(whole))):
        if path.is_relative_to(warehouse) or path.is_relative_to(os.path.realpath(warehouse)):
            raise SourceError(
                f"source.path {entry!r} is in {str(warehouse)!r}, where pipelines keep what they "
                "make: runs replace and remove it. Copy the files to another folder and name that."
            )


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


def _expand(
    whole: Path, home: Path, suffixes: tuple[str, ...], places: Omissions
) -> Iterator[Path]:
    if whole.is_file():  # before the glob: 'a[1].csv' may be a name
        yield whole
    elif whole.is_dir():
        for path in _match(whole, ["**", "*"], places):
            if path.name.lower().endswith(suffixes):
                yield path
            else:
                places.setdefault(_OTHER_NAME.format(", ".join(suffixes)), []).append(path)
    else:
        root = Path(os.path.commonpath([home, whole]))  # the home's own name is no pattern
        parts = (whole / "*" if whole.name == "**" else whole).relative_to(root).parts
        yield from _match(root, parts, places)


def _match(path: Path, parts: Sequence[str], places: Omissions) -> Iterator[Path]:
    """Files at `path` joined with the glob `parts`; `**` may yield a file more than once."""
    part, rest = parts[0] if parts else "", parts[1:]
    if not part:
        if path.is_file():
            yield path
        elif not path.is_dir():
            if path.is_symlink():
                places.setdefault(_DEAD_LINK, []).append(path)
            elif path.exists():
                places.setdefault(_NO_FILE, []).append(path)
    elif part == "**":
        yield from _match(path, rest, places)
        for child in _list(path):
            inner = path / child.name
            if child.name.startswith("."):
                continue
            if child.is_dir(follow_symlinks=False):
                yield from _match(inner, parts, places)
            elif inner.is_dir():
                places.setdefault(_LINK, []).append(inner)
    elif _MAGIC & set(part):
        for child in _list(path):
            hidden = child.name.startswith(".") and not part.startswith(".")
            if not hidden and fnmatch.fnmatchcase(child.name, part):
                yield from _match(path / child.name, rest, places)
    else:
        yield from _match(path / part, rest, places)


def _list(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _source_file(path: Path, home: Path) -> SourceFile:
    name = _name(path, home)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{os.fsencode(path)!r}: the file's name is not valid UTF-8. Rename it."
        ) from error
    status = path.stat()
    return SourceFile(name, path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _name(path: Path, home: Path) -> str:
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()


def _no_match_error(entry: str, whole: Path, suffixes: tuple[str, ...]) -> SourceError:
    if whole.is_dir():
        return SourceError(
            f"source.path {entry!r}: no file in {str(whole)!r} ends with {', '.join(suffixes)}. "
            "Name the files, or choose the source.kind that reads them."
        )
    if "://" in entry:
        return SourceError(
            f"source.path {entry!r} is an address, and only files are read. Copy them, or mount "
            "where they are, and name the folder."
        )
    folder = whole
    while not folder.is_dir():
        folder, name = folder.parent, folder.name
    guess = did_you_mean(name, [child.name for child in _list(folder)])
    return SourceError(
        f"source.path {entry!r} matches no file; looked in {str(folder)!r}.{guess} "
        "Correct the path."
    )
