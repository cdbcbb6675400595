"""How sure a mean is: bounds that hold for any number of values, however skewed.

A recall is 1 for nearly every query and much less for a few. The normal approximation is too sure
of such values (500 ones would have no error at all); these bounds hold for all in [0, 1].
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.floating[Any] | np.integer[Any]]

# Share of the capital that a bet may risk. Bounds of recalls widen by 30% at 0.75, by 5% at 0.999.
BOLDEST = 0.95
CANDIDATES = 64  # means that are tried at once; the next round tries as many between two of them
ROUNDS = 3  # 64^-3: the bound is exact to 4e-6
SEED = 20_250_522


class Loss(NamedTuple):
    """What a candidate loses against what is live, over the queries that both answered."""

    mean: float  # of live - candidate; negative: the candidate is better
    certain: float  # the loss is greater, at the given confidence; 0 or less: it may be chance
    queries: int


def lower_bound(values: Numbers, confidence: float = 0.95) -> float:
    """The number, from 0 to their mean, that the true mean of n >= 1 values in [0, 1] exceeds, one-sided.

    A mean m is ruled out if somebody who bets against "the mean is m at most" would have multiplied
    a capital of 1 to 1 / (1 - confidence): if m were right, that would happen with a probability of
    1 - confidence at most (Ville's inequality; Waudby-Smith and Ramdas, "Estimating means of
    bounded random variables by betting", 2023). The bets are those of Voráček and Orabona,
    "STaR-Bets", 2025: at each step what reaches the goal in the steps that are left. The bound of
    1,000 ones is 0.997, that of 500 recalls with a mean of 0.993 about 0.985.

    The values are independent draws; their order must not say how large they are, so they are
    shuffled, always in the same way. Raises ValueError without values, or for one not in [0, 1].
    """
    shares = np.asarray(values, np.float64)
    if shares.ndim != 1 or not len(shares) or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(
            f"A bound needs one value or more, each from 0 to 1; there are {shares.size}."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: give a number between 0 and 1.")
    shares = np.random.default_rng(SEED).permutation(shares)
    low, high = 0.0, float(shares.mean())
    for _ in range(ROUNDS):
        edges = np.linspace(low, high, CANDIDATES + 1)
        ruled_out = _ruled_out(shares, edges[1:], math.log(1 / (1 - confidence)))
        first = CANDIDATES - 1 if ruled_out.all() else int(np.argmin(ruled_out))
        low, high = float(edges[first]), float(edges[first + 1])
    return low


def paired_loss(
    candidate: Mapping[str, float], live: Mapping[str, float], confidence: float = 0.99
) -> Loss:
    """The loss of `candidate` against `live`, values in [0, 1] by query, over the queries of both.

    `certain` is `lower_bound` of the differences, which are moved from [-1, 1] to [0, 1] and back.
    What the two have in common, such as hard queries, cancels out. If no query is in both, nothing
    is lost, nothing certain: (0, -1, 0).
    """
    shared = sorted(candidate.keys() & live.keys())
    if not shared:
        return Loss(0.0, -1.0, 0)
    losses = np.array([live[query] - candidate[query] for query in shared])
    certain = 2 * lower_bound((losses + 1) / 2, confidence) - 1
    return Loss(float(losses.mean()), certain, len(shared))


def _ruled_out(
    values: NDArray[np.float64], means: NDArray[np.float64], goal: float
) -> NDArray[np.bool_]:
    """Of each mean [m], whether bets on float64[n] reached the goal, a logarithm of the capital."""
    n = len(values)
    past = np.arange(n)
    # What was known before each value: as if 1/2 had come first, with a variance of 1/4.
    expected = (0.5 + np.concatenate([[0], values.cumsum()[:-1]])) / (past + 1)
    squares = (values - expected) ** 2
    spread = (0.25 + np.concatenate([[0], squares.cumsum()[:-1]])) / (past + 1)
    boldest = BOLDEST / np.maximum(means, 1e-300)
    capital = np.zeros(len(means))
    for value, divisor in zip(values, spread * (n - past), strict=True):
        bets = np.minimum(np.sqrt(2 * np.maximum(goal - capital, 0) / divisor), boldest)
        capital += np.log1p(bets * (value - means))
    return capital >= goal
