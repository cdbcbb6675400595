"""Golden images of a bundle: drawn here, stored as PNG, with the vectors that the model gave them. They
cover what texts do not: decoding, the laying on white, resizing, and the tower of images.

Another machine reads them from the bundle, so that its decoder and its resizing are compared, too. They
are decoded in a process of its own: a bundle may come from anybody.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_pipelines.errors import BundleError
from embedding_pipelines.extras import need
from embedding_pipelines.images import ImageError, Pixels, decode, format_of, prepare
from embedding_pipelines.pool import Pool, ProcessDied
from embedding_pipelines.providers.base import EmbeddingModel
from embedding_pipelines.schemas import IMAGE, VECTOR
from embedding_pipelines.serving.archive import REFUSED
from embedding_pipelines.serving.pictures import square_of
from embedding_pipelines.vectors import cosine, to_matrix

MAX_IMAGES, MAX_BYTES = 64, 1 << 20  # of a bundle that somebody else has made; of each


def write_golden_images(path: Path, model: EmbeddingModel) -> None:
    """A row for each image: its PNG and its vector today, past the cache."""
    files = list(_drawings())
    squares = np.stack([prepare(decode(data), model.resize) for data in files])
    rows = [
        {IMAGE: data, VECTOR: vector.tolist()}
        for data, vector in zip(files, model.embed_images(squares), strict=True)
        if np.isfinite(vector).all()  # else the model rejects the image
    ]
    pq.write_table(pa.Table.from_pylist(rows, _schema(model)), path)


def least_cosine(path: Path, model: EmbeddingModel) -> float:
    """Between a bundle's golden images' vectors and those that this machine's model gives. Raises
    BundleError for what is no such file."""
    try:
        with pq.ParquetFile(path) as file:  # a few bytes may stand for any number of rows
            is_few = 0 < file.metadata.num_rows <= MAX_IMAGES
            is_usual = is_few and file.schema_arrow.equals(_schema(model))
            golden = file.read() if is_usual else None
    except (OSError, pa.ArrowException) as error:
        raise BundleError(
            f"The bundle has no golden images, which a model of images needs: {error}. Bundle the "
            f"pipeline anew. {REFUSED}"
        ) from None
    if golden is None or any(column.null_count for column in golden.columns):
        raise BundleError(f"The bundle's golden images are not as this model has them. {REFUSED}")
    now = model.embed_images(np.stack(_squares(golden[IMAGE].to_pylist(), model)))
    return float(np.nan_to_num(cosine(now, to_matrix(golden[VECTOR]))).min())


def _squares(files: Sequence[bytes], model: EmbeddingModel) -> list[Pixels]:
    try:
        with Pool(1) as pool:
            for data in files:
                if len(data) > MAX_BYTES or format_of(data) != "png":
                    raise ImageError("one is no small PNG")
            squares = [pool.submit(square_of, data, model.resize) for data in files]
            return [square.result() for square in squares]
    except (ImageError, ProcessDied, MemoryError) as error:
        words = str(error) or "one takes too much memory"
        raise BundleError(
            f"The bundle's golden images cannot be read: {words}. {REFUSED}"
        ) from None


def _schema(model: EmbeddingModel) -> pa.Schema:
    vector = pa.list_(pa.float32(), model.space.dimensions)
    return pa.schema([(IMAGE, pa.binary()), (VECTOR, vector)])


def _drawings() -> Iterator[bytes]:
    """The same on every machine: soft and hard edges, larger and smaller than what a model takes,
    wide and tall, and each mode that a PNG may have."""
    y, x = np.mgrid[0:300, 0:400]
    soft = np.stack([x * 255 // 400, y * 255 // 300, (x + y) * 255 // 700], -1).astype(np.uint8)
    waves = (127 + 120 * np.sin(x / 3) * np.cos(y / 5)).astype(np.uint8)
    board = ((x // 3 + y // 3) % 2 * 255).astype(np.uint8)  # finer than any model sees
    disc = ((x - 200) ** 2 + (y - 150) ** 2 < 120**2).astype(np.uint8) * 255
    yield _png(soft)
    yield _png(np.stack([waves, board, disc], -1))
    yield _png(np.dstack([soft, disc]))  # on nothing, which becomes white
    yield _png(np.dstack([soft[..., :2], waves[..., None], waves]))
    yield _png(board)
    yield _png(waves.astype(np.uint16) * 257)
    yield _png(np.stack([disc, waves, board], -1)[100:140])  # wide
    yield _png(soft[:, :24])  # tall
    yield _png(np.stack([waves, disc, waves], -1)[140:156, 80:96])  # smaller


def _png(pixels: "np.ndarray") -> bytes:
    file = io.BytesIO()
    need("PIL.Image", "images").fromarray(pixels).save(file, "PNG")
    return file.getvalue()
