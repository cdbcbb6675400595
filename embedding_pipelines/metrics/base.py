"""What a metric is: one number that is measured of every candidate and kept with its release."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from embedding_pipelines.metrics.evidence import Evidence

Direction = Literal["higher", "lower", "neither"]
Measure = Callable[[Evidence], float | None]
ByQuery = Callable[[Evidence], Mapping[str, float]]


@dataclass(frozen=True)
class Metric:
    """`measure` computes from arrays and counts alone; None where the evidence does not allow it.
    `by_query` has a value in [0, 1] for each query, by an id that holds as long as nothing about it
    changes: a candidate and the live release are compared by them."""

    name: str
    direction: Direction  # which is better
    unit: str
    description: str
    measure: Measure
    by_query: ByQuery | None = None

    def meets(self, value: float, bound: float) -> bool:
        """Whether a value is no worse than `bound`."""
        return value >= bound if self.direction == "higher" else value <= bound

    def improves(self, change: float) -> bool | None:
        """Whether a change is one for the better; None if it is neither."""
        return None if not change or self.direction == "neither" else self.meets(change, 0)


def metric(
    direction: Direction, unit: str, by_query: ByQuery | None = None
) -> Callable[[Measure], Metric]:
    """Make a function at the top of a file of this folder a metric, with its name and docstring."""
    return lambda measure: Metric(
        measure.__name__, direction, unit, measure.__doc__ or "", measure, by_query
    )
