"""Half precision: half the bytes, and a cosine that is off by less than one part in a thousand.

Ends a chain, and needs no fitting.
"""

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.compression.base import Codec, Compressor
from embedding_pipelines.vectors import Vectors


class Float16Codec(Codec):
    """IEEE half precision of the unit vectors, which cannot overflow."""

    kind = "float16"
    dtype = "float16"

    def _encode(self, vectors: Vectors) -> NDArray[np.float16]:
        return vectors.astype(np.float16)

    def _decode(self, codes: NDArray[np.float16]) -> Vectors:
        return codes.astype(np.float32)


class Float16(Compressor):
    """Store each number in two bytes."""

    kind: Literal["float16"] = "float16"
    codec: ClassVar[type[Codec]] = Float16Codec

    def build(self, dimensions: int) -> Float16Codec:
        return Float16Codec(dimensions, dimensions)
