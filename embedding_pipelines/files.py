"""The one place that writes, lists and deletes the files of state; it replaces a file as a whole or
not at all."""

import contextlib
import glob
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedding_pipelines.errors import StoreError

ABANDONED_SECONDS = 86_400  # since its last write: the writer of such a draft was killed


@contextlib.contextmanager
def draft_beside(path: Path) -> Iterator[Path]:
    """The name of a draft in the folder of `path`, which is created; a draft that was not moved is
    deleted in the end.

    Names are unique, so that writers need no lock. Drafts of killed writers of `path` are deleted a
    day later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            if other.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                other.unlink()
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def move(draft: Path, path: Path) -> None:
    """Replace `path` by a draft, in one rename."""
    os.replace(draft, path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to write, which replaces `path` once the body has succeeded."""
    with draft_beside(path) as draft:
        yield draft
        move(draft, path)


@contextlib.contextmanager
def fill_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A draft to fill, which becomes `folder` once the body has succeeded; for caches.

    A folder without the file `marker` counts as damaged and is replaced. Of several processes the
    first one wins, since others may have its files open by then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield draft
        try:
            os.rename(draft, folder)
        except OSError:  # the folder exists
            if not (folder / marker).exists():
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # another process was first
                    os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_atomic(path: Path, data: bytes | str, durable: bool = False) -> None:
    """Replace a file in one rename; text becomes UTF-8. `durable`: wait until it is on the disk, so
    that a power cut does not lose it.
    """
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def create_only(path: Path, data: bytes | str) -> bool:
    """Write a file unless it exists; True if it did not. Of several writers one succeeds."""
    if path.exists():
        return False
    with draft_beside(path) as draft, contextlib.suppress(FileExistsError):
        draft.write_bytes(data.encode() if isinstance(data, str) else data)
        os.link(draft, path)
        return True
    return False


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None without the file. Raises StoreError for a damaged one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
        return value
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged: {error}. Restore a copy, or delete it and run the pipeline; that "
            "loses no vectors."
        ) from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file in one rename."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match a glob pattern, sorted, without drafts."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def delete(path: Path) -> None:
    """Delete a file, if it exists."""
    path.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; a line that a killed writer left torn stays alone on its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    end = "\n" if before and not before.endswith(b"\n") else ""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{end}{line}\n")
