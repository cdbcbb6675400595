"""What vectors look like without any label: signs that a model, its pooling or its prompts are not
used as they should.

Figures only; what is usual is for others to say.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.metrics.neighbours import nearest_others
from embedding_pipelines.vectors import Vectors, unit

K = 10


def health(sample: Vectors) -> dict[str, float]:
    """Figures of a sample float32[n, d] of vectors; those that n is too small for are left out.

    mean_norm: mean length of all rows. The others see directions only, and no zero vectors:
    effective_rank: dimensions that are really used, from 1 to d: e to the entropy of the shares of
    energy along the principal directions, without centring (after Roy and Vetterli, "The effective
    rank", 2007, who take amplitudes). anisotropy: mean cosine of all pairs of two, -1 / (n - 1) to
    1 (Ethayarajh, "How contextual ...", 2019). hubness: skewness of how often a vector is among the
    ten nearest of others; 0: all alike (Radovanović, Nanopoulos and Ivanović, "Hubs in space",
    2010).

    Time grows with n²: 5,000 x 1,024 take less than a second. Raises ValueError for NaN or
    infinity.
    """
    lengths = np.linalg.norm(sample, axis=1)
    if not np.isfinite(lengths).all():
        raise ValueError("A vector holds NaN or infinity.")
    found = {"mean_norm": float(lengths.mean())} if len(sample) else {}
    units = unit(sample[lengths > 0])
    n = len(units)
    if n:
        found["effective_rank"] = _effective_rank(units)
    if n > 1:
        total = units.sum(axis=0, dtype=np.float64)
        found["anisotropy"] = float((total @ total - n) / (n * (n - 1)))
    if n > K:
        found["hubness"] = _skewness(np.bincount(nearest_others(units, K)[0].ravel(), minlength=n))
    return found


class DuplicateCount:
    """How many vectors came before, bit by bit the same; blocks float32[n, d] as they come, 8 bytes
    kept for each row.

    Rows are told apart by 64-bit hashes: among ten million, a wrong duplicate has a chance of 3 in
    a million.
    """

    def __init__(self) -> None:
        self._hashes = [np.empty(0, np.uint64)]

    def add(self, block: Vectors) -> None:
        """Vectors float32[n, d]; -0.0 is 0.0."""
        rows = np.ascontiguousarray(block + np.float32(0))
        digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
        self._hashes.append(np.frombuffer(digests, np.uint64))

    @property
    def rate(self) -> float:
        """The share of all rows so far that came before, in [0, 1); 0 without rows."""
        hashes = np.concatenate(self._hashes)
        return 1 - len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


def _effective_rank(units: Vectors) -> float:
    """From 1 to min(n, d); the smaller of the two products has the same energies."""
    product = units.T @ units if len(units) > units.shape[1] else units @ units.T
    shares = np.linalg.eigvalsh(product.astype(np.float64)).clip(0)
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _skewness(counts: NDArray[np.int64]) -> float:
    spread = counts - counts.mean()
    deviation = np.sqrt((spread**2).mean())
    return float((spread**3).mean() / deviation**3) if deviation else 0.0
