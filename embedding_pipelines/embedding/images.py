"""Images on their way to a model: read again, decoded and resized in other processes, ahead of it.

Nothing keeps pixels: a document names its image by a digest of them, and the file is read once more
when a model has to see it. A file that has changed since is no picture of this document.
"""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Self

from embedding_pipelines.embedding.workers import Workers
from embedding_pipelines.errors import SourceError
from embedding_pipelines.images import (
    MAX_BYTES,
    ImageError,
    Pixels,
    Resize,
    decode,
    digest,
    prepare,
)
from embedding_pipelines.pool import Pool, ProcessDied

AHEAD = 8  # images that are read at once: from a bucket each takes a way there and back

Read = Callable[[str], bytes | Path]
"""The content of an image, or its file, by its name. Raises SourceError where it is gone."""


class ImageLoader:
    """Loads images by name and digest; close it, or use it in a `with` block."""

    def __init__(self, read: Read, resize: Resize) -> None:
        self._read, self._resize = read, resize
        self._pool, self._workers = Pool(), Workers(AHEAD)

    def load(self, name: str, digest: str) -> "Future[Pixels | str]":
        """uint8[size, size, 3], or why there is no such image any more."""
        return self._workers.submit(self._load, name, digest)

    def close(self) -> None:
        self._workers.close()
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load(self, name: str, expected: str) -> Pixels | str:
        try:
            content = self._read(name)
            return self._pool.submit(square_of, content, expected, self._resize).result()
        except FileNotFoundError:
            words = "the file is gone"
        except (SourceError, ImageError, ProcessDied, MemoryError, OSError) as error:
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"{name}: {words}. Run again, or put the image back that was there."


def square_of(content: bytes | Path, expected: str, resize: Resize) -> Pixels:
    """What a model takes of an image with this digest. Raises ImageError for any other one."""
    if isinstance(content, Path):
        if content.stat().st_size > MAX_BYTES:
            raise ImageError(CHANGED)
        content = content.read_bytes()
    pixels = decode(content)
    if digest(pixels) != expected:
        raise ImageError(CHANGED)
    return prepare(pixels, resize)


CHANGED = "the image has changed since its document was read"
