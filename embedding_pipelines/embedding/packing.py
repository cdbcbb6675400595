"""How texts are packed into requests: within a model's limits, texts of like length together."""

from collections.abc import Iterator, Sequence

import numpy as np

from embedding_pipelines.providers.base import Limits


def pack(
    tokens: Sequence[int], limits: Limits, sizes: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Positions into `tokens`, longest texts first, cut so that each request keeps within `limits`.

    `tokens[i]` is the length of text i in tokens, `sizes[i]` in bytes of UTF-8. Every position
    comes exactly once; a text that exceeds the limits by itself comes alone.
    """
    order = np.argsort(-np.asarray(tokens, np.int64), kind="stable")
    bounds = [(np.cumsum(np.asarray(tokens, np.int64)[order]), limits.request_tokens)]
    if sizes and limits.request_bytes:
        bounds.append((np.cumsum(np.asarray(sizes, np.int64)[order]), limits.request_bytes))
    start = 0
    while start < len(order):
        stop = start + limits.request_texts
        for totals, limit in bounds:
            before = totals[start - 1] if start else 0
            stop = min(stop, int(np.searchsorted(totals, before + limit, side="right")))
        stop = max(stop, start + 1)
        yield order[start:stop].tolist()
        start = stop
