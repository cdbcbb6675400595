"""Finds the files and objects that the paths of a pipeline file name.

A path is a file, a folder (all files below it with the source's suffixes) or a glob. Links to files
count. Links to folders are entered when a path names them, but not by `**` or a folder's walk, so a
loop of links cannot hang it and no file is read twice. Hidden names (leading dot) are skipped unless
the path spells the dot; what else a walk leaves out is told. A path that begins with s3://, gs://
or az:// names objects in the same way: what stands between slashes is a folder.
"""

import fnmatch
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from embedding_pipelines.errors import BucketError, SourceError, did_you_mean
from embedding_pipelines.home import warehouse_folder
from embedding_pipelines.objects import URI, Bucket, Object, is_uri, open_bucket
from embedding_pipelines.sources.inputs import Input, SourceFile, SourceObject

_MAGIC = frozenset("*?[")
_NAMES_SHOWN = 3  # of what is passed over for one reason
_OTHER_NAME = "does not end with {}"
_LINK = "is a link to a folder, which a walk does not enter; name it in source.path to read it"
_DEAD_LINK = "is a link that leads nowhere"
_NO_FILE = "is neither a file nor a folder"

Omissions = dict[str, list[Path | str]]  # reason -> paths of files, URIs of objects


class NoMatchError(SourceError):
    """An entry of `path` names nothing that is there."""


def find(entries: Iterable[str], home: Path, suffixes: tuple[str, ...]) -> list[Input]:
    """The files and objects of all entries, once each, by name. Raises SourceError for an entry
    without any, or one in the warehouse, and ConfigError for one that needs an extra.

    Files in the warehouse are the pipelines' own output and never count as input.
    """
    return _survey(entries, home, suffixes, {})


def covers(entries: Iterable[str], suffixes: tuple[str, ...], uri: str) -> bool:
    """Whether `find` has the object of this URI, if there is one. Whatever only stands for a folder
    is none."""
    match = URI.fullmatch(uri)
    if match is None or match[3].endswith("/"):
        return False
    for entry in filter(is_uri, entries):
        scheme, bucket, rest = URI.fullmatch(entry).groups()  # type: ignore[union-attr]
        parts = [part for part in rest.split("/") if part]
        if (scheme, bucket) != match.group(1, 2):
            continue
        if match[3] == "/".join(parts):
            return True
        if any(_MAGIC & set(part) for part in parts):
            parts += ["*"] if parts[-1] == "**" else []
            is_covered = _matches(match[3].split("/"), parts)
        else:
            is_covered = match[3].lower().endswith(suffixes) and _matches(
                match[3].split("/"), [*parts, "**", "*"]
            )
        if is_covered:
            return True
    return False


def is_within(entries: Iterable[str], home: Path, name: str) -> bool:
    """Whether an input of this name lies in a folder, or is a file or an object, that an entry names
    before its first pattern; without a look at what is there."""
    place = name if is_uri(name) else os.path.abspath(home / name)
    for entry in entries:
        parts = itertools.takewhile(lambda part: not _MAGIC & set(part), entry.split("/"))
        fixed = "/".join(parts)
        folder = fixed if is_uri(entry) else os.path.abspath(home / os.path.expanduser(fixed))
        if f"{place}/".startswith(f"{folder.rstrip('/')}/"):
            return True
    return False


def reads(entry: str, place: str) -> bool:
    """Whether files in a folder would be among those of an entry: both are absolute, or URIs."""
    parts, names = entry.rstrip("/").split("/"), place.rstrip("/").split("/")
    fixed = next((at for at, part in enumerate(parts) if _MAGIC & set(part)), len(parts))
    if fixed == len(parts) or "**" in parts:  # all that is below is looked through
        return names[:fixed] == parts[:fixed]
    return _matches([*names, "b00-0123456789abcdef.parquet"], parts) or _matches(
        [*names, "index.json"], parts
    )


def omissions(
    entries: Iterable[str], home: Path, suffixes: tuple[str, ...], used: Collection[str] = ()
) -> list[str]:
    """What walks through folders leave out, hidden names apart and those that are of other use: a
    sentence for each reason."""
    home, places = Path(os.path.abspath(home)), Omissions()
    files = {file.name for file in _survey(entries, home, suffixes, places)}
    notes = []
    for reason, paths in places.items():
        names = sorted({_name(path, home) for path in paths}.difference(files, used))
        if names:
            count = len(names)
            rest = f" and {count - _NAMES_SHOWN} more" if count > _NAMES_SHOWN else ""
            notes.append(f"passed over: {', '.join(names[:_NAMES_SHOWN])}{rest} ({reason})")
    return notes


def _survey(
    entries: Iterable[str], home: Path, suffixes: tuple[str, ...], places: Omissions
) -> list[Input]:
    home = Path(os.path.abspath(home))
    warehouse = warehouse_folder(home)
    files: dict[str, Input] = {}
    for entry in entries:
        if is_uri(entry):
            files |= {file.name: file for file in _objects(entry, suffixes, places)}
            continue
        whole = Path(os.path.abspath(home / os.path.expanduser(entry)))
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
        root = _root(whole)
        files |= {file.name: file for file in (_source_file(path, home, root) for path in paths)}
    for reason, outside in places.items():
        places[reason] = [
            path for path in outside if isinstance(path, str) or warehouse not in path.parents
        ]
    return [files[name] for name in sorted(files)]


def _refuse_warehouse(entry: str, whole: Path, warehouse: Path) -> None:
    for path in (whole, Path(os.path.realpath(whole))):
        if path.is_relative_to(warehouse) or path.is_relative_to(os.path.realpath(warehouse)):
            raise SourceError(
                f"source.path {entry!r} is in {str(warehouse)!r}, where pipelines keep what they "
                "make: runs replace and remove it. Copy the files to another folder and name that."
            )


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
            if _fits(child.name, part):
                yield from _match(path / child.name, rest, places)
    else:
        yield from _match(path / part, rest, places)


def _fits(name: str, part: str) -> bool:
    """Whether a name is one that this part of a glob stands for."""
    is_hidden = name.startswith(".") and not part.startswith(".")
    return not is_hidden and fnmatch.fnmatchcase(name, part)


def _list(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _root(whole: Path) -> Path:
    """The folder from which an entry names what is below it: what comes before a pattern."""
    if whole.is_file():
        return whole.parent
    if whole.is_dir():
        return whole
    parts = itertools.takewhile(lambda part: not _MAGIC & set(part), whole.parts)
    return Path(*parts)


def _source_file(path: Path, home: Path, root: Path) -> SourceFile:
    name = _name(path, home)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            f"{os.fsencode(path)!r}: the file's name is not valid UTF-8. Rename it."
        ) from error
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    below = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return SourceFile(name, status.st_size, stamp, path, below=below)


def _name(path: Path | str, home: Path) -> str:
    if isinstance(path, str):
        return path
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()


def _objects(entry: str, suffixes: tuple[str, ...], places: Omissions) -> list[SourceObject]:
    """The objects of an entry. Raises SourceError if there are none, or the bucket's BucketError as
    one."""
    try:
        bucket, rest = open_bucket(entry)
        parts = [part for part in rest.split("/") if part]
        if any(_MAGIC & set(part) for part in parts):
            parts += ["*"] if parts[-1] == "**" else []
            objects = list(_match_objects(bucket, "", parts))
            whole = [each for each in objects if each.key == "/".join(parts)]
            objects = whole or objects  # 'a[1].csv' may be a name
        else:
            objects = list(_expand_objects(bucket, "/".join(parts), suffixes, places))
        if not objects:
            raise _no_object_error(entry, bucket, parts, suffixes)
    except BucketError as error:
        raise SourceError(str(error)) from error
    key = "/".join(parts)
    if any(each.key == key for each in objects):
        root = key.rpartition("/")[0]
    else:
        root = "/".join(itertools.takewhile(lambda part: not _MAGIC & set(part), parts))
    return [
        SourceObject.of(bucket, each, each.key.removeprefix(root).lstrip("/")) for each in objects
    ]


def _expand_objects(
    bucket: Bucket, key: str, suffixes: tuple[str, ...], places: Omissions
) -> Iterator[Object]:
    """The object of this key, else those below a folder of this name."""
    whole = bucket.find(key) if key else None
    if whole is not None:
        yield whole
        return
    for each in bucket.walk(key):
        if not _matches(each.key.removeprefix(key).strip("/").split("/"), ["**", "*"]):
            continue
        if each.key.lower().endswith(suffixes):
            yield each
        else:
            places.setdefault(_OTHER_NAME.format(", ".join(suffixes)), []).append(
                bucket.uri(each.key)
            )


def _match_objects(bucket: Bucket, folder: str, parts: list[str]) -> Iterator[Object]:
    """The objects in a folder that a glob names. Only `**` lists what is below all its folders."""
    part, *rest = parts
    if part == "**":
        for each in bucket.walk(folder):
            if _matches(each.key.removeprefix(folder).strip("/").split("/"), parts):
                yield each
    elif rest and not _MAGIC & set(part):
        yield from _match_objects(bucket, f"{folder}/{part}".strip("/"), rest)
    else:
        folders, objects = bucket.list_folder(folder)
        if rest:
            for inner in folders:
                if _matches([inner.rpartition("/")[2]], [part]):
                    yield from _match_objects(bucket, inner, rest)
        else:
            yield from (each for each in objects if _matches([each.key.rpartition("/")[2]], parts))


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether folders and a name, in order, are what a glob stands for; a part that looks like a
    glob may be a name."""
    if not names or not parts:
        return not names and not parts
    if parts[0] == "**":
        goes_on = len(names) > 1 and not names[0].startswith(".")
        return _matches(names, parts[1:]) or (goes_on and _matches(names[1:], parts))
    is_match = names[0] == parts[0] or _fits(names[0], parts[0])
    return is_match and _matches(names[1:], parts[1:])


def _no_object_error(
    entry: str, bucket: Bucket, parts: list[str], suffixes: tuple[str, ...]
) -> NoMatchError:
    """Says how far the folders of an entry go, and what is there in place of the next one."""
    folder, names = "", list[str]()
    for part in parts or [""]:
        folders, objects = bucket.list_folder(folder)
        names = [each.rpartition("/")[2] for each in (*folders, *(each.key for each in objects))]
        whole = f"{folder}/{part}".strip("/")
        if whole not in folders:
            break
        folder = whole
    else:
        return NoMatchError(
            f"source.path {entry!r}: no object in {bucket.uri(folder)!r} ends with "
            f"{', '.join(suffixes)}. Name the objects, or choose the source.kind that reads them."
        )
    guess = did_you_mean(part, names)
    held = ", ".join(map(repr, names[:_NAMES_SHOWN])) or "nothing"
    more = ", …" if len(names) > _NAMES_SHOWN else ""
    return NoMatchError(
        f"source.path {entry!r} matches no object; looked in {bucket.uri(folder)!r}, which holds "
        f"{held}{more}.{guess} Correct the path."
    )


def _no_match_error(entry: str, whole: Path, suffixes: tuple[str, ...]) -> NoMatchError:
    if whole.is_dir():
        return NoMatchError(
            f"source.path {entry!r}: no file in {str(whole)!r} ends with {', '.join(suffixes)}. "
            "Name the files, or choose the source.kind that reads them."
        )
    if "://" in entry:
        return NoMatchError(
            f"source.path {entry!r} is an address of a kind that is not read; s3://, gs:// and "
            "az:// are. Copy the files to one of these or to this machine."
        )
    folder = whole
    while not folder.is_dir():
        folder, name = folder.parent, folder.name
    guess = did_you_mean(name, [child.name for child in _list(folder)])
    return NoMatchError(
        f"source.path {entry!r} matches no file; looked in {str(folder)!r}.{guess} "
        "Correct the path."
    )
