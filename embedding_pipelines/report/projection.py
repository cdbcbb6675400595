"""From many dimensions to two: places on a plane, on which near vectors lie near one another.

This is PaCMAP (Wang et al., "Understanding How Dimension Reduction Tools Work", 2021) in numpy: each
point is pulled to its nearest neighbours and, at first, to some that are neither near nor far, which
arranges the whole; random others push it away. Towards the end, unlike there, neighbours pull less
and steps grow smaller: on 3,000 MiniLM vectors half of the ten nearest are so among the map's ten
nearest, instead of a third. UMAP has as many, but compiles for 30 s before the first map.
"""

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.vectors import Vectors

Rows = NDArray[np.int32]

DIRECTIONS = 128  # of the vectors, the strongest, in which neighbours are looked for
NEAR, MIDDLE, FAR = 10, 5, 20  # others that a point is compared with
OF_SOME = 6  # random points, of which the second nearest is neither near nor far
ITERATIONS, OF_MANY = 300, 200  # steps, and those of more than MANY points
MANY = 20_000
ARRANGING, SETTLING = 2 / 9, 4 / 9  # until which share of the steps the whole is arranged, settled
LATE_PULL = 0.25  # of neighbours, once the whole is settled
LEAST_RATE = 0.05  # of the last step; the first is 1
GENTLE_ITERATIONS, GENTLE_RATE = 100, 0.1  # from an old map
NEAR_REACH, MIDDLE_REACH = 10.0, 10_000.0  # squared distances up to which others pull
MEMORY, LONG_MEMORY = 0.9, 0.999  # of Adam
EXACT = 5_000  # points of which all pairs are compared; of more, those of cells
PROBES = 12  # cells beside one another in which a neighbour is looked for
CANDIDATES = 8_192  # at most: near-duplicates fill one cell
ROUNDS = 3  # of placing the cells' centres
BLOCK = 1_024  # rows that are compared at a time


def project(units: Vectors, start: Vectors, seed: int, is_old: bool = False) -> Vectors:
    """Places float32[n, 2] for unit vectors float32[n, d], n > NEAR, from `start` float32[n, 2];
    deterministic. With `is_old` they stay near it."""
    random = np.random.default_rng(seed)
    points = _strongest(units)
    pulls = [(nearest(points, NEAR), NEAR_REACH), (_between(points, random), MIDDLE_REACH)]
    steps = GENTLE_ITERATIONS if is_old else ITERATIONS if len(units) <= MANY else OF_MANY
    places = np.ascontiguousarray(start.T, np.float32)
    mean, square = np.zeros_like(places), np.zeros_like(places)
    for step in range(steps):
        *weights, rate = (LATE_PULL, 0.0, GENTLE_RATE) if is_old else _weights(step / steps)
        force = -_push(places, random)
        for (others, reach), weight in zip(pulls, weights, strict=True):
            if weight:
                force += _pull(places, others, reach, weight)
        mean += (1 - MEMORY) * (force - mean)
        square += (1 - LONG_MEMORY) * (force**2 - square)
        scale = np.sqrt(1 - LONG_MEMORY ** (step + 1)) / (1 - MEMORY ** (step + 1))
        places -= np.float32(rate * scale) * mean / (np.sqrt(square) + np.float32(1e-7))
    return np.ascontiguousarray(places.T)


def _weights(share: float) -> tuple[float, float, float]:
    """How much near points pull, and those between, which do so first, then less, then not at all;
    and how large the step is."""
    if share < ARRANGING:
        return 2.0, 1_000 + (3 - 1_000) * share / ARRANGING, 1.0
    if share < SETTLING:
        return 3.0, 3.0, 1.0
    return LATE_PULL, 0.0, 1 - (1 - LEAST_RATE) * (share - SETTLING) / (1 - SETTLING)


def _pull(places: Vectors, others: Rows, reach: float, weight: float) -> Vectors:
    """The gradient float32[2, n] of s / (reach + s) over pairs, s the squared distance plus 1."""
    gaps = places[:, :, None] - places[:, others]
    squares = 1 + (gaps**2).sum(axis=0)
    gaps *= np.float32(2 * weight * reach) / (np.float32(reach) + squares) ** 2
    force: Vectors = gaps.sum(axis=2)
    ends = others.ravel()
    for axis in range(2):  # the other end of each pair is pulled as much
        force[axis] -= np.bincount(ends, gaps[axis].ravel(), places.shape[1])
    return force


def _push(places: Vectors, random: np.random.Generator) -> Vectors:
    """The gradient float32[2, n] of s / (1 + s), for FAR random others of each point.

    They are as many rows further for every point, so that each is also the other one as often: in
    place of what acts on it there, what acts on it here counts twice.
    """
    count = places.shape[1]
    others = (np.arange(count)[:, None] + random.integers(1, count, FAR)) % count
    gaps = places[:, :, None] - places[:, others]
    gaps *= 4 / (2 + (gaps**2).sum(axis=0)) ** 2
    force: Vectors = gaps.sum(axis=2)
    return force


def nearest(points: Vectors, count: int) -> Rows:
    """The rows int32[n, count] of the nearest others of each of float32[n, d], n > count.

    Of more than EXACT points nearly all: those in the same cell and the cells beside it.
    """
    rows = np.arange(len(points))
    result = np.empty((len(points), count), np.int32)
    squares = (points**2).sum(axis=1) / 2
    for members, candidates in _cells(points) if len(points) > EXACT else [(rows, rows)]:
        if len(candidates) <= count:
            candidates = rows
        others, halves = points[candidates], squares[candidates]
        for first in range(0, len(members), BLOCK):
            some = members[first : first + BLOCK]
            gaps = halves - points[some] @ others.T
            gaps[some[:, None] == candidates] = np.inf
            result[some] = candidates[np.argpartition(gaps, count - 1, axis=1)[:, :count]]
    return result


def _cells(points: Vectors) -> list[tuple[Rows, Rows]]:
    """The rows of each cell, and of those cells that are nearest to it, its own included."""
    count = int(np.sqrt(len(points)))
    centres = points[np.linspace(0, len(points) - 1, count).astype(int)]
    for _ in range(ROUNDS):
        squares = (centres**2).sum(axis=1) / 2
        cell = np.concatenate(
            [
                (points[first : first + BLOCK] @ centres.T - squares).argmax(axis=1)
                for first in range(0, len(points), BLOCK)
            ]
        )
        sizes = np.bincount(cell, minlength=count)
        sums = np.stack([np.bincount(cell, column, count) for column in points.T], axis=1)
        means = sums / np.maximum(sizes, 1)[:, None]
        centres = np.where(sizes[:, None] > 0, means, centres).astype(np.float32)
    members = np.split(np.argsort(cell, kind="stable").astype(np.int32), np.cumsum(sizes)[:-1])
    order = np.argsort((centres**2).sum(axis=1) / 2 - centres @ centres.T, axis=1)[:, :PROBES]
    result = []
    for own, beside in zip(members, order, strict=True):
        rows = np.concatenate([members[at] for at in beside])
        result.append((own, rows[:: -(-len(rows) // CANDIDATES) or 1]))
    return result


def _between(points: Vectors, random: np.random.Generator) -> Rows:
    """Rows int32[n, MIDDLE], each the second nearest of OF_SOME random ones."""
    count = len(points)
    result = np.empty((count, MIDDLE), np.int32)
    for at in range(MIDDLE):
        some = random.integers(0, count, (count, OF_SOME))
        gaps = np.stack([((points[column] - points) ** 2).sum(axis=1) for column in some.T], axis=1)
        second = np.argpartition(gaps, 1, axis=1)[:, 1]
        result[:, at] = some[np.arange(count), second]
    return result


def _strongest(units: Vectors) -> Vectors:
    """Rows on their strongest directions, float32[n, DIRECTIONS] at most."""
    centred = units - units.mean(axis=0)
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    strongest: Vectors = centred @ directions[:, ::-1][:, :DIRECTIONS].astype(np.float32)
    return strongest
