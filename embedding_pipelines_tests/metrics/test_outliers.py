"""A row's isolation is its distance to its k-th neighbour, itself left out."""

import numpy as np
import pytest

from embedding_pipelines.compression.base import unit
from embedding_pipelines.metrics import outliers
from embedding_pipelines.metrics.outliers import isolation


@pytest.mark.parametrize("at_once", [1, 250, 8_000_000])
def test_it_is_the_distance_that_a_full_sort_gives(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outliers, "COSINES_AT_ONCE", at_once)
    random = np.random.default_rng(0)
    units = unit(random.normal(size=(60, 8)).astype(np.float32))
    units[7] = 0
    chosen = np.sort(random.choice(60, 25, replace=False))
    own = np.isin(np.arange(60), chosen)
    for k in (1, 5, 24):
        expected = []
        for row, vector in enumerate(units):
            others = units[[other for other in chosen if other != row]]
            expected.append(np.sort(1 - others @ vector)[k - 1])
        assert isolation(units, units[chosen], own, k) == pytest.approx(expected, abs=1e-6)


def test_equal_rows_are_at_no_distance_and_odd_ones_at_a_large_one() -> None:
    units = unit(np.array([[1, 0]] * 30 + [[0, 1]] * 3 + [[-1, 0]], np.float32))
    scores = isolation(units, units, np.ones(34, np.bool_), 20)
    assert scores[:30].tolist() == [0] * 30
    assert scores[30:].tolist() == [1, 1, 1, 2]
