"""How texts are packed into requests: within a model's limits, texts of like length together."""

from collections.abc import Iterator, Sequence

from embedding_pipelines.providers.base import Limits


def pack(
    tokens: Sequence[int], limits: Limits, sizes: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Positions into `tokens`, longest texts first, cut so that each request keeps within `limits`.

    `tokens[i]` is the length of text i in tokens, `sizes[i]` in bytes of UTF-8. Every position
    comes exactly once; a text that exceeds the limits by itself comes alone.
    """
    request: list[int] = []
    total = total_bytes = 0
    sizes, max_bytes = (sizes or [0] * len(tokens)), (limits.request_bytes or 0)
    for position in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        is_full = (
            total + tokens[position] > limits.request_tokens
            or len(request) == limits.request_texts
            or total_bytes + sizes[position] > max_bytes > 0
        )
        if request and is_full:
            yield request
            request, total, total_bytes = [], 0, 0
        request.append(position)
        total += tokens[position]
        total_bytes += sizes[position]
    if request:
        yield request
