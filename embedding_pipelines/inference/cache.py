"""Folders that are filled once and then stay, such as those of converted models: whole, or not
there."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def fill_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A draft of `folder` to fill, which takes its place once the body has ended well.

    `marker` is the file without which the folder counts as damaged. Concurrent processes fill
    drafts side by side and the first one wins: what it put there may be open by now, so it is not
    removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield draft
        try:
            os.rename(draft, folder)
        except OSError:  # there is one, which is as good unless it was damaged
            if not (folder / marker).exists():
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # another process was first
                    os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
