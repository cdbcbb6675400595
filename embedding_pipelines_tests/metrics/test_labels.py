"""Labels that vectors keep apart are found by the neighbours; labels given by chance are not."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from embedding_pipelines.metrics.labels import leave_one_out_accuracy
from embedding_pipelines_tests.compression.contract import clustered


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
