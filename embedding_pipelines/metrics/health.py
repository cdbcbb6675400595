"""What vectors look like without any label: signs that a model, its pooling or its prompts are not
used as they should be."""

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.metrics.base import Metric
from embedding_pipelines.metrics.evidence import Evidence
from embedding_pipelines.metrics.neighbours import nearest_others
from embedding_pipelines.vectors import Vectors, unit

K = 10
NEAR_DUPLICATE = 0.98  # cosine from which on two chunks say the same
SHORT_TOKENS = 4  # two of them are BERT's own


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
    values = {"mean_norm": float(lengths.mean())} if len(sample) else {}
    units = unit(sample[lengths > 0])
    n = len(units)
    if n:
        values["effective_rank"] = _effective_rank(units)
    if n > 1:
        total = units.sum(axis=0, dtype=np.float64)
        values["anisotropy"] = float((total @ total - n) / (n * (n - 1)))
    if n > K:
        values["hubness"] = _skewness(np.bincount(nearest_others(units, K)[0].ravel(), minlength=n))
    return values


class DistinctVectors:
    """How many vectors differ, bit by bit; blocks float32[n, d] as they come, 8 bytes kept for each
    row.

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
    def distinct(self) -> int:
        """How many rows so far did not come before."""
        return len(np.unique(np.concatenate(self._hashes)))


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


def _of_sample(name: str) -> Callable[[Evidence], float | None]:
    return lambda evidence: evidence.once(_health).get(name)


def _health(evidence: Evidence) -> dict[str, float]:
    return {} if evidence.sample is None else health(evidence.sample)


def _near_duplicates(evidence: Evidence) -> float | None:
    cosines = evidence.nearest_other
    return None if cosines is None else float(np.mean(cosines >= NEAR_DUPLICATE))


def _share(count: Callable[[Evidence], int]) -> Callable[[Evidence], float | None]:
    return lambda evidence: count(evidence) / evidence.vectors if evidence.vectors else None


DUPLICATES = Metric(
    "duplicate_rate",
    "lower",
    "share",
    "share of vectors that came before",
    _share(lambda evidence: evidence.vectors - evidence.distinct),
)
NEAR_DUPLICATES = Metric(
    "near_duplicate_rate",
    "lower",
    "share",
    f"share of sampled chunks with another one at a cosine of {NEAR_DUPLICATE} or more",
    _near_duplicates,
)
SHORT = Metric(
    "short_rate",
    "lower",
    "share",
    f"share of chunks of {SHORT_TOKENS} tokens or fewer, special tokens included",
    _share(lambda evidence: evidence.short_texts),
)
EFFECTIVE_RANK = Metric(
    "effective_rank",
    "higher",
    "dimensions",
    "dimensions that the vectors really use: e to the entropy of the energies",
    _of_sample("effective_rank"),
)
ANISOTROPY = Metric(
    "anisotropy",
    "lower",
    "cosine",
    "mean cosine of two random vectors",
    _of_sample("anisotropy"),
)
HUBNESS = Metric(
    "hubness",
    "lower",
    "skewness",
    "skewness of how often a vector is among the ten nearest of others",
    _of_sample("hubness"),
)
MEAN_NORM = Metric(
    "mean_norm", "neither", "length", "mean length of the vectors", _of_sample("mean_norm")
)
