"""What vectors look like without any label: signs that a model is not used as it should be."""

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.metrics.base import metric
from embedding_pipelines.metrics.evidence import Evidence
from embedding_pipelines.metrics.neighbours import K, nearest_others
from embedding_pipelines.vectors import Vectors, unit

NEAR_DUPLICATE = 0.98  # cosine from which on two chunks say the same
SHORT_TOKENS = 4  # two of them are BERT's own
HELD = 1_000_000  # hashes in memory: 8 MB
RANGES = np.arange(1, 256, dtype=np.uint64) << np.uint64(56)  # that are counted one by one

Hashes = NDArray[np.uint64]


class DistinctCount:
    """How many vectors or names came, and how many are different, by 64-bit hashes. Among ten
    million, two are taken for one with a chance of 3 in a million.

    HELD hashes are in memory, the others in a temporary file, which `with` removes.
    """

    def __init__(self) -> None:
        self.all = 0
        self._held: list[Hashes] = []
        self._file: IO[bytes] | None = None
        # Of each sorted run of hashes in the file, where each of the RANGES begins, and the end.
        self._runs: list[NDArray[np.int64]] = []

    def add_vectors(self, block: Vectors) -> None:
        """float32[n, d], told apart bit by bit; -0.0 is 0.0."""
        rows = np.ascontiguousarray(block + np.float32(0))
        digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
        self._add(np.frombuffer(digests, np.uint64))

    def add_names(self, names: Sequence[str]) -> None:
        self._add(np.fromiter(map(hash, names), np.int64, len(names)).view(np.uint64))

    @property
    def distinct(self) -> int:
        held = np.sort(np.concatenate([np.empty(0, np.uint64), *self._held]))
        places = _places(held)
        return sum(
            len(np.unique(np.concatenate([held[low:high], *self._stored(number)])))
            for number, (low, high) in enumerate(itertools.pairwise(places))
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def _add(self, hashes: Hashes) -> None:
        self._held.append(hashes)
        self.all += len(hashes)
        if sum(map(len, self._held)) < HELD:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # `__exit__` closes it
        run = np.sort(np.concatenate(self._held))
        self._runs.append(_places(run) + (self.all - len(run)))
        self._file.seek(0, os.SEEK_END)
        self._file.write(run.tobytes())
        self._held = []

    def _stored(self, number: int) -> Iterator[Hashes]:
        """The hashes of a range that are in the file."""
        for places in self._runs:
            low, high = places[number : number + 2]
            assert self._file is not None
            self._file.seek(8 * low)
            yield np.frombuffer(self._file.read(8 * (high - low)), np.uint64)


def _places(hashes: Hashes) -> NDArray[np.int64]:
    """Where each range of sorted hashes begins, and the end."""
    return np.array([0, *np.searchsorted(hashes, RANGES), len(hashes)])


@metric("neither", "documents")
def documents(evidence: Evidence) -> float | None:
    """Documents in the table."""
    return evidence.documents if evidence.vectors else None


@metric("lower", "share")
def duplicate_rate(evidence: Evidence) -> float | None:
    """Share of vectors that came before."""
    return 1 - evidence.distinct / evidence.vectors if evidence.vectors else None


@metric("lower", "share")
def near_duplicate_rate(evidence: Evidence) -> float | None:
    """Share of sampled chunks with another one at a cosine of 0.98 or more."""
    cosines = evidence.nearest_other
    return None if cosines is None else float(np.mean(cosines >= NEAR_DUPLICATE))


@metric("lower", "share")
def short_rate(evidence: Evidence) -> float | None:
    """Share of chunks of four tokens or fewer, special tokens included."""
    return evidence.short_texts / evidence.vectors if evidence.vectors else None


@metric("higher", "dimensions")
def effective_rank(evidence: Evidence) -> float | None:
    """Dimensions that the vectors really use: e to the entropy of the energies."""
    # Of the shares of energy along the principal directions, without centring (after Roy and
    # Vetterli, "The effective rank", 2007, who take amplitudes); from 1 to min(n, d).
    units = evidence.once(_directions)
    if not len(units):
        return None
    # The smaller of the two products has the same energies.
    product = units.T @ units if len(units) > units.shape[1] else units @ units.T
    shares = np.linalg.eigvalsh(product.astype(np.float64)).clip(0)
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


@metric("lower", "cosine")
def anisotropy(evidence: Evidence) -> float | None:
    """Mean cosine of two random vectors."""
    # Of all pairs of two, from -1 / (n - 1) to 1 (Ethayarajh, "How contextual ...", 2019).
    units = evidence.once(_directions)
    total, n = units.sum(axis=0, dtype=np.float64), len(units)
    return float((total @ total - n) / (n * (n - 1))) if n > 1 else None


@metric("lower", "skewness")
def hubness(evidence: Evidence) -> float | None:
    """Skewness of how often a vector is among the ten nearest of others."""
    # 0: all alike (Radovanović, Nanopoulos and Ivanović, "Hubs in space", 2010). Time grows with
    # n²: 5,000 x 1,024 take less than a second.
    units = evidence.once(_directions)
    if len(units) <= K:
        return None
    counts = np.bincount(nearest_others(units, K)[0].ravel(), minlength=len(units))
    spread = counts - counts.mean()
    deviation = np.sqrt((spread**2).mean())
    return float((spread**3).mean() / deviation**3) if deviation else 0.0


@metric("neither", "length")
def mean_norm(evidence: Evidence) -> float | None:
    """Mean length of the vectors."""
    sample = evidence.sample
    return None if sample is None else float(np.linalg.norm(sample, axis=1).mean())


def _directions(evidence: Evidence) -> Vectors:
    """The unit vectors of the sample; zero vectors have none."""
    sample = np.empty((0, 1), np.float32) if evidence.sample is None else evidence.sample
    directions: Vectors = unit(sample[sample.any(axis=1)])
    return directions
