"""Ten thousand texts through a service that fails in every way it can: what lands, what is refused,
what is paid."""

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
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import PrivateAttr

from embedding_pipelines.embedding import request as asking
from embedding_pipelines.embedding.batch import EmbedCounts, Embedded
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.embedding.sanity import PROOFS, UNLIKE_TEXTS
from embedding_pipelines.errors import BudgetError, ConfigError, ProviderError, Unreachable
from embedding_pipelines.providers.base import InputType, Limits, Reply
from embedding_pipelines.spec.pipeline import Budget
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.embeddings import retry_rejected
from embedding_pipelines_tests.chain import (
    checks_of,
    live_rows,
    run_of,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import UNMEASURED
from embedding_pipelines_tests.embedding.service import (
    DIALECT,
    REQUEST_TEXTS,
    TEXTS,
    Little,
    little,
    windows,
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
) -> tuple[list[Embedded], EmbedCounts]:
    budget = options.pop("budget", None)
    found = list(
        embed(
            windows(texts),
            little(server, **options),
            cache,
            "document",
            lambda tokens: None,
            budget,
        )
    )
    counts = EmbedCounts()
    for window in found:
        counts.add(window.counts)
    return found, counts


def test_every_good_text_lands_once_and_every_bad_one_is_refused_with_the_services_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT_SECONDS", 0.02)
    texts = [f"text number {n} about {n % 97} and {n % 89}" for n in range(TEXTS)]
    bad = {texts[n]: f"This model does not speak of {n}." for n in (17, 4_711, 4_712, 9_999)}
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.chance, server.poisoned = faulty, bad.get
        found, counts = through(server, cache, texts)
        refused = {
            window.batch["text"][row].as_py(): reason
            for window in found
            for row, reason in window.rejected.items()
        }
        assert refused.keys() == bad.keys()
        assert all(bad[text] in reason for text, reason in refused.items())
        vectors = np.concatenate([window.vectors for window in found])
        good = np.array([text not in bad for text in texts])
        assert np.allclose(
            vectors[good], server.vectors([text for text in texts if text not in bad]), atol=1e-5
        )
        assert np.isnan(vectors[~good]).all()
        assert len(cache) == counts.embedded == TEXTS - len(bad)
        assert counts.rejected == len(bad)
        assert counts.retries > 20
        assert sum(server.billed.values()) <= 1.02 * (TEXTS - len(bad))
        assert not server.billed.keys() & bad.keys()

        _, counts = through(
            server, cache, texts
        )  # the bad ones are asked for again, the good ones are not
        assert (counts.embedded, counts.rejected) == (0, len(bad))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", 401, "Incorrect API key."), "answered 401: Incorrect API key"),
        (Fault("status", 403, "Not your model."), "answered 403: Not your model"),
        (
            Fault("status", 404, "The model does not exist."),
            "answered 404.*Check model and base_url",
        ),
        (Fault("status", 429, "insufficient_quota: check your plan"), "quota is used up"),
    ],
)
def test_what_waiting_cannot_mend_ends_the_run_at_once(
    tmp_path: Path, fault: Fault, message: str
) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.chance = lambda _: fault
        with pytest.raises(ProviderError, match=message):
            through(server, cache, [f"text {n}" for n in range(2_000)])
        assert len(server.requests) <= 2 * little(server).concurrent_requests


def test_a_service_that_refuses_everything_is_not_bisected_to_the_last_text(tmp_path: Path) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.chance = lambda _: Fault("status", 400, "Unknown parameter: 'encoding_format'.")
        with pytest.raises(ProviderError, match="Unknown parameter"):
            through(server, cache, [f"text {n}" for n in range(2_000)])
        assert len(server.requests) <= 2 * little(server).concurrent_requests + 2


@pytest.mark.parametrize("kind", ["fewer", "short", "alike", "inside"])
def test_a_service_that_always_answers_wrongly_fails_the_run_and_nothing_is_stored(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT_SECONDS", 0.001)

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


def test_a_text_that_spoils_its_whole_call_is_found_and_the_others_land(tmp_path: Path) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        right = server.vectors

        def vectors(texts: list[str]) -> np.ndarray:
            return right(texts) * np.float32("nan") if "text 7" in texts else right(texts)

        server.vectors = vectors  # type: ignore[method-assign]
        found, counts = through(server, cache, [f"text {n}" for n in range(100)])
        assert [window.rejected.keys() for window in found] == [{7}]
        assert (counts.embedded, counts.rejected, len(cache)) == (99, 1, 99)


def test_a_call_that_is_too_large_for_the_service_is_halved_and_no_text_is_lost(
    tmp_path: Path,
) -> None:
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.most_texts = 10
        _, counts = through(server, cache, [f"text {n}" for n in range(2_000)])
        assert (counts.embedded, counts.rejected, len(cache)) == (2_000, 0, 2_000)
        refused = [body for body in server.requests if len(body["input"]) > 10]
        assert len(refused) < 120  # the size is learned: found out for each call, it would be 240
        assert set(server.billed.values()) == {1}


@pytest.mark.alone
def test_refusals_slow_everybody_down_and_the_call_stays_whole(tmp_path: Path) -> None:
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
        _, counts = through(server, cache, texts)
        took = server.times[-1] - server.times[0]
        assert set(server.billed.values()) == {1}
        assert counts.calls == len(texts) / REQUEST_TEXTS
        assert counts.retries < 0.2 * counts.calls
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
            provider = little(server, usd_per_million_tokens=2.0)
            tokens = Budget(usd=0.01)  # 5,000 tokens
            before = sum(server.billed.values())
            try:
                list(
                    embed(
                        windows(texts),
                        provider,
                        cache,
                        "document",
                        lambda n: None,
                        BudgetTracker.of(tokens, provider),
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
            BudgetTracker.of(Budget(usd=1), little(server))


def test_a_refused_text_is_asked_for_again_on_demand(home: Path) -> None:
    """Through the steps: it is missing in the table, its neighbours are there, and a mended service
    takes it in."""
    write_csv(home, "a.csv", [(f"d{n}", f"text number {n}", "x") for n in range(60)])
    source = "source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}\npartitions: 4\n"
    with serve(DIALECT, DIMENSIONS) as server:
        model = f"{{provider: openai, model: little, dimensions: {DIMENSIONS}, base_url: '{server.url}/v1'}}"
        write_pipeline(home, "p", f"{source}model: {model}\n{UNMEASURED}")
        server.poisoned = {"text number 7": "Not this one."}.get
        run_steps(home, "p")
        assert live_rows(home, "p").keys() == {f"d{n}#0" for n in range(60) if n != 7}
        context, asked = run_of(home, "p"), len(server.requests)
        told = pq.read_table(context.folder.rejected_texts).to_pylist()
        assert [(row["chunk_id"], row["text"]) for row in told] == [("d7#0", "text number 7")]
        assert "Not this one." in told[0]["reason"]
        run_steps(home, "p")
        assert len(server.requests) == asked
        write_csv(
            home, "b.csv", [("alone", "text number 7", "x")]
        )  # refused too: the table stays as it was
        run_steps(home, "p")
        (counted, *_) = checks_of(context)
        assert (counted.statistics["documents"], counted.statistics["rejected_texts"]) == (61, 2)
        (home / "data" / "b.csv").unlink()
        run_steps(home, "p")
        assert retry_rejected(context) == 1
        assert (
            pipeline_status(context.spec, context.warehouse)["rejected_texts"] == 1
        )  # until a run asks
        server.poisoned = lambda _: None
        run_steps(home, "p")
        assert len(live_rows(home, "p")) == 60
        assert {server.billed[f"text number {n}"] for n in range(60)} == {1}
        assert pq.read_table(context.folder.rejected_texts).num_rows == 0


def test_a_budget_smaller_than_a_call_is_used_all_the_same(tmp_path: Path) -> None:
    texts = [f"some text number {n}" for n in range(30)]
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        for done in (10, 20, 30):
            budget = BudgetTracker(Budget(tokens=43))
            try:
                list(
                    embed(windows(texts), little(server), cache, "document", lambda n: None, budget)
                )
            except BudgetError:
                assert done < 30
            assert len(cache) == done
        assert set(server.billed.values()) == {1}
        more = embed(
            windows(["one more text"]),
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
                windows(["text one", "text two"]),
                little(server),
                cache,
                "document",
                lambda n: None,
                budget,
            )
        )
        assert budget.billed == 3 * 4


PROOF = sum(len(text.split()) for text in UNLIKE_TEXTS)  # as the service bills it


@pytest.mark.parametrize(
    ("faults", "in_vain"),
    [([Fault("inside")] * asking.TRIES, asking.TRIES * 4), ([Fault("alike")] * 2, 4)],
    ids=["no vectors, then halved", "twice the same"],
)
def test_what_a_refused_call_and_a_proof_were_billed_with_is_spent_and_counted(
    tmp_path: Path, faults: list[Fault], in_vain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT_SECONDS", 0.001)
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.faults.extend(faults)
        budget = BudgetTracker()
        _, counts = through(server, cache, ["text one", "text two"], budget=budget)
        assert counts.embedded == 2
        assert budget.billed == counts.billed_tokens == in_vain + PROOF + 4
        assert (
            budget.counted == budget.billed
        )  # the service counts as we do: replies in vain do not say otherwise


@pytest.mark.parametrize(
    ("kind", "paid"),
    [("alike", 2 * 4 + PROOF), ("nan", 4 + PROOFS * PROOF), ("inside", asking.TRIES * 4)],
)
def test_what_a_run_that_fails_was_billed_with_is_told(
    tmp_path: Path, kind: str, paid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT_SECONDS", 0.001)
    budget, unfinished = BudgetTracker(), EmbedCounts()
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.chance = lambda _: Fault(kind, message="no upstream")
        right = server.vectors
        if kind == "nan":  # of all rows
            server.vectors = lambda texts: right(texts) * np.float32("nan")  # type: ignore[method-assign]
        texts = windows(["text one", "text two"])
        with pytest.raises(ProviderError):
            list(
                embed(texts, little(server), cache, "document", lambda n: None, budget, unfinished)
            )
    assert budget.billed == unfinished.billed_tokens == paid


class Restarting(Little):
    """Takes one text per request. Once the text "first" has its vector it is away, until it is
    asked for a proof."""

    gone_for_ever: str = ""  # a text that no request can hold
    _first_landed: threading.Event = PrivateAttr(default_factory=threading.Event)
    _back: threading.Event = PrivateAttr(default_factory=threading.Event)
    _asked: Counter[str] = PrivateAttr(default_factory=Counter)

    @property
    def limits(self) -> Limits:
        return Limits(256, 8_192, 1, self.concurrent_requests)

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        self._asked.update(inputs)
        if tuple(inputs) == UNLIKE_TEXTS:
            self._back.set()
        elif inputs[0] != "the first text of all":
            assert self._first_landed.wait(10)
            if not self._back.is_set() or inputs[0] == self.gone_for_ever:
                raise Unreachable("It cannot be reached.")
        return super().ask(inputs, input_type)


@pytest.mark.parametrize("gone_for_ever", ["", "text 3"])
def test_an_outage_blames_no_text_though_others_landed_while_the_call_was_out(
    tmp_path: Path, gone_for_ever: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT_SECONDS", 0.001)
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        options: dict[str, Any] = {
            "base_url": f"{server.url}/v1",
            "model": "little",
            "dimensions": DIMENSIONS,
        }
        provider = Restarting(gone_for_ever=gone_for_ever, **options)
        texts = [
            "the first text of all",
            *(f"text {n}" for n in range(provider.concurrent_requests)),
        ]

        def landed(tokens: int) -> None:
            provider._first_landed.set()

        (found,) = embed(windows(texts), provider, cache, "document", landed)
    refused = {texts[row] for row in found.rejected}
    assert refused == ({gone_for_ever} if gone_for_ever else set())
    assert len(texts) - len(refused) == found.counts.embedded
    if gone_for_ever:  # only after a second time with all patience, and a proof after either
        assert provider._asked[gone_for_ever] == 2 * asking.TRIES


def test_what_a_run_has_spent_is_on_record_though_its_budget_ends_it_in_the_middle(
    home: Path,
) -> None:
    write_csv(home, "a.csv", [(f"d{n}", f"text number {n}", "x") for n in range(60)])
    source = "source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}\npartitions: 1\n"
    with serve(DIALECT, DIMENSIONS) as server:
        options = (
            f"dimensions: {DIMENSIONS}, base_url: '{server.url}/v1', usd_per_million_tokens: 2"
        )
        model = f"{{provider: openai, model: little, {options}}}"
        budget = "budget: {tokens: 60}\n"
        write_pipeline(home, "p", f"{source}model: {model}\n{UNMEASURED}{budget}")
        context = run_of(home, "p")
        with pytest.raises(BudgetError):
            run_steps(home, "p")
        assert 0 < len(server.billed) < 60
        usd = sum(server.billed.values()) * 3 * 2 / 1e6
        assert context.usage()["usd"] == pytest.approx(usd, abs=1e-8)
        assert context.usage()["embedded_tokens"] > 0
        write_pipeline(home, "p", f"{source}model: {model}\n{UNMEASURED}")
        run_steps(home, "p")
        assert len(server.billed) == 60
        assert context.usage()["usd"] == pytest.approx(60 * 3 * 2 / 1e6, abs=1e-8)


SCRIPT = """
import sys
from pathlib import Path
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines_tests.embedding.service import Little, windows
url, path, count = sys.argv[1:]
provider = Little(base_url=url, model="little", dimensions=64)
texts = [f"text {n}" for n in range(int(count))]
with EmbeddingCache(Path(path)) as cache:
    list(embed(windows(texts), provider, cache, "document", lambda tokens: None))
"""


def test_a_killed_process_pays_again_for_nothing_but_the_calls_that_were_out(
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
        out = Little.model_fields["concurrent_requests"].default + 1
        with EmbeddingCache(tmp_path / "l") as cache:
            assert len(cache) == count
            assert len(server.billed) == count
        twice = Counter(server.billed.values())
        assert sum(times - 1 for times in server.billed.values()) <= kills * out * REQUEST_TEXTS
        assert twice[1] > 0


def test_a_text_whose_vector_was_wrong_once_is_asked_for_as_patiently_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT_SECONDS", 0.001)
    with serve(DIALECT, DIMENSIONS) as server, EmbeddingCache(tmp_path / "l") as cache:
        server.faults.extend([Fault("nan"), *[Fault("status", 500)] * (asking.TRIES - 1)])
        _, counts = through(server, cache, ["one text", "another text", "and a third"])
        assert (counts.embedded, counts.rejected, len(cache)) == (3, 0, 3)
