"""Figures of vectors whose health is known; duplicates are counted whatever the blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.metrics.evidence import Evidence
from embedding_pipelines.metrics.health import (
    DistinctCount,
    anisotropy,
    effective_rank,
    hubness,
    mean_norm,
)
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.compression.contract import clustered

RANDOM = np.random.default_rng(0).normal(size=(2_000, 64)).astype(np.float32)


def health(sample: Vectors) -> dict[str, float]:
    """What can be measured of a sample."""
    evidence = Evidence(sample=sample)
    metrics = (mean_norm, effective_rank, anisotropy, hubness)
    values = {metric.name: metric.measure(evidence) for metric in metrics}
    return {name: value for name, value in values.items() if value is not None}


def test_random_directions_use_all_dimensions_and_have_no_hubs() -> None:
    found = health(RANDOM)
    assert found.keys() == {"mean_norm", "effective_rank", "anisotropy", "hubness"}
    assert found["mean_norm"] == pytest.approx(8, abs=0.1)
    assert found["effective_rank"] == pytest.approx(64, rel=0.03)
    assert found["anisotropy"] == pytest.approx(0, abs=0.001)
    assert found["hubness"] < 4


def test_a_shared_direction_shows() -> None:
    found = health(RANDOM + np.float32(5))
    assert found["anisotropy"] > 0.9
    assert found["effective_rank"] < 3


def test_few_directions_show() -> None:
    assert health(RANDOM[:, :5] @ RANDOM[:5])["effective_rank"] < 5.01
    assert health(np.repeat(RANDOM[:1], 20, axis=0))["effective_rank"] == pytest.approx(1)


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = clustered(50, 24)
    pairs = (vectors @ vectors.T)[np.triu_indices(50, 1)]
    assert health(vectors)["anisotropy"] == pytest.approx(float(pairs.mean()), abs=1e-6)


def test_hubs_show() -> None:
    apart = np.eye(200, dtype=np.float32)
    between = 1 + 0.1 * np.eye(11, 200, dtype=np.float32)  # nearer to all than these to one another
    assert health(np.concatenate([apart, between]))["hubness"] > health(RANDOM)["hubness"] + 2


def test_more_dimensions_than_vectors_have_a_rank_too() -> None:
    assert health(RANDOM[:20])["effective_rank"] == pytest.approx(20, rel=0.2)


def test_zero_vectors_count_for_the_length_alone() -> None:
    half = np.concatenate([RANDOM, np.zeros_like(RANDOM)])
    found, without = health(half), health(RANDOM)
    assert found["mean_norm"] == pytest.approx(without["mean_norm"] / 2)
    assert {name: found[name] for name in found if name != "mean_norm"} == pytest.approx(
        {name: without[name] for name in found if name != "mean_norm"}
    )


def test_what_a_sample_is_too_small_for_is_left_out() -> None:
    assert effective_rank.measure(Evidence()) is None
    assert health(np.zeros((3, 4), np.float32)) == {"mean_norm": 0.0}
    assert health(RANDOM[:1]).keys() == {"mean_norm", "effective_rank"}
    assert health(RANDOM[:10]).keys() == {"mean_norm", "effective_rank", "anisotropy"}


def test_names_are_counted_as_vectors_are() -> None:
    count = DistinctCount()
    for names in (["a", "b"], [], ["c", "a", "a"]):
        count.add_names(names)
    assert (count.all, count.distinct) == (5, 3)


@given(st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=6))
def test_distinct_are_rows_that_did_not_come_before(blocks: list[list[int]]) -> None:
    count = DistinctCount()
    for rows in blocks:
        count.add_vectors(RANDOM[rows])
    rows = [row for block in blocks for row in block]
    assert count.distinct == len(set(rows))


def test_near_is_not_the_same_and_zero_has_no_sign() -> None:
    count = DistinctCount()
    count.add_vectors(np.array([[1, 0], [1, -0.0], [1, 1e-7], [1, 0]], np.float32))
    count.add_vectors(np.asfortranarray(np.array([[1, 0], [5, 6]], np.float32)))
    assert count.distinct == 3


def test_what_does_not_fit_into_memory_is_counted_in_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("embedding_pipelines.metrics.health.HELD", 50)
    numbers = np.random.default_rng(1).integers(0, 300, 1_000)
    with DistinctCount() as count:
        for block in np.split(numbers, range(30, 1_000, 30)):
            count.add_names([f"name {number}" for number in block])
            assert sum(map(len, count._held)) < 50
        assert (count.all, count.distinct) == (1_000, len(set(numbers.tolist())))
        count.add_names(["another name"])
        assert count.distinct == len(set(numbers.tolist())) + 1
