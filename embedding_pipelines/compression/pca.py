"""Principal components: fewer dimensions, fitted to the data.

The directions are those of the uncentred data (eigenvectors of XᵀX of the unit vectors), the mean
is not subtracted, and the projections are scaled to unit length again: that keeps the cosine's own
origin. Measured on SciFact with MiniLM, nDCG@10 (0.645 at 384 dimensions): PCA-128 gives 0.632 so
and 0.610 with centring; fitted to all 5,183 documents PCA-256 gives 0.644 and PCA-128 0.635.

The projections are turned within the directions that are kept, which changes no cosine: the energy,
which would lie in the first numbers, is then spread over all, and whatever rounds these numbers
afterwards (codes or an index) loses less. Measured on 100,000 captions with MiniLM, recall@10 of
352 and 336 of 384 dimensions rounded to int8: 0.984 and 0.983 as they come, 0.994 and 0.991 turned;
in float32 0.996 and 0.994.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from embedding_pipelines.compression.base import Codec, Compressor
from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines.vectors import Vectors, unit

# Rows whose products are taken in float32 at once; the sums over blocks are float64. Measured
# against float64 throughout on 100,000 captions (MiniLM): the directions of PCA-128 are off by
# 1.3e-6 at most, with blocks of 8,192 rows by 2.6e-6. Float64 throughout takes 1.3 times the
# processor time (benchmarks/NOTES.md).
_BLOCK = 2_048


class PcaCodec(Codec):
    """Projection on `directions` float32[dimensions, input_dimensions]: orthonormal rows that span
    the strongest ones.

    `spectrum` float32[input_dimensions] is the share of the squared lengths of what it was fitted
    to that lies in each principal direction, strongest first, those that are not kept included; its
    sum is 1. `kept_energy` is the share that the kept ones have together.
    """

    kind = "pca"

    def __init__(self, directions: Vectors, spectrum: Vectors) -> None:
        super().__init__(directions.shape[1], directions.shape[0])
        self.directions = directions
        self.spectrum = spectrum
        self.kept_energy = round(
            min(1.0, float(spectrum[: self.dimensions].sum(dtype=np.float64))), 6
        )

    @classmethod
    def turned(cls, principal: Vectors, spectrum: Vectors) -> Self:
        """Of principal directions float32[dimensions, input_dimensions]; any rotation that mixes
        all of them serves."""
        size = len(principal)
        rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]
        return cls(rotation.astype(np.float32) @ principal, spectrum)

    def _encode(self, vectors: Vectors) -> Vectors:
        return unit(vectors @ self.directions.T)

    def _decode(self, codes: Vectors) -> Vectors:
        return codes @ self.directions

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"directions": self.directions, "spectrum": self.spectrum}

    def statistics(self) -> dict[str, Any]:
        return {**super().statistics(), "kept_energy": self.kept_energy}

    @classmethod
    def load(cls, statistics: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        return cls(arrays["directions"], arrays["spectrum"])


class Pca(Compressor):
    """Keep the `dimensions` strongest directions of the data; float32, and others may follow."""

    kind: Literal["pca"] = "pca"
    codec: ClassVar[type[Codec]] = PcaCodec
    dimensions: int = Field(ge=1)

    def check(self, dimensions: int) -> int:
        if self.dimensions > dimensions:
            raise ConfigError(
                f"compression.pca: {self.dimensions} dimensions cannot be made of {dimensions}. "
                f"Set dimensions to {dimensions} or less."
            )
        return self.dimensions

    def _fit(self, dimensions: int, blocks: Iterator[Vectors]) -> PcaCodec:
        return PcaCodec.turned(*self.principal(dimensions, blocks))

    def principal(self, dimensions: int, blocks: Iterator[Vectors]) -> tuple[Vectors, Vectors]:
        """Exact eigenvectors of all vectors float32[n_i, dimensions] of unit length, the strongest
        first, and the spectrum; the largest entry of each direction is positive. Raises as `fit`.
        """
        self.check(dimensions)
        products, rows = _products(dimensions, blocks)
        if rows < self.dimensions:
            raise CompressionError(
                f"pca.fit: {rows} vectors cannot give {self.dimensions} directions. Add "
                f"documents until there are at least {self.dimensions}, or set compression.pca.dimensions lower."
            )
        energies, columns = np.linalg.eigh(products)  # rising
        energies = np.maximum(energies[::-1], 0)
        if not energies[0]:
            raise CompressionError(
                f"pca.fit: all {rows} vectors are zero. Embed the documents before the codec is fitted."
            )
        directions = columns.T[::-1][: self.dimensions]
        peaks = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
        directions = np.ascontiguousarray(directions * np.sign(peaks), np.float32)
        return directions, (energies / energies.sum()).astype(np.float32)


def _products(dimensions: int, blocks: Iterator[Vectors]) -> tuple[NDArray[np.float64], int]:
    """XᵀX of the rows of all blocks, float64[dimensions, dimensions], and how many rows there are.

    The rows are put into blocks of one size first, so that it does not matter how they come.
    """
    products, waiting = (
        np.zeros((dimensions, dimensions)),
        np.empty((_BLOCK, dimensions), np.float32),
    )
    rows = filled = 0
    for block in blocks:
        rows += len(block)
        while len(block):
            part, block = block[: _BLOCK - filled], block[_BLOCK - filled :]
            waiting[filled : filled + len(part)] = part
            filled += len(part)
            if filled == _BLOCK:
                products += waiting.T @ waiting
                filled = 0
    products += waiting[:filled].T @ waiting[:filled]
    return products, rows
