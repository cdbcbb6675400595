"""How well vectors order pairs of texts as people do: the figure of the STS benchmarks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def cosine_spearman(left: Vectors, right: Vectors, scores: Sequence[float]) -> float:
    """Spearman's rank correlation of cosine(left[i], right[i]) with what people gave pair i; in [-1, 1].

    `left` and `right` are float32[n, d] in one space, with no zero vector; n is at least 2.
    """
    from scipy.stats import spearmanr

    if not len(left) == len(right) == len(scores):
        raise ValueError(f"{len(left)} and {len(right)} vectors, but {len(scores)} scores: give one of each a pair.")
    cosines = (left * right).sum(axis=1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return float(spearmanr(cosines, scores).statistic)
