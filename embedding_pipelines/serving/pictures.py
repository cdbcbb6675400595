"""Images that requests bring, and thumbnails of those that documents are.

What is sent is the image itself: no address is ever fetched, for a server can reach what its clients
may not. All is decoded in processes of their own, which a damaged image may end.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_pipelines import images
from embedding_pipelines.access import Principals
from embedding_pipelines.errors import SourceError
from embedding_pipelines.extras import need
from embedding_pipelines.images import ImageError, Pixels, Resize
from embedding_pipelines.pool import Pool, ProcessDied
from embedding_pipelines.serving.wire import (
    MAX_IMAGE_BYTES,
    BadRequest,
    NotFound,
    TooManyRequests,
)
from embedding_pipelines.sources.inputs import Contents
from embedding_pipelines.sources.paths import is_within

if TYPE_CHECKING:
    from embedding_pipelines.search import Searcher

MAX_WAITING = 256  # images at once, in the processes and before them
MAX_WAITING_BYTES = 256 << 20  # of their files, which are in memory twice
PROCESSES = 2  # searches need the other cores
THUMBNAIL_SIDE = 256  # pixels of the longer side, at most
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
EXAMPLE = "data:image/jpeg;base64,…"


def image_bytes(value: str, name: str) -> bytes:
    """The file in a data URL. Raises BadRequest, which calls it `name`."""
    match = DATA_URL.match(value[:100])
    if match is None:
        what = "addresses are not fetched" if "://" in value[:20] else "this is no data URL"
        raise BadRequest(f"{name}: {what}. Send the image itself, as {EXAMPLE}")
    if len(value) > MAX_IMAGE_BYTES * 4 // 3 + 128:
        raise BadRequest(f"{name}: the image is larger than {MAX_IMAGE_BYTES >> 20} MB. Reduce it.")
    try:
        return base64.b64decode(value[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{name}: its content is no base64. Send {EXAMPLE}") from None


class Pictures:
    """What a server needs to read images; it belongs to one event loop."""

    def __init__(self, home: Path) -> None:
        self._home, self._contents, self._pool = home, Contents(home), Pool(PROCESSES)
        self._waiting = self._waiting_bytes = 0

    def close(self) -> None:
        self._pool.close()

    async def squares(self, files: Sequence[bytes], resize: Resize, name: str) -> Pixels:
        """uint8[n, size, size, 3] of images as a model takes them. Raises BadRequest for one that is
        none, which calls it `name` with its number, TooManyRequests if too many wait."""
        squares = []
        for number, data in enumerate(files):
            try:
                squares.append(await self._do(square_of, data, resize))
            except (ImageError, ProcessDied, MemoryError) as error:
                raise BadRequest(f"{name.format(number)}: {_words(error)}.") from None
        return np.stack(squares)

    async def thumbnail(
        self,
        searcher: "Searcher",
        document: str,
        places: Sequence[str],
        etags: str = "",
        principals: Principals = None,
    ) -> tuple[str, bytes | None]:
        """The ETag, and a JPEG, of the image that a document of the live release is, THUMBNAIL_SIDE
        pixels at most; no JPEG where its ETag is among those that the caller has (`known`).

        Read is what lies in `places`, paths as of `source.path`: a table that came in a bundle may
        name any file, and any object that the server's credentials reach.

        Raises NotFound for a document that is none of it, or no image, or whose image is elsewhere,
        or has changed since, or is not for these principals; TooManyRequests if too many wait.
        """
        image = await asyncio.to_thread(searcher.image_of, document, principals)
        if image is None:
            raise NotFound(f"Document {document!r} is no image of the live release.")
        uri, digest = image
        if not is_within(places, self._home, uri):
            raise NotFound(
                f"The image of document {document!r} is not where its pipeline's file says."
            )
        etag = f'"{digest}"'
        if etag in etags:
            return etag, None
        try:
            content = await asyncio.to_thread(self._contents.read, uri)
            thumbnail: bytes = await self._do(thumbnail_of, content, digest)
        except (SourceError, ImageError, ProcessDied, MemoryError, OSError):
            # Not why: the words may name what the reader of a search may not see.
            raise NotFound(f"The image of document {document!r} is gone, or has changed.") from None
        return etag, thumbnail

    async def _do(self, function: Any, *arguments: Any) -> Any:
        size = sum(len(each) for each in arguments if isinstance(each, bytes))
        is_much = self._waiting_bytes and self._waiting_bytes + size > MAX_WAITING_BYTES
        if self._waiting >= MAX_WAITING or is_much:
            words = f"{self._waiting} images wait, of {self._waiting_bytes >> 20} MB"
            raise TooManyRequests(f"{words}. Try again in a second.", 1.0)
        self._waiting += 1
        self._waiting_bytes += size
        try:
            return await asyncio.wrap_future(self._pool.submit(function, *arguments))
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size


def square_of(data: bytes, resize: Resize) -> Pixels:
    """What a model takes of an image. Raises ImageError."""
    return images.prepare(images.decode(data), resize)


def thumbnail_of(content: bytes | Path, digest: str) -> bytes:
    """A JPEG of an image whose pixels have this digest. Raises ImageError for any other one."""
    if isinstance(content, Path):
        if content.stat().st_size > images.MAX_BYTES:
            raise ImageError("the image has changed")
        content = content.read_bytes()
    pixels = images.decode(content)
    if images.digest(pixels) != digest:
        raise ImageError("the image has changed")
    pillow = need("PIL.Image", "images")
    picture, file = pillow.fromarray(pixels), BytesIO()
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), pillow.Resampling.LANCZOS)
    picture.save(file, "JPEG", quality=82)
    return file.getvalue()


def _words(error: BaseException) -> str:
    return str(error) or "it cannot be decoded"
