"""What many workers share while they embed: the cache, the rate limit of a service, the budget.

`Hub` is one object in a process of its own, on the machine of whoever started the run, with that
machine's cache file and rate limits. `SharedCache`, `SharedLimiter` and `SharedBudget` stand in each
worker for what they are called after. A text that several workers need is embedded by the first that
asks for it: it claims the text's key, and the others wait until the vector is filed, or the claim is
given up, because the text was rejected or the worker was lost.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.limiter import Limiter
from embedding_pipelines.embedding.request import Request, Sender, limiter_of
from embedding_pipelines.errors import BudgetError, EngineError
from embedding_pipelines.providers.base import (
    EmbeddingModel,
    InputType,
    ProviderOptions,
    RateLimit,
    check_reply,
)
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from typing import Any

    from embedding_pipelines.spec.pipeline import Budget

# A machine that computes in float32 is within 1e-6 of another one; in half precision, whose
# products are rounded in another order, within 1e-4 (MiniLM). Another precision is further off.
COSINES = {"float32": 0.99999}
COSINE = 0.9995  # in others, and of what says no precision
KNOWN_TEXTS = (
    "The harbour was full of fishing boats.",
    "Divide both sides of the equation by seven.",
    "Der Zug nach München hat zwölf Minuten Verspätung.",
    "def area(radius): return 3.14159 * radius ** 2",
)


class Caller(Protocol):
    """How a worker reaches its hub; `engines.base.Shared` is one."""

    def call(self, method: str, *arguments: "Any") -> "Any": ...


class Hub:
    """Not for several threads at once. Each method is given the name of the worker that calls."""

    def __init__(
        self, cache: Path, budget: "Budget | None", options: ProviderOptions, is_read_only: bool
    ) -> None:
        self._cache = EmbeddingCache(cache, read_only=is_read_only)
        self._cache.__enter__()  # it stays open as long as this process lives
        self._claims: dict[bytes, str] = {}  # key -> worker
        self._claims_of: defaultdict[str, set[bytes]] = defaultdict(set)
        self._limiters: dict[str, Limiter] = {}
        self._budget = BudgetTracker.of(budget, options)
        self._out: dict[str, int] = {}  # tokens of each worker's requests that are out
        self._requested = Usage()  # tokens, by request
        self.recorded = Usage()  # tokens, by what workers reported

    def get_or_claim(
        self, worker: str, keys: Sequence[bytes], dimensions: int
    ) -> tuple[list[bytes], Vectors, set[bytes]]:
        """Keys and vectors float32[hits, dimensions], and the misses that others have claimed. All
        other misses are claimed by this worker now."""
        hits = self._cache.get_many(keys, dimensions)
        elsewhere = set()
        for key in keys:
            if key in hits:
                continue
            if self._claims.setdefault(key, worker) == worker:
                self._claims_of[worker].add(key)
            else:
                elsewhere.add(key)
        vectors = np.array(list(hits.values()), np.float32).reshape(len(hits), dimensions)
        return list(hits), vectors, elsewhere

    def get_many(
        self, worker: str, keys: Sequence[bytes], dimensions: int | None
    ) -> dict[bytes, Vectors]:
        return self._cache.get_many(keys, dimensions)

    def put_many(self, worker: str, keys: Sequence[bytes], vectors: Vectors, space_id: str) -> None:
        self._cache.put_many(keys, vectors, space_id)
        for key in keys:
            owner = self._claims.pop(key, None)
            if owner is not None:
                self._claims_of[owner].discard(key)

    def give_up(self, worker: str, keys: Sequence[bytes]) -> None:
        for key in self._claims_of[worker].intersection(keys):
            self._claims_of[worker].remove(key)
            del self._claims[key]

    def release(self, worker: str) -> None:
        """Give up what a worker has claimed that has ended its shard, or was lost."""
        for key in self._claims_of.pop(worker, ()):
            self._claims.pop(key, None)
        self._out.pop(worker, None)

    def reserve(self, worker: str, rate: RateLimit, tokens: int) -> tuple[float, float]:
        return self._limiter(rate).reserve(tokens)

    def confirm(self, worker: str, rate: RateLimit, tokens: int, lowered_at: float) -> bool:
        return self._limiter(rate).confirm(tokens, lowered_at)

    def record_success(self, worker: str, rate: RateLimit) -> None:
        self._limiter(rate).record_success()

    def record_refusal(
        self, worker: str, rate: RateLimit, age_seconds: float, retry_after_seconds: float | None
    ) -> bool:
        """`age_seconds` ago the request was sent: clocks of machines differ."""
        sent_at = time.time() - age_seconds
        return self._limiter(rate).record_refusal(sent_at, retry_after_seconds)

    def pace(self, worker: str, rate: RateLimit) -> float:
        return self._limiter(rate).pace()

    def holds(self, worker: str, tokens: int) -> bool:
        """Whether a worker may have requests of so many tokens out; it then counts as having."""
        others = sum(out for name, out in self._out.items() if name != worker)
        if not self._budget.holds(others + tokens):
            return False
        self._out[worker] = tokens
        return True

    def spend(self, worker: str, counted: int, billed: int) -> None:
        self._budget.spend(counted, billed)
        self._out[worker] = max(0, self._out.get(worker, 0) - counted)
        self._requested.counted_tokens += counted
        self._requested.billed_tokens += billed

    def exhausted(self, worker: str) -> str:
        return str(self._budget.exhausted_error())

    def unrecorded(self) -> Usage:
        """What was billed to workers that were lost before they reported it."""
        billed = self._requested.billed_tokens - self.recorded.billed_tokens
        counted = self._requested.counted_tokens - self.recorded.counted_tokens
        return Usage(billed_tokens=max(0, billed), embedded_tokens=max(0, counted))

    def close(self) -> str:
        """What a user should know of the cache, if anything."""
        self._cache.close()
        return self._cache.damage_note

    def _limiter(self, rate: RateLimit) -> Limiter:
        if rate.key not in self._limiters:
            self._limiters[rate.key] = limiter_of(rate)
        return self._limiters[rate.key]


class SharedCache(EmbeddingCache):
    """The hub's cache, in a worker."""

    def __init__(self, hub: Caller) -> None:
        super().__init__(Path("of the run's hub"))
        self._hub = hub

    def get_many(self, keys: Sequence[bytes], dimensions: int | None) -> dict[bytes, Vectors]:
        hits: dict[bytes, Vectors] = self._hub.call("get_many", keys, dimensions)
        return hits

    def get_or_claim(
        self, keys: Sequence[bytes], dimensions: int
    ) -> tuple[dict[bytes, Vectors], set[bytes]]:
        if not keys:
            return {}, set()
        hits, vectors, elsewhere = self._hub.call("get_or_claim", keys, dimensions)
        return dict(zip(hits, vectors, strict=True)), elsewhere

    def give_up(self, keys: Sequence[bytes]) -> None:
        self._hub.call("give_up", keys)

    def put_many(self, keys: Sequence[bytes], vectors: Vectors, space_id: str) -> None:
        values = np.ascontiguousarray(vectors, np.float32)
        self._hub.call("put_many", list(keys), values, space_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def close(self) -> None:
        pass


class SharedLimiter(Limiter):
    """The pace of one key that the whole cluster keeps, in a worker."""

    def __init__(self, hub: Caller, rate: RateLimit) -> None:
        self._hub, self._rate = hub, rate

    def reserve(self, tokens: int) -> tuple[float, float]:
        seconds, lowered_at = self._hub.call("reserve", self._rate, tokens)
        return seconds, lowered_at

    def confirm(self, tokens: int, lowered_at: float) -> bool:
        return bool(self._hub.call("confirm", self._rate, tokens, lowered_at))

    def record_success(self) -> None:
        self._hub.call("record_success", self._rate)

    def record_refusal(self, sent_at: float, retry_after_seconds: float | None) -> bool:
        age = time.time() - sent_at
        return bool(self._hub.call("record_refusal", self._rate, age, retry_after_seconds))

    def pace(self) -> float:
        return float(self._hub.call("pace", self._rate))


class SharedBudget(BudgetTracker):
    """The run's budget that all workers spend, in one of them."""

    def __init__(self, hub: Caller, budget: "Budget | None", price: float | None) -> None:
        super().__init__(budget, price)
        self._hub = hub

    def holds(self, tokens: int) -> bool:
        return self.limit == float("inf") or bool(self._hub.call("holds", tokens))

    def spend(self, counted: int, billed: int) -> None:
        if counted or billed:
            self._hub.call("spend", counted, billed)

    def exhausted_error(self) -> BudgetError:
        return BudgetError(self._hub.call("exhausted"))


def probe_vectors(
    model: EmbeddingModel, input_type: InputType, budget: BudgetTracker, limiter: Limiter | None
) -> Vectors | None:
    """The vectors float32[4, d] of known texts, by which machines are compared; None of a model
    that rejects one of them. Raises as `Sender.send`, and ProviderError for vectors that are
    none."""
    request = Request(KNOWN_TEXTS, input_type)
    try:
        response = Sender(model, limiter).send(request)
    finally:
        budget.spend(request.usage.counted_tokens, request.usage.billed_tokens)
    if response.rejected:
        return None
    return check_reply(response.vectors, KNOWN_TEXTS, model.space)


def check_probes(vectors: Vectors | None, expected: Vectors | None, precision: str) -> None:
    """Raises EngineError if a machine's vectors of the known texts are not those that the machine
    has which started the run."""
    if expected is None or vectors is None:
        if expected is not vectors:
            raise EngineError(
                "it has vectors for other texts than the machine that started the run"
            )
        return
    least = COSINES.get(precision, COSINE)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((vectors * expected).sum(axis=1) / norms).min())
    if not cosine >= least:
        raise EngineError(
            f"its vectors of known texts have a cosine of {cosine:.6f} with those of the machine that "
            f"started the run, and need {least}"
        )
