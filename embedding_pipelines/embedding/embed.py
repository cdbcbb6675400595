"""From texts to vectors through the ledger: only texts it does not know reach the provider.

A stream: while the provider computes `limits.concurrent_calls` calls, the next windows are read and looked
up, and finished calls are committed. What is held in memory is WINDOWS_AHEAD windows.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.embedding.batching import calls
from embedding_pipelines.embedding.ledger import Ledger
from embedding_pipelines.embedding.workers import Workers
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import Provider, Role, Vectors, checked

WINDOWS_AHEAD = 3  # of 4,096 texts at most: enough to reach past the end of a bucket while it is finished

PATIENCE_SECONDS = 10.0  # for calls that are out when something fails or the user stops; a local one takes 3
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
    provider_seconds: float = 0.0  # during which at least one call was out

    def add(self, other: "EmbedCounts") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Embedded:
    """One window: what was asked, and its vectors float32[rows, d] in the same order."""

    batch: pa.RecordBatch
    vectors: Vectors
    counts: EmbedCounts


def embed(
    batches: Iterable[pa.RecordBatch], provider: Provider, ledger: Ledger, role: Role, advance: Callable[[int], None]
) -> Iterator[Embedded]:
    """Each batch with its vectors, in order. Batches need the columns `text` and `tokens`.

    `advance` is told the tokens finished. Each call is committed to the ledger when it has ended, and calls that
    are out when something fails are waited for and committed too, within PATIENCE_SECONDS. A process that is
    killed loses what is out: `limits.concurrent_calls` calls and one more. Raises ProviderError as
    `Provider.embed` and `checked` do.
    """
    source = iter(batches)
    with _Flow(provider, ledger, role) as flow:
        batch: pa.RecordBatch | None = None
        while True:
            while flow.has_room and (batch := next(source, None)) is not None:
                flow.open(batch)
            if not flow.windows:
                return
            if flow.windows[0].awaited:
                advance(flow.finish_calls())
            else:
                window = flow.windows.popleft()
                advance(window.tokens - window.counts.embedded_tokens)
                yield window.embedded()


@dataclass
class _Call:
    """Texts for the provider; `window` is the one that needed them first."""

    keys: list[bytes]
    texts: list[str]
    tokens: int
    window: "_Window"


@dataclass
class _Reply:
    vectors: Vectors
    started: float
    ended: float


@dataclass
class _Window:
    batch: pa.RecordBatch
    keys: list[bytes]  # per row
    known: dict[bytes, Vectors]
    awaited: set[bytes]
    tokens: int
    counts: EmbedCounts = field(default_factory=EmbedCounts)

    def embedded(self) -> Embedded:
        return Embedded(self.batch, np.stack([self.known[key] for key in self.keys]), self.counts)


class _Flow:
    """Windows that wait for vectors, calls that wait for their turn, and calls that are out."""

    def __init__(self, provider: Provider, ledger: Ledger, role: Role) -> None:
        self.windows: deque[_Window] = deque()
        self._provider, self._ledger, self._role = provider, ledger, role
        self._space, self._limits = provider.space, provider.limits
        self._queue: deque[_Call] = deque()
        self._calls: dict[Future[_Reply], _Call] = {}
        self._asked: set[bytes] = set()  # keys of both
        self._busy_until = 0.0
        self._workers = Workers(self._limits.concurrent_calls)

    @property
    def has_room(self) -> bool:
        return len(self.windows) < WINDOWS_AHEAD and not self._queue

    def open(self, batch: pa.RecordBatch) -> None:
        """Look a window's texts up and hand out what nobody knows and nobody was asked yet."""
        if not batch.num_rows:
            return
        texts, tokens = batch["text"].to_pylist(), batch["tokens"].to_pylist()
        first = {text: row for row, text in reversed(list(enumerate(texts)))}
        keys = {text: self._ledger.key(self._space.id, self._role, text) for text in first}
        known = self._ledger.get([key for key in keys.values() if key not in self._asked], self._space.dimensions)
        awaited = {key for key in keys.values() if key not in known}
        window = _Window(batch, [keys[text] for text in texts], known, awaited, pc.sum(batch["tokens"]).as_py())
        missing = [row for text, row in first.items() if keys[text] in awaited and keys[text] not in self._asked]
        window.counts.texts = len(first)
        window.counts.from_ledger = len(first) - len(missing)
        self.windows.append(window)
        for call in calls([tokens[row] for row in missing], self._limits):
            rows = [missing[at] for at in call]
            asked = [window.keys[row] for row in rows]
            tokens_of_call = sum(tokens[row] for row in rows)
            self._queue.append(_Call(asked, [texts[row] for row in rows], tokens_of_call, window))
            self._asked.update(asked)
        self._hand_out()

    def finish_calls(self) -> int:
        """Wait until a call has ended, commit each that has and hand its vectors out; the tokens of all that ended."""
        ended, _ = wait(self._calls, return_when=FIRST_COMPLETED)
        tokens = sum(self._finish(reply) for reply in list(self._calls) if reply in ended)
        self._hand_out()
        return tokens

    def _hand_out(self) -> None:
        """One more than are computed at a time, so that none waits for the next."""
        while self._queue and len(self._calls) <= self._limits.concurrent_calls:
            call = self._queue.popleft()
            self._calls[self._workers.submit(_ask, self._provider, call.texts, self._role)] = call

    def _finish(self, ended: "Future[_Reply]") -> int:
        reply, call = ended.result(), self._calls[ended]
        self._ledger.put(call.keys, reply.vectors)
        del self._calls[ended]
        self._asked.difference_update(call.keys)
        counts = call.window.counts
        counts.calls += 1
        counts.embedded += len(call.keys)
        counts.embedded_tokens += call.tokens
        counts.provider_seconds += max(0.0, reply.ended - max(reply.started, self._busy_until))
        self._busy_until = max(self._busy_until, reply.ended)
        for window in self.windows:
            for key, vector in zip(call.keys, reply.vectors, strict=True):
                if key in window.awaited:
                    window.awaited.remove(key)
                    window.known[key] = vector
        return call.tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep what the calls that are still out bring within PATIENCE_SECONDS; those not begun are not made."""
        out = {reply: call for reply, call in self._calls.items() if not reply.cancel()}
        self._workers.close()
        for reply in wait(out, PATIENCE_SECONDS).done:
            if reply.exception() is None:
                self._ledger.put(out[reply].keys, reply.result().vectors)


def _ask(provider: Provider, texts: Sequence[str], role: Role) -> _Reply:
    started = time.perf_counter()
    vectors = checked(provider.embed(texts, role), texts, provider.space)
    _refuse_constant(provider, vectors, texts, role)
    return _Reply(vectors, started, time.perf_counter())


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
