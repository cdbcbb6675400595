"""Spearman's correlation of cosines with scores."""

import numpy as np
import pytest

from embedding_pipelines.evaluation.similarity import cosine_spearman

LEFT = np.array([[1, 0], [2, 0], [0, 3]], np.float32)
RIGHT = np.array([[1, 0], [1, 1], [1, 0]], np.float32)  # cosines 1, 0.71, 0


def test_the_order_alone_counts() -> None:
    assert cosine_spearman(LEFT, RIGHT, [5.0, 4.9, 0.0]) == pytest.approx(1.0)
    assert cosine_spearman(LEFT, RIGHT, [1, 2, 3]) == pytest.approx(-1.0)
    assert cosine_spearman(LEFT, RIGHT, [2, 3, 1]) == pytest.approx(0.5)


def test_pairs_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 vectors, but 3 scores"):
        cosine_spearman(LEFT, RIGHT[:2], [1, 2, 3])
