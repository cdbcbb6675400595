"""Checksums of a table's files, which are never changed once they are written.

Lance 0.40 has none: a flipped bit is served as another id, text or number. So whoever finishes a
version writes the checksums of its files beside the table, and whoever opens a version compares
them, of a large one those of some blocks, chosen by chance.
"""

import contextlib
import random
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import BLOCK_BYTES, read_json, write_json


def write_checksums(record: Path, folder: Path, names: Iterable[str], updates: int) -> None:
    """Record the files of these names below `folder`; those on record are not read again. `updates`
    is kept for `updates_of`."""
    before = read_checksums(record)["files"]
    files = {}
    for name in names:
        files[name] = before.get(name) or _checksums(folder / name)
    write_json(record, {"files": files, "damaged": [], "updates": updates})


def updates_of(record: Path) -> int:
    """How many updates there were since the table's files were last merged."""
    return int(read_checksums(record).get("updates", 0))


def forget_lost_files(record: Path, folder: Path) -> None:
    """Forget the files that are no longer there: others may get their names."""
    state = read_checksums(record)
    files = {name: entry for name, entry in state["files"].items() if (folder / name).exists()}
    if len(files) < len(state["files"]):
        write_json(record, {**state, "files": files})


def damaged_file(
    state: dict[str, Any],
    record: Path,
    folder: Path,
    is_read: Callable[[str], bool],
    most_bytes: int | None,
) -> str | None:
    """The name of a file that is not as it was written, None if all in `state`, what
    `read_checksums` gave of `record`, are.

    `is_read` says whether a file matters; of those that do at most `most_bytes` are compared. What
    is damaged once stays so on record, for whoever looks next may look elsewhere.
    """
    files: dict[str, Any] = {name: entry for name, entry in state["files"].items() if is_read(name)}
    if damaged := sorted(files.keys() & set(state["damaged"])):
        return damaged[0]
    blocks = [(name, at) for name, entry in files.items() for at in range(len(entry["blocks"]))]
    for name, entry in files.items():
        try:
            is_whole = (folder / name).stat().st_size == entry["size_bytes"]
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            return name
    if most_bytes is not None and len(blocks) > (most := max(1, most_bytes // BLOCK_BYTES)):
        blocks = random.SystemRandom().sample(blocks, most)
    for name, at in sorted(blocks):
        if _block(folder / name, at) != files[name]["blocks"][at]:
            with contextlib.suppress(OSError):  # of a home that is for reading only
                write_json(record, {**state, "damaged": [*state["damaged"], name]})
            return name
    return None


def read_checksums(record: Path) -> dict[str, Any]:
    """What is on record; no `files` if it is lost or damaged, so that there is nothing to compare
    with."""
    with contextlib.suppress(StoreError):
        if (state := read_json(record)) is not None:
            return state
    return {"files": {}, "damaged": []}


def _checksums(path: Path) -> dict[str, Any]:
    blocks = []
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            blocks.append(zlib.crc32(block))
    return {"size_bytes": path.stat().st_size, "blocks": blocks}


def _block(path: Path, at: int) -> int:
    with path.open("rb") as file:
        file.seek(at * BLOCK_BYTES)
        return zlib.crc32(file.read(BLOCK_BYTES))
