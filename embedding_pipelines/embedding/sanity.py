"""Whether a provider can be believed at all: before a text is blamed, it is asked for texts that nobody refuses."""

import threading
from collections.abc import Sequence

from embedding_pipelines.embedding.request import Asked, Bill, ask_patiently
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import Provider, Role, Vectors, checked
from embedding_pipelines.providers.common.http import BadInput, TooLarge, Unreachable

PROOFS = 3  # that a service is asked for: it may answer wrongly once, as it may with any text
# No model takes these for the same.
UNLIKE_TEXTS = (
    "The harbour was full of fishing boats.",
    "Divide both sides of the equation by seven.",
)


def prove(
    provider: Provider, role: Role, stop: threading.Event, doubt: ProviderError | None, bill: Bill
) -> None:
    """ProviderError unless the provider gives right vectors; `doubt` itself if it refuses these texts too.

    `bill` is told what the proof cost.
    """
    try:
        _proof(provider, role, stop, bill)
    except (BadInput, TooLarge, Unreachable) as error:
        raise doubt or error from error


def ask_in_doubt(
    provider: Provider,
    texts: Sequence[str],
    role: Role,
    tokens: int,
    stop: threading.Event,
    tries: int,
    bill: Bill,
) -> Asked:
    """As `ask_patiently`. Several texts with one and the same vector are asked for again, and believed the second time
    if the provider tells other texts apart. Raises ProviderError if it does not.
    """
    asked = ask_patiently(provider, texts, role, tokens, stop, tries, bill)
    if _is_constant(asked):
        bill.add(tokens, asked.reply.tokens)
        asked = ask_patiently(provider, texts, role, tokens, stop, tries, bill)
        if _is_constant(asked):
            try:
                _refuse_constant(provider, texts, role, stop, bill)
            except ProviderError:
                bill.add(tokens, asked.reply.tokens)  # of no use either
                raise
    return asked


def _is_constant(asked: Asked) -> bool:
    """Whether several texts got one and the same vector."""
    vectors = asked.reply.vectors
    return len(vectors) > 1 and bool((vectors == vectors[0]).all())


def _refuse_constant(
    provider: Provider, batch: Sequence[str], role: Role, stop: threading.Event, bill: Bill
) -> None:
    """ProviderError if the provider gives every text the same vector, as a broken service does.

    Some texts are the same to a model ("Apple" and "apple", two signs it does not know), so equal
    vectors alone prove nothing: it is then asked for two texts that no model confuses.
    """
    proof = _proof(provider, role, stop, bill)
    if proof is not None and (proof[0] == proof[1]).all():
        raise ProviderError(
            f"{provider.space} returned one and the same vector for {len(batch)} different texts. Nothing was stored."
        )


def _proof(provider: Provider, role: Role, stop: threading.Event, bill: Bill) -> Vectors | None:
    """What the provider makes of texts that no model refuses or confuses; None of a model that knows none of their
    words, and says so. Raises as `ask_patiently`, and ProviderError for vectors that are wrong PROOFS times.
    """
    for left in reversed(range(PROOFS)):
        asked = ask_patiently(provider, UNLIKE_TEXTS, role, 0, stop, bill=bill)
        billed = asked.reply.tokens or 0
        bill.add(
            billed, billed
        )  # nobody has counted these texts: they tell nothing of how the service counts
        if asked.reply.refused:
            return None
        try:
            return checked(asked.reply.vectors, UNLIKE_TEXTS, provider.space)
        except ProviderError:
            if not left:
                raise
    raise AssertionError
