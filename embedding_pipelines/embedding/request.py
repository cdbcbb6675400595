"""One request and its patience: waits for its slot, obeys refusals, repeats what failed on the way.
For every provider.

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

from embedding_pipelines.embedding.limiter import Cancelled, Limiter
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import InputType, Provider, Reply
from embedding_pipelines.providers.common.http import Busy, Garbled, Service, Unreachable

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

    reply: Reply
    seconds: float = 0.0  # from the last sending to its answer
    retries: int = 0  # requests that were sent before it in vain
    waited_seconds: float = 0.0  # for its slot


def ask_patiently(
    provider: Provider,
    inputs: Sequence[str],
    input_type: InputType,
    tokens: int = 0,
    stop: threading.Event = NEVER,
    tries: int = TRIES,
    usage: Usage | None = None,
) -> Asked:
    """`provider.ask`, as often as it takes. `tokens` are those of all inputs, for the pace of
    tokens. `bill` is told what replies before the last one cost.

    Raises what `ask` raises but Busy; Unreachable after `tries`; Cancelled when `stop` is set
    meanwhile.
    """
    if not isinstance(provider, Service):
        started = time.perf_counter()
        return Asked(provider.ask(inputs, input_type), time.perf_counter() - started)
    from tenacity import (
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        wait_random_exponential,
    )

    request = _Request(provider, inputs, input_type, tokens, stop, usage or Usage())
    return Retrying(
        retry=retry_if_exception_type(Unreachable),
        stop=stop_after_attempt(tries),
        wait=wait_random_exponential(FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS),
        sleep=request.sleep,
        reraise=True,
    )(request.send)


@dataclass
class _Request:
    provider: Service
    inputs: Sequence[str]
    input_type: InputType
    tokens: int
    stop: threading.Event
    usage: Usage
    sent: int = 0
    waited_seconds: float = 0.0

    def send(self) -> Asked:
        """Until the service lets it in."""
        limiter, first = _limiter(self.provider), 0.0  # when it was first refused
        while True:
            self.waited_seconds += limiter.wait(self.tokens, self.stop)
            self.sent += 1
            started, sent_at = time.perf_counter(), time.time()
            try:
                reply = self.provider.ask(self.inputs, self.input_type)
            except Busy as refusal:
                seconds = refusal.retry_after_seconds or 0.0
                if (
                    limiter.record_refusal(sent_at, refusal.retry_after_seconds)
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
            except Garbled:
                self.usage.add(self.tokens, None)
                raise
            else:
                limiter.record_success()
                wanted = (len(self.inputs), self.provider.space.dimensions)
                if reply.vectors.shape != wanted:
                    self.usage.add(self.tokens, reply.tokens)
                    raise Garbled(
                        f"{self.provider.space} returned an array of shape {reply.vectors.shape} for {wanted}. If it "
                        "always does, the model or its `dimensions` is another than the pipeline file says."
                    )
                seconds = time.perf_counter() - started
                return Asked(reply, seconds, self.sent - 1, self.waited_seconds)

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Cancelled
        self.waited_seconds += seconds


def _limiter(provider: Service) -> Limiter:
    with _OPENING:  # else threads that begin together would each open one
        return _opened(provider.flow_key, provider.requests_per_minute, provider.tokens_per_minute)


@functools.cache
def _opened(
    key: str, requests_per_minute: float | None, tokens_per_minute: float | None
) -> Limiter:
    """One per key and process; the file is one for all users of this account on this machine."""
    path = user_state_path("embedding-pipelines") / "pace" / f"{key}.json"
    return Limiter(path, requests_per_minute, tokens_per_minute)
