"""Cosines, distances and neighbours, whatever the numbers; Spearman's correlation of cosines with
scores."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

from embedding_pipelines.metrics import similarity
from embedding_pipelines.metrics.similarity import (
    cosine_similarity,
    cosine_spearman,
    dot_product,
    euclidean_distance,
    find_most_similar,
    normalize_batch,
    normalize_embedding,
)
from embedding_pipelines.vectors import cosine

LEFT = np.array([[1, 0], [2, 0], [0, 3]], np.float32)
RIGHT = np.array([[1, 0], [1, 1], [1, 0]], np.float32)  # cosines 1, 0.71, 0


def test_the_order_alone_counts() -> None:
    assert cosine_spearman(LEFT, RIGHT, [5.0, 4.9, 0.0]) == pytest.approx(1.0)
    assert cosine_spearman(LEFT, RIGHT, [1, 2, 3]) == pytest.approx(-1.0)
    assert cosine_spearman(LEFT, RIGHT, [2, 3, 1]) == pytest.approx(0.5)


def test_ties_share_their_rank_as_scipy_has_it() -> None:
    random = np.random.default_rng(0)
    left, right = random.integers(0, 3, (2, 60, 2)).astype(np.float32) + 1
    scores = random.integers(0, 5, 60).tolist()
    expected = spearmanr(cosine(left, right), scores).statistic  # which rounding gives ties or none
    assert cosine_spearman(left, right, scores) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(cosine_spearman(left, left * 2, [1] * 60))


def test_pairs_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 vectors, but 3 scores"):
        cosine_spearman(LEFT, RIGHT[:2], [1, 2, 3])


finite = st.floats(-1e300, 1e300) | st.sampled_from([0.0, 5e-324, -1e300])
vectors = hnp.arrays(np.float64, st.integers(1, 8), elements=finite)
pairs = st.integers(1, 8).flatmap(
    lambda d: st.tuples(*[hnp.arrays(np.float64, d, elements=finite)] * 2)
)
batches = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 12), st.just(3)), elements=st.floats(-9, 9, width=32)
)
queries = hnp.arrays(np.float32, 3, elements=st.floats(-9, 9, width=32))


@given(pairs)
def test_a_cosine_is_a_cosine_whatever_the_numbers(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    cosine = cosine_similarity(a, b)
    assert -1 <= cosine <= 1
    assert cosine == pytest.approx(cosine_similarity(b, a))
    assert cosine_similarity(a, -b) == pytest.approx(-cosine)
    assert cosine_similarity(a, a) == pytest.approx(1.0 if a.any() else 0.0)


def test_known_figures() -> None:
    a, b = np.array([3, 4]), np.array([4.0, 3.0], np.float32)
    assert cosine_similarity(a, b) == pytest.approx(24 / 25)
    assert euclidean_distance(a, b) == pytest.approx(math.sqrt(2))
    assert dot_product(a, b) == 24.0
    assert cosine_similarity(np.zeros(2), b) == 0.0
    assert normalize_embedding(a).tolist() == [0.6, 0.8]
    assert [
        type(function(a, b)) for function in (cosine_similarity, euclidean_distance, dot_product)
    ] == [float] * 3


@given(pairs)
def test_a_distance_is_that_of_the_difference(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (vector / 1e150 for vector in pair)
    assert euclidean_distance(a, b) == pytest.approx(
        float(np.linalg.norm(a - b)), rel=1e-9, abs=1e-9
    )
    assert euclidean_distance(a, a) == 0


@given(vectors)
def test_a_normalized_vector_has_length_one_and_the_same_direction(vector: np.ndarray) -> None:
    unit = normalize_embedding(vector)
    assert np.linalg.norm(unit) == pytest.approx(1.0 if vector.any() else 0.0)
    assert cosine_similarity(unit, vector) == pytest.approx(1.0 if vector.any() else 0.0)
    assert (normalize_batch(vector[None])[0] == unit).all()


@given(batches)
def test_a_batch_keeps_shape_and_precision(batch: np.ndarray) -> None:
    units = normalize_batch(batch)
    assert (units.shape, units.dtype) == (batch.shape, np.float32)
    assert normalize_batch(batch.astype(np.int64)).dtype == np.float64
    assert np.allclose(normalize_batch(units), units, atol=1e-6)


@given(queries, batches, st.integers(1, 15))
def test_the_most_similar_are_those_of_a_full_sort(
    query: np.ndarray, batch: np.ndarray, top_k: int
) -> None:
    found = find_most_similar(query, batch, top_k)
    cosines = [cosine_similarity(query, row) for row in batch]
    assert [score for _, score in found] == pytest.approx(sorted(cosines, reverse=True)[:top_k])
    assert [score for _, score in found] == pytest.approx([cosines[row] for row, _ in found])
    assert len({row for row, _ in found}) == len(found) == min(top_k, len(batch))


def test_of_equals_the_earlier_row_comes_first_across_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(similarity, "BLOCK_ROWS", 2)
    rows = np.array([[0, 1], [1, 0], [2, 0], [0, 0], [3, 0]])
    assert [row for row, _ in find_most_similar(np.array([1, 0]), rows)] == [1, 2, 4, 0, 3]
    assert find_most_similar(np.array([1, 0]), rows, 1) == [(1, 1.0)]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: cosine_similarity(np.ones(2), np.ones(3)), r"\(2,\) and \(3,\)"),
        (lambda: euclidean_distance(np.ones((1, 2)), np.ones((1, 2))), "not two vectors"),
        (lambda: dot_product(np.ones(2), np.array([1, np.nan])), "NaN"),
        (lambda: find_most_similar(np.ones(2), np.ones((4, 3))), r"\(2,\) .* \(4, 3\)"),
        (lambda: find_most_similar(np.ones(2), np.ones((4, 2)), 0), "top_k is 0"),
        (lambda: normalize_embedding(np.ones((2, 2))), "not one vector"),
        (lambda: normalize_batch(np.ones(2)), "no batch"),
    ],
)
def test_other_shapes_are_refused(ask: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ask()
