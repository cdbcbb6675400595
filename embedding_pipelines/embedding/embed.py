"""From texts to vectors through the cache: only texts it does not know reach the provider.

A stream: while the provider computes `limits.concurrent_requests` calls, the next windows are read
and looked up, and finished calls are committed. What is held in memory is WINDOWS_AHEAD windows. A
call that the provider refuses is halved until the text that it refuses stands alone; all others
land.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.embedding.batch import TRIES_OF_PARTS, Call, EmbedCounts, Embedded, Window
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.packing import calls
from embedding_pipelines.embedding.request import Asked, Usage
from embedding_pipelines.embedding.sanity import ask_in_doubt, prove
from embedding_pipelines.embedding.workers import Workers
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import InputType, Provider, faulty_rows
from embedding_pipelines.providers.common.http import BadInput, TooLarge, Unreachable
from embedding_pipelines.vectors import Vectors

WINDOWS_AHEAD = (
    3  # of 4,096 texts at most: enough to reach past the end of a partition while it is finished
)

PATIENCE_SECONDS = (
    10.0  # for calls that are out when something fails or the user stops; a local one takes 3
)
TRIES_OF_ROWS = 2  # of a text whose vector was wrong in an otherwise right reply


def embed(
    batches: Iterable[pa.RecordBatch],
    provider: Provider,
    cache: EmbeddingCache,
    input_type: InputType,
    advance: Callable[[int], None],
    budget: BudgetTracker | None = None,
    unfinished: EmbedCounts | None = None,
) -> Iterator[Embedded]:
    """Each batch with its vectors, in order. Batches need the columns `text` and `tokens`.

    `advance` is told the tokens finished. Each call is committed to the cache when it has ended,
    and calls that are out when something fails are waited for and committed too, within
    PATIENCE_SECONDS. A process that is killed loses what is out: `limits.concurrent_requests` calls
    and one more. What windows took that never come back, since something failed, is added to
    `unfinished`. Raises ProviderError when the model cannot be had, BudgetError when the next call
    would cost more than `budget` holds.
    """
    source = iter(batches)
    with _Flow(
        provider, cache, input_type, budget or BudgetTracker(), unfinished or EmbedCounts()
    ) as flow:
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
                yield window.embedded(provider.space.dimensions)


@dataclass
class _Answer:
    asked: Asked
    started: float
    ended: float


class _Flow:
    """Windows that wait for vectors, calls that wait for their turn, and calls that are out."""

    def __init__(
        self,
        provider: Provider,
        cache: EmbeddingCache,
        input_type: InputType,
        budget: BudgetTracker,
        unfinished: EmbedCounts,
    ) -> None:
        self.windows: deque[Window] = deque()
        self._provider, self._cache, self._input_type, self._budget = (
            provider,
            cache,
            input_type,
            budget,
        )
        self._space, self._limits, self._unfinished = provider.space, provider.limits, unfinished
        self._queue: deque[Call] = deque()
        self._calls: dict[Future[_Answer], Call] = {}
        self._asked: set[bytes] = set()  # keys of both
        self._rejected: dict[bytes, str] = {}
        self._right_at = (
            0.0  # when the provider last gave a right vector, by the clock `time.perf_counter`
        )
        self._busy_until = 0.0
        self._stop = threading.Event()
        self._workers = Workers(self._limits.concurrent_requests)

    @property
    def has_room(self) -> bool:
        return len(self.windows) < WINDOWS_AHEAD and not self._queue

    def open(self, batch: pa.RecordBatch) -> None:
        """Look a window's texts up and hand out what nobody knows and nobody was asked yet."""
        if not batch.num_rows:
            return
        texts, tokens = batch["text"].to_pylist(), batch["tokens"].to_pylist()
        first = {text: row for row, text in reversed(list(enumerate(texts)))}
        keys = {text: self._cache.key(self._space.id, self._input_type, text) for text in first}
        known = self._cache.get(
            [key for key in keys.values() if key not in self._asked], self._space.dimensions
        )
        rejected = {key: self._rejected[key] for key in keys.values() if key in self._rejected}
        awaited = {key for key in keys.values() if key not in known and key not in rejected}
        total = pc.sum(batch["tokens"]).as_py()
        window = Window(
            batch, [keys[text] for text in texts], known, awaited, total, rejected=rejected
        )
        missing = [
            row
            for text, row in first.items()
            if keys[text] in awaited and keys[text] not in self._asked
        ]
        window.counts.texts = len(first)
        window.counts.from_cache = len(first) - len(missing) - len(rejected)
        window.counts.rejected = len(rejected)
        self.windows.append(window)
        sizes = (
            [len(texts[row].encode()) for row in missing] if self._limits.request_bytes else None
        )
        for call in calls([tokens[row] for row in missing], self._limits, sizes):
            rows = [missing[at] for at in call]
            asked = [window.keys[row] for row in rows]
            self._queue.append(
                Call(asked, [texts[row] for row in rows], [tokens[row] for row in rows], window)
            )
            self._asked.update(asked)
        self._hand_out()

    def finish_calls(self) -> int:
        """Wait until a call has ended, commit each that has and hand its vectors out; the tokens of
        all that ended."""
        ended, _ = wait(self._calls, return_when=FIRST_COMPLETED)
        tokens = sum(self._finish(answer) for answer in list(self._calls) if answer in ended)
        self._hand_out()
        return tokens

    def _hand_out(self) -> None:
        """One more than are computed at a time, so that none waits for the next."""
        while self._queue and len(self._calls) <= self._limits.concurrent_requests:
            if (
                len(self._queue[0].texts) > self._limits.request_texts
            ):  # which it has learned meanwhile
                too_large = self._queue.popleft()
                self._queue.extendleft(
                    reversed(too_large.halves(too_large.tries, too_large.wrong_rows))
                )
                continue
            out = sum(sum(call.tokens) for call in self._calls.values())
            if not self._budget.holds(out + sum(self._queue[0].tokens)):
                if self._calls:
                    return  # what is out may bring back less than was reckoned
                self._cut_to_the_budget()
            call = self._queue.popleft()
            call.handed_out = time.perf_counter()
            self._calls[
                self._workers.submit(_ask, self._provider, call, self._input_type, self._stop)
            ] = call

    def _cut_to_the_budget(self) -> None:
        """Put what can still be paid for of the first call before the rest of it. Raises
        BudgetError if nothing can."""
        call = self._queue[0]
        rows = [
            row
            for row in range(len(call.tokens))
            if self._budget.holds(sum(call.tokens[: row + 1]))
        ]
        if not rows:
            raise self._budget.is_empty()
        rest = call.part(range(len(rows), len(call.texts)), call.tries, call.wrong_rows)
        self._queue[0] = rest
        self._queue.appendleft(call.part(rows, call.tries, call.wrong_rows))

    def _finish(self, ended: "Future[_Answer]") -> int:
        """Settle a call: its vectors are committed, what was refused is asked again in parts or
        rejected."""
        call = self._calls[ended]
        try:
            answer = ended.result()
        except (BadInput, TooLarge, Unreachable) as refusal:
            del self._calls[ended]
            self._spend(call, call.usage)
            return self._refused(call, refusal)
        reply = answer.asked.reply
        wrong = faulty_rows(reply.vectors, call.texts, self._space)
        faults = {row: fault for row, fault in wrong.items() if row not in reply.refused}
        good = [row for row in range(len(call.texts)) if row not in wrong]
        self._keep(call, answer.asked, good)
        del self._calls[ended]
        self._count(call, answer, good)
        if len(faults) == len(call.texts):
            self._prove(call)
        self._land({call.keys[row]: reply.vectors[row] for row in good})
        for row, words in reply.refused.items():
            self._reject(call, row, words)
        self._ask_for_rows_again(call, faults)
        return sum(call.tokens[row] for row in good)

    def _ask_for_rows_again(self, call: Call, faults: dict[int, str]) -> None:
        """Texts whose vectors were wrong: together, then in halves, and what stands alone
        TRIES_OF_ROWS times more."""
        tries, wrong_rows = call.tries, call.wrong_rows + 1
        if 0 < len(faults) < len(call.texts):
            self._queue.appendleft(call.part(list(faults), tries, wrong_rows))
        elif len(faults) > 1:
            self._queue.extendleft(reversed(call.halves(tries, wrong_rows)))
        elif faults and call.wrong_rows < TRIES_OF_ROWS:
            self._queue.appendleft(call.part([0], tries, wrong_rows))
        elif faults:
            self._reject(call, 0, f"The provider returned {faults[0]}.")

    def _refused(self, call: Call, refusal: ProviderError) -> int:
        """Halve a call, or reject its one text, once it is known that the provider does give right
        vectors.

        A text that could not be had on the way is asked for once more before: the service may have
        been away.
        """
        is_alone, was_away = len(call.texts) == 1, isinstance(refusal, Unreachable)
        if was_away:
            self._right_at = (
                0.0  # what came while this call was out may have come before the service went away
            )
        if is_alone or not isinstance(refusal, TooLarge):
            self._prove(call, refusal)
        if is_alone and (call.is_last or not was_away):
            self._reject(call, 0, str(refusal))
            return 0
        if (
            isinstance(refusal, TooLarge) and not call.is_part
        ):  # for the rest of the run; one huge text says no more
            most = min(self._limits.request_texts, len(call.texts) // 2)
            self._limits = replace(self._limits, request_texts=most)
        parts = (
            [call.once_more()]
            if is_alone
            else call.halves(TRIES_OF_PARTS if was_away else call.tries)
        )
        self._queue.extendleft(reversed(parts))
        call.window.counts.retries += 1
        return 0

    def _prove(self, call: Call, doubt: ProviderError | None = None) -> None:
        """ProviderError unless the provider has given a right vector since `call` went out, or does
        so now."""
        if self._right_at >= call.handed_out:
            return
        usage = Usage()
        try:
            prove(self._provider, self._input_type, self._stop, doubt, usage)
        finally:
            self._spend(call, usage)
        self._right_at = time.perf_counter()

    def _keep(self, call: Call, asked: Asked, good: Sequence[int]) -> None:
        """Commit the right vectors of a reply, and what came with them for nothing."""
        if not good:
            return
        self._cache.put([call.keys[row] for row in good], asked.reply.vectors[list(good)])
        self._right_at = time.perf_counter()
        for space, vectors in asked.reply.copies.items():
            with contextlib.suppress(
                ProviderError
            ):  # of a wrong shape: it was free, and who wants it asks for it
                faults = faulty_rows(vectors, call.texts, space)
                sound = [row for row in good if row not in faults]
                keys = [
                    self._cache.key(space.id, self._input_type, call.texts[row]) for row in sound
                ]
                self._cache.put(keys, vectors[sound])

    def _count(self, call: Call, answer: _Answer, good: Sequence[int]) -> None:
        counts, asked = call.window.counts, answer.asked
        counts.calls += 1
        counts.embedded += len(good)
        counts.embedded_tokens += sum(call.tokens[row] for row in good)
        call.usage.add(sum(call.tokens), asked.reply.tokens)
        self._spend(call, call.usage)
        counts.retries += asked.retries
        counts.request_seconds += asked.seconds
        counts.waited_seconds += asked.waited_seconds
        counts.provider_seconds += max(0.0, answer.ended - max(answer.started, self._busy_until))
        self._busy_until = max(self._busy_until, answer.ended)

    def _spend(self, call: Call, usage: Usage) -> None:
        call.window.counts.billed_tokens += usage.billed
        self._budget.spend(usage.counted, usage.billed)

    def _land(self, vectors: dict[bytes, Vectors]) -> None:
        self._asked.difference_update(vectors)
        for window in self.windows:
            for key in window.awaited & vectors.keys():
                window.awaited.remove(key)
                window.known[key] = vectors[key]

    def _reject(self, call: Call, row: int, reason: str) -> None:
        key = call.keys[row]
        self._asked.discard(key)
        self._rejected[key] = reason
        call.window.counts.rejected += 1
        for window in self.windows:
            if key in window.awaited:
                window.awaited.remove(key)
                window.rejected[key] = reason

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep and count what calls that are out still bring within PATIENCE_SECONDS; those not
        begun are not made."""
        self._stop.set()
        out = {answer: call for answer, call in self._calls.items() if not answer.cancel()}
        self._workers.close()
        for answer in wait(out, PATIENCE_SECONDS).done:
            call = out[answer]
            if answer.exception() is not None:
                self._spend(call, call.usage)
                continue
            with contextlib.suppress(
                ProviderError
            ):  # of a wrong shape: another failure is being told
                faults = faulty_rows(answer.result().asked.reply.vectors, call.texts, self._space)
                good = [row for row in range(len(call.texts)) if row not in faults]
                self._keep(call, answer.result().asked, good)
                self._count(call, answer.result(), good)
        for window in self.windows:
            self._unfinished.add(window.counts)


def _ask(provider: Provider, call: Call, input_type: InputType, stop: threading.Event) -> _Answer:
    started = time.perf_counter()
    asked = ask_in_doubt(
        provider, call.texts, input_type, sum(call.tokens), stop, call.tries, call.usage
    )
    return _Answer(asked, started, time.perf_counter())
