"""Truncation: keeps the first dimensions, for models trained for it (Matryoshka).

It needs no fitting, and scales to unit length again. For models without that training `pca` at the
same size keeps more: on SciFact with MiniLM at 128 of 384 dimensions, nDCG@10 0.602 and 0.636 with
`pca`.
"""

from typing import ClassVar, Literal

import numpy as np

from embedding_pipelines.compression.base import Codec, Reducer
from embedding_pipelines.vectors import Vectors, unit


class TruncateCodec(Codec):
    """The first `dimensions` numbers of each vector."""

    kind = "truncate"

    def _encode(self, vectors: Vectors) -> Vectors:
        return unit(vectors[:, : self.dimensions])

    def _decode(self, codes: Vectors) -> Vectors:
        return np.pad(codes, ((0, 0), (0, self.input_dimensions - self.dimensions)))


class Truncate(Reducer):
    """Keep the first `dimensions`."""

    kind: Literal["truncate"] = "truncate"
    codec: ClassVar[type[Codec]] = TruncateCodec
    comes_first = True

    def build(self, dimensions: int) -> TruncateCodec:
        return TruncateCodec(dimensions, self.check(dimensions))
