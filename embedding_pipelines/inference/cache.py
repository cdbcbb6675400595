"""Writes folders of the cache, such as converted models: complete, or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def fill_folder(folder: Path, marker: str) -> Iterator[Path]:
    """A draft to fill, which becomes `folder` once the body has succeeded.

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
