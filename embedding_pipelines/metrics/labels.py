"""How well vectors keep apart what people labelled as different."""

from collections.abc import Sequence

import numpy as np

from embedding_pipelines.metrics.base import metric
from embedding_pipelines.metrics.evidence import Evidence
from embedding_pipelines.metrics.neighbours import K, nearest_others
from embedding_pipelines.vectors import Vectors


def leave_one_out_accuracy(vectors: Vectors, labels: Sequence[str], k: int = K) -> float:
    """The share of vectors float32[n, d] whose k nearest others, by cosine, vote for their label;
    in [0, 1].

    Leave one out (Fix and Hodges, 1951): all others vote on the label of each vector. If
    labels have the same number of votes, the nearer ones win. With k or less others, all of them
    vote. Time grows with n². Raises ValueError for another number of labels or less than two
    vectors.
    """
    if len(labels) != len(vectors) or len(vectors) < 2:
        raise ValueError(
            f"{len(labels)} labels for {len(vectors)} vectors: give one each, of two at least."
        )
    near, cosines = nearest_others(vectors, min(k, len(vectors) - 1))
    names, kinds = np.unique(np.asarray(labels, object).astype(str), return_inverse=True)
    right = 0
    for own, others, nearness in zip(kinds, kinds[near], cosines, strict=True):
        votes = np.bincount(others, minlength=len(names)).astype(np.float64)
        votes += np.bincount(
            others, weights=nearness.astype(np.float64) + 1, minlength=len(names)
        ) / (4 * len(others))
        right += int(votes.argmax()) == own
    return right / len(labels)


@metric("higher", "share")
def knn_accuracy(evidence: Evidence) -> float | None:
    """Share of chunks whose 10 nearest neighbours vote for their own label."""
    rows = [row for row, label in enumerate(evidence.labels) if label is not None]
    if evidence.decoded is None or len(rows) <= K:
        return None
    return leave_one_out_accuracy(
        evidence.decoded[rows], [str(evidence.labels[row]) for row in rows]
    )
