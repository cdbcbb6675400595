"""How long a search in the table takes, without embedding the query."""

from collections.abc import Callable

import numpy as np

from embedding_pipelines.metrics.base import Metric
from embedding_pipelines.metrics.evidence import Evidence


def _percentile(percent: int) -> Callable[[Evidence], float | None]:
    def measure(evidence: Evidence) -> float | None:
        times = [search.milliseconds for search in evidence.searches]
        # The first search opens the table.
        return float(np.percentile(times[1:] or times, percent)) if times else None

    return measure


P50 = Metric("search_p50_ms", "lower", "ms", "median time of a search", _percentile(50))
P95 = Metric("search_p95_ms", "lower", "ms", "95th percentile of the same", _percentile(95))
