"""Two releases of the same kind of data are no drift; a part of it that moved is, and its partition
is named."""

import time

import numpy as np
import pytest
from scipy.special import chdtrc

from embedding_pipelines.metrics.drift import (
    SAMPLE,
    Drift,
    Sketch,
    _chance,
    _energy_test,
    drift,
)
from embedding_pipelines_tests.compression.contract import clustered

PARTITIONS = 8


def sketch(vectors: np.ndarray, first: int = 0, size: int = 100) -> Sketch:
    """Of float32[n, d] with the ids first, first + 1, ..., in partitions by id, in blocks of
    `size`."""
    made, rows = Sketch(), np.arange(len(vectors))
    for partition in range(PARTITIONS):
        here = rows[(rows + first) % PARTITIONS == partition]
        for start in range(0, len(here), size):
            part = here[start : start + size]
            made.add(f"b{partition}", [f"d{first + row}" for row in part], vectors[part])
    return made


def test_the_same_vectors_have_not_drifted() -> None:
    vectors = clustered(1_500, 64)
    found = drift(sketch(vectors), sketch(vectors))
    assert (
        found.mean_shift,
        found.p_value,
        found.worst_partition_shift,
        found.worst_partition_p,
    ) == (
        0.0,
        1.0,
        0.0,
        1.0,
    )


def test_two_halves_of_the_same_data_have_not_drifted() -> None:
    alarms, cases = 0, 40
    for seed in range(cases):
        vectors = clustered(400, 32, seed=seed)
        found = drift(sketch(vectors[:200]), sketch(vectors[200:], first=200), seed)
        alarms += (found.p_value <= 0.01) + (found.worst_partition_p <= 0.01)
    assert alarms <= 3  # of 80 tests; more than 3 have a chance of 1%


def test_data_that_moved_as_a_whole_has_drifted() -> None:
    vectors = clustered(1_000, 64)
    moved = vectors[500:] + 0.3 * vectors[0]
    found = drift(sketch(moved, first=500), sketch(vectors[:500]))
    assert found.mean_shift == pytest.approx(0.3, abs=0.1)
    assert found.p_value < 0.01
    assert found.worst_partition_p < 0.01


def test_a_change_that_leaves_the_mean_is_seen_too() -> None:
    vectors = clustered(1_000, 64)
    mean = vectors.mean(axis=0)
    wider = mean + 1.5 * (vectors[500:] - mean)
    found = drift(sketch(wider, first=500), sketch(vectors[:500]))
    assert found.p_value < 0.01


def test_the_partition_that_moved_is_named() -> None:
    vectors = clustered(2_000, 64)
    changed = vectors.copy()
    changed[3::PARTITIONS] = vectors[3]
    found = drift(sketch(changed), sketch(vectors))
    assert found.worst_partition == "b3"
    assert found.worst_partition_p < 0.01
    assert found.worst_partition_shift == pytest.approx(
        float(np.linalg.norm((changed - vectors)[3::PARTITIONS].mean(axis=0)))
    )


def test_a_small_change_to_shared_documents_is_no_drift() -> None:
    vectors = clustered(3_000, 64)
    found = drift(sketch(vectors), sketch(vectors[:-30]))
    assert found.p_value > 0.5
    assert found.worst_partition_p > 0.5


def test_vectors_that_releases_share_count_as_often_as_they_come() -> None:
    before = clustered(200, 64).astype(np.float64)
    now = np.concatenate([before[:150] + 0.3, before[150:], before[190:]])
    apart = np.arange(len(now))[:, None] * 1e-9  # nothing is the same any more
    shared, distinct = _energy_test(now, before, 0), _energy_test(now + apart, before, 0)
    assert shared == distinct < 0.5


@pytest.mark.parametrize("freedom", [1.0, 1.7, 30.0, 384.0])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.7, 1.0, 1.3, 2.0, 9.0])
def test_the_chance_of_a_sum_of_squares_is_scipys(freedom: float, share: float) -> None:
    expected = chdtrc(freedom, freedom * share)
    assert _chance(freedom * share, freedom) == pytest.approx(expected, rel=1e-3, abs=1e-200)


def test_the_order_of_rows_does_not_matter() -> None:
    vectors, other = clustered(1_500, 32), sketch(clustered(700, 32, seed=1), first=9_000)
    shuffled = Sketch()
    for row in np.random.default_rng(0).permutation(1_500):
        shuffled.add(f"b{row % PARTITIONS}", [f"d{row}"], vectors[row : row + 1])
    straight = sketch(vectors)
    assert (shuffled.sample == straight.sample).all()
    one, two = drift(straight, other), drift(shuffled, other)
    assert one.p_value == two.p_value
    assert one.mean_shift == pytest.approx(two.mean_shift)
    assert one.worst_partition_p == pytest.approx(two.worst_partition_p)


def test_a_sketch_is_small_and_comes_back_as_it_was() -> None:
    made = sketch(clustered(3_000, 32))
    assert made.sample.shape == (SAMPLE, 32)
    data = made.to_bytes()
    assert len(data) < 200_000
    back = Sketch.from_bytes(data)
    assert back.to_bytes() == data
    assert drift(back, made) == drift(made, made)


def test_the_samples_of_two_releases_hold_the_same_documents() -> None:
    vectors = clustered(3_000, 32)
    shared = set(sketch(vectors).hashes.tolist()) & set(sketch(vectors[:-30]).hashes.tolist())
    assert len(shared) > SAMPLE * 0.97


def test_too_little_is_no_drift_and_nothing_is_refused() -> None:
    one = Sketch()
    one.add("b0", ["a", "b"], np.ones((2, 4), np.float32))
    one.add("b1", [], np.ones((0, 4), np.float32))
    assert drift(one, one) == Drift(0.0, 1.0, "", 0.0, 1.0)
    other = Sketch()
    other.add("b0", ["a"], np.ones((1, 3), np.float32))
    for ask, words in (
        (lambda: drift(one, Sketch()), "no vectors"),
        (lambda: drift(one, other), "4 and 3 dimensions"),
        (lambda: one.add("b0", ["c"], np.ones((2, 4), np.float32)), "1 ids"),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    empty = Sketch()
    assert Sketch.from_bytes(empty.to_bytes()).partitions == {}


def test_vectors_that_are_all_the_same_can_be_compared() -> None:
    ones = np.ones((80, 4), np.float32)
    assert drift(sketch(ones), sketch(ones, first=100)).worst_partition_p == 1.0
    found = drift(sketch(ones), sketch(2 * ones, first=100))
    assert (found.p_value, found.worst_partition_p) == (0.001, 0.0)


def test_two_full_samples_are_compared_within_seconds() -> None:
    vectors = clustered(2_000, 384)
    one, two = sketch(vectors[:1_000]), sketch(vectors[1_000:], first=1_000)
    began = time.process_time()
    drift(one, two)
    assert time.process_time() - began < 5
