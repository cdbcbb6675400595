"""Principal components: fewer dimensions, fitted to the data.

The directions are those of the uncentred data (eigenvectors of XᵀX of the unit vectors), the mean
is not subtracted, and the projections are scaled to unit length again: that keeps the cosine's own
origin. Measured on SciFact with MiniLM, nDCG@10 (0.645 at 384 dimensions): PCA-128 gives 0.632 so
and 0.610 with centring; fitted to all 5,183 documents PCA-256 gives 0.644 and PCA-128 0.635.

A random rotation within these directions follows, which changes no cosine: it spreads the energy,
which would lie in the first numbers, over all, so that rounding them afterwards (by codes or an
index) loses less. Measured on 100,000 captions with MiniLM, recall@10 of 352 and 336 of 384
dimensions rounded to int8: 0.984 and 0.983 without it, 0.994 and 0.991 with it; in float32 0.996
and 0.994.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.compression.base import Codec, Reducer
from embedding_pipelines.errors import CompressionError
from embedding_pipelines.vectors import Vectors, unit

# Rows to multiply in float32 at once; the sums over blocks are float64. Measured against float64
# throughout on 100,000 captions (MiniLM): the directions of PCA-128 are off by 1.3e-6 at most, with
# blocks of 8,192 rows by 2.6e-6. Float64 throughout takes 1.3 times the processor time
# (benchmarks/NOTES.md).
_BLOCK = 2_048


class PcaCodec(Codec):
    """Projection on `directions` float32[dimensions, input_dimensions]: orthonormal rows that span
    the strongest ones.

    `spectrum` float32[input_dimensions] is each principal direction's share of the squared lengths
    of the vectors it was fitted to, strongest first, with those it drops; its sum is 1.
    `kept_energy` is the sum of those it keeps.
    """

    kind = "pca"

    def __init__(self, directions: Vectors, spectrum: Vectors) -> None:
        super().__init__(directions.shape[1], directions.shape[0])
        self.directions = directions
        self.spectrum = spectrum
        energy = float(spectrum[: self.dimensions].sum(dtype=np.float64))
        self.kept_energy = round(min(1.0, energy), 6)

    @classmethod
    def rotate(cls, principal: Vectors, spectrum: Vectors) -> Self:
        """The codec of principal directions float32[dimensions, input_dimensions], rotated; any
        rotation that mixes all of them serves."""
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


class Pca(Reducer):
    """Keep the `dimensions` strongest directions of the data."""

    kind: Literal["pca"] = "pca"
    codec: ClassVar[type[Codec]] = PcaCodec

    def _fit(self, dimensions: int, blocks: Iterator[Vectors]) -> PcaCodec:
        return PcaCodec.rotate(*self.principal(dimensions, blocks))

    def principal(self, dimensions: int, blocks: Iterator[Vectors]) -> tuple[Vectors, Vectors]:
        """Exact principal directions of unit vectors float32[n_i, dimensions], and the spectrum.

        The strongest comes first; the largest entry of each is positive. Fewer vectors than
        directions leave the rest of these without energy, and to chance. Raises as `fit` does.
        """
        self.check(dimensions)
        products, rows = _products(dimensions, blocks)
        energies, columns = np.linalg.eigh(products)  # rising
        energies = np.maximum(energies[::-1], 0)
        if not energies[0]:
            raise CompressionError(
                f"pca.fit: all {rows} vectors are zero. Embed the documents before the codec."
            )
        directions = columns.T[::-1][: self.dimensions]
        peaks = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
        directions = np.ascontiguousarray(directions * np.sign(peaks), np.float32)
        return directions, (energies / energies.sum()).astype(np.float32)


def _products(dimensions: int, blocks: Iterator[Vectors]) -> tuple[NDArray[np.float64], int]:
    """XᵀX of the rows of all blocks, float64[dimensions, dimensions], and how many rows there are.

    Rows are regrouped into blocks of one size first, so that the sizes of the blocks do not matter.
    """
    products = np.zeros((dimensions, dimensions))
    group = np.empty((_BLOCK, dimensions), np.float32)
    rows = size = 0
    for block in blocks:
        rows += len(block)
        while len(block):
            part, block = block[: _BLOCK - size], block[_BLOCK - size :]
            group[size : size + len(part)] = part
            size += len(part)
            if size == _BLOCK:
                products += group.T @ group
                size = 0
    products += group[:size].T @ group[:size]
    return products, rows
