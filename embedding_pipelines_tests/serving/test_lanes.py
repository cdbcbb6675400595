"""Lanes: natural batches, two lanes with ageing, no work for callers who left, honest refusals."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.serving import lanes as lanes_module
from embedding_pipelines.serving.lanes import (
    MAX_WAIT_SECONDS,
    Budget,
    Computed,
    ItemRejected,
    Lane,
    Lanes,
    Recipient,
)
from embedding_pipelines.serving.metrics import Metrics
from embedding_pipelines.serving.wire import ClientLeft, TooManyRequests, Unavailable

pytestmark = pytest.mark.anyio


class Person(Recipient):
    """Waits as long as it says, or until it leaves; counts how often somebody looks."""

    def __init__(self, seconds_left: float = 60.0) -> None:
        self._seconds_left, self.has_left, self.looks = seconds_left, False, 0

    @property
    def seconds_left(self) -> float:
        return self._seconds_left

    @property
    def is_here(self) -> bool:
        self.looks += 1
        return not self.has_left


class Model:
    """Notes its batches; each waits until `go` lets it."""

    def __init__(self, tokens: int = 8, items: int = 1_000) -> None:
        self.batches: list[list[Any]] = []
        self.go, self.entered = threading.Semaphore(0), threading.Semaphore(0)
        self.fault: Exception | None = None
        self.rejected: set[Any] = set()
        self.metrics = Metrics()
        self.thread = ThreadPoolExecutor(1)
        self.lanes = Lanes(self.compute, self.thread, Budget(tokens, items), self.metrics, "m")

    def compute(self, items: Sequence[Any], tokens: Sequence[int], kind: str) -> Computed:
        self.batches.append(list(items))
        self.entered.release()
        assert self.go.acquire(timeout=20)
        if self.fault:
            raise self.fault
        rows = np.array([[float(item)] for item in items])
        why = {at: "no" for at, item in enumerate(items) if item in self.rejected}
        return Computed(rows, why)

    def send(
        self, *items: Any, lane: Lane = "interactive", tokens: int = 1, **more: Any
    ) -> asyncio.Task[Any]:
        work = self.lanes.compute(items, [tokens] * len(items), "document", lane, **more)
        return asyncio.ensure_future(work)

    async def running(self) -> None:
        """Until the next batch has begun."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)

    def free(self, batches: int = 100) -> None:
        self.go.release(batches)


async def test_idle_sends_at_once_and_busy_gathers() -> None:
    model = Model()
    first = model.send(1)
    await model.running()
    others = [model.send(number) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    assert model.batches == [[1]]
    model.free()
    assert [float(rows[0, 0]) for rows in await asyncio.gather(first, *others)] == [1, 2, 3, 4]
    assert model.batches == [[1], [2, 3, 4]]


async def test_a_batch_keeps_to_the_budget_counted_as_padded() -> None:
    model = Model(tokens=8, items=3)
    first = model.send(0)
    await model.running()
    texts, tokens = [1, 2, 3, 4, 5, 6], [1, 4, 2, 1, 1, 1]
    bulk = asyncio.ensure_future(model.lanes.compute(texts, tokens, "document", "bulk"))
    await asyncio.sleep(0)
    model.free()
    rows = await bulk
    await first
    assert rows[:, 0].tolist() == texts
    assert model.batches[1:] == [[2, 3], [1, 4, 5], [6]]  # the longest first, 3 items, 8 tokens


async def test_a_text_longer_than_the_budget_goes_alone() -> None:
    model = Model(tokens=8)
    model.free()
    assert (await model.send(1, 2, tokens=20, lane="bulk")).shape == (2, 1)
    assert model.batches == [[1], [2]]


async def test_interactive_goes_first_and_bulk_gets_one_batch_in_four() -> None:
    model = Model(tokens=1)
    bulk = model.send(*range(100, 110), lane="bulk")
    await model.running()
    small = [model.send(number) for number in range(9)]
    await asyncio.sleep(0)
    model.free()
    await asyncio.gather(bulk, *small)
    lanes = "".join("b" if batch[0] >= 100 else "i" for batch in model.batches)
    assert lanes.startswith("b" + "iiib" * 3)
    assert lanes.count("b") == 10


async def test_two_bulk_requests_take_turns() -> None:
    model = Model(tokens=2)
    first = model.send(*range(10, 16), lane="bulk")
    await model.running()
    second = model.send(*range(20, 26), lane="bulk")
    await asyncio.sleep(0)
    model.free()
    await asyncio.gather(first, second)
    tens = [batch[0] // 10 for batch in model.batches]
    assert tens == [1, 1, 2, 1, 2, 2]


async def test_input_types_do_not_share_a_batch() -> None:
    model = Model()
    first = model.send(0)
    await model.running()
    query = asyncio.ensure_future(model.lanes.compute([1], [1], "query", "interactive"))
    document = model.send(2)
    await asyncio.sleep(0)
    model.free()
    await asyncio.gather(first, query, document)
    assert model.batches == [[0], [1], [2]]


async def test_who_leaves_is_not_computed() -> None:
    model = Model(tokens=2)
    first = model.send(0)
    await model.running()
    gone = [model.send(number) for number in range(1_000, 2_000)]
    half = model.send(*range(50), lane="bulk")
    stays = model.send(7)
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    model.free(2)
    await asyncio.gather(first, stays)
    await model.running()
    await model.running()  # a batch of the long one has begun
    half.cancel()
    await asyncio.gather(half, return_exceptions=True)
    model.free()
    assert await model.send(8)
    assert model.batches[:2] == [[0], [7]]
    assert [len(batch) for batch in model.batches[2:]] == [2, 1]
    assert model.lanes.queued_tokens == {"interactive": 0, "bulk": 0}
    assert model.lanes.is_idle


async def test_who_has_left_when_a_batch_is_taken_is_not_in_it() -> None:
    model = Model(tokens=2)
    first = model.send(0)
    await model.running()
    some, long = [Person() for _ in range(1_000)], Person()
    gone = [model.send(number, recipient=each) for number, each in enumerate(some, 1_000)]
    half = model.send(*range(50), lane="bulk", recipient=long)
    stays = model.send(7)
    await asyncio.sleep(0)
    assert not sum(each.looks for each in some)
    for each in some:
        each.has_left = True
    model.free(2)
    assert [rows.tolist() for rows in await asyncio.gather(first, stays)] == [[[0]], [[7]]]
    await model.running()
    await model.running()  # a batch of the long one has begun
    long.has_left = True
    model.free()
    left = await asyncio.gather(*gone, half, return_exceptions=True)
    assert {type(each) for each in left} == {ClientLeft}
    assert [len(batch) for batch in model.batches] == [1, 1, 2]
    assert [long.looks, {each.looks for each in some}] == [2, {1}]  # once for each batch
    assert model.lanes.queued_tokens == {"interactive": 0, "bulk": 0}
    assert model.lanes.is_idle


async def test_an_idle_model_does_nothing_for_who_has_left_and_goes_on() -> None:
    model, person = Model(), Person()
    person.has_left = True
    with pytest.raises(ClientLeft):
        await model.send(1, recipient=person)
    model.free()
    first = model.send(0)
    await model.running()
    query = asyncio.ensure_future(
        model.lanes.compute([2], [1], "query", "interactive", recipient=person)
    )
    document = model.send(3)  # of another kind: the batch that nobody waits for is not sent
    await asyncio.gather(first, document)
    assert isinstance((await asyncio.gather(query, return_exceptions=True))[0], ClientLeft)
    assert model.batches == [[0], [3]]


async def test_a_wait_that_is_too_long_is_refused_with_its_seconds() -> None:
    model = Model(tokens=100)
    model.lanes.record_rate(100, 1.0)  # 100 tokens a second
    running = model.send(0, tokens=100)
    await model.running()
    huge = model.send(*range(20), tokens=100, lane="bulk")  # never refused for its size
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequests, match=r"2,100 tokens before yours") as refusal:
        await model.send(1, lane="bulk")
    assert refusal.value.retry_after_seconds == pytest.approx(21.0, rel=0.01)
    one = model.send(2)  # interactive waits for its own lane
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequests):
        await model.send(3, recipient=Person(0.5))
    assert model.metrics.value("refused_total", model="m", lane="bulk") == 1
    model.free()
    await asyncio.gather(running, huge, one)
    assert MAX_WAIT_SECONDS < 21


async def test_each_lane_waits_for_its_share_of_the_other_and_no_more() -> None:
    model = Model(tokens=10)
    model.lanes.record_rate(10, 1.0)  # a batch a second
    running = model.send(0, tokens=10)
    await model.running()
    many = [model.send(number, tokens=10) for number in range(1, 9)]
    await asyncio.sleep(0)
    assert model.lanes.wait_seconds("interactive") == pytest.approx(9)
    assert model.lanes.wait_seconds("bulk") == pytest.approx(4)  # three of the others come first
    bulk = model.send(*range(100, 103), lane="bulk", tokens=10)
    await asyncio.sleep(0)
    assert model.lanes.wait_seconds("interactive") == pytest.approx(12)  # 3 of bulk go in between
    assert model.lanes.wait_seconds("bulk") == pytest.approx(12)
    with pytest.raises(TooManyRequests, match=r"120 tokens before yours at 10 a second: 12\.0"):
        model.lanes.admit("interactive")
    with pytest.raises(TooManyRequests, match=r"120 tokens before yours at 10 a second: 12\.0"):
        model.lanes.admit("bulk")
    model.free()
    await asyncio.gather(running, bulk, *many)


async def test_what_may_go_in_either_lane_is_judged_by_the_shorter_one() -> None:
    model = Model(tokens=10)
    model.lanes.record_rate(10, 1.0)
    running = model.send(0, tokens=10)
    await model.running()
    many = model.send(*range(1, 15), tokens=10)
    await asyncio.sleep(0)
    model.lanes.admit(None)
    model.lanes.admit("bulk")
    with pytest.raises(TooManyRequests) as refusal:
        model.lanes.admit("interactive")
    assert refusal.value.retry_after_seconds == pytest.approx(15)
    model.free()
    await asyncio.gather(running, many)


async def test_the_seconds_of_a_refusal_come_true(monkeypatch: pytest.MonkeyPatch) -> None:
    model, now = Model(tokens=10), 0.0
    monkeypatch.setattr(lanes_module, "time", SimpleNamespace(perf_counter=lambda: now))

    def compute(items: Sequence[Any], tokens: Sequence[int], kind: str) -> Computed:
        nonlocal now
        now += 0.01
        return Computed(np.zeros((len(items), 1)))

    lanes = Lanes(compute, model.thread, Budget(10, 100), model.metrics, "m")
    await asyncio.gather(*(lanes.compute([0] * 10, [1] * 10, "d", "bulk") for _ in range(30)))
    waiting = [asyncio.ensure_future(lanes.compute([0] * 10, [1] * 10, "d", "bulk"))
               for _ in range(50)]  # fmt: skip
    await asyncio.sleep(0)
    said, started = lanes.wait_seconds("bulk"), now
    await asyncio.gather(*waiting)
    assert now - started == pytest.approx(said, rel=0.05)


async def test_a_rejected_item_fails_its_own_request_only() -> None:
    model = Model()
    model.rejected = {5}
    first = model.send(0)
    await model.running()
    bad, good = model.send(4, 5), model.send(6)
    await asyncio.sleep(0)
    model.free()
    with pytest.raises(ItemRejected) as fault:
        await bad
    assert fault.value.row == 1
    assert (await good).tolist() == [[6]]
    await first


async def test_a_fault_of_the_model_fails_the_batch_and_not_the_next() -> None:
    model = Model(tokens=1)
    model.fault = ProviderError("It is away.")
    first, second = model.send(1), model.send(2)
    await model.running()
    model.go.release()
    with pytest.raises(ProviderError, match="away"):
        await first
    await model.running()
    model.fault = None
    model.go.release()
    assert (await second).tolist() == [[2]]


async def test_closed_lanes_take_nothing_and_tell_who_waits() -> None:
    model = Model(tokens=1)
    first, second = model.send(1), model.send(2)
    await model.running()
    model.lanes.close()
    with pytest.raises(Unavailable):
        await second
    with pytest.raises(Unavailable):
        await model.send(3)
    model.free()
    assert (await first).tolist() == [[1]]  # it was being computed
