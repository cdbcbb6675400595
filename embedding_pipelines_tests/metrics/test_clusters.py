"""Planted clusters are found, and named by the words that are theirs alone."""

import sys

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.clusters import (
    FIT_ROWS,
    KEYWORDS,
    cluster_labels,
    fit_clusters,
    keywords,
)


def planted(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32[n, 32] around k directions, of lengths from 1 to 10, and the direction of each; of
    cluster 0 half of all."""
    random = np.random.default_rng(seed)
    kinds = np.where(random.random(n) < 0.5, 0, random.integers(k, size=n))
    vectors = np.linalg.qr(random.normal(size=(32, k)))[0].T[kinds]
    vectors = vectors + 0.05 * random.normal(size=(n, 32))
    return (vectors * random.uniform(1, 10, (n, 1))).astype(np.float32), kinds


@pytest.mark.parametrize("k", [2, 3, 5, 8, 12])
def test_as_many_clusters_are_found_as_were_planted(k: int) -> None:
    vectors, kinds = planted(3_000, k)
    clusters = fit_clusters(vectors)
    labels, cosines = clusters.assign(vectors)
    assert len(clusters.centres) == k
    assert clusters.silhouette is not None
    assert clusters.silhouette > 0.7
    assert adjusted_rand_score(kinds, labels) == 1.0
    assert (labels.dtype, cosines.dtype) == (np.int32, np.float32)
    assert (cosines > 0.8).all()
    sizes = np.bincount(labels)
    assert (np.diff(sizes) <= 0).all()
    assert sizes[0] == (kinds == 0).sum()


def test_what_was_not_fitted_to_goes_to_its_cluster_too() -> None:
    vectors, kinds = planted(2 * FIT_ROWS, 4)
    labels, _ = fit_clusters(vectors, seed=3).assign(vectors)
    assert adjusted_rand_score(kinds, labels) == 1.0


def test_the_number_may_be_given() -> None:
    clusters = fit_clusters(planted(500, 3)[0], 7)
    assert (len(clusters.centres), clusters.silhouette) == (7, None)
    for k in (0, 501):
        with pytest.raises(ValueError, match=f"k is {k}; it must lie between 1 and 500"):
            fit_clusters(planted(500, 3)[0], k)


@pytest.mark.parametrize(
    ("vectors", "k"),
    [
        (np.ones((1, 3)), 1),
        (np.ones((50, 3)), 1),  # one direction
        (np.zeros((9, 3)), 1),
        (np.eye(2)[[0, 1]], 1),  # each for itself says nothing
        (np.eye(2)[[0, 1, 0, 1, 1]], 2),
        (np.concatenate([np.zeros((5, 3)), np.ones((5, 3))]), 2),
    ],
)
def test_few_directions_make_few_clusters(vectors: np.ndarray, k: int) -> None:
    clusters = fit_clusters(vectors.astype(np.float32))
    assert len(clusters.centres) == k
    labels, cosines = clusters.assign(vectors.astype(np.float32))
    assert len(np.unique(labels)) == k
    assert np.isfinite(cosines).all()


def test_keywords_are_the_words_of_one_cluster_and_not_those_of_all() -> None:
    topics = (("fox", "wolf"), ("tea", "coffee"), ("roof", "wall"))
    texts = [
        f"The {one} and the {other}s are of the house {number}, und das ist so"
        for number in range(20)
        for one, other in topics
    ]
    labels = np.tile(np.arange(3, dtype=np.int32), 20)
    assert keywords(texts, labels, 3) == [["fox", "wolfs"], ["coffees", "tea"], ["roof", "walls"]]


def test_there_are_few_keywords_and_one_for_words_of_one_beginning() -> None:
    words = ["card", "cards", "cardiac", "bank", "loan", "rate", "visa", "swift", "cash"]
    texts = [f"{word} {' '.join(words)}" for word in words] + ["tea"] * 9
    (found, _) = keywords(texts, np.repeat(np.arange(2, dtype=np.int32), 9), 2)
    assert len(found) == KEYWORDS
    assert len({word[:3] for word in found}) == KEYWORDS


def test_texts_without_words_have_no_keywords() -> None:
    labels = np.array([0, 1], np.int32)
    assert keywords(["12", "!"], labels, 2) == [[], []]
    assert keywords(["same", "same"], labels, 2) == [[], []]


def test_clusters_are_called_by_number_and_keywords() -> None:
    vectors, kinds = planted(300, 3)
    texts = [("fox wolf bear deer", "tea", "12")[kind] for kind in kinds]
    labels, names = cluster_labels(vectors, texts)
    assert [name for name, _ in names] == [
        f"{number}: {', '.join(words[:3])}" if words else str(number)
        for number, (_, words) in enumerate(names)
    ]
    assert names[0] == ("0: bear, deer, fox", ["bear", "deer", "fox", "wolf"])
    assert sorted(words for _, words in names) == [[], ["bear", "deer", "fox", "wolf"], ["tea"]]
    assert len(np.unique(labels[kinds == 1])) == 1


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[explore\]'"):
        fit_clusters(planted(100, 2)[0], 2)
