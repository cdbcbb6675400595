"""How long a search in the table takes, without embedding the query."""

import numpy as np

from embedding_pipelines.metrics.base import metric
from embedding_pipelines.metrics.evidence import Evidence


@metric("lower", "ms")
def search_p50_ms(evidence: Evidence) -> float | None:
    """Median time of a search in the table."""
    return _percentile(evidence, 50)


@metric("lower", "ms")
def search_p95_ms(evidence: Evidence) -> float | None:
    """95th percentile of the same."""
    return _percentile(evidence, 95)


def _percentile(evidence: Evidence, percent: int) -> float | None:
    times = [search.milliseconds for search in evidence.searches]
    # The first search opens the table.
    return float(np.percentile(times[1:] or times, percent)) if times else None
