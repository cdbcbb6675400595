"""A bridge: the linear map from the space of one model to that of another, by which queries of the
one search vectors of the other. It is fitted to vectors of the same texts in both.

Two kinds are tried, and what maps held-out texts nearest is taken: an orthogonal map (Schönemann,
"A generalized solution of the orthogonal Procrustes problem", 1966), which keeps all angles and needs
few texts, and a ridge regression, which may also stretch. Both are between centred vectors.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.metrics.confidence import Numbers, lower_bound
from embedding_pipelines.vectors import Vectors

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the mean energy of a dimension
HELD_OUT = 5  # every fifth text tells which map is best

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Bridge:
    """`(vector - new_mean) @ matrix + old_mean`."""

    kind: str  # "orthogonal" or "ridge"
    matrix: Vectors  # float32[d_new, d_old]
    new_mean: Vectors  # float32[d_new]
    old_mean: Vectors  # float32[d_old]

    def map(self, vectors: Vectors) -> Vectors:
        """float32[n, d_new], or one float32[d_new], in the old space at unit length. Raises
        ValueError for another number of dimensions."""
        if vectors.shape[-1] != len(self.matrix):
            raise ValueError(
                f"The bridge maps vectors of {len(self.matrix)} dimensions, not {vectors.shape[-1]}."
            )
        mapped = (vectors - self.new_mean) @ self.matrix + self.old_mean
        lengths = np.linalg.norm(mapped, axis=-1, keepdims=True)
        return np.asarray(mapped / np.maximum(lengths, 1e-12), np.float32)

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        values: dict[str, Any] = dict(vars(self))
        np.savez(file, allow_pickle=False, **values)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Bridge":
        """Raises ValueError, KeyError or zipfile.BadZipFile for what `to_bytes` did not write."""
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return cls(str(file["kind"]), file["matrix"], file["new_mean"], file["old_mean"])


@dataclass(frozen=True)
class Retention:
    """What is left of a recall when other queries ask for the same."""

    mean: float  # recall of the other queries / recall of the table's own
    low: float  # the true share is greater, with a confidence of 95%
    own_recall: float
    queries: int


def fit_bridge(new: Vectors, old: Vectors) -> Bridge:
    """The map from float32[n, d_new] to float32[n, d_old], vectors of the same texts in both spaces.
    Raises ValueError for fewer than ten, or for numbers of rows that differ."""
    if len(new) != len(old) or len(new) < 2 * HELD_OUT:
        raise ValueError(
            f"A bridge needs ten pairs or more, not {len(new)} and {len(old)} vectors."
        )
    is_held_out = np.arange(len(new)) % HELD_OUT == 0
    kinds = ("orthogonal", *RIDGES)
    fits = _fit_all(new[~is_held_out], old[~is_held_out], kinds)
    goals = old[is_held_out] / np.linalg.norm(old[is_held_out], axis=1, keepdims=True)
    cosines = [float((fit.map(new[is_held_out]) * goals).sum(axis=1).mean()) for fit in fits]
    return _fit_all(new, old, [kinds[int(np.argmax(cosines))]])[0]


def retention_of(bridged: Numbers, own: Numbers) -> Retention:
    """Of recalls [n] in [0, 1] by query, with other queries and with the table's own. Raises
    ValueError for none."""
    mean = float(np.mean(own))
    gains = np.asarray(bridged, np.float64) - np.asarray(own, np.float64)
    certain = 2 * lower_bound((gains + 1) / 2) - 1
    if not mean:
        return Retention(0.0, 0.0, 0.0, len(gains))
    low = max(0.0, 1 + certain / mean)
    return Retention(float(1 + gains.mean() / mean), low, mean, len(gains))


def _fit_all(new: Vectors, old: Vectors, kinds: Any) -> list[Bridge]:
    new_mean, old_mean = new.mean(axis=0), old.mean(axis=0)
    x = np.asarray(new - new_mean, np.float64)
    y = np.asarray(old - old_mean, np.float64)
    both, own, fits = x.T @ y, x.T @ x, list[Bridge]()
    energy = float(np.trace(own)) / len(own)
    for kind in kinds:
        if kind == "orthogonal":
            left, _, right = np.linalg.svd(both, full_matrices=False)
            matrix: Matrix = left @ right
        else:
            matrix = np.linalg.solve(own + kind * max(energy, 1e-12) * np.eye(len(own)), both)
        name = kind if isinstance(kind, str) else "ridge"
        fits.append(Bridge(name, matrix.astype(np.float32), new_mean, old_mean))
    return fits
