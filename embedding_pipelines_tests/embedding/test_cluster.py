"""What workers share: claims of texts, the pace of a service, the budget; without a cluster."""

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.cluster import (
    Hub,
    SharedBudget,
    SharedCache,
    SharedLimiter,
    check_probes,
    probe_vectors,
)
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.errors import BudgetError, EngineError
from embedding_pipelines.providers.base import InputType, RateLimit, Response
from embedding_pipelines.providers.hashing import Hashing, HashingModel
from embedding_pipelines.spec.pipeline import Budget

DIMENSIONS = 8
OPTIONS = Hashing(dimensions=DIMENSIONS)


class Direct:
    """Calls a hub in this process, one call at a time."""

    def __init__(self, hub: Hub, name: str, lock: Any) -> None:
        self.hub, self.name, self._lock = hub, name, lock

    def call(self, method: str, *arguments: Any) -> Any:
        with self._lock:
            return getattr(self.hub, method)(self.name, *arguments)


class Counted(HashingModel):
    """Knows how often each text was embedded, and what was rejected."""

    def __init__(self, counts: Counter[str], rejected: Collection[str] = ()) -> None:
        super().__init__(OPTIONS, Path())
        self.counts, self.rejected = counts, rejected

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        self.counts.update(inputs)
        rejected = {row: "no" for row, text in enumerate(inputs) if text in self.rejected}
        vectors = super().embed(inputs, input_type).vectors
        vectors[list(rejected)] = np.nan
        return Response(vectors, rejected=rejected)


@pytest.fixture
def callers(tmp_path: Path) -> Iterator[list[Direct]]:
    lock = threading.Lock()
    hub = Hub(tmp_path / "cache.sqlite", Budget(tokens=100), OPTIONS, False)
    yield [Direct(hub, name, lock) for name in ("one", "two")]
    hub.close()


def batches(texts: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(texts), rows):
        part = texts[start : start + rows]
        yield pa.RecordBatch.from_pydict(
            {"text": part, "tokens": pa.array([len(text.split()) for text in part], pa.int32())}
        )


def work(caller: Direct, texts: list[str], model: Counted, done: dict[str, Any]) -> None:
    parts = embed(batches(texts, 7), model, SharedCache(caller), "document", lambda _: None)
    usage, vectors, rejected = Usage(), [], 0
    for part in parts:
        usage.add(part.usage)
        vectors.append(part.vectors)
        rejected += len(part.rejected)
    caller.call("release")
    done[caller.name] = np.concatenate(vectors), usage, rejected


def test_two_workers_that_need_the_same_texts_embed_each_once(callers: list[Direct]) -> None:
    """In opposite orders, so that each waits for what the other has claimed, and has rejected."""
    texts = ["bad one", *(f"text number {n}" for n in range(60)), "bad two"]
    bad = {texts[0], texts[-1]}
    counts, done = Counter[str](), dict[str, Any]()
    orders = [texts, texts[::-1]]
    threads = [
        threading.Thread(target=work, args=(caller, order, Counted(counts, bad), done), daemon=True)
        for caller, order in zip(callers, orders, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done.keys() == {"one", "two"}
    assert {counts[text] for text in texts if text not in bad} == {1}
    np.testing.assert_array_equal(done["one"][0], done["two"][0][::-1])
    assert [rejected for *_, rejected in done.values()] == [2, 2]
    usages = [usage for _, usage, _ in done.values()]
    assert sum(usage.embedded for usage in usages) == 60
    assert sum(usage.cache_hits for usage in usages) == 60


def test_what_a_lost_worker_has_claimed_goes_to_another(callers: list[Direct]) -> None:
    one, two = callers
    assert one.call("get_or_claim", [b"a" * 16, b"b" * 16], DIMENSIONS)[2] == set()
    assert two.call("get_or_claim", [b"a" * 16, b"c" * 16], DIMENSIONS)[2] == {b"a" * 16}
    one.call("release")
    assert two.call("get_or_claim", [b"a" * 16], DIMENSIONS)[2] == set()
    assert one.call("get_or_claim", [b"a" * 16, b"b" * 16], DIMENSIONS)[2] == {b"a" * 16}
    two.call("put_many", [b"a" * 16], np.ones((1, DIMENSIONS), np.float32), "s")
    keys, vectors, elsewhere = one.call("get_or_claim", [b"a" * 16], DIMENSIONS)
    assert (keys, vectors.tolist(), elsewhere) == ([b"a" * 16], [[1.0] * DIMENSIONS], set())


def test_the_budget_is_one_for_all_workers(callers: list[Direct]) -> None:
    one, two = (SharedBudget(caller, Budget(tokens=100), 0.0) for caller in callers)
    assert one.holds(60)
    assert not two.holds(60)  # what is out may be billed
    assert two.holds(40)
    one.spend(60, 50)
    two.spend(40, 40)
    assert two.holds(10)
    assert not one.holds(1)
    with pytest.raises(BudgetError, match="it has spent 90 tokens"):
        raise one.exhausted_error()
    hub = callers[0].hub
    hub.recorded.add(Usage(counted_tokens=60, billed_tokens=50))
    assert hub.unrecorded() == Usage(billed_tokens=40, embedded_tokens=40)  # of a lost worker


def test_the_pace_is_one_for_all_workers(callers: list[Direct]) -> None:
    rate = RateLimit("one-key", requests_per_minute=60)
    one, two = (SharedLimiter(caller, rate) for caller in callers)
    assert one.reserve(5)[0] == pytest.approx(0, abs=0.2)
    assert two.reserve(5)[0] == pytest.approx(1, abs=0.2)
    seconds, lowered_at = one.reserve(5)
    assert seconds == pytest.approx(2, abs=0.2)
    assert two.record_refusal(0.0, 3.0)  # by a clock that is half a century late
    assert not one.confirm(5, lowered_at)
    one.record_success()
    assert one.pace() == 0


def test_a_machine_whose_vectors_differ_is_refused() -> None:
    model = HashingModel(OPTIONS, Path())
    budget = BudgetTracker()
    vectors = probe_vectors(model, "document", budget, None)
    assert vectors is not None
    assert vectors.shape == (4, DIMENSIONS)
    assert budget.counted == 0  # nobody bills it
    check_probes(vectors * 2, vectors, "float32")
    other = vectors + 0.01 * np.sign(np.roll(vectors, 1))
    check_probes(other, vectors, "bfloat16")
    with pytest.raises(EngineError, match=r"a cosine of 0\.999\d+ .* need 0\.99999"):
        check_probes(other, vectors, "float32")
    with pytest.raises(EngineError, match="for other texts"):
        check_probes(None, vectors, "")
    check_probes(None, None, "")
