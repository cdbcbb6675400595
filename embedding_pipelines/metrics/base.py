"""What a metric is: one number that is measured of every candidate and kept with its release."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from embedding_pipelines.metrics.evidence import Evidence


@dataclass(frozen=True)
class Metric:
    """Adding one is writing it at the top of a file of this folder; `registry` finds it there.

    `measure` computes from arrays and counts alone; None where the evidence does not allow it.
    `per_query` has a value in [0, 1] for each query, by what identifies the query for as long as
    nothing about it changes: a candidate and the live release are compared by them.
    """

    name: str
    direction: Literal["higher", "lower", "neither"]  # which is better
    unit: str
    description: str
    measure: Callable[[Evidence], float | None]
    per_query: Callable[[Evidence], Mapping[str, float]] | None = None

    def meets(self, value: float, bound: float) -> bool:
        """Whether a value is no worse than `bound`."""
        return value >= bound if self.direction == "higher" else value <= bound

    def improves(self, change: float) -> bool | None:
        """Whether a change is one for the better; None if it is neither."""
        return None if not change or self.direction == "neither" else self.meets(change, 0)
