"""From texts to vectors through the ledger: only texts it does not know reach the provider."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embedding_pipelines.embedding.batching import calls
from embedding_pipelines.embedding.ledger import Ledger
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import Provider, Role, Vectors, checked

# No model takes these for the same; what is asked of one that gave a single vector to all texts of a call.
UNLIKE_TEXTS = ("The harbour was full of fishing boats.", "Divide both sides of the equation by seven.")


@dataclass
class EmbedCounts:
    """What embedding took. `texts` counts each text of a window once, however often it occurs."""

    texts: int = 0
    from_ledger: int = 0
    embedded: int = 0
    embedded_tokens: int = 0
    calls: int = 0
    provider_seconds: float = 0.0


def embed(
    texts: Sequence[str],
    tokens: Sequence[int],
    provider: Provider,
    ledger: Ledger,
    role: Role,
    counts: EmbedCounts,
    advance: Callable[[int], None],
) -> Vectors:
    """Vectors float32[len(texts), d] of one window of texts, in their order.

    `tokens[i]` is the length of `texts[i]`; `advance` is told the tokens finished. Each provider call
    is committed to the ledger before the next one starts, so a killed run repeats one call at most.
    Raises ProviderError as `Provider.embed` and `checked` do.
    """
    space = provider.space
    first = {text: position for position, text in reversed(list(enumerate(texts)))}
    keys = {text: ledger.key(space.id, role, text) for text in first}
    known = ledger.get(list(keys.values()), space.dimensions)
    missing = [position for text, position in first.items() if keys[text] not in known]
    counts.texts += len(first)
    counts.from_ledger += len(first) - len(missing)
    all_tokens = sum(tokens)
    missing_tokens = 0

    for call in calls([tokens[position] for position in missing], provider.limits):
        positions = [missing[i] for i in call]
        batch = [texts[position] for position in positions]
        started = time.perf_counter()
        vectors = checked(provider.embed(batch, role), batch, space)
        _refuse_constant(provider, vectors, batch, role)
        counts.provider_seconds += time.perf_counter() - started
        ledger.put([keys[text] for text in batch], vectors)
        known.update(zip((keys[text] for text in batch), vectors, strict=True))
        counts.calls += 1
        counts.embedded += len(batch)
        call_tokens = sum(tokens[position] for position in positions)
        counts.embedded_tokens += call_tokens
        missing_tokens += call_tokens
        advance(call_tokens)
    advance(all_tokens - missing_tokens)

    result = np.empty((len(texts), space.dimensions), np.float32)
    for position, text in enumerate(texts):
        result[position] = known[keys[text]]
    return result


def _refuse_constant(provider: Provider, vectors: Vectors, batch: Sequence[str], role: Role) -> None:
    """ProviderError if the provider gives every text the same vector, as a broken service does.

    Some texts are the same to a model ("Apple" and "apple", two signs it does not know), so equal
    vectors alone prove nothing: it is then asked for two texts that no model confuses.
    """
    if len(batch) < 2 or not (vectors == vectors[0]).all():
        return
    first, second = checked(provider.embed(UNLIKE_TEXTS, role), UNLIKE_TEXTS, provider.space)
    if (first == second).all():
        raise ProviderError(
            f"{provider.space} returned one and the same vector for {len(batch)} different texts. Nothing was stored."
        )
