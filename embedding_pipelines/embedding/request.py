"""Send one request to a model, with rate limiting and retries; and what each fault means for the
texts."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from platformdirs import user_state_path

from embedding_pipelines.embedding.budget import Usage
from embedding_pipelines.embedding.limiter import LONGEST_PAUSE_SECONDS, Cancelled, Limiter
from embedding_pipelines.errors import (
    BadInput,
    Busy,
    InvalidReply,
    ProviderError,
    TooLarge,
    Unreachable,
)
from embedding_pipelines.once import once
from embedding_pipelines.preprocessing.tokens import has_content
from embedding_pipelines.providers.base import EmbeddingModel, InputType, RateLimit, Response
from embedding_pipelines.telemetry import current, span

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tenacity import RetryCallState, Retrying

    from embedding_pipelines.images import Pixels

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0  # between attempts, doubled each time
ATTEMPTS = 6  # of a request that is Unreachable: 15 seconds of waits at most, 8 usually
BUSY_SECONDS = 900.0  # of nothing but refusals to one request, until it fails
LONG_WAIT_SECONDS = 10.0  # waits as long as this are logged
LOGGER = logging.getLogger(__name__)
LABELS = {"gen_ai.operation.name": "embeddings"}  # OpenTelemetry's words for such a request


class WrongVector(ProviderError):
    """One vector of a reply that is valid as a whole is unusable: NaN, zero, not of unit length."""


@dataclass(frozen=True)
class Rule:
    """What follows a fault. When its attempts are used up, a request of several texts is halved, and
    a single text is rejected."""

    half_attempts: int | None = None  # how often each half is sent; None: as its whole
    repeat_alone: bool = False  # whether a text alone gets a second request before it is rejected
    probe: bool = True  # before halving; before a text is rejected the provider always is probed


# `Busy` has no rule: the same request is sent again, at the rate limit, for up to BUSY_SECONDS.
POLICY: dict[type[ProviderError], Rule] = {
    # After all attempts of the whole, each half gets fewer; a text that fails alone gets one more
    # request, because an outage is not its fault.
    Unreachable: Rule(half_attempts=2, repeat_alone=True),
    WrongVector: Rule(repeat_alone=True),
    BadInput: Rule(),
    TooLarge: Rule(probe=False),
}


@dataclass
class Request:
    """Texts or images for one call to a model, and what the call took so far."""

    inputs: Sequence[str]
    input_type: InputType
    tokens: Sequence[int] = ()  # of each, by the model's tokenizer; empty: not counted
    attempts: int = ATTEMPTS
    usage: Usage = field(default_factory=Usage)
    images: "Sequence[Future[Pixels | str]]" = ()  # what the inputs name, unless they are texts

    def bill(self, billed: int | None) -> None:
        """Add the tokens of a reply; `billed` is None where the provider does not say. Texts that
        nobody counted are counted as the provider does."""
        counted = sum(self.tokens) if self.tokens else billed or 0
        self.usage.counted_tokens += counted
        self.usage.billed_tokens += counted if billed is None else billed


class Sender:
    """The way to one open model: requests from any number of threads keep one rate limit, and can
    be cancelled together."""

    def __init__(self, model: EmbeddingModel, limiter: Limiter | None = None) -> None:
        """`limiter` is one for the processes of this user by default."""
        self.model, self._given_limiter = model, limiter
        self._cancelled = threading.Event()
        self._context = current()  # of whoever sends: requests go out in threads of their own

    def cancel(self) -> None:
        """Whoever waits for the rate limit or before another attempt stops waiting."""
        self._cancelled.set()

    def send(self, request: Request) -> Response:
        """The reply, with vectors float32[n, d] in the order of the inputs.

        Raises what `EmbeddingModel.embed` raises but Busy; Unreachable after `request.attempts`;
        Cancelled once `cancel` was called. A model without a rate limit is called once.
        """
        if self.model.rate_limit is None:
            return self._call(request)
        attempts = retrying(
            request.attempts, Unreachable, sleep=lambda seconds: self._sleep(seconds, request)
        )
        return attempts(self._call_when_allowed, request)

    @once
    def _limiter(self) -> Limiter:
        rate = self.model.rate_limit
        assert rate is not None
        return self._given_limiter or limiter_of(rate)

    def _call_when_allowed(self, request: Request) -> Response:
        """Call until the service is not busy."""
        busy_since = 0.0
        while True:
            request.usage.wait_seconds += self._limiter.wait(sum(request.tokens), self._cancelled)
            sent_at = time.time()
            try:
                response = self._call(request)
            except Busy as refusal:
                busy_since = busy_since or time.monotonic()
                self._heed(refusal, sent_at, time.monotonic() - busy_since)
            else:
                self._limiter.record_success()
                return response

    def _heed(self, refusal: Busy, sent_at: float, busy_seconds: float) -> None:
        """Slow everybody down. Raises ProviderError once the service was busy for too long."""
        seconds = refusal.retry_after_seconds
        is_news = self._limiter.record_refusal(sent_at, seconds)
        if is_news and seconds is not None and seconds >= LONG_WAIT_SECONDS:
            LOGGER.warning("%s Waiting %.0f seconds, as it asks.", refusal, seconds)
        if busy_seconds > BUSY_SECONDS:
            raise ProviderError(
                f"{refusal} The service has been busy for {BUSY_SECONDS / 60:.0f} minutes. Run "
                "again later: nothing that was embedded is lost."
            ) from refusal

    def _call(self, request: Request) -> Response:
        """One call, on the usage of its request. Raises InvalidReply for an array of a wrong
        shape, and BadInput for a text without content, which some models give a vector."""
        if not request.images and not all(map(has_content, request.inputs)):
            raise BadInput("The text is empty: white space or characters that nobody sees.")
        usage, started = request.usage, time.perf_counter()
        try:
            with span("embeddings", self._context, **LABELS) as labels:
                labels["embedding_pipelines.texts"] = len(request.inputs)
                response = self._embed(request)
                labels["gen_ai.request.model"] = self.model.space.model
                labels["gen_ai.provider.name"] = self.model.space.provider
                if response.tokens is not None:
                    labels["gen_ai.usage.input_tokens"] = response.tokens
        except ProviderError as fault:
            usage.retries += 1
            if isinstance(fault, InvalidReply):
                request.bill(None)
            raise
        request.bill(response.tokens)
        shape = (len(request.inputs), self.model.space.dimensions)
        if response.vectors.shape != shape:
            usage.retries += 1
            raise InvalidReply(
                f"{self.model.space.title} returned an array of shape {response.vectors.shape} for "
                f"{shape}. If this repeats, correct the model or its `dimensions` in the pipeline "
                "file."
            )
        usage.requests += 1
        usage.request_seconds += time.perf_counter() - started
        return response

    def _embed(self, request: Request) -> Response:
        if not request.images:
            return self.model.embed(request.inputs, request.input_type)
        loaded = [image.result() for image in request.images]
        rejected = {row: image for row, image in enumerate(loaded) if isinstance(image, str)}
        squares = [image for image in loaded if not isinstance(image, str)]
        vectors = np.full((len(loaded), self.model.space.dimensions), np.nan, np.float32)
        if squares:
            rows = [row for row in range(len(loaded)) if row not in rejected]
            vectors[rows] = self.model.embed_images(np.stack(squares))
        return Response(vectors, rejected=rejected)

    def _sleep(self, seconds: float, request: Request) -> None:
        if self._cancelled.wait(seconds):
            raise Cancelled
        request.usage.wait_seconds += seconds


def limiter_of(rate: RateLimit) -> Limiter:
    """Its file is one for all processes of this user that use the same key of the service."""
    path = user_state_path("embedding-pipelines") / "pace" / f"{rate.key}.json"
    return Limiter(path, rate.requests_per_minute, rate.tokens_per_minute)


def retrying(
    attempts: int, *faults: type[ProviderError], sleep: Callable[[float], None] = time.sleep
) -> "Retrying":
    """Repeats what fails with one of `faults`, and raises the last. It waits longer each time, or
    as long as a busy service asks."""
    import tenacity

    usual = tenacity.wait_random_exponential(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)

    def pause(state: "RetryCallState") -> float:
        fault = state.outcome.exception() if state.outcome else None
        if isinstance(fault, Busy) and fault.retry_after_seconds is not None:
            return min(fault.retry_after_seconds, LONGEST_PAUSE_SECONDS)
        return usual(state)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(faults),
        stop=tenacity.stop_after_attempt(attempts),
        wait=pause,
        sleep=sleep,
        reraise=True,
    )
