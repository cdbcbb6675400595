"""Only unknown texts reach the provider, once each; what it replies is not believed blindly."""

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
from pydantic import PrivateAttr

from embedding_pipelines.embedding.batch import EmbedCounts
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import WINDOWS_AHEAD, embed
from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import InputType, Limits, Reply
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.chain import Recording


def told_nothing(tokens: int) -> None:
    raise AssertionError(f"{tokens} tokens of nothing")


def window(texts: list[str]) -> pa.RecordBatch:
    tokens = [len(text.split()) for text in texts]
    return pa.RecordBatch.from_arrays(
        [pa.array(texts, pa.string()), pa.array(tokens, pa.int32())], ["text", "tokens"]
    )


def run(
    texts: list[str], cache: EmbeddingCache, provider: Recording, input_type: InputType = "document"
) -> tuple[Vectors, EmbedCounts, int]:
    told: list[int] = []
    (found,) = embed([window(texts)], provider, cache, input_type, told.append)
    return found.vectors, found.counts, sum(told)


def test_each_text_is_embedded_once_and_comes_back_in_order(tmp_path: Path) -> None:
    texts = ["b b", "a", "b b", "", "c c c", "a"]
    with EmbeddingCache(tmp_path / "l") as cache:
        provider = Recording(inner=Hashing(), request_texts=2)
        vectors, counts, told = run(texts, cache, provider)
        assert np.allclose(vectors, Hashing().embed(texts, "document"), atol=1e-6)
        assert sorted(provider.texts) == ["", "a", "b b", "c c c"]
        assert (counts.texts, counts.from_cache, counts.embedded, counts.calls) == (4, 0, 4, 2)
        assert counts.embedded_tokens == 6
        assert told == sum(len(text.split()) for text in texts)
        again, counts, told = run([*texts, "new"], cache, provider)
        assert np.array_equal(again[:-1], vectors)
        assert provider.texts[4:] == ["new"]
        assert (counts.from_cache, counts.embedded) == (4, 1)
        assert list(embed([window([])], provider, cache, "document", told_nothing)) == []


def test_documents_and_queries_and_two_models_are_kept_apart(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "l") as cache:
        for provider in (Recording(inner=Hashing()), Recording(inner=Hashing(dimensions=32))):
            for input_type in ("document", "query"):
                run(["text"], cache, provider, input_type)
            assert provider.texts == ["text", "text"]


def test_what_was_embedded_before_a_failure_is_kept(tmp_path: Path) -> None:
    class Failing(Recording):
        def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
            if "a" in inputs:
                raise ProviderError("the service is down")
            return super().embed(inputs, input_type)

    with EmbeddingCache(tmp_path / "l") as cache:
        with pytest.raises(ProviderError, match="is down"):
            run(["a", "b b", "c c c"], cache, Failing(inner=Hashing(), request_texts=1))
        healthy = Recording(inner=Hashing())
        run(["a", "b b", "c c c"], cache, healthy)
        assert healthy.texts == ["a"]


class Replying(Recording):
    value: float | None = None  # all numbers of one vector of each reply
    only: str | None = None  # the text whose vector it is; else it is the last one's
    constant: bool = False
    rows: int = 0  # more than asked for

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        vectors = super().embed(inputs, input_type)
        if self.value is not None and (self.only is None or self.only in inputs):
            vectors[inputs.index(self.only) if self.only else -1] = self.value
        if self.constant:
            vectors[:] = vectors[0]
        return np.concatenate([vectors, vectors[: self.rows]])


class Copying(Hashing):
    """Gives the vectors of another space for nothing, two of them wrong, and an array of a third
    that is none."""

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        copies = Hashing(dimensions=32).embed(inputs, input_type)
        copies[inputs.index("a")] = np.nan
        copies[inputs.index("b b")] = 0
        return Reply(
            self.embed(inputs, input_type),
            copies={Hashing(dimensions=32).space: copies, Hashing(dimensions=16).space: copies},
        )


def test_what_comes_for_nothing_is_believed_row_by_row_too(tmp_path: Path) -> None:
    texts = ["a", "b b", "c c c"]
    with EmbeddingCache(tmp_path / "l") as cache:
        (found,) = embed([window(texts)], Copying(), cache, "document", lambda tokens: None)
        assert found.counts.embedded == 3
        assert len(cache) == 3 + 1
        other = Recording(inner=Hashing(dimensions=32))
        vectors, _, _ = run(texts, cache, other)
        assert sorted(other.texts) == ["a", "b b"]
        assert np.allclose(vectors, Hashing(dimensions=32).embed(texts, "document"), atol=1e-6)


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
                Replying(inner=Hashing(), **options),
            )
        assert len(cache) == 0


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "a zero vector"), (float("nan"), "NaN"), (1.0, "of unit length")]
)
def test_a_text_that_gets_no_right_vector_is_rejected_and_all_others_land(
    tmp_path: Path, value: float, reason: str
) -> None:
    with EmbeddingCache(tmp_path / "l") as cache:
        provider = Replying(inner=Hashing(), value=value, only="two words")
        texts = ["three words here", "two words", "one", "two words"]
        (found,) = embed([window(texts)], provider, cache, "document", lambda tokens: None)
        assert found.rejected.keys() == {1, 3}
        assert all(reason in words for words in found.rejected.values())
        assert np.isnan(found.vectors[[1, 3]]).all()
        assert np.allclose(
            found.vectors[[0, 2]],
            Hashing().embed(["three words here", "one"], "document"),
            atol=1e-6,
        )
        assert (found.counts.embedded, found.counts.rejected, len(cache)) == (2, 1, 2)
        assert provider.texts.count("one") == 1  # a wrong row costs the others nothing


def test_texts_that_are_the_same_to_the_model_may_have_the_same_vector(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "l") as cache:
        vectors, counts, _ = run(
            ["Apple pie", "apple PIE", "APPLE pie"], cache, Recording(inner=Hashing())
        )
        assert (vectors == vectors[0]).all()
        assert len(cache) == 3
        assert counts.embedded == 3


class Slow(Recording):
    """Several calls at once, the first of them the slowest; it remembers how many ran side by
    side."""

    concurrent_requests: int = 3
    fails_at: int | None = None  # the call that fails, counted from 0
    _running: int = PrivateAttr(default=0)
    _most: int = PrivateAttr(default=0)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def limits(self) -> Limits:
        return dataclasses.replace(super().limits, concurrent_requests=self.concurrent_requests)

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        with self._lock:
            self._running += 1
            self._most = max(self._most, self._running)
            number = len(self.calls)
            vectors = super().embed(inputs, input_type)
        time.sleep(0.15 if number == 0 else 0.05)
        with self._lock:
            self._running -= 1
        if number == self.fails_at:
            raise ProviderError("the service is down")
        return vectors


def test_calls_run_side_by_side_and_windows_come_back_in_order(tmp_path: Path) -> None:
    texts = [f"{number} words" for number in range(40)]
    windows = [texts[start : start + 8] for start in range(0, 40, 8)]
    provider = Slow(inner=Hashing(), request_texts=3)
    with EmbeddingCache(tmp_path / "l") as cache:
        found = list(embed(map(window, windows), provider, cache, "document", lambda tokens: None))
    assert [entry.batch["text"].to_pylist() for entry in found] == windows
    assert np.allclose(
        np.concatenate([entry.vectors for entry in found]), Hashing().embed(texts, "document")
    )
    assert sorted(provider.texts) == sorted(texts)
    assert 2 <= provider._most <= provider.concurrent_requests
    assert sum(entry.counts.embedded for entry in found) == len(texts)


def test_a_text_that_is_out_already_is_not_asked_for_again(tmp_path: Path) -> None:
    provider = Slow(inner=Hashing(), request_texts=1)
    with EmbeddingCache(tmp_path / "l") as cache:
        windows = [window(["same", "one"]), window(["two", "same"]), window(["same", "two"])]
        first, second, third = embed(windows, provider, cache, "document", lambda tokens: None)
    assert sorted(provider.texts) == ["one", "same", "two"]
    assert (first.vectors[0] == second.vectors[1]).all()
    assert (second.vectors == third.vectors[::-1]).all()
    assert [entry.counts.from_cache for entry in (first, second, third)] == [0, 1, 2]


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_what_was_out_when_a_call_failed_is_kept(tmp_path: Path, fails_at: int) -> None:
    texts = [f"{number} words" for number in range(12)]
    provider = Slow(inner=Hashing(), request_texts=2, fails_at=fails_at)
    with EmbeddingCache(tmp_path / "l") as cache:
        with pytest.raises(ProviderError, match="is down"):
            list(embed([window(texts)], provider, cache, "document", lambda tokens: None))
        lost = provider.calls[fails_at]
        assert len(cache) == len(provider.texts) - len(lost)
        healthy = Recording(inner=Hashing())
        run(texts, cache, healthy)
        assert sorted(provider.texts + healthy.texts) == sorted(
            texts + lost
        )  # nothing else is paid for twice


def test_stopping_half_way_keeps_what_is_out(tmp_path: Path) -> None:
    provider = Slow(inner=Hashing(), request_texts=1)
    with EmbeddingCache(tmp_path / "l") as cache:
        windows = (window([f"{number} words"]) for number in range(100))
        with contextlib.closing(
            embed(windows, provider, cache, "document", lambda tokens: None)
        ) as embedded:  # type: ignore[type-var]
            next(embedded)
        assert len(cache) == len(provider.texts) < 10


def test_every_call_that_has_ended_is_committed_though_an_older_one_goes_on(tmp_path: Path) -> None:
    class Stuck(Slow):
        _go: Any = PrivateAttr(default_factory=threading.Event)

        def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
            if inputs[0].startswith("slow"):
                self._go.wait(30)
            return super().embed(inputs, input_type)

    provider = Stuck(inner=Hashing(), request_texts=1, concurrent_requests=2)
    texts = ["slow and longest text", *(f"{number} words" for number in range(9))]
    committed = []
    with EmbeddingCache(tmp_path / "l") as cache:

        def told(tokens: int) -> None:
            committed.append(len(cache))
            if len(committed) == 5:
                provider._go.set()

        list(embed([window(texts)], provider, cache, "document", told))
    assert committed[:5] == [1, 2, 3, 4, 5]


def test_only_a_few_windows_are_read_ahead(tmp_path: Path) -> None:
    taken = 0

    def windows() -> Iterator[pa.RecordBatch]:
        nonlocal taken
        for taken in range(1, 101):
            yield window([f"{taken} words"])

    for _ in range(2):  # the second time everything is in the cache
        with EmbeddingCache(tmp_path / "l") as cache:
            provider = Recording(inner=Hashing())
            for number, _ in enumerate(
                embed(windows(), provider, cache, "document", lambda tokens: None), 1
            ):
                assert taken <= number + WINDOWS_AHEAD
