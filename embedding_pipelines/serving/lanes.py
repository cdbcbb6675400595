"""The scheduler before one model: who is computed next, in which batch, and who is told to wait.

An idle model takes what comes at once; while a batch runs, what arrives gathers for the next one.
There is no timer. Texts wait in two lanes: interactive ones go first, and bulk gets one batch in
BULK_EVERY at least. A long request is many batches, and others go in between. Who has left by the
time that a batch is taken is in none of it. Everything here happens in one event loop; only
`compute` runs in the model's thread.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.serving.metrics import Metrics
from embedding_pipelines.serving.wire import ClientLeft, TooManyRequests, Unavailable

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, Lane] = ("interactive", "bulk")
BULK_EVERY = 4  # of so many batches one is of bulk, if there is any
MAX_WAIT_SECONDS = 10.0  # of a request before its first batch; one that would wait longer is a 429
# Of the time that a caller allows, what the wait may take when the request comes. The rest is for what
# cannot be foreseen: a request that is let in is answered, not given up after it was waited for.
OF_DEADLINE = 0.5
MEMORY_SECONDS = 20.0  # of computing, after which a measured rate counts half


class ItemRejected(Exception):
    """The model gives no row for one item of a request, now and later."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


@dataclass(frozen=True)
class Computed:
    """What a batch became: rows [n, …] in its order; NaN for those that are `rejected`, and why."""

    rows: NDArray[Any]
    rejected: Mapping[int, str] = field(default_factory=dict)


# The items of a batch, their tokens and their kind: a batch holds one kind, such as an input type.
Compute = Callable[[Sequence[Any], Sequence[int], str], Computed]


@dataclass(frozen=True)
class Budget:
    """What one batch holds at most."""

    tokens: int  # each item counted as the longest
    items: int


class Recipient:
    """Whoever waits for rows; this one does so for ever."""

    @property
    def seconds_left(self) -> float:
        return math.inf

    @property
    def is_here(self) -> bool:
        """Asked before each batch that has rows of theirs: it takes a microsecond or two."""
        return True


FOR_EVER = Recipient()


@dataclass(eq=False)
class Job:
    """The items of one request that are to be computed."""

    lane: Lane
    kind: str
    items: Sequence[Any]
    tokens: Sequence[int]
    recipient: Recipient
    result: asyncio.Future[NDArray[Any]]
    arrived: float = field(default_factory=time.perf_counter)
    waiting: deque[int] = field(default_factory=deque)  # rows, the longest first
    missing: int = 0  # rows that are not computed yet
    is_begun: bool = False
    rows: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        order = sorted(range(len(self.items)), key=self.tokens.__getitem__, reverse=True)
        self.waiting.extend(order)
        self.missing = len(order)


class Lanes:
    """The queue of one model. `compute` is called in `thread`, one batch after the other."""

    def __init__(
        self,
        compute: Compute,
        thread: Executor,
        budget: Budget,
        metrics: Metrics,
        model: str,
    ) -> None:
        self._compute, self._thread, self.budget = compute, thread, budget
        self._metrics, self._model = metrics, model
        self._jobs: dict[Lane, deque[Job]] = {lane: deque() for lane in LANES}
        self._queued: dict[Lane, int] = dict.fromkeys(LANES, 0)  # tokens
        self._running = 0  # tokens of the batch that is computed
        self._since_bulk = 0  # batches since the last one of bulk, while some of it waits
        self._done_tokens = self._busy_seconds = 0.0  # of late, in batches that filled the model
        self._is_closed = False

    @property
    def is_idle(self) -> bool:
        return not self._running and not any(self._jobs.values())

    @property
    def tokens_per_second(self) -> float | None:
        """As measured while the model had all that it can take; None before that."""
        return self._done_tokens / self._busy_seconds if self._busy_seconds else None

    @property
    def queued_tokens(self) -> Mapping[Lane, int]:
        """Of each lane, without those that are computed now."""
        return self._queued

    def lane_of(self, tokens: Sequence[int]) -> Lane:
        """Where items of so many tokens go that somebody waits for: what fits one batch is not bulk."""
        return "interactive" if sum(tokens) <= self.budget.tokens else "bulk"

    def wait_seconds(self, lane: Lane) -> float:
        """How long what comes now waits before it is computed: tokens ahead of it by the measured
        rate; 0 before there is one."""
        if not self.tokens_per_second:
            return 0.0
        own, batch = self._queued[lane], self.budget.tokens
        if lane == "interactive":  # bulk has its share of the batches until then
            other = self._queued["bulk"]
            between = math.ceil(own / batch / (BULK_EVERY - 1)) * batch
        else:
            other = self._queued["interactive"]
            between = (own // batch + 1) * (BULK_EVERY - 1) * batch
        return (own + min(other, between) + self._running) / self.tokens_per_second

    async def compute(
        self,
        items: Sequence[Any],
        tokens: Sequence[int],
        kind: str,
        lane: Lane,
        recipient: Recipient = FOR_EVER,
        is_admitted: bool = False,
    ) -> NDArray[Any]:
        """The rows [n, …] of items, in their order.

        Cancelling the call takes out what is not computed yet. Raises TooManyRequests if the wait
        would be longer than MAX_WAIT_SECONDS or than the recipient waits, however few or many items
        there are, unless the request `is_admitted` already; ClientLeft if it is not there when its
        turn comes; ItemRejected; and what `compute` raises.
        """
        if self._is_closed:
            raise Unavailable("The server is about to end. Send the request again, elsewhere.")
        if not is_admitted:
            self._refuse(lane, self.wait_seconds(lane), recipient.seconds_left)
        result = asyncio.get_running_loop().create_future()
        job = Job(lane, kind, items, tokens, recipient, result)
        self._jobs[lane].append(job)
        self._queued[lane] += sum(tokens)
        self._start()
        try:
            return await job.result
        finally:
            self._drop(job)

    def close(self) -> None:
        """Take nothing more; whoever still waits is told so."""
        self._is_closed = True
        for job in [job for jobs in self._jobs.values() for job in jobs]:
            if not job.result.done():
                job.result.set_exception(Unavailable("The server has ended. Send it elsewhere."))

    def admit(
        self, lane: Lane | None, seconds_left: float = math.inf, seconds_before: float = 0.0
    ) -> None:
        """Raises TooManyRequests if what comes now would wait for too long, here and, for
        `seconds_before`, on its way here and back; before anything is done for it. Without a lane,
        where tokens are to be counted for it, the one with the shorter wait."""
        own: Lane = min(LANES, key=self.wait_seconds) if lane is None else lane
        wait = seconds_before + self.wait_seconds(own)
        self._refuse(own, wait, seconds_left * OF_DEADLINE)

    def _refuse(self, lane: Lane, wait: float, longest: float) -> None:
        if wait <= min(MAX_WAIT_SECONDS, max(longest, 0.0)):
            return
        self._metrics.count("refused_total", model=self._model, lane=lane)
        own, rate = self.wait_seconds(lane), self.tokens_per_second
        what = f"{self._model} is behind"
        if rate and own > wait / 2:
            ahead = round(own * rate)
            what = f"{self._model} has {ahead:,} tokens before yours at {rate:,.0f} a second"
        raise TooManyRequests(
            f"{what}: {wait:.1f} seconds. Send it again after that time.",
            retry_after_seconds=wait,
        )

    def _drop(self, job: Job) -> None:
        """Take a job out, and what of it is not computed yet."""
        self._queued[job.lane] -= sum(job.tokens[row] for row in job.waiting)
        job.waiting.clear()
        if job in self._jobs[job.lane]:
            self._jobs[job.lane].remove(job)

    def _start(self) -> None:
        """Send the next batch to the model, if it is idle and something waits."""
        if self._running:
            return
        batch = list[tuple[Job, int]]()
        while not batch and any(self._jobs.values()):  # again where all of a kind have left
            lane = self._next_lane()
            kind = self._jobs[lane][0].kind
            batch = self._take(lane, kind)
        if not batch:
            return
        started = time.perf_counter()
        for job in {job for job, _ in batch}:
            if not job.is_begun:
                job.is_begun, names = True, {"model": self._model, "lane": lane}
                self._metrics.observe("queue_seconds", started - job.arrived, **names)
        items = [job.items[row] for job, row in batch]
        tokens = [job.tokens[row] for job, row in batch]
        self._running = sum(tokens)
        future = asyncio.get_running_loop().run_in_executor(
            self._thread, self._compute, items, tokens, kind
        )
        future.add_done_callback(lambda outcome: self._finish(lane, batch, started, outcome))

    def _next_lane(self) -> Lane:
        if not self._jobs["bulk"]:
            self._since_bulk = 0
            return "interactive"
        if self._jobs["interactive"] and self._since_bulk < BULK_EVERY - 1:
            self._since_bulk += 1
            return "interactive"
        self._since_bulk = 0
        return "bulk"

    def _take(self, lane: Lane, kind: str) -> list[tuple[Job, int]]:
        """Rows for one batch: of each job in turn its longest, as long as the budget holds them.
        Jobs of which more is left go behind the others."""
        budget, jobs = self.budget, self._jobs[lane]
        batch, longest = list[tuple[Job, int]](), 0
        for job in [job for job in jobs if job.kind == kind]:
            if self._has_left(job):
                continue
            while job.waiting:
                longest = max(longest, job.tokens[job.waiting[0]])
                count = len(batch) + 1
                if batch and (count > budget.items or count * longest > budget.tokens):
                    break
                row = job.waiting.popleft()
                self._queued[lane] -= job.tokens[row]
                batch.append((job, row))
            if not job.waiting:
                jobs.remove(job)
                continue
            if lane == "bulk":
                jobs.remove(job)
                jobs.append(job)
            break
        return batch

    def _has_left(self, job: Job) -> bool:
        """Whether nobody waits for a job any more, which is out then. The event loop learns of a
        closed connection later than this, and of many at once only after a batch was taken."""
        if not job.result.done():
            if job.recipient.is_here:
                return False
            job.result.set_exception(ClientLeft())
        self._drop(job)
        return True

    def _finish(
        self, lane: Lane, batch: list[tuple[Job, int]], started: float, outcome: asyncio.Future[Any]
    ) -> None:
        """Deliver a batch, and start the next one."""
        now = time.perf_counter()
        self._measure(lane, batch, now - started)
        self._running = 0
        error = asyncio.CancelledError() if outcome.cancelled() else outcome.exception()
        if error is None:
            computed: Computed = outcome.result()
            for at, (job, row) in enumerate(batch):
                _deliver(job, row, computed.rows[at], computed.rejected.get(at))
        for job in dict.fromkeys(job for job, _ in batch):
            if job.result.done():
                continue
            if error is not None:
                job.result.set_exception(
                    error if isinstance(error, Exception) else Unavailable("The server has ended.")
                )
            elif not job.missing and job.rows is not None:
                job.result.set_result(job.rows)
        for job in dict.fromkeys(job for job, _ in batch):
            if job.result.done():
                self._drop(job)
        if not self._is_closed:
            self._start()

    def _measure(self, lane: Lane, batch: list[tuple[Job, int]], seconds: float) -> None:
        names = {"model": self._model, "lane": lane}
        self._metrics.observe("infer_seconds", seconds, **names)
        self._metrics.observe("batch_texts", len(batch), **names)
        self._metrics.observe("batch_tokens", self._running, **names)
        self._metrics.count("tokens_total", self._running, **names)
        # A batch behind which nothing waits may be small, and slow for its size.
        if any(self._jobs.values()):
            self.record_rate(self._running, seconds)

    def record_rate(self, tokens: int, seconds: float) -> None:
        """Learn how fast the model is with all that it can take."""
        fading = 0.5 ** (seconds / MEMORY_SECONDS)
        self._done_tokens = self._done_tokens * fading + tokens
        self._busy_seconds = self._busy_seconds * fading + max(seconds, 1e-6)


def _deliver(job: Job, row: int, values: NDArray[Any], reason: str | None) -> None:
    if job.result.done():  # whoever sent it has left, or another of its rows was rejected
        return
    if reason is not None:
        job.result.set_exception(ItemRejected(row, reason))
        return
    if job.rows is None:
        job.rows = np.empty((len(job.items), *np.shape(values)), values.dtype)
    job.rows[row] = values
    job.missing -= 1
