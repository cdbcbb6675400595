"""One request and its patience: waits for its turn, obeys refusals, repeats what failed on the way.
For every model.

What the service says of the texts themselves (too many, one of them wrong) is the caller's: `embed`
splits a call, a search tells its user.
"""

import functools
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from platformdirs import user_state_path

from embedding_pipelines.embedding.limiter import Limiter, Stopped
from embedding_pipelines.errors import Busy, InvalidReply, ProviderError, Unreachable
from embedding_pipelines.providers.base import EmbeddingModel, InputType, Response

TRIES = 6  # of a request that fails on its way; the waits between them add up to 15 seconds at most, 8 usually
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
BUSY_PATIENCE_SECONDS = 900.0  # of nothing but refusals to one request
LONG_WAIT_SECONDS = 10.0  # that somebody may wonder about
NEVER = threading.Event()
LOGGER = logging.getLogger(__name__)

_OPENING = threading.Lock()


@dataclass
class Usage:
    """Tokens that were paid for. It is filled while requests are made, so it is right however they
    end."""

    counted: int = 0  # by the model's tokenizer
    billed: int = 0

    def add(self, counted: int, billed: int | None) -> None:
        """`billed` as the service says, None where it does not."""
        self.counted += counted
        self.billed += counted if billed is None else billed


@dataclass(frozen=True)
class Asked:
    """A reply and what it took."""

    response: Response
    seconds: float = 0.0  # from the last sending to its answer
    retries: int = 0  # requests that were sent before it in vain
    waited_seconds: float = 0.0  # for its turn


def ask_patiently(
    model: EmbeddingModel,
    inputs: Sequence[str],
    input_type: InputType,
    tokens: int = 0,
    stop: threading.Event = NEVER,
    tries: int = TRIES,
    usage: Usage | None = None,
) -> Asked:
    """`model.ask`, as often as it takes. `tokens` are those of all inputs, for the pace of
    tokens. `bill` is told what replies before the last one cost.

    Raises what `ask` raises but Busy; Unreachable after `tries`; Stopped when `stop` is set
    meanwhile.
    """
    if model.rate_limit is None:
        started = time.perf_counter()
        return Asked(model.embed(inputs, input_type), time.perf_counter() - started)
    from tenacity import (
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        wait_random_exponential,
    )

    request = _Request(model, inputs, input_type, tokens, stop, usage or Usage())
    return Retrying(
        retry=retry_if_exception_type(Unreachable),
        stop=stop_after_attempt(tries),
        wait=wait_random_exponential(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS),
        sleep=request.sleep,
        reraise=True,
    )(request.send)


@dataclass
class _Request:
    model: EmbeddingModel
    inputs: Sequence[str]
    input_type: InputType
    tokens: int
    stop: threading.Event
    usage: Usage
    sent: int = 0
    waited_seconds: float = 0.0

    def send(self) -> Asked:
        """Until the service lets it in."""
        limiter, first = _limiter(self.model), 0.0  # when it was first refused
        while True:
            self.waited_seconds += limiter.wait(self.tokens, self.stop)
            self.sent += 1
            started, sent_at = time.perf_counter(), time.time()
            try:
                reply = self.model.embed(self.inputs, self.input_type)
            except Busy as refusal:
                seconds = refusal.retry_after_seconds or 0.0
                if (
                    limiter.refused(sent_at, refusal.retry_after_seconds)
                    and seconds >= LONG_WAIT_SECONDS
                ):
                    LOGGER.warning("%s Waiting %.0f seconds, as it asks.", refusal, seconds)
                first = first or time.monotonic()
                if time.monotonic() - first > BUSY_PATIENCE_SECONDS:
                    minutes = BUSY_PATIENCE_SECONDS / 60
                    raise ProviderError(
                        f"{refusal} It has said so for {minutes:.0f} minutes. Run again later: nothing that was "
                        "embedded is lost."
                    ) from refusal
            except InvalidReply:
                self.usage.add(self.tokens, None)
                raise
            else:
                limiter.succeeded()
                wanted = (len(self.inputs), self.model.space.dimensions)
                if reply.vectors.shape != wanted:
                    self.usage.add(self.tokens, reply.tokens)
                    raise InvalidReply(
                        f"{self.model.space} returned an array of shape {reply.vectors.shape} for {wanted}. If it "
                        "always does, the model or its `dimensions` is another than the pipeline file says."
                    )
                seconds = time.perf_counter() - started
                return Asked(reply, seconds, self.sent - 1, self.waited_seconds)

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped
        self.waited_seconds += seconds


def _limiter(model: EmbeddingModel) -> Limiter:
    rate = model.rate_limit
    assert rate is not None
    with _OPENING:  # else threads that begin together would each open one
        return _opened(rate.key, rate.requests_per_minute, rate.tokens_per_minute)


@functools.cache
def _opened(
    key: str, requests_per_minute: float | None, tokens_per_minute: float | None
) -> Limiter:
    """One per key and process; the file is one for all users of this account on this machine."""
    path = user_state_path("embedding-pipelines") / "pace.sqlite"
    return Limiter(path, key, requests_per_minute, tokens_per_minute)
