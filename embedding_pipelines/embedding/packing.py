"""How texts are cut into provider calls: by token budget, texts of like length together."""

from collections.abc import Iterator, Sequence

from embedding_pipelines.providers.base import Limits


def calls(
    tokens: Sequence[int], limits: Limits, sizes: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Positions into `tokens`, longest texts first, cut so that each call keeps within `limits`.

    `tokens[i]` is the length of text i in tokens, `sizes[i]` in bytes of UTF-8. Every position
    comes exactly once; a text that is over the budget by itself comes alone.
    """
    call: list[int] = []
    total = total_bytes = 0
    sizes, most_bytes = (sizes or [0] * len(tokens)), (limits.request_bytes or 0)
    for position in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        full = total + tokens[position] > limits.request_tokens or len(call) == limits.request_texts
        if call and (full or total_bytes + sizes[position] > most_bytes > 0):
            yield call
            call, total, total_bytes = [], 0, 0
        call.append(position)
        total += tokens[position]
        total_bytes += sizes[position]
    if call:
        yield call
