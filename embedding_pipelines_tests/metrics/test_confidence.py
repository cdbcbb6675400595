"""Bounds hold whatever the distribution, and are near enough to be of use."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedding_pipelines.metrics.confidence import lower_bound, paired_loss

shares = hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1))


def recalls(random: np.random.Generator, n: int) -> np.ndarray:
    """Recall@10 as it is met: mostly 1, now and then 0.9, seldom nothing; the mean is 0.9926."""
    return random.choice([1.0, 0.9, 0.8, 0.5, 0.0], p=[0.955, 0.033, 0.008, 0.003, 0.001], size=n)


RECALL = 0.955 + 0.9 * 0.033 + 0.8 * 0.008 + 0.5 * 0.003


@given(shares, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_a_bound_lies_between_zero_and_the_mean(values: np.ndarray, confidence: float) -> None:
    assert 0 <= lower_bound(values, confidence) <= values.mean() + 1e-12


@given(shares)
def test_who_asks_for_more_confidence_gets_less(values: np.ndarray) -> None:
    assert lower_bound(values, 0.99) <= lower_bound(values, 0.9) + 1e-5


@pytest.mark.parametrize("value", [1.0, 0.9, 0.5, 0.1, 0.0])
def test_more_of_the_same_raises_the_bound(value: float) -> None:
    bounds = [lower_bound(np.full(n, value)) for n in (1, 2, 5, 20, 100, 500, 2_000)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize("n", [10, 100, 1_000])
def test_the_bound_of_ones_is_near_the_best_that_there_is(n: int) -> None:
    best = 0.05 ** (1 / n)  # Clopper and Pearson, 1934
    assert best - 1.3 * (1 - best) <= lower_bound(np.ones(n)) <= best


def test_a_thousand_ones_give_what_is_promised() -> None:
    assert lower_bound(np.ones(1_000)) == pytest.approx(0.997, abs=3e-4)


@pytest.mark.parametrize("kind", ["recalls", "rare zeros", "mostly zero", "beta"])
def test_the_bound_lies_above_the_true_mean_in_five_cases_of_a_hundred_at_most(
    kind: str, at_length: bool
) -> None:
    random = np.random.default_rng(5)
    n, samples = 100, 2_000 if at_length else 300
    draw, mean = {
        "recalls": (lambda: recalls(random, n), RECALL),
        "rare zeros": (lambda: (random.random(n) < 0.99).astype(float), 0.99),
        "mostly zero": (lambda: (random.random(n) < 0.05).astype(float), 0.05),
        "beta": (lambda: random.beta(9, 1, n), 0.9),
    }[kind]
    missed = sum(lower_bound(draw()) > mean for _ in range(samples))
    assert missed <= samples * 0.05 + 3 * math.sqrt(samples * 0.05 * 0.95)


def test_the_bound_of_recalls_is_near_enough_to_prove_a_floor() -> None:
    values = recalls(np.random.default_rng(1), 500)
    assert 0 < values.mean() - lower_bound(values) < 0.01


def test_the_bound_is_the_same_each_time_and_hardly_depends_on_the_order() -> None:
    values = recalls(np.random.default_rng(2), 500)
    assert lower_bound(values) == lower_bound(values)
    in_order = [lower_bound(np.sort(values)), lower_bound(np.sort(values)[::-1])]
    assert in_order == pytest.approx([lower_bound(values)] * 2, abs=0.004)


@pytest.mark.parametrize("values", [[], [1.1], [-0.1], [np.nan], [[1.0]]])
def test_what_is_no_list_of_shares_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        lower_bound(np.array(values))


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_what_is_no_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        lower_bound(np.ones(3), confidence)


def test_a_candidate_that_is_live_loses_nothing_for_certain() -> None:
    live = {
        str(number): float(share)
        for number, share in enumerate(recalls(np.random.default_rng(3), 256))
    }
    loss = paired_loss(live, live)
    assert (loss.mean, loss.queries) == (0.0, 256)
    assert -0.05 < loss.certain < 0


def test_a_loss_that_every_query_has_is_certain() -> None:
    live = {str(number): 0.9 for number in range(256)}
    loss = paired_loss(dict.fromkeys(live, 0.7), live)
    assert loss.mean == pytest.approx(0.2)
    assert 0.15 < loss.certain <= 0.2


def test_a_loss_of_a_few_queries_may_be_chance_and_a_gain_is_none() -> None:
    live = {str(number): 1.0 for number in range(256)}
    assert (
        paired_loss({**live, "1": 0.0, "2": 0.0}, live).certain
        <= 0
        < paired_loss({**live, "1": 0.0}, live).mean
    )
    better = paired_loss(live, dict.fromkeys(live, 0.5))
    assert better.mean == pytest.approx(-0.5)
    assert better.certain < better.mean + 1e-9


def test_only_queries_of_both_sides_are_compared() -> None:
    loss = paired_loss({"a": 0.5, "new": 0.0}, {"a": 0.5, "old": 1.0})
    assert (loss.mean, loss.queries) == (0.0, 1)
    assert paired_loss({"a": 1.0}, {"b": 1.0}) == (0.0, -1.0, 0)


def test_two_samples_of_one_system_seldom_differ_for_certain() -> None:
    random = np.random.default_rng(4)
    certain = 0
    for _ in range(200):
        sides = [
            {str(number): float(share) for number, share in enumerate(recalls(random, 100))}
            for _ in range(2)
        ]
        certain += paired_loss(*sides).certain > 0
    assert certain <= 200 * 0.01 + 3 * math.sqrt(200 * 0.01 * 0.99)
