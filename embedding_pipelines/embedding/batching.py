"""How texts are cut into provider calls: by token budget, texts of like length together."""

from collections.abc import Iterator, Sequence

from embedding_pipelines.providers.base import Limits


def calls(tokens: Sequence[int], limits: Limits) -> Iterator[list[int]]:
    """Positions into `tokens`, longest texts first, cut so that each call keeps within `limits`.

    `tokens[i]` is the length of text i in tokens. Every position comes exactly once; a text that is
    over the budget by itself comes alone.
    """
    call: list[int] = []
    total = 0
    for position in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        if call and (total + tokens[position] > limits.call_tokens or len(call) == limits.call_texts):
            yield call
            call, total = [], 0
        call.append(position)
        total += tokens[position]
    if call:
        yield call
