"""What is new, changed and deleted between two looks at files or objects: for any sensor's use, in
Dagster or not.

A listing is plain data, which a cursor holds as JSON. Names and stamps are compared as sets, never
dates, so nothing is missed that came within the same second, or with an old date.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from embedding_pipelines.sources import paths
from embedding_pipelines.sources.inputs import Stamp


class Changes(NamedTuple):
    """Names, in order. What was renamed is new and deleted."""

    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


def listing(path: str | Sequence[str], home: str | Path = ".") -> dict[str, Stamp]:
    """The stamp of every file or object that `path` names, by its name: files, folders and globs,
    from `home` on, and s3://, gs:// and az:// addresses.

    Raises SourceError if an entry matches nothing or cannot be listed, so that a bucket out of
    reach never looks like one that was emptied.
    """
    entries = [path] if isinstance(path, str) else path
    return {file.name: file.stamp for file in paths.find(entries, Path(home), ("",))}


def changes(
    before: Mapping[str, Sequence[int | str]], now: Mapping[str, Sequence[int | str]]
) -> Changes:
    """What differs between two listings; a stamp that JSON made a list of is the same."""
    return Changes(
        tuple(sorted(now.keys() - before.keys())),
        tuple(
            sorted(name for name in now if tuple(before.get(name, now[name])) != tuple(now[name]))
        ),
        tuple(sorted(before.keys() - now.keys())),
    )
