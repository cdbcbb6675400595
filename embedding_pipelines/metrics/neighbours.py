"""Exact search, the truth that other searches are measured against, block after block."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.metrics.base import metric
from embedding_pipelines.metrics.evidence import Evidence
from embedding_pipelines.vectors import Vectors, unit

Ids = Sequence[str] | NDArray[np.integer[Any]]

K = 10  # neighbours that recall is measured by
TIES = 5  # so many times as many are kept, because equal vectors may stand in for one another
COSINES_AT_ONCE = 8_000_000  # 32 MB, and as much again to find the greatest
SORTED_AT_ONCE = 1_000_000  # 4 MB, and 8 of row numbers in the order of their cosines
# A product of small blocks takes less than its threads then wait for one another by spinning: in
# blocks of 331 rows all products take five times as long.
ROWS_TOGETHER = 4_096
MULTIPLIED = 4  # blocks of SORTED_AT_ONCE
# Cosines nearer than this are equal: they vary with the shape of a product by about as much.
SAME = 1e-6


class Neighbours(NamedTuple):
    """The nearest of each query, nearest first; of equals, the one that was added first."""

    ids: list[list[Any]]  # fewer than k where fewer vectors were added
    cosines: Vectors  # float32[q, k]; -inf where there is none


class ExactSearch:
    """The k nearest by cosine to each query, of vectors that come in blocks of any size.

    `queries` is float32[q, d]. A zero vector has no direction: it finds nothing, and nothing it.
    Memory: q x k, ROWS_TOGETHER vectors, and a share of each block. Raises ValueError for other
    shapes, NaN or infinity.
    """

    def __init__(self, queries: Vectors, k: int) -> None:
        if k < 1:
            raise ValueError(f"k is {k}: ask for one at least.")
        self.k = k
        self._number = len(queries)
        self._queries, self._rows = _units(queries, None)
        shape = (len(self._queries), k)
        self._cosines = np.full(shape, -np.inf, np.float32)
        self._order = np.full(shape, np.iinfo(np.int64).max)  # when each was added
        self._ids = np.empty(shape, object)
        self._added = 0
        self._waiting: list[tuple[Vectors, NDArray[Any], NDArray[np.int64]]] = []

    def add(self, ids: Ids, block: Vectors) -> None:
        """Vectors float32[n, d] and their ids [n]; n >= 0."""
        if len(ids) != len(block):
            raise ValueError(f"{len(ids)} ids for {len(block)} vectors: give one each.")
        vectors, rows = _units(block, self._queries.shape[1])
        names = np.empty(len(block), object)
        names[:] = ids.tolist() if isinstance(ids, np.ndarray) else ids
        self._waiting.append((vectors, names[rows], self._added + rows))
        self._added += len(block)
        if sum(len(waiting) for waiting, *_ in self._waiting) >= ROWS_TOGETHER:
            self._merge_waiting()

    def result(self) -> Neighbours:
        """The nearest of all that was added so far, of every query in the order they were given."""
        self._merge_waiting()
        cosines = np.full((self._number, self.k), -np.inf, np.float32)
        ids: list[list[Any]] = [[] for _ in range(self._number)]
        for place, query in enumerate(self._rows):
            hits = np.isfinite(self._cosines[place])
            cosines[query] = self._cosines[place]
            ids[query] = self._ids[place, hits].tolist()
        return Neighbours(ids, cosines)

    def _merge_waiting(self) -> None:
        if not self._waiting:
            return
        vectors, ids, order = map(np.concatenate, zip(*self._waiting, strict=True))
        self._waiting = []
        step = max(1, COSINES_AT_ONCE // max(1, len(self._queries)))
        for start in range(0, len(vectors), step):
            part = slice(start, start + step)
            self._merge(vectors[part], ids[part], order[part])

    def _merge(self, vectors: Vectors, ids: NDArray[Any], order: NDArray[np.int64]) -> None:
        """Keep the k best of those so far and of unit vectors float32[n, d]."""
        cosines = self._queries @ vectors.T
        worst = self._cosines[:, -1:]
        if len(vectors) > self.k:
            worst = np.maximum(worst, np.partition(cosines, -self.k, axis=1)[:, -self.k, None])
        queries, columns = np.nonzero((cosines >= worst) & (cosines > self._cosines[:, -1:]))
        if not len(queries):
            return
        places, best_so_far = np.indices(self._cosines.shape)[0].ravel(), self._cosines.ravel()
        scores = np.concatenate([best_so_far, cosines[queries, columns]])
        queries = np.concatenate([places, queries])
        times = np.concatenate([self._order.ravel(), order[columns]])
        names = np.concatenate([self._ids.ravel(), ids[columns]])
        best = np.lexsort((times, -scores, queries))
        starts = np.searchsorted(queries[best], np.arange(len(self._cosines)))
        best = best[starts[:, None] + np.arange(self.k)]
        self._cosines, self._order, self._ids = scores[best], times[best], names[best]


def recall(hits: Sequence[Sequence[Any]], exact: Neighbours, k: int = K) -> Vectors:
    """Of each query, the share float32[q], in [0, 1], of its k exact nearest that are among its
    first k `hits`.

    Whatever is as near as the k-th counts as well, as far as `exact` holds it: search for 2 k
    places where many vectors are the same. A query that has nothing to find lost nothing: 1.
    Raises ValueError for other numbers of queries.
    """
    ids, cosines = exact
    if not len(hits) == len(ids) == len(cosines):
        raise ValueError(f"{len(hits)} searches cannot be measured against {len(ids)} exact ones.")
    shares = np.ones(len(ids), np.float32)
    for query, nearest in enumerate(ids):
        most = min(k, len(nearest))
        if most:
            near = cosines[query, : len(nearest)] >= cosines[query, most - 1] - SAME
            right = {name for name, counts in zip(nearest, near, strict=True) if counts}
            shares[query] = min(most, len(right & set(hits[query][:k]))) / most
    return shares


def nearest_others(vectors: Vectors, k: int) -> tuple[NDArray[np.int64], Vectors]:
    """Of each row of float32[n, d], the numbers int64[n, k] and cosines float32[n, k] of the k
    nearest others, in no order; a zero vector's cosines are 0. Raises ValueError unless 1 <= k < n.
    """
    if not 1 <= k < len(vectors):
        raise ValueError(f"{len(vectors)} vectors do not have {k} others each.")
    units = np.zeros(vectors.shape, np.float32)
    directions, rows = _units(vectors, None)
    units[rows] = directions
    near, cosines = np.empty((len(units), k), np.int64), np.empty((len(units), k), np.float32)
    step = max(1, SORTED_AT_ONCE // len(units))
    for start in range(0, len(units), MULTIPLIED * step):
        products = units[start : start + MULTIPLIED * step] @ units.T
        own = np.arange(len(products))
        products[own, start + own] = -np.inf
        for first in range(0, len(products), step):
            block = products[first : first + step]
            part = slice(start + first, start + first + len(block))
            near[part] = np.argpartition(block, -k, axis=1)[:, -k:]
            cosines[part] = np.take_along_axis(block, near[part], axis=1)
    return near, cosines


def leave_one_out_accuracy(vectors: Vectors, labels: Sequence[str], k: int = K) -> float:
    """The share of vectors float32[n, d] whose k nearest others, by cosine, vote for their label
    (Fix and Hodges, 1951).

    Of labels with the same number of votes, the nearer ones win. With k or less others, all of them
    vote. Time grows with n². Raises ValueError for another number of labels or less than two rows.
    """
    if len(labels) != len(vectors) or len(vectors) < 2:
        raise ValueError(
            f"{len(labels)} labels for {len(vectors)} vectors: give one each, of two at least."
        )
    near, cosines = nearest_others(vectors, min(k, len(vectors) - 1))
    names, kinds = np.unique(np.asarray(labels, object).astype(str), return_inverse=True)
    right = 0
    for own, others, nearness in zip(kinds, kinds[near], cosines, strict=True):
        votes = np.bincount(others, minlength=len(names)).astype(np.float64)
        nearer = np.bincount(others, nearness.astype(np.float64) + 1, len(names))
        votes += nearer / (4 * len(others))
        right += int(votes.argmax()) == own
    return right / len(labels)


def _units(vectors: Vectors, dimensions: int | None) -> tuple[Vectors, NDArray[np.int64]]:
    """The rows that have a direction, at unit length, and their numbers."""
    if vectors.ndim != 2 or dimensions not in (None, vectors.shape[1]):
        raise ValueError(
            f"An array of shape {vectors.shape} holds no vectors [n, {dimensions or 'd'}]."
        )
    if not np.isfinite(vectors).all():
        raise ValueError("A vector holds NaN or infinity, which is near to nothing.")
    rows = np.flatnonzero(vectors.any(axis=1))
    return unit(vectors[rows]).astype(np.float32, copy=False), rows


@metric("higher", "share")
def knn_accuracy(evidence: Evidence) -> float | None:
    """Share of chunks whose 10 nearest neighbours vote for their own label."""
    rows = [row for row, label in enumerate(evidence.labels) if label is not None]
    if evidence.decoded is None or len(rows) <= K:
        return None
    labels = [str(evidence.labels[row]) for row in rows]
    return leave_one_out_accuracy(evidence.decoded[rows], labels)


@metric("higher", "share")
def recall_at_10(evidence: Evidence) -> float | None:
    """Share of the exact ten nearest in the model's own space that a search finds."""
    return _mean_recall(evidence, evidence.exact)


@metric("higher", "share")
def index_recall_at_10(evidence: Evidence) -> float | None:
    """Share of the exact ten nearest codes that the index finds."""
    return _mean_recall(evidence, evidence.exact_codes)


def _mean_recall(evidence: Evidence, exact: Neighbours | None) -> float | None:
    if exact is None or not exact.ids:
        return None
    searches = evidence.searches[: len(exact.ids)]
    shares = recall([search.nearest for search in searches], exact)
    # As near as the tenth may be more than `exact` holds, if a text comes very often: who is right?
    last, tenth = exact.cosines[:, -1], exact.cosines[:, K - 1]
    clear = np.isneginf(last) | (last < tenth - SAME)
    return float(shares[clear].mean()) if clear.any() else None
