"""The sanity probe: before rejecting a user's text, verify the provider with two known-good
texts."""

from embedding_pipelines.embedding.budget import Usage
from embedding_pipelines.embedding.request import ATTEMPTS, Request, Sender
from embedding_pipelines.errors import BadInput, ProviderError, TooLarge, Unreachable
from embedding_pipelines.providers.base import InputType, Response, check_reply
from embedding_pipelines.vectors import Vectors

PROBES = 3  # a service may answer wrongly once, as it may with any text
# No model takes these for the same.
UNLIKE_TEXTS = (
    "The harbour was full of fishing boats.",
    "Divide both sides of the equation by seven.",
)


def verify_provider(
    sender: Sender,
    input_type: InputType,
    usage: Usage,
    doubt: ProviderError | None = None,
    attempts: int = ATTEMPTS,
) -> None:
    """ProviderError unless the provider gives right vectors; `doubt` itself if it refuses the
    known-good texts too. What the probe took is added to `usage`."""
    try:
        _probe(sender, input_type, usage, attempts)
    except (BadInput, TooLarge, Unreachable) as error:
        raise doubt or error from error


def send_verified(sender: Sender, request: Request) -> Response:
    """As `Sender.send`. Several texts with one and the same vector are requested again, and the
    second reply counts if the provider tells other texts apart.

    Some texts are the same to a model ("Apple" and "apple", two signs it does not know), so equal
    vectors alone prove nothing. Raises ProviderError if it gives all texts the same vector.
    """
    for _ in range(2):
        response = sender.send(request)
        vectors = response.vectors
        if len(vectors) < 2 or (vectors != vectors[0]).any():
            return response
    probe = _probe(sender, request.input_type, request.usage, request.attempts)
    if probe is not None and (probe[0] == probe[1]).all():
        raise ProviderError(
            f"{sender.model.space} returned one and the same vector for {len(vectors)} different "
            "texts. Nothing was stored."
        )
    return response


def _probe(sender: Sender, input_type: InputType, usage: Usage, attempts: int) -> Vectors | None:
    """The vectors of the known-good texts; None of a model that knows none of their words and says
    so. Raises as `Sender.send`, and ProviderError for vectors that are wrong PROBES times."""
    for left in reversed(range(PROBES)):
        response = sender.send(Request(UNLIKE_TEXTS, input_type, attempts=attempts, usage=usage))
        if response.rejected:
            return None
        try:
            return check_reply(response.vectors, UNLIKE_TEXTS, sender.model.space)
        except ProviderError:
            if not left:
                raise
    raise AssertionError
