"""The map: clusters stay together, known points stay where they are, and a new fit keeps the
arrangement."""

import numpy as np
import pytest
from scipy.spatial import procrustes

from embedding_pipelines.report import layout as layout_module
from embedding_pipelines.report.layout import (
    FEW,
    MAX_POINTS,
    Layout,
    layout,
    needs_fit,
    place_beside,
)

CLUSTERS, EACH = 5, 40
KINDS = np.arange(CLUSTERS * EACH) % CLUSTERS
IDS = [f"id-{row}" for row in range(len(KINDS))]
FIRST = 120


def points(seed: int) -> np.ndarray:
    """Clusters of vectors, float32[200, 32]."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(CLUSTERS, 32))
    noise = 0.5 * generator.normal(size=(len(KINDS), 32))
    return (centres[KINDS] + noise).astype(np.float32)


VECTORS = points(7)


@pytest.fixture(scope="module")
def first() -> Layout:
    """The map of the first points."""
    return layout(VECTORS[:FIRST], IDS[:FIRST])


def nearest_of_own_kind(result: Layout) -> float:
    """The share of points whose nearest other one on the map is of the same cluster."""
    gaps = np.linalg.norm(result.xy[:, None] - result.xy[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    kinds = KINDS[: len(result.ids)]
    return float((kinds[gaps.argmin(axis=1)] == kinds).mean())


def test_near_vectors_lie_near_one_another(first: Layout) -> None:
    assert nearest_of_own_kind(first) > 0.95
    assert first.xy.dtype == np.float32
    assert first.fitted.all()


def test_the_same_vectors_give_the_same_map(first: Layout) -> None:
    assert np.array_equal(layout(VECTORS[:FIRST], IDS[:FIRST]).xy, first.xy)


def test_known_points_do_not_move_when_new_ones_come(first: Layout) -> None:
    result = layout(VECTORS[: FIRST + 50], IDS[: FIRST + 50], first)
    assert np.array_equal(result.xy[:FIRST], first.xy)
    assert result.fitted.tolist() == [True] * FIRST + [False] * 50
    assert nearest_of_own_kind(result) > 0.95


def test_known_points_are_known_by_their_id_wherever_they_stand(first: Layout) -> None:
    rows = np.random.default_rng(0).permutation(FIRST)[:100]
    result = layout(VECTORS[rows], [IDS[row] for row in rows], first)
    assert np.array_equal(result.xy, first.xy[rows])


def test_a_new_fit_keeps_the_arrangement() -> None:
    """Two fifths of the points are new, so the map is laid out anew."""
    moves, unlike = [], []
    for seed in range(7):  # one map alone says little: it takes another way for a last digit
        vectors = points(seed)
        before = layout(vectors[:FIRST], IDS[:FIRST])
        after = layout(vectors, IDS, before)
        assert after.fitted.all()
        assert nearest_of_own_kind(after) > 0.95
        moved = np.linalg.norm(after.xy[:FIRST] - before.xy, axis=1)
        assert moved.max() > 0  # it is a new one
        moves.append(np.median(moved) / np.ptp(before.xy))
        unlike.append(procrustes(before.xy, after.xy[:FIRST])[2])
    assert np.median(moves) < 0.1  # and stays in the same corner, turned the same way
    assert np.median(unlike) < 0.1  # that of an unrelated one is near 1


def test_points_that_were_only_placed_count_as_new_at_the_next_release(first: Layout) -> None:
    """Else a map that grows by a quarter each time would never be laid out again."""
    assert not needs_fit(IDS[:170], first)
    grown = layout(VECTORS[:170], IDS[:170], first)
    assert needs_fit(IDS, grown)
    assert needs_fit(IDS[:10], None)


def test_a_point_is_placed_beside_the_nearest_known_one(first: Layout) -> None:
    places = place_beside(2 * VECTORS[:3], VECTORS[:FIRST], first.xy)  # lengths do not matter
    assert np.linalg.norm(places - first.xy[:3], axis=1).max() < 0.1 * np.ptp(first.xy)
    lone = place_beside(VECTORS[:1], VECTORS[5:6], np.array([[3.0, 4.0]], np.float32))
    assert lone.tolist() == [[3.0, 4.0]]
    assert place_beside(VECTORS[:0], VECTORS[:5], first.xy[:5]).shape == (0, 2)


def test_a_point_is_not_placed_between_clusters() -> None:
    others = np.eye(5, 8, dtype=np.float32)
    xy = np.array([[0, 0], [0, 1], [1, 0], [100, 100], [101, 100]], np.float32)
    places = place_beside(np.ones((1, 8), np.float32), others, xy)  # as near to each
    assert np.linalg.norm(places) < 2


def test_blocks_do_not_change_where_points_are_placed(
    first: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = place_beside(VECTORS, VECTORS[:FIRST], first.xy)
    monkeypatch.setattr(layout_module, "BLOCK", 7)
    np.testing.assert_allclose(place_beside(VECTORS, VECTORS[:FIRST], first.xy), whole, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, FEW - 1])
def test_a_few_points_have_a_map_too(rows: int) -> None:
    result = layout(VECTORS[:rows], IDS[:rows])
    assert result.xy.shape == (rows, 2)
    assert np.isfinite(result.xy).all()
    assert np.array_equal(layout(VECTORS[: rows + 1], IDS[: rows + 1], result).xy[:rows], result.xy)


def test_zero_vectors_and_equal_ones_are_no_obstacle() -> None:
    vectors = np.concatenate(
        [np.zeros((3, 32), np.float32), np.repeat(VECTORS[:2], 10, axis=0), VECTORS[:60]]
    )
    result = layout(vectors, [str(row) for row in range(len(vectors))])
    assert np.isfinite(result.xy).all()
    same = layout(np.ones((FEW, 2), np.float32), IDS[:FEW])
    assert np.isfinite(same.xy).all()


def test_a_layout_survives_being_kept(first: Layout) -> None:
    import pyarrow as pa

    again = Layout.of(pa.Table.from_batches([first.batch()]))
    assert list(again.ids) == list(first.ids)
    assert np.array_equal(again.xy, first.xy)
    assert np.array_equal(again.fitted, first.fitted)


def test_what_cannot_be_a_map_is_refused() -> None:
    for vectors, ids in (
        (VECTORS[:2], ["a", "a"]),
        (VECTORS[:2], ["a"]),
        (VECTORS[:0], ["a"] * (MAX_POINTS + 1)),
    ):
        with pytest.raises(ValueError, match="50000 vectors at most"):
            layout(vectors, ids)
