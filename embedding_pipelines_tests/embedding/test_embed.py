"""Only misses reach the model, once each; its replies are verified."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import BATCHES_AHEAD, embed, embed_all
from embedding_pipelines.embedding.texts import ReadableTexts
from embedding_pipelines.errors import BudgetError, ProviderError
from embedding_pipelines.providers.base import EmbeddingModel, InputType, Limits, Response
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.spec.pipeline import Budget
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.recording import Recording


def hashing(dimensions: int = 64) -> EmbeddingModel:
    return Hashing(dimensions=dimensions).open(Path.cwd())


def vectors_of(texts: list[str], dimensions: int = 64) -> Vectors:
    return hashing(dimensions).embed(texts, "document").vectors


def no_progress(tokens: int) -> None:
    raise AssertionError(f"{tokens} tokens of nothing")


def batch_of(texts: list[str]) -> pa.RecordBatch:
    tokens = [len(text.split()) for text in texts]
    return pa.RecordBatch.from_arrays(
        [pa.array(texts, pa.string()), pa.array(tokens, pa.int32())], ["text", "tokens"]
    )


def run(
    texts: list[str], cache: EmbeddingCache, model: Recording, input_type: InputType = "document"
) -> tuple[Vectors, Usage, int]:
    progress: list[int] = []
    (batch,) = embed([batch_of(texts)], model, cache, input_type, progress.append)
    return batch.vectors, batch.usage, sum(progress)


def test_each_text_is_embedded_once_and_comes_back_in_order(tmp_path: Path) -> None:
    texts = ["b b", "a", "b b", "d", "c c c", "a"]
    with EmbeddingCache(tmp_path / "l") as cache:
        model = Recording(hashing(), request_texts=2)
        vectors, usage, progress = run(texts, cache, model)
        assert np.allclose(vectors, vectors_of(texts), atol=1e-6)
        assert sorted(model.texts) == ["a", "b b", "c c c", "d"]
        assert (usage.texts, usage.cache_hits, usage.embedded, usage.requests) == (4, 0, 4, 2)
        assert usage.embedded_tokens == 7
        assert progress == sum(len(text.split()) for text in texts)
        again, usage, progress = run([*texts, "new"], cache, model)
        assert np.array_equal(again[:-1], vectors)
        assert model.texts[4:] == ["new"]
        assert (usage.cache_hits, usage.embedded) == (4, 1)
        assert list(embed([batch_of([])], model, cache, "document", no_progress)) == []


def test_documents_and_queries_and_two_models_are_kept_apart(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "l") as cache:
        for model in (Recording(hashing()), Recording(hashing(32))):
            for input_type in ("document", "query"):
                run(["text"], cache, model, input_type)
            assert model.texts == ["text", "text"]


def test_what_was_embedded_before_a_failure_is_kept(tmp_path: Path) -> None:
    class Failing(Recording):
        def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
            if "a" in inputs:
                raise ProviderError("the service is down")
            return super().embed(inputs, input_type)

    with EmbeddingCache(tmp_path / "l") as cache:
        with pytest.raises(ProviderError, match="is down"):
            run(["a", "b b", "c c c"], cache, Failing(hashing(), request_texts=1))
        healthy = Recording(hashing())
        run(["a", "b b", "c c c"], cache, healthy)
        assert healthy.texts == ["a"]


class Replying(Recording):
    value: float | None = None  # all numbers of one vector of each reply
    only: str | None = None  # the text whose vector it is; else it is the last one's
    constant: bool = False
    rows: int = 0  # more than asked for

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        vectors = super().embed(inputs, input_type).vectors
        if self.value is not None and (self.only is None or self.only in inputs):
            vectors[inputs.index(self.only) if self.only else -1] = self.value
        if self.constant:
            vectors[:] = vectors[0]
        return Response(np.concatenate([vectors, vectors[: self.rows]]))


class Copying(Recording):
    """Gives the vectors of another space for nothing, two of them wrong, and an array of a third
    that is none."""

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        copies = hashing(32).embed(inputs, input_type).vectors
        copies[inputs.index("a")] = np.nan
        copies[inputs.index("b b")] = 0
        return Response(
            super().embed(inputs, input_type).vectors,
            copies={hashing(32).space: copies, hashing(16).space: copies},
        )


def test_what_comes_for_nothing_is_verified_row_by_row_too(tmp_path: Path) -> None:
    texts = ["a", "b b", "c c c"]
    with EmbeddingCache(tmp_path / "l") as cache:
        (batch,) = embed(
            [batch_of(texts)], Copying(hashing()), cache, "document", lambda tokens: None
        )
        assert batch.usage.embedded == 3
        assert len(cache) == 3 + 1
        other = Recording(hashing(32))
        vectors, _, _ = run(texts, cache, other)
        assert sorted(other.texts) == ["a", "b b"]
        assert np.allclose(vectors, vectors_of(texts, 32), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"value": 0.0, "request_texts": 1},
            "a zero vector for 1 of 2 texts, first for 'Divide both",
        ),
        ({"value": float("nan"), "request_texts": 1}, "NaN or infinity for 1 of 2"),
        ({"value": float("inf"), "request_texts": 1}, "NaN or infinity for 1 of 2"),
        ({"value": 1.0, "request_texts": 1}, "not of unit length for 1 of 2"),
        ({"rows": 1}, r"an array of shape \(4, 64\) for \(3, 64\)"),
        ({"constant": True}, "one and the same vector for 3 different texts"),
    ],
)
def test_a_reply_that_cannot_be_right_is_not_stored(
    tmp_path: Path, options: dict, message: str
) -> None:
    with EmbeddingCache(tmp_path / "l") as cache:
        with pytest.raises(ProviderError, match=message):
            run(
                ["three words here", "two words", "one"],
                cache,
                Replying(hashing(), **options),
            )
        assert len(cache) == 0


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "a zero vector"), (float("nan"), "NaN"), (1.0, "of unit length")]
)
def test_a_text_that_gets_no_right_vector_is_rejected_and_all_others_land(
    tmp_path: Path, value: float, reason: str
) -> None:
    with EmbeddingCache(tmp_path / "l") as cache:
        model = Replying(hashing(), value=value, only="two words")
        texts = ["three words here", "two words", "one", "two words"]
        (batch,) = embed([batch_of(texts)], model, cache, "document", lambda tokens: None)
        assert batch.rejected.keys() == {1, 3}
        assert all(reason in words for words in batch.rejected.values())
        assert np.isnan(batch.vectors[[1, 3]]).all()
        assert np.allclose(
            batch.vectors[[0, 2]],
            vectors_of(["three words here", "one"]),
            atol=1e-6,
        )
        assert (batch.usage.embedded, batch.usage.rejected, len(cache)) == (2, 1, 2)
        assert model.texts.count("one") == 1  # a wrong row costs the others nothing


def test_texts_that_are_the_same_to_the_model_may_have_the_same_vector(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "l") as cache:
        vectors, usage, _ = run(
            ["Apple pie", "apple PIE", "APPLE pie"], cache, Recording(hashing())
        )
        assert (vectors == vectors[0]).all()
        assert len(cache) == 3
        assert usage.embedded == 3


class Slow(Recording):
    """Several requests at once, the first of them the slowest; it remembers how many ran side by
    side."""

    concurrent_requests = 3
    fails_at: int | None = None  # the request that fails, counted from 0

    def __init__(self, inner: EmbeddingModel, **settings: Any) -> None:
        super().__init__(inner, **settings)
        self.running = self.most = 0
        self.lock, self.go = threading.Lock(), threading.Event()

    @property
    def limits(self) -> Limits:
        return dataclasses.replace(super().limits, concurrent_requests=self.concurrent_requests)

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            number = len(self.calls)
            response = super().embed(inputs, input_type)
        time.sleep(0.15 if number == 0 else 0.05)
        with self.lock:
            self.running -= 1
        if number == self.fails_at:
            raise ProviderError("the service is down")
        return response


def test_requests_run_side_by_side_and_batches_come_back_in_order(tmp_path: Path) -> None:
    texts = [f"{number} words" for number in range(40)]
    batches = [texts[start : start + 8] for start in range(0, 40, 8)]
    model = Slow(hashing(), request_texts=3)
    with EmbeddingCache(tmp_path / "l") as cache:
        embedded = list(
            embed(map(batch_of, batches), model, cache, "document", lambda tokens: None)
        )
    assert [entry.rows["text"].to_pylist() for entry in embedded] == batches
    assert np.allclose(np.concatenate([entry.vectors for entry in embedded]), vectors_of(texts))
    assert sorted(model.texts) == sorted(texts)
    assert 2 <= model.most <= model.concurrent_requests
    assert sum(entry.usage.embedded for entry in embedded) == len(texts)


def test_a_text_that_is_out_already_is_not_requested_again(tmp_path: Path) -> None:
    model = Slow(hashing(), request_texts=1)
    with EmbeddingCache(tmp_path / "l") as cache:
        batches = [batch_of(["same", "one"]), batch_of(["two", "same"]), batch_of(["same", "two"])]
        first, second, third = embed(batches, model, cache, "document", lambda tokens: None)
    assert sorted(model.texts) == ["one", "same", "two"]
    assert (first.vectors[0] == second.vectors[1]).all()
    assert (second.vectors == third.vectors[::-1]).all()
    assert [entry.usage.cache_hits for entry in (first, second, third)] == [0, 1, 2]


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_what_was_out_when_a_request_failed_is_kept(tmp_path: Path, fails_at: int) -> None:
    texts = [f"{number} words" for number in range(12)]
    model = Slow(hashing(), request_texts=2, fails_at=fails_at)
    with EmbeddingCache(tmp_path / "l") as cache:
        with pytest.raises(ProviderError, match="is down"):
            list(embed([batch_of(texts)], model, cache, "document", lambda tokens: None))
        lost = model.calls[fails_at]
        assert len(cache) == len(model.texts) - len(lost)
        healthy = Recording(hashing())
        run(texts, cache, healthy)
        assert sorted(model.texts + healthy.texts) == sorted(
            texts + lost
        )  # nothing else is paid for twice


def test_stopping_half_way_keeps_what_is_out(tmp_path: Path) -> None:
    model = Slow(hashing(), request_texts=1)
    with EmbeddingCache(tmp_path / "l") as cache:
        batches = (batch_of([f"{number} words"]) for number in range(100))
        with contextlib.closing(
            embed(batches, model, cache, "document", lambda tokens: None)
        ) as embedded:  # type: ignore[type-var]
            next(embedded)
        assert len(cache) == len(model.texts) < 10


def test_every_request_that_has_ended_is_committed_though_an_older_one_goes_on(
    tmp_path: Path,
) -> None:
    class Stuck(Slow):
        def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
            if inputs[0].startswith("slow"):
                self.go.wait(30)
            return super().embed(inputs, input_type)

    model = Stuck(hashing(), request_texts=1, concurrent_requests=2)
    texts = ["slow and longest text", *(f"{number} words" for number in range(9))]
    committed = []
    with EmbeddingCache(tmp_path / "l") as cache:

        def advance(tokens: int) -> None:
            committed.append(len(cache))
            if len(committed) == 5:
                model.go.set()

        list(embed([batch_of(texts)], model, cache, "document", advance))
    assert all(count >= ended for ended, count in enumerate(committed[:5], 1))


def test_only_a_few_batches_are_read_ahead(tmp_path: Path) -> None:
    taken = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal taken
        for taken in range(1, 101):
            yield batch_of([f"{taken} words"])

    for _ in range(2):  # the second time everything is in the cache
        with EmbeddingCache(tmp_path / "l") as cache:
            model = Recording(hashing())
            for number, _ in enumerate(
                embed(batches(), model, cache, "document", lambda tokens: None), 1
            ):
                assert taken <= number + BATCHES_AHEAD


def test_all_texts_of_a_list_are_embedded_through_the_cache_or_without_one(tmp_path: Path) -> None:
    texts = [f"{number % 4_200} words" for number in range(9_000)]
    model, cache = Recording(hashing()), EmbeddingCache(tmp_path / "l")
    whole = embed_all(texts, model, cache)
    assert np.allclose(whole.vectors, vectors_of(texts), atol=1e-6)
    assert (whole.rejected, len(model.texts), len(cache)) == ({}, 4_200, 4_200)
    assert whole.usage.embedded_tokens == whole.usage.counted_tokens == 2 * 4_200
    assert embed_all(texts, model, cache).usage.requests == 0
    assert embed_all(["7 words"], model, None).usage.requests == 1
    assert embed_all([], model, None).vectors.shape == (0, 64)


def test_a_rejected_text_of_a_list_has_a_row_of_nan_and_a_reason() -> None:
    model = Replying(hashing(), value=0.0, only="two words")
    whole = embed_all(["one", "two words"] * 3_000, model, None)
    assert whole.rejected.keys() == set(range(1, 6_000, 2))
    assert "a zero vector" in whole.rejected[5_999]
    assert np.isnan(whole.vectors[1::2]).all()
    assert np.isfinite(whole.vectors[::2]).all()


def test_a_list_is_requested_within_given_limits_and_a_budget() -> None:
    model = Recording(hashing())
    limits = dataclasses.replace(model.limits, request_texts=2)
    embed_all(["a", "b", "c"], model, None, limits=limits)
    assert sorted(map(len, model.calls)) == [1, 2]
    budget = BudgetTracker()
    readable = ReadableTexts(["a", "b", "c"], [5, 6, 7])
    embed_all(readable.texts, model, None, "query", budget, readable=readable)
    assert budget.billed == 18


def test_what_a_budget_holds_of_a_request_is_told_in_few_looks() -> None:
    """Each of them is a call to the hub of a cluster; the last that held counts there as out."""

    class Looked(BudgetTracker):
        looks = held = 0

        def holds(self, tokens: int) -> bool:
            self.looks += 1
            is_held = super().holds(tokens)
            self.held = tokens if is_held else self.held
            return is_held

    budget, model = Looked(Budget(tokens=700)), Recording(hashing())
    with pytest.raises(BudgetError):
        embed_all([f"text {n}" for n in range(1_000)], model, None, budget=budget)
    assert (len(model.texts), budget.billed, budget.held) == (350, 700, 700)
    assert budget.looks < 30
