"""Principal components: fewer dimensions, fitted to the data.

The directions are those of the uncentred data (eigenvectors of XᵀX of the unit vectors), the mean is not
subtracted, and the projections are scaled to unit length again: that keeps the cosine's own origin.
Measured on SciFact with MiniLM, nDCG@10 (0.645 at 384 dimensions): PCA-128 gives 0.632 so and 0.610 with
centring; fitted to all 5,183 documents PCA-256 gives 0.644 and PCA-128 0.636.
"""

from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from embedding_pipelines.compression.base import Codec, Compressor, Vectors, checked, unit
from embedding_pipelines.errors import CompressionError, ConfigError

_BLOCK = 8192  # rows that are summed up in float64 at a time: 25 MB at 384 dimensions


class PcaCodec(Codec):
    """Projection on `directions` float32[dimensions, input_dimensions], orthonormal rows, strongest first.

    `kept_energy` is the share (0 to 1) of the sample's squared length that lies in these directions.
    """

    kind = "pca"

    def __init__(self, directions: Vectors, kept_energy: float) -> None:
        super().__init__(directions.shape[1], directions.shape[0])
        self.directions = directions
        self.kept_energy = kept_energy

    def _encode(self, vectors: Vectors) -> Vectors:
        return unit(vectors @ self.directions.T)

    def _decode(self, codes: Vectors) -> Vectors:
        return codes @ self.directions

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"directions": self.directions}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "kept_energy": self.kept_energy}

    @classmethod
    def load(cls, facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        return cls(arrays["directions"], facts["kept_energy"])


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

    def fit(self, sample: Vectors, seed: int) -> PcaCodec:
        """Exact eigenvectors, so `seed` decides nothing; the largest entry of each direction is positive."""
        vectors = unit(checked(sample, None, "pca.fit"))
        self.check(vectors.shape[1])
        if len(vectors) < self.dimensions:
            raise CompressionError(
                f"pca.fit: {len(vectors)} vectors cannot give {self.dimensions} directions. Add "
                f"documents until there are at least {self.dimensions}, or set compression.pca.dimensions lower."
            )
        products = np.zeros((vectors.shape[1],) * 2, np.float64)
        for at in range(0, len(vectors), _BLOCK):
            block = vectors[at : at + _BLOCK].astype(np.float64)
            products += block.T @ block
        energies, columns = np.linalg.eigh(products)  # rising
        directions = columns.T[::-1][: self.dimensions]
        peaks = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
        total = float(energies.sum())
        kept = float(energies[::-1][: self.dimensions].sum()) / total if total > 0 else 0.0
        return PcaCodec((directions * np.sign(peaks)).astype(np.float32), round(kept, 6))
