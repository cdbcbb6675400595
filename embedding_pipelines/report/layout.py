"""Lays out a map of a space: a place on a plane for each vector, near vectors near one another.

The map stays stable from release to release: an old point keeps its place, a new one goes beside its
nearest neighbours. All are laid out anew, from the old map, once more than a third of the points are
only placed. The map is a picture for people; no figure comes from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.report.projection import project
from embedding_pipelines.vectors import Vectors, unit

MAX_POINTS = 50_000  # a browser draws them smoothly
FEW = 40  # points without neighbourhoods: their two strongest directions are the map
MOST_PLACED = 1 / 3  # share of points that may be placed beside neighbours, not laid out
BESIDE = 5  # old neighbours that place a new point
SHRUNK = 0.01  # the strongest directions as a start: near together, points find their neighbours
JITTER = 1e-4  # of the map's extent: points at the same place cannot part
FALL_OFF = 0.03  # of cosine, by which a neighbour's pull falls to 1/e of the nearest one's
BLOCK = 2_048  # rows to compare with all old ones at a time: 400 MB for 50,000 old ones

SCHEMA = pa.schema(
    [("id", pa.string()), ("x", pa.float32()), ("y", pa.float32()), ("fitted", pa.bool_())]
)


@dataclass(frozen=True)
class Layout:
    """The places of points."""

    ids: Sequence[str]
    xy: Vectors  # float32[n, 2]
    fitted: NDArray[np.bool_]  # [n]; False: placed beside its neighbours

    def batch(self) -> pa.RecordBatch:
        """The layout as rows of SCHEMA."""
        columns = [pa.array(self.ids, pa.string()), *self.xy.T, self.fitted]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    @classmethod
    def of(cls, rows: pa.Table) -> Self:
        """The layout that `batch` wrote."""
        xy = np.stack([rows["x"].to_numpy(), rows["y"].to_numpy()], axis=1)
        return cls(rows["id"].to_pylist(), xy, rows["fitted"].to_numpy())


def layout(
    vectors: Vectors, ids: Sequence[str], before: Layout | None = None, seed: int = 0
) -> Layout:
    """A place for each of `vectors` float32[n, d], n ≤ MAX_POINTS, by the cosine; deterministic. A
    changed text needs a new id; points of `before` that are not among `ids` are dropped. Raises
    ValueError for too many points and for a duplicate id."""
    if len(ids) > MAX_POINTS or len(ids) != len(vectors) or len(set(ids)) != len(ids):
        raise ValueError(f"A map takes {MAX_POINTS} vectors at most, each with an id of its own.")
    units = unit(vectors)
    rows = _old_rows(ids, before)
    is_old, all_fitted = rows >= 0, np.ones(len(ids), np.bool_)
    if before is None or not is_old.any():
        return Layout(list(ids), _fit(units, None, seed), all_fitted)
    xy = np.empty((len(ids), 2), np.float32)
    xy[is_old] = before.xy[rows[is_old]]
    xy[~is_old] = place_beside(units[~is_old], units[is_old], xy[is_old])
    if not needs_fit(ids, before):
        return Layout(list(ids), xy, np.where(is_old, before.fitted[rows], False))
    return Layout(list(ids), _align(_fit(units, xy, seed), xy, is_old), all_fitted)


def needs_fit(ids: Sequence[str], before: Layout | None) -> bool:
    """Whether `layout` would lay out all points, which takes half a minute for many."""
    rows = _old_rows(ids, before)
    count = int(before.fitted[rows[rows >= 0]].sum()) if before is not None else 0
    return len(ids) - count > MOST_PLACED * len(ids)


def place_beside(vectors: Vectors, others: Vectors, xy: Vectors) -> Vectors:
    """Places float32[m, 2] for float32[m, d] among `others` float32[n, d] at `xy` float32[n, 2].

    The mean of the nearest ones' places, in which the very nearest counts most; without those away
    from the rest, since between two clusters there is nothing.
    """
    units, others = unit(vectors), unit(others)
    count = min(BESIDE, len(others))
    result = np.empty((len(units), 2), np.float32)
    for first in range(0, len(units), BLOCK):
        cosines = units[first : first + BLOCK] @ others.T
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        cosines = np.take_along_axis(cosines, nearest, axis=1)
        pulls = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / FALL_OFF)
        places = xy[nearest]
        gaps = np.linalg.norm(places[:, :, None] - places[:, None], axis=3)
        middle = (gaps * pulls[:, None, :]).sum(axis=2).argmin(axis=1)
        away = gaps[np.arange(len(gaps)), middle]
        pulls[away > np.median(away, axis=1, keepdims=True)] = 0
        sums = (pulls[:, :, None] * places).sum(axis=1)
        result[first : first + BLOCK] = sums / pulls.sum(axis=1)[:, None]
    return result


def _old_rows(ids: Sequence[str], before: Layout | None) -> NDArray[np.int64]:
    """The row of each id in `before`, -1 for new ones."""
    rows = {name: row for row, name in enumerate(before.ids if before else ())}
    return np.fromiter((rows.get(name, -1) for name in ids), np.int64, len(ids))


def _fit(units: Vectors, start: Vectors | None, seed: int) -> Vectors:
    """Places float32[n, 2] for unit vectors, from `start` or the strongest directions."""
    plane = _plane(units) if start is None else start
    if len(units) < FEW:
        return plane
    first = plane if start is not None else plane * np.float32(SHRUNK)
    scale = JITTER * (float(np.ptp(first)) or 1.0)
    jitter = np.random.default_rng(seed).normal(scale=scale, size=first.shape)
    return project(units, (first + jitter).astype(np.float32), seed, start is not None)


def _plane(units: Vectors) -> Vectors:
    """Rows on their two strongest directions, float32[n, 2]; of these, the peak is positive."""
    centred = units - units.mean(axis=0) if len(units) else units
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    directions = directions[:, ::-1][:, :2]
    peaks = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None, :], axis=0)
    plane = np.zeros((len(units), 2), np.float32)
    plane[:, : directions.shape[1]] = centred @ (directions * np.sign(peaks)).astype(np.float32)
    return plane


def _align(places: Vectors, xy: Vectors, is_old: NDArray[np.bool_]) -> Vectors:
    """Rotate, mirror, scale and shift `places` until old points are nearest to `xy`."""
    target, source = xy[is_old].astype(np.float64), places[is_old].astype(np.float64)
    to, start = target.mean(axis=0), source.mean(axis=0)
    left, strengths, right = np.linalg.svd((source - start).T @ (target - to))
    spread = float(((source - start) ** 2).sum())
    scale = float(strengths.sum()) / spread if spread > 0 and strengths.sum() > 0 else 1.0
    result: Vectors = ((places - start) @ (left @ right) * scale + to).astype(np.float32)
    return result
