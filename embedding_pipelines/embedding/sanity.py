"""Whether a provider can be believed at all: before a text is blamed, it is asked for texts that
nobody refuses."""

import threading
from collections.abc import Sequence

from embedding_pipelines.embedding.request import Asked, Usage, ask_patiently
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import InputType, Provider, checked
from embedding_pipelines.providers.common.http import BadInput, TooLarge, Unreachable
from embedding_pipelines.vectors import Vectors

PROOFS = 3  # that a service is asked for: it may answer wrongly once, as it may with any text
# No model takes these for the same.
UNLIKE_TEXTS = (
    "The harbour was full of fishing boats.",
    "Divide both sides of the equation by seven.",
)


def prove(
    provider: Provider,
    input_type: InputType,
    stop: threading.Event,
    doubt: ProviderError | None,
    usage: Usage,
) -> None:
    """ProviderError unless the provider gives right vectors; `doubt` itself if it refuses these
    texts too.

    `bill` is told what the proof cost.
    """
    try:
        _proof(provider, input_type, stop, usage)
    except (BadInput, TooLarge, Unreachable) as error:
        raise doubt or error from error


def ask_in_doubt(
    provider: Provider,
    texts: Sequence[str],
    input_type: InputType,
    tokens: int,
    stop: threading.Event,
    tries: int,
    usage: Usage,
) -> Asked:
    """As `ask_patiently`. Several texts with one and the same vector are asked for again, and
    believed the second time if the provider tells other texts apart. Raises ProviderError if it
    does not.
    """
    asked = ask_patiently(provider, texts, input_type, tokens, stop, tries, usage)
    if _is_constant(asked):
        usage.add(tokens, asked.reply.tokens)
        asked = ask_patiently(provider, texts, input_type, tokens, stop, tries, usage)
        if _is_constant(asked):
            try:
                _refuse_constant(provider, texts, input_type, stop, usage)
            except ProviderError:
                usage.add(tokens, asked.reply.tokens)  # of no use either
                raise
    return asked


def _is_constant(asked: Asked) -> bool:
    """Whether several texts got one and the same vector."""
    vectors = asked.reply.vectors
    return len(vectors) > 1 and bool((vectors == vectors[0]).all())


def _refuse_constant(
    provider: Provider,
    batch: Sequence[str],
    input_type: InputType,
    stop: threading.Event,
    usage: Usage,
) -> None:
    """ProviderError if the provider gives every text the same vector, as a broken service does.

    Some texts are the same to a model ("Apple" and "apple", two signs it does not know), so equal
    vectors alone prove nothing: it is then asked for two texts that no model confuses.
    """
    proof = _proof(provider, input_type, stop, usage)
    if proof is not None and (proof[0] == proof[1]).all():
        raise ProviderError(
            f"{provider.space} returned one and the same vector for {len(batch)} different texts. Nothing was stored."
        )


def _proof(
    provider: Provider, input_type: InputType, stop: threading.Event, usage: Usage
) -> Vectors | None:
    """What the provider makes of texts that no model refuses or confuses; None of a model that
    knows none of their words, and says so. Raises as `ask_patiently`, and ProviderError for vectors
    that are wrong PROOFS times.
    """
    for left in reversed(range(PROOFS)):
        asked = ask_patiently(provider, UNLIKE_TEXTS, input_type, 0, stop, usage=usage)
        billed = asked.reply.tokens or 0
        usage.add(
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
