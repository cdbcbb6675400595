"""Images on their way to a model: read again, decoded and resized in other processes, ahead of it.

Nothing keeps pixels: a document names its image by a digest of them, and the file is read once more
when a model has to see it. A file that has changed since is no picture of this document.
"""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Self

from embedding_pipelines.embedding.workers import Workers
from embedding_pipelines.errors import SourceError, SourceGoneError
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
"""The content of an image, or its file, by its name. Raises SourceGoneError where it is gone,
SourceError where it cannot be read."""


class ImageLoader:
    """Loads images by name and digest; close it, or use it in a `with` block. `cores` as `EmbeddingModel`
    has it."""

    def __init__(self, read: Read, resize: Resize, cores: int | None = None) -> None:
        self._read, self._resize = read, resize
        self._pool, self._workers = Pool(cores), Workers(AHEAD)

    def load(self, name: str, digest: str) -> "Future[Pixels | str]":
        """uint8[size, size, 3], or why there is no such image any more. The future has a SourceError
        where nobody can tell, since disk or bucket does not answer."""
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
        except (SourceGoneError, ImageError, ProcessDied) as error:
            words = str(error)
        except MemoryError:
            words = "it takes too much memory"
        except OSError as error:
            raise SourceError(
                f"{name} cannot be read: {error.strerror or error}. See to that, then run again."
            ) from error
        return (
            f"{name}: {words}. Run again, which reads what is there now; `embedding-pipelines retry` "
            "tries it once more if it is there as it was."
        )


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
