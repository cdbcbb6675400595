"""What all ways to compress share about vectors: the types of codes and checks. Nothing of a
codec."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import CompressionError
from embedding_pipelines.vectors import Vectors

Codes = NDArray[Any]
Dtype = Literal["float32", "float16", "int8", "binary"]

# Of one number; of binary, one byte of packed bits.
ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "int8": 1, "binary": 1}


def checked(vectors: Vectors, dimensions: int | None, where: str, first: int = 0) -> Vectors:
    """`vectors` as float32[n, dimensions] (None: any); CompressionError if shape or a number is
    wrong.

    `first` is the number of the first row, for the error.
    """
    if vectors.ndim != 2 or (dimensions is not None and vectors.shape[1] != dimensions):
        wanted = "d" if dimensions is None else dimensions
        raise CompressionError(
            f"{where}: the vectors have the shape {vectors.shape}, and [n, {wanted}] is needed. "
            "Use the codec that was fitted to this model's vectors."
        )
    vectors = np.asarray(vectors, np.float32)
    if np.isfinite(vectors).all():
        return vectors
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    raise CompressionError(
        f"{where}: {broken.size} of {len(vectors)} vectors hold NaN or infinity, the first is number "
        f"{first + broken[0]}. Embed these texts again."
    )


def sound(
    blocks: Iterable[Vectors], where: str, dimensions: int | None = None
) -> Iterator[Vectors]:
    """The blocks float32[n_i, dimensions] (None: as wide as the first) once they are `checked`."""
    first = 0
    for block in blocks:
        vectors = checked(block, dimensions, where, first)
        dimensions, first = vectors.shape[1], first + len(vectors)
        yield vectors


def code_width(dimensions: int, dtype: Dtype) -> int:
    """Numbers in one stored code: the dimensions, or for binary the bytes that hold as many
    bits."""
    return -(-dimensions // 8) if dtype == "binary" else dimensions
