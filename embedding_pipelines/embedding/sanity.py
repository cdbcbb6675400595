"""The sanity probe: before rejecting a user's text, verify the provider with two known-good
texts."""

from embedding_pipelines.embedding.budget import Usage
from embedding_pipelines.embedding.request import ATTEMPTS, Request, Sender
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import InputType, Response, check_reply, faulty_rows
from embedding_pipelines.vectors import Vectors

PROBES = 3  # a service may answer wrongly once, as it may with any text
# No model takes these for the same.
UNLIKE_TEXTS = (
    "The harbour was full of fishing boats.",
    "Divide both sides of the equation by seven.",
)


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
    unlike = probe(sender, request.input_type, request.usage, request.attempts)
    if unlike is not None and (unlike[0] == unlike[1]).all():
        raise ProviderError(
            f"{sender.model.space.title} returned one and the same vector for {len(vectors)} different "
            "texts. Nothing was stored."
        )
    return response


def probe(
    sender: Sender, input_type: InputType, usage: Usage, attempts: int = ATTEMPTS
) -> Vectors | None:
    """The vectors of the known-good texts; None of a model that knows none of their words and says
    so. What the probe takes is added to `usage`.

    Raises as `Sender.send`, and ProviderError for vectors that are wrong PROBES times.
    """
    request, space = Request(UNLIKE_TEXTS, input_type, (), attempts, usage), sender.model.space
    for _ in range(PROBES):
        response = sender.send(request)
        if response.rejected:
            return None
        if not faulty_rows(response.vectors, UNLIKE_TEXTS, space):
            break
    return check_reply(response.vectors, UNLIKE_TEXTS, space)
