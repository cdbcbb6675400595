"""A map of a space: a place on a plane for each vector, such that near vectors lie near one
another.

UMAP lays it out. From release to release the map stays what it was: a point that is known keeps its
place, a new one is put beside its nearest neighbours, and only when more than a third has never
been laid out is that done anew, beginning from the old map. It is a picture for people; no figure
is taken from it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.extras import need
from embedding_pipelines.vectors import Vectors, unit

MAX_POINTS = 50_000  # of 384 dimensions: UMAP takes 84 s of processor time, on one core; a browser draws them smoothly
FEW = (
    40  # points that have no neighbourhoods to speak of: their two strongest directions are the map
)
MAY_BE_PLACED = (
    1 / 3
)  # share of points that may stand beside neighbours without having been laid out
NEIGHBOURS = 15  # UMAP's own default
BESIDE = 5  # known neighbours that a new point is put beside
JITTER = 1e-4  # of the map's extent: UMAP cannot begin where points lie on one another
# UMAP's learning rate and epochs when it begins from the map before. Measured on points of 20
# clusters that overlap, two fifths of them new: the known ones move by 5% of the map (median), by
# 11% at UMAP's own; neighbours are as good.
GENTLY, GENTLE_EPOCHS = 0.1, 100
FALL_OFF = 0.03  # of cosine, by which a neighbour's pull falls to 1/e of the nearest one's
BLOCK = 2_048  # rows compared with all known ones at a time: 400 MB for 50,000 known ones

SCHEMA = pa.schema(
    [("id", pa.string()), ("x", pa.float32()), ("y", pa.float32()), ("fitted", pa.bool_())]
)


@dataclass(frozen=True)
class Layout:
    """Where the points are."""

    ids: Sequence[str]
    xy: Vectors  # float32[n, 2]
    fitted: NDArray[np.bool_]  # [n]; False: put beside its neighbours

    def batch(self) -> pa.RecordBatch:
        """The layout as rows of SCHEMA."""
        columns = [
            pa.array(self.ids, pa.string()),
            *(pa.array(self.xy[:, axis]) for axis in (0, 1)),
        ]
        return pa.RecordBatch.from_arrays([*columns, pa.array(self.fitted)], schema=SCHEMA)

    @classmethod
    def of(cls, rows: pa.Table) -> Self:
        """The layout that `batch` wrote."""
        xy = np.stack([rows["x"].to_numpy(), rows["y"].to_numpy()], axis=1)
        return cls(rows["id"].to_pylist(), xy, rows["fitted"].to_numpy())


def layout(
    vectors: Vectors, ids: Sequence[str], before: Layout | None = None, seed: int = 0
) -> Layout:
    """A place for each of `vectors` float32[n, d], n ≤ MAX_POINTS, by the cosine; the same for the
    same arguments.

    `ids` are distinct and stand for what a point is: a changed text needs a new one. Points of
    `before` that are not among them are forgotten. Raises ValueError for too many points and for an
    id that comes twice.
    """
    if len(ids) > MAX_POINTS or len(ids) != len(vectors) or len(set(ids)) != len(ids):
        raise ValueError(f"A map takes {MAX_POINTS} vectors at most, each with an id of its own.")
    units = unit(vectors)
    known = _known(ids, before)
    if before is None or not (known >= 0).any():
        return Layout(list(ids), _fitted(units, None, seed), np.ones(len(ids), np.bool_))
    old = known >= 0
    xy = np.empty((len(ids), 2), np.float32)
    xy[old] = before.xy[known[old]]
    xy[~old] = beside(units[~old], units[old], xy[old])
    if not needs_fit(ids, before):
        fitted = np.where(old, before.fitted[known], False)
        return Layout(list(ids), xy, fitted)
    return Layout(
        list(ids), _aligned(_fitted(units, xy, seed), xy, old), np.ones(len(ids), np.bool_)
    )


def needs_fit(ids: Sequence[str], before: Layout | None) -> bool:
    """Whether `layout` would lay the points out, which takes its time, and not just place the new
    ones."""
    known = _known(ids, before)
    laid_out = int(before.fitted[known[known >= 0]].sum()) if before is not None else 0
    return len(ids) - laid_out > MAY_BE_PLACED * len(ids)


def beside(vectors: Vectors, known: Vectors, xy: Vectors) -> Vectors:
    """Places float32[m, 2] for `vectors` float32[m, d] among `known` float32[n, d] at `xy`
    float32[n, 2], n > 0.

    The mean of the places of the nearest, of which the very nearest counts most; only of those that
    lie together, since between two clusters there is nothing.
    """
    units, known = unit(vectors), unit(known)
    count = min(BESIDE, len(known))
    placed = np.empty((len(units), 2), np.float32)
    for first in range(0, len(units), BLOCK):
        cosines = units[first : first + BLOCK] @ known.T
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(cosines, nearest, axis=1)
        pulls = np.exp((found - found.max(axis=1, keepdims=True)) / FALL_OFF)
        places = xy[nearest]
        gaps = np.linalg.norm(places[:, :, None] - places[:, None], axis=3)
        middle = (gaps * pulls[:, None, :]).sum(axis=2).argmin(axis=1)
        away = gaps[np.arange(len(gaps)), middle]
        pulls[away > np.median(away, axis=1, keepdims=True)] = 0
        placed[first : first + BLOCK] = (pulls[:, :, None] * places).sum(axis=1) / pulls.sum(
            axis=1
        )[:, None]
    return placed


def _known(ids: Sequence[str], before: Layout | None) -> NDArray[np.int64]:
    """The row of each id in `before`, -1 for new ones."""
    rows = {name: row for row, name in enumerate(before.ids)} if before is not None else {}
    return np.fromiter((rows.get(name, -1) for name in ids), np.int64, len(ids))


def _fitted(units: Vectors, start: Vectors | None, seed: int) -> Vectors:
    """What UMAP makes of unit vectors, float32[n, 2], beginning at `start` or at the two strongest
    directions."""
    plane = _plane(units) if start is None else start
    if len(units) < FEW:
        return plane
    jitter = np.random.default_rng(seed).normal(
        scale=JITTER * (float(np.ptp(plane)) or 1.0), size=plane.shape
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # at import about TensorFlow; later about points with no neighbour but their like
        model = need("umap", "report").UMAP(
            n_neighbors=NEIGHBOURS,
            metric="cosine",
            init=(plane + jitter).astype(np.float32),
            random_state=seed,
            n_jobs=1,
            learning_rate=1.0 if start is None else GENTLY,
            n_epochs=None if start is None else GENTLE_EPOCHS,
        )
        placed = model.fit_transform(units)
    return np.ascontiguousarray(placed, np.float32)


def _plane(units: Vectors) -> Vectors:
    """Rows on their two strongest directions, float32[n, 2]; the largest entry of each direction is
    positive."""
    centred = units - units.mean(axis=0) if len(units) else units
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    directions = directions[:, ::-1][:, :2]
    peaks = np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None, :], axis=0)
    plane = np.zeros((len(units), 2), np.float32)
    plane[:, : directions.shape[1]] = centred @ (directions * np.sign(peaks)).astype(np.float32)
    return plane


def _aligned(placed: Vectors, xy: Vectors, old: NDArray[np.bool_]) -> Vectors:
    """`placed` turned, mirrored, scaled and shifted so that the old points lie as near their old
    places as can be."""
    wanted, found = xy[old].astype(np.float64), placed[old].astype(np.float64)
    to, start = wanted.mean(axis=0), found.mean(axis=0)
    left, strengths, right = np.linalg.svd((found - start).T @ (wanted - to))
    spread = float(((found - start) ** 2).sum())
    scale = float(strengths.sum()) / spread if spread > 0 and strengths.sum() > 0 else 1.0
    aligned: Vectors = ((placed - start) @ (left @ right) * scale + to).astype(np.float32)
    return aligned
