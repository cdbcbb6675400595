"""Five thousand texts through a service that fails in every way it can: what is stored, rejected and
paid for."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.embedding import request as request_module
from embedding_pipelines.embedding.batch import EmbeddedBatch
from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.embedding.request import ATTEMPTS
from embedding_pipelines.embedding.sanity import PROBES, UNLIKE_TEXTS
from embedding_pipelines.errors import BudgetError, ConfigError, ProviderError, Unreachable
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.openai import Openai
from embedding_pipelines.spec.pipeline import Budget
from embedding_pipelines_tests.embedding.service import (
    DIALECT,
    REQUEST_TEXTS,
    TEXTS,
    Little,
    batches,
    little,
    little_options,
)
from embedding_pipelines_tests.providers.wire import Fault, WireServer, serve

DIMENSIONS = 64
OFTEN = [  # nothing of these is paid for, or what was paid for is kept
    Fault("status", 429, "Rate limit reached.", {"retry-after": "0.05"}),
    Fault("status", 429, "Slow down.", {"retry-after-ms": "30"}),
    Fault("status", 503, "Overloaded."),
    Fault("status", 500, "The server had an error."),
    Fault("status", 502, "Bad gateway."),
    Fault("reset"),
    Fault("drip", seconds=0.2),
    Fault("reversed"),
    Fault("nan"),
    Fault("zero"),
    Fault("inside", message="upstream failed"),
]
SELDOM = [Fault("fewer"), Fault("alike"), Fault("short")]  # a whole call is paid for in vain


def faulty(random: random.Random) -> Fault | None:
    drawn = random.random()
    return random.choice(OFTEN) if drawn < 0.2 else random.choice(SELDOM) if drawn < 0.21 else None


def through(
    server: WireServer, cache: EmbeddingCache, texts: list[str], **options: object
) -> tuple[list[EmbeddedBatch], Usage]:
    budget = options.pop("budget", None)
    embedded = list(
        embed(
            batches(texts),
            little(server, **options),
            cache,
            "document",
            lambda tokens: None,
            budget,
        )
    )
    usage = Usage()
    for batch in embedded:
        usage.add(batch.usage)
    return embedded, usage


def test_every_good_text_lands_once_and_every_bad_one_is_rejected_with_the_services_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.02)
    texts = [f"text number {n} about {n % 97} and {n % 89}" for n in range(TEXTS)]
    bad = {texts[n]: f"This model does not speak of {n}." for n in (17, 2_711, 2_712, 4_999)}
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.chance, server.poisoned = faulty, bad.get
        embedded, usage = through(server, cache, texts)
        rejected = {
            batch.rows["text"][row].as_py(): reason
            for batch in embedded
            for row, reason in batch.rejected.items()
        }
        assert rejected.keys() == bad.keys()
        assert all(bad[text] in reason for text, reason in rejected.items())
        vectors = np.concatenate([batch.vectors for batch in embedded])
        good = np.array([text not in bad for text in texts])
        assert np.allclose(
            vectors[good], server.vectors([text for text in texts if text not in bad]), atol=1e-5
        )
        assert np.isnan(vectors[~good]).all()
        assert len(cache) == usage.embedded == TEXTS - len(bad)
        assert usage.rejected == len(bad)
        assert usage.retries > 20
        assert sum(server.billed.values()) <= 1.02 * (TEXTS - len(bad))
        assert not server.billed.keys() & bad.keys()

        _, usage = through(
            server, cache, texts
        )  # the bad ones are asked for again, the good ones are not
        assert (usage.embedded, usage.rejected) == (0, len(bad))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", 401, "Incorrect API key."), "answered 401: Incorrect API key"),
        (Fault("status", 403, "Not your model."), "answered 403: Not your model"),
        (
            Fault("status", 404, "The model does not exist."),
            "answered 404.*Check model and base_url",
        ),
        (Fault("status", 429, "insufficient_quota: check your plan"), "quota is exhausted"),
    ],
)
def test_what_waiting_cannot_mend_ends_the_run_at_once(
    tmp_path: Path, fault: Fault, message: str
) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.chance = lambda _: fault
        with pytest.raises(ProviderError, match=message):
            through(server, cache, [f"text {n}" for n in range(2_000)])
        assert len(server.requests) <= 2 * little(server).options.concurrent_requests


def test_a_service_that_refuses_everything_is_not_bisected_to_the_last_text(tmp_path: Path) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.chance = lambda _: Fault("status", 400, "Unknown parameter: 'encoding_format'.")
        with pytest.raises(ProviderError, match="Unknown parameter"):
            through(server, cache, [f"text {n}" for n in range(2_000)])
        assert len(server.requests) <= 2 * little(server).options.concurrent_requests + 2


@pytest.mark.parametrize("kind", ["fewer", "short", "alike", "inside"])
def test_a_service_that_always_answers_wrongly_fails_the_run_and_nothing_is_stored(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.001)

    def wrong(_: random.Random) -> Fault | None:
        return Fault(kind, message="no upstream")

    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.chance = wrong
        with pytest.raises(ProviderError):
            through(server, cache, ["text one", "text two"])
        assert len(cache) == (kind == "fewer")  # which leaves out the last one and says so


@pytest.mark.parametrize("kind", ["status", "nan"])
def test_a_service_that_breaks_in_the_middle_ends_the_run_and_no_text_is_blamed(
    tmp_path: Path, kind: str
) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:

        def broken(_: random.Random) -> Fault | None:
            late = len(server.requests) > 6
            return Fault(kind, 400, "The account has been deactivated.") if late else None

        server.chance = broken
        with pytest.raises(ProviderError, match="deactivated" if kind == "status" else "NaN"):
            through(server, cache, [f"text {n}" for n in range(1_000)])
        assert 0 < len(cache) <= 1_000 - REQUEST_TEXTS


def test_a_text_that_spoils_its_whole_request_is_rejected_and_the_others_land(
    tmp_path: Path,
) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        right = server.vectors

        def vectors(texts: list[str]) -> np.ndarray:
            return right(texts) * np.float32("nan") if "text 7" in texts else right(texts)

        server.vectors = vectors  # type: ignore[method-assign]
        embedded, usage = through(server, cache, [f"text {n}" for n in range(100)])
        assert [batch.rejected.keys() for batch in embedded] == [{7}]
        assert (usage.embedded, usage.rejected, len(cache)) == (99, 1, 99)


def test_a_request_that_is_too_large_for_the_service_is_halved_and_no_text_is_lost(
    tmp_path: Path,
) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.most_texts = 10
        _, usage = through(server, cache, [f"text {n}" for n in range(2_000)])
        assert (usage.embedded, usage.rejected, len(cache)) == (2_000, 0, 2_000)
        refused = [body for body in server.requests if len(body["input"]) > 10]
        assert len(refused) < 120  # the size is learned: found out for each call, it would be 240
        assert set(server.billed.values()) == {1}


@pytest.mark.alone
def test_refusals_slow_everybody_down_and_the_request_stays_whole(tmp_path: Path) -> None:
    """A service that lets 40 requests a second in: nearly all of it is used, and few are turned
    away."""
    allowed, seconds = 40, 6
    with (
        serve(DIALECT, DIMENSIONS, latency_seconds=0.05) as server,
        EmbeddingCache(tmp_path / "l") as cache,
    ):
        sent: list[float] = []
        lock = threading.Lock()

        def limited(_: random.Random) -> Fault | None:
            with lock:
                now = time.monotonic()
                sent[:] = [at for at in sent if at > now - 1]
                if len(sent) >= allowed:
                    return Fault("status", 429, "Rate limit reached.", {"retry-after-ms": "200"})
                sent.append(now)
            return None

        server.chance = limited
        texts = [f"text {n}" for n in range(allowed * seconds * REQUEST_TEXTS)]
        _, usage = through(server, cache, texts)
        took = server.times[-1] - server.times[0]
        assert set(server.billed.values()) == {1}
        assert usage.requests == len(texts) / REQUEST_TEXTS
        assert usage.retries < 0.2 * usage.requests
        assert took < seconds / 0.7


@pytest.mark.alone
def test_the_stated_pace_is_kept_and_used(tmp_path: Path) -> None:
    """At least 0.9 of what the limiter allows, against 50 ms of latency."""
    pace, calls = 60, 240
    with (
        serve(DIALECT, DIMENSIONS, latency_seconds=0.05) as server,
        EmbeddingCache(tmp_path / "l") as cache,
    ):
        texts = [f"text {n}" for n in range(calls * REQUEST_TEXTS)]
        through(server, cache, texts, requests_per_minute=pace * 60)
        took = server.times[-1] - server.times[0]
        assert 0.9 * pace <= (calls - 1) / took <= 1.02 * pace


def test_a_budget_ends_the_run_keeps_what_was_paid_and_no_text_is_paid_twice(
    tmp_path: Path,
) -> None:
    texts = [f"some text number {n}" for n in range(2_000)]
    with (
        serve(DIALECT, DIMENSIONS, latency_seconds=0.002) as server,
        EmbeddingCache(tmp_path / "l") as cache,
    ):
        runs = 0
        while True:
            runs += 1
            model = little(server, usd_per_million_tokens=2.0)
            tokens = Budget(usd=0.01)  # 5,000 tokens
            before = sum(server.billed.values())
            try:
                list(
                    embed(
                        batches(texts),
                        model,
                        cache,
                        "document",
                        lambda n: None,
                        BudgetTracker.of(tokens, model.options),
                    )
                )
            except BudgetError as error:
                said = str(error)
                paid = sum(server.billed.values()) - before
                assert "0.01 USD" in said
                assert 0.9 * 5_000 / 4 <= paid <= 5_000 / 4
            else:
                break
        assert runs > 1
        assert set(server.billed.values()) == {1}
        assert len(server.billed) == len(texts) == len(cache)
        with pytest.raises(ConfigError, match=r"budget\.usd.*usd_per_million_tokens"):
            BudgetTracker.of(Budget(usd=1), little_options(server))


def test_a_budget_smaller_than_a_request_is_used_all_the_same(tmp_path: Path) -> None:
    texts = [f"some text number {n}" for n in range(30)]
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        for done in (10, 20, 30):
            budget = BudgetTracker(Budget(tokens=43))
            try:
                list(
                    embed(batches(texts), little(server), cache, "document", lambda n: None, budget)
                )
            except BudgetError:
                assert done < 30
            assert len(cache) == done
        assert set(server.billed.values()) == {1}
        more = embed(
            batches(["one more text"]),
            little(server),
            cache,
            "document",
            print,
            BudgetTracker(Budget(tokens=2)),
        )
        with pytest.raises(BudgetError, match=r"has spent 0 tokens"):
            list(more)


def test_replies_in_vain_are_spent_too(tmp_path: Path) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.faults.extend([Fault("short"), Fault("alike")])
        budget = BudgetTracker()
        list(
            embed(
                batches(["text one", "text two"]),
                little(server),
                cache,
                "document",
                lambda n: None,
                budget,
            )
        )
        assert budget.billed == 3 * 4


PROBE = sum(len(text.split()) for text in UNLIKE_TEXTS)  # as the service bills it


@pytest.mark.parametrize(
    ("faults", "in_vain"),
    [([Fault("inside")] * ATTEMPTS, ATTEMPTS * 4), ([Fault("alike")] * 2, 4)],
    ids=["no vectors, then halved", "twice the same"],
)
def test_what_a_failed_request_and_a_probe_were_billed_with_is_spent_and_counted(
    tmp_path: Path, faults: list[Fault], in_vain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.001)
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.faults.extend(faults)
        budget = BudgetTracker()
        _, usage = through(server, cache, ["text one", "text two"], budget=budget)
        assert usage.embedded == 2
        assert budget.billed == usage.billed_tokens == in_vain + PROBE + 4
        assert (
            budget.counted == budget.billed
        )  # the service counts as we do: replies in vain do not say otherwise


@pytest.mark.parametrize(
    ("kind", "paid"),
    [("alike", 2 * 4 + PROBE), ("nan", 4 + PROBES * PROBE), ("inside", ATTEMPTS * 4)],
)
def test_what_a_run_that_fails_was_billed_with_is_in_its_usage(
    tmp_path: Path, kind: str, paid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.001)
    budget, unfinished = BudgetTracker(), Usage()
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.chance = lambda _: Fault(kind, message="no upstream")
        right = server.vectors
        if kind == "nan":  # of all rows
            server.vectors = lambda texts: right(texts) * np.float32("nan")  # type: ignore[method-assign]
        texts = batches(["text one", "text two"])
        with pytest.raises(ProviderError):
            list(
                embed(texts, little(server), cache, "document", lambda n: None, budget, unfinished)
            )
    assert budget.billed == unfinished.billed_tokens == paid


class Restarting(Little):
    """Takes one text per request. Once the first text has its vector it is away, until it is
    probed."""

    def __init__(self, options: Openai, gone_for_ever: str) -> None:
        super().__init__(options, Path())
        self.gone_for_ever = gone_for_ever  # a text that no request can hold
        self.first_landed, self.back = threading.Event(), threading.Event()
        self.calls = Counter[str]()

    @property
    def limits(self) -> Limits:  # type: ignore[override]
        return Limits(256, 8_192, 1, self.options.concurrent_requests)

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        self.calls.update(inputs)
        if tuple(inputs) == UNLIKE_TEXTS:
            self.back.set()
        elif inputs[0] != "the first text of all":
            assert self.first_landed.wait(10)
            if not self.back.is_set() or inputs[0] == self.gone_for_ever:
                raise Unreachable("It cannot be reached.")
        return super().embed(inputs, input_type)


@pytest.mark.parametrize("gone_for_ever", ["", "text 3"])
def test_an_outage_blames_no_text_though_others_landed_while_the_request_was_out(
    tmp_path: Path, gone_for_ever: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.001)
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        model = Restarting(little_options(server), gone_for_ever)
        concurrent = model.options.concurrent_requests
        texts = ["the first text of all", *(f"text {n}" for n in range(concurrent))]
        with model:
            (batch,) = embed(
                batches(texts), model, cache, "document", lambda tokens: model.first_landed.set()
            )
    rejected = {texts[row] for row in batch.rejected}
    assert rejected == ({gone_for_ever} if gone_for_ever else set())
    assert len(texts) - len(rejected) == batch.usage.embedded
    if gone_for_ever:  # only after a second request with all attempts, and a probe after either
        assert model.calls[gone_for_ever] == 2 * ATTEMPTS


SCRIPT = """
import sys
from pathlib import Path
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines_tests.embedding.service import Little, batches
from embedding_pipelines.providers.openai import Openai
url, path, count = sys.argv[1:]
model = Little(Openai(base_url=url, model="little", dimensions=64), Path())
texts = [f"text {n}" for n in range(int(count))]
with EmbeddingCache(Path(path)) as cache:
    list(embed(batches(texts), model, cache, "document", lambda tokens: None))
"""


@pytest.mark.slow
def test_a_killed_process_pays_again_for_nothing_but_the_requests_that_were_out(
    tmp_path: Path,
) -> None:
    count = 3_000
    with serve(DIALECT, DIMENSIONS, latency_seconds=0.02) as server:
        command = [
            sys.executable,
            "-c",
            SCRIPT,
            server.url + "/v1",
            str(tmp_path / "l"),
            str(count),
        ]
        kills, drawn = 0, random.Random(0)
        while True:
            process = subprocess.Popen(command)
            known = len(server.requests)
            deadline = time.monotonic() + 60
            while (
                kills < 4
                and len(server.requests) < known + drawn.randint(3, 25)
                and time.monotonic() < deadline
            ):
                time.sleep(0.005)
            if kills < 4 and process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                continue
            assert process.wait() == 0
            break
        out = Openai.model_fields["concurrent_requests"].default + 1
        with EmbeddingCache(tmp_path / "l") as cache:
            assert len(cache) == count
            assert len(server.billed) == count
        twice = Counter(server.billed.values())
        assert sum(times - 1 for times in server.billed.values()) <= kills * out * REQUEST_TEXTS
        assert twice[1] > 0


def test_a_text_whose_vector_was_wrong_once_is_sent_as_often_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.001)
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.faults.extend([Fault("nan"), *[Fault("status", 500)] * (ATTEMPTS - 1)])
        _, usage = through(server, cache, ["one text", "another text", "and a third"])
        assert (usage.embedded, usage.rejected, len(cache)) == (3, 0, 3)
