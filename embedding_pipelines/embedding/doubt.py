"""Whether a provider can be believed at all: before a text is blamed, it is asked for texts that nobody refuses."""

import threading
from collections.abc import Sequence

from embedding_pipelines.embedding.asking import Asked, ask_patiently
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers._remote import BadInput, TooLarge, Unreachable
from embedding_pipelines.providers.base import Provider, Role, checked

# No model takes these for the same.
UNLIKE_TEXTS = ("The harbour was full of fishing boats.", "Divide both sides of the equation by seven.")


def prove(provider: Provider, role: Role, stop: threading.Event, doubt: ProviderError | None) -> int:
    """ProviderError unless the provider gives right vectors; `doubt` itself if it refuses these texts too.

    Returns the tokens that the proof was billed with.
    """
    try:
        asked = ask_patiently(provider, UNLIKE_TEXTS, role, 0, stop)
    except (BadInput, TooLarge, Unreachable) as error:
        raise doubt or error from error
    if not asked.reply.refused:  # else a model that knows none of their words, and says so
        checked(asked.reply.vectors, UNLIKE_TEXTS, provider.space)
    return asked.reply.tokens or 0


def is_constant(asked: Asked) -> bool:
    """Whether several texts got one and the same vector."""
    vectors = asked.reply.vectors
    return len(vectors) > 1 and bool((vectors == vectors[0]).all())


def refuse_constant(provider: Provider, batch: Sequence[str], role: Role, stop: threading.Event) -> None:
    """ProviderError if the provider gives every text the same vector, as a broken service does.

    Some texts are the same to a model ("Apple" and "apple", two signs it does not know), so equal
    vectors alone prove nothing: it is then asked for two texts that no model confuses.
    """
    asked = ask_patiently(provider, UNLIKE_TEXTS, role, 0, stop)
    if asked.reply.refused:  # nothing is proven
        return
    first, second = checked(asked.reply.vectors, UNLIKE_TEXTS, provider.space)
    if (first == second).all():
        raise ProviderError(
            f"{provider.space} returned one and the same vector for {len(batch)} different texts. Nothing was stored."
        )
