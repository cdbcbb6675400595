"""Groups of vectors that lie together, and the words that tell each group from the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.extras import need
from embedding_pipelines.vectors import Vectors, unit

Labels = NDArray[np.int32]

NUMBERS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20)  # of clusters that are tried if none is given
CHOICE_ROWS = 2_000  # that they are tried on
FIT_ROWS = 10_000  # that the clusters are fitted to
STARTS = 3  # of the fit, of which the best counts; of those that k is chosen by, one is enough
KEYWORDS = 6
VOCABULARY = 50_000  # of the words that most texts hold
WORD = r"(?u)\b[^\W\d_]{2,}\b"
IN_LABEL = 3  # keywords


@dataclass(frozen=True)
class Clusters:
    """Clusters of a space, the one with most of the vectors they were fitted to first."""

    centres: Vectors  # float32[k, d], means of unit vectors
    silhouette: float | None  # of the sample that k was chosen on, in [-1, 1]; None: k was given

    def assign(self, vectors: Vectors) -> tuple[Labels, Vectors]:
        """Of float32[n, d], the clusters int32[n], from 0, and cosines with their centres."""
        units = unit(vectors)
        squares = (self.centres**2).sum(axis=1)
        labels = (units @ self.centres.T - squares / 2).argmax(axis=1).astype(np.int32)
        return labels, (units * unit(self.centres)[labels]).sum(axis=1)


def fit_clusters(vectors: Vectors, k: int | None = None, seed: int = 0) -> Clusters:
    """k-means of the directions of float32[n, d], n > 0, on FIT_ROWS of them at most.

    Without `k`, the best of NUMBERS by the silhouette of a sample; 1 if there is nothing to part.
    Raises ValueError for a k not in 1 to the number of directions, ConfigError without sklearn.
    """
    random = np.random.default_rng(seed)
    units = unit(_sample(vectors, FIT_ROWS, random))
    directions = len(np.unique(units, axis=0))
    silhouette = None
    # On a busy machine two threads take ten times as long as one: they wait spinning.
    with need("threadpoolctl", "explore").threadpool_limits(1):
        if k is None:
            k, silhouette = _choose(_sample(units, CHOICE_ROWS, random), seed)
        if not 1 <= k <= directions:
            raise ValueError(
                f"k is {k}; it must lie between 1 and {directions:,}, the number of different "
                "vectors."
            )
        labels, centres = _fit(units, k, seed)
    order = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return Clusters(centres[order], silhouette)


def keywords(texts: Sequence[str], labels: Labels, k: int) -> list[list[str]]:
    """Up to KEYWORDS words for each of k clusters of texts; none where no word stands out.

    As c-TF-IDF (Grootendorst, "BERTopic", 2022), a word weighs as much as its share of a cluster's
    words times how rare it is. Rare here is the squared logarithm of how many times larger this
    share is than that of all texts: words that are as frequent everywhere weigh nothing, in any
    language, without a list of them. A word counts once a text. ConfigError without scikit-learn.
    """
    counter = need("sklearn.feature_extraction.text", "explore").CountVectorizer(
        binary=True, token_pattern=WORD, max_features=VOCABULARY
    )
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # not one word
        return [[] for _ in range(k)]
    words = counter.get_feature_names_out()
    by_cluster = np.stack([np.asarray(counts[labels == at].sum(axis=0))[0] for at in range(k)])
    shares = by_cluster / np.maximum(1, by_cluster.sum(axis=1, keepdims=True))
    overall = by_cluster.sum(axis=0) / by_cluster.sum()
    weights = shares * np.log(np.maximum(shares, overall) / overall) ** 2
    return [
        _distinct([words[at] for at in np.argsort(-row, kind="stable")[: 4 * KEYWORDS] if row[at]])
        for row in weights
    ]


def cluster_labels(
    vectors: Vectors, texts: Sequence[str], k: int | None = None, seed: int = 0
) -> tuple[Labels, list[tuple[str, list[str]]]]:
    """The cluster of each text with its vector of float32[n, d], int32[n], and each cluster's label
    and keywords. Raises as `fit_clusters`."""
    clusters = fit_clusters(vectors, k, seed)
    labels, _ = clusters.assign(vectors)
    lists = keywords(texts, labels, len(clusters.centres))
    return labels, [(label(number, words), words) for number, words in enumerate(lists)]


def label(number: int, words: Sequence[str]) -> str:
    """What a cluster is called: its number and first keywords."""
    return f"{number}: {', '.join(words[:IN_LABEL])}".removesuffix(": ")


def _choose(units: Vectors, seed: int) -> tuple[int, float | None]:
    """The number of clusters whose members are nearest to their own and farthest from others."""
    metrics, cosines = need("sklearn.metrics", "explore"), units @ units.T
    distances = np.clip(1 - cosines, 0, None)
    np.fill_diagonal(distances, 0)
    directions = len(np.unique(units, axis=0))
    scores = {
        k: float(
            metrics.silhouette_score(distances, _fit(units, k, seed, 1)[0], metric="precomputed")
        )
        for k in NUMBERS
        if k <= directions and k < len(units)
    }
    best = max(scores, key=lambda k: scores[k], default=1)
    return best, scores.get(best)


def _fit(units: Vectors, k: int, seed: int, starts: int = STARTS) -> tuple[Labels, Vectors]:
    """Labels int32[n] and centres float32[k, d]."""
    model = need("sklearn.cluster", "explore").KMeans(k, n_init=starts, random_state=seed)
    model.fit(units)
    return model.labels_, model.cluster_centers_


def _sample(vectors: Vectors, rows: int, random: "np.random.Generator") -> Vectors:
    if len(vectors) <= rows:
        return vectors
    return vectors[np.sort(random.choice(len(vectors), rows, replace=False))]


def _distinct(words: Sequence[str]) -> list[str]:
    """The first KEYWORDS words of which none begins with another: "card" stands for "cards" too."""
    result: list[str] = []
    for word in words:
        if not any(word.startswith(other) or other.startswith(word) for other in result):
            result.append(word)
    return result[:KEYWORDS]
