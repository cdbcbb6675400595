"""Exact search is a full sort, whatever the blocks; what is as near as the k-th counts as found."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.neighbors import KNeighborsClassifier

from embedding_pipelines.metrics import neighbours as exact
from embedding_pipelines.metrics.neighbours import (
    ExactSearch,
    Neighbours,
    leave_one_out_accuracy,
    nearest_others,
    recall,
)
from embedding_pipelines_tests.compression.contract import clustered

numbers = st.floats(-9, 9, width=32) | st.integers(-2, 2).map(float)
queries = hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(3)), elements=numbers)
corpus = hnp.arrays(np.float32, st.tuples(st.integers(0, 40), st.just(3)), elements=numbers)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64[q, n]; -inf where one of them is zero."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return np.where(lengths == 0, -np.inf, left @ right.T / np.where(lengths == 0, 1, lengths))


def searched(asked: np.ndarray, vectors: np.ndarray, k: int, sizes: list[int]) -> Neighbours:
    """What a search finds if the vectors come in blocks of these sizes, over and over, of which those
    of four rows and fewer wait for the next."""
    search = ExactSearch(asked, k)
    start, turn = 0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "ROWS_TOGETHER", 5)
        while start < len(vectors):
            size = sizes[turn % len(sizes)]
            block = vectors[start : start + size]
            search.add([f"d{row}" for row in range(start, start + len(block))], block)
            start, turn = start + size, turn + 1
        return search.result()


@given(queries, corpus, st.integers(1, 12), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_the_nearest_are_those_of_a_full_sort(
    asked: np.ndarray, vectors: np.ndarray, k: int, sizes: list[int]
) -> None:
    found = searched(asked, vectors, k, sizes)
    assert found.cosines.shape == (len(asked), k)
    assert found.cosines.dtype == np.float32
    for query, true in enumerate(cosines(asked, vectors)):
        wanted = np.sort(true[np.isfinite(true)])[::-1][:k]
        names = found.ids[query]
        assert len(names) == len(set(names)) == len(wanted)
        assert found.cosines[query, : len(wanted)] == pytest.approx(wanted, abs=1e-5)
        assert np.isneginf(found.cosines[query, len(wanted) :]).all()
        assert true[[int(name[1:]) for name in names]] == pytest.approx(wanted, abs=1e-5)


def test_of_equals_the_first_added_come_first_across_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact, "COSINES_AT_ONCE", 6)
    vectors = np.array([[0, 1], [2, 0], [1, 0], [0, 0], [3, 0], [-1, 0], [1, 0]], np.float32)
    asked = np.array([[1, 0], [0, 0]], np.float32)
    for sizes in ([7], [1], [2, 3]):
        found = searched(asked, vectors, 3, sizes)
        assert found.ids == [["d1", "d2", "d4"], []]
        assert found.cosines[0].tolist() == [1, 1, 1]


def test_numbers_are_ids_too_and_little_is_kept() -> None:
    random = np.random.default_rng(0)
    search = ExactSearch(random.normal(size=(20, 32)).astype(np.float32), 5)
    block = random.normal(size=(10_000, 32)).astype(np.float32)
    tracemalloc.start()
    for start in range(0, 100_000, 10_000):
        search.add(np.arange(start, start + 10_000), block + np.float32(start))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * block.nbytes
    assert all(isinstance(name, int) for names in search.result().ids for name in names)


def test_what_cannot_be_searched_is_refused() -> None:
    vectors = np.ones((2, 3), np.float32)
    search = ExactSearch(vectors, 2)
    for ask, words in (
        (lambda: ExactSearch(vectors, 0), "k is 0"),
        (lambda: ExactSearch(vectors[0], 1), "shape"),
        (lambda: search.add(["a"], vectors), "1 ids for 2 vectors"),
        (lambda: search.add(["a", "b"], vectors[:, :2]), "shape"),
        (lambda: search.add(["a", "b"], vectors * np.float32(np.nan)), "NaN"),
        (lambda: nearest_others(vectors, 2), "2 others"),
    ):
        with pytest.raises(ValueError, match=words):
            ask()


def test_recall_is_the_share_of_the_nearest_that_were_found() -> None:
    truth = Neighbours(
        [["a", "b"], ["c", "d"], ["e"], []],
        np.array([[0.9, 0.8], [0.7, 0.6], [0.5, -np.inf], [-1, -1]]),
    )
    assert recall([["b", "x"], ["x", "c", "d"], ["e", "y"], ["z"]], truth, k=2).tolist() == [
        0.5,
        0.5,
        1.0,
        1.0,
    ]
    assert recall([["a", "a"], [], [], []], truth, k=2).tolist() == [0.5, 0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="1 searches"):
        recall([["a"]], truth)


def test_what_is_as_near_as_the_last_counts_as_found() -> None:
    truth = Neighbours([["a", "b", "c", "d"]], np.array([[0.9, 0.8, 0.8 - 1e-7, 0.7]], np.float32))
    assert recall([["a", "c"]], truth, k=2).tolist() == [1.0]
    assert recall([["b", "c"]], truth, k=2).tolist() == [
        1.0
    ]  # two places, two that may stand there
    assert recall([["a", "d"]], truth, k=2).tolist() == [0.5]


@given(corpus.filter(lambda vectors: len(vectors) > 3))
def test_the_nearest_others_are_those_of_a_full_sort(vectors: np.ndarray) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "SORTED_AT_ONCE", 2 * len(vectors))  # two rows of four times two
        near, scores = nearest_others(vectors, 3)
    true = cosines(vectors, vectors)
    true[np.isneginf(true)] = 0
    np.fill_diagonal(true, -np.inf)
    assert np.sort(scores, axis=1) == pytest.approx(np.sort(true, axis=1)[:, -3:], abs=1e-5)
    assert np.take_along_axis(true, near, axis=1) == pytest.approx(scores, abs=1e-5)


def test_labels_that_are_kept_apart_are_found() -> None:
    random = np.random.default_rng(0)
    kinds = random.integers(4, size=300)
    vectors = (np.eye(4)[kinds] + 0.1 * random.normal(size=(300, 4))).astype(np.float32)
    assert leave_one_out_accuracy(vectors, [f"kind {kind}" for kind in kinds]) == 1.0
    assert (
        leave_one_out_accuracy(vectors, [str(label) for label in random.integers(4, size=300)])
        < 0.4
    )


def test_it_is_leave_one_out_as_scikit_learn_does_it() -> None:
    vectors = clustered(120, 32)
    labels = [
        "a" if vector[0] > 0.1 else "b" for vector in vectors
    ]  # two, and an odd number of votes: no ties
    right = 0
    for row in range(120):
        others = np.delete(np.arange(120), row)
        model = KNeighborsClassifier(5, metric="cosine").fit(
            vectors[others], [labels[other] for other in others]
        )
        right += model.predict(vectors[row : row + 1])[0] == labels[row]
    assert 0.5 < right / 120 < 1
    assert leave_one_out_accuracy(vectors, labels, k=5) == pytest.approx(right / 120)


def test_of_labels_with_as_many_votes_the_nearer_win() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [1, 0.9]], np.float32)
    assert leave_one_out_accuracy(vectors, ["a", "a", "b"], k=2) == pytest.approx(2 / 3)
    assert leave_one_out_accuracy(vectors, ["a", "b", "a"], k=2) == 0.0


def test_few_vectors_all_vote_and_lengths_do_not_count() -> None:
    vectors = np.array([[9, 0], [1, 0.1], [0, 2]], np.float32)
    assert leave_one_out_accuracy(vectors, ["a", "a", "b"]) == pytest.approx(2 / 3)
    assert leave_one_out_accuracy(vectors[:2], ["a", "a"]) == 1.0


@pytest.mark.parametrize(("rows", "labels"), [(3, ["a"]), (1, ["a"]), (0, [])])
def test_what_has_no_others_is_refused(rows: int, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="give one each"):
        leave_one_out_accuracy(np.ones((rows, 2), np.float32), labels)
