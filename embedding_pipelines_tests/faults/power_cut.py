"""A power cut without a machine to cut: of what was written, only what was synced is sure to stay.

`Recorder` notes what a process syncs. `cut` then changes a folder to what its disk may hold after a
cut: each file whose content was not synced since it was last written is empty, cut short or full of
zeros, or whole; each name whose folder was not synced since it appeared may be gone, or be of the
file that had it before; each name that was removed may be back. SQLite syncs by itself, unseen from
here: its files stay as they are.
"""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

SQLITE = (".sqlite", ".sqlite-wal", ".sqlite-shm", ".db", ".db-wal", ".db-shm", ".lock")


class Recorder:
    """While it is entered, what this process syncs is on record, by inode: the time of the last
    sync. `before` is a folder that all on the disk is copied to when it is entered."""

    def __init__(self, folder: Path, before: Path) -> None:
        self.folder, self.before = folder, before
        self.synced: dict[int, int] = {}
        self.identities: dict[Path, tuple[int, int]] = {}
        self._fsync: Callable[[int], None] = os.fsync

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.folder, self.before, dirs_exist_ok=True)
        self.identities = {path: _identity(path) for path in self.folder.rglob("*")}

        def fsync(file: int) -> None:
            started = time.time_ns()
            self._fsync(file)
            self.synced[os.fstat(file).st_ino] = started

        os.fsync = fsync  # type: ignore[assignment]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.fsync = self._fsync

    def has_content(self, path: Path) -> bool:
        """Whether a file's content is on the disk for sure."""
        status = path.stat()
        unchanged = self.identities.get(path) == _identity(path)
        return unchanged or self.synced.get(status.st_ino, -1) >= status.st_mtime_ns

    def has_name(self, path: Path) -> bool:
        """Whether a name is on the disk for sure."""
        status = path.lstat()
        unchanged = self.identities.get(path, (0, 0))[0] == status.st_ino
        return unchanged or self._names_since(path.parent) >= status.st_ctime_ns

    def has_removed(self, path: Path) -> bool:
        """Whether the removal of a name is on the disk for sure."""
        return self._names_since(path.parent) >= path.parent.stat().st_mtime_ns

    def _names_since(self, folder: Path) -> int:
        return self.synced.get(folder.stat().st_ino, -1)


def cut(recorder: Recorder, dice: random.Random) -> list[str]:
    """Change the recorder's folder to what its disk may hold; what was lost, in words."""
    lost: list[str] = []
    folder, before = recorder.folder, recorder.before
    doubtful = [
        (path, path.is_file() and not recorder.has_content(path), not recorder.has_name(path))
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(SQLITE) and not path.is_symlink()
    ]
    removed = [
        path
        for path in recorder.identities
        if not path.exists() and path.parent.exists() and not recorder.has_removed(path)
    ]
    for path, content, name in doubtful:
        old = before / path.relative_to(folder)
        if name and dice.random() < 0.5 and path.exists():
            lost.append(f"the name of {path.relative_to(folder)}")
            if path.is_dir():
                shutil.rmtree(path)
            elif old.exists():
                shutil.copy2(old, path)
            else:
                path.unlink()
        elif content and path.exists() and dice.random() < 0.8:
            lost.append(f"the content of {path.relative_to(folder)}")
            size = path.stat().st_size
            path.write_bytes(
                dice.choice([b"", b"\0" * size, path.read_bytes()[: dice.randrange(size + 1)]])
            )
    for path in removed:
        old = before / path.relative_to(folder)
        if old.is_file() and path.parent.exists() and dice.random() < 0.5:
            lost.append(f"the removal of {path.relative_to(folder)}")
            shutil.copy2(old, path)
    return lost


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns
