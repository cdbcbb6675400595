"""How one request is sent: what is sent again, how often and after how long, and what is raised in
the end."""

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.embedding import request as request_module
from embedding_pipelines.embedding.budget import Usage
from embedding_pipelines.embedding.limiter import Cancelled
from embedding_pipelines.embedding.request import ATTEMPTS, Request, Sender
from embedding_pipelines.errors import BadInput, Busy, ProviderError, TooLarge, Unreachable
from embedding_pipelines.providers.base import EmbeddingModel, InputType, Response
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines_tests.embedding.service import DIALECT, little
from embedding_pipelines_tests.providers.wire import Fault, WireServer, serve
from embedding_pipelines_tests.recording import Recording

TEXTS = ["one fox", "two hens"]
DOWN = [
    Fault("status", 500, "The server had an error.", {"x-should-retry": "true"}),
    Fault("status", 502, "Bad gateway."),
    Fault("status", 504, "Timed out."),
    Fault("status", 408, "Too slow."),
    Fault("status", 409, "Conflict."),
    Fault("reset"),
    Fault("inside", message="upstream failed"),
    Fault("fewer"),
]


@pytest.fixture
def server() -> Iterator[WireServer]:
    with serve(DIALECT) as running:
        yield running


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.001)


def send(
    model: EmbeddingModel, attempts: int = ATTEMPTS, sender: Sender | None = None
) -> tuple[Response, Usage]:
    """The reply to TEXTS, and what it took."""
    request = Request(TEXTS, "document", attempts=attempts)
    return (sender or Sender(model)).send(request), request.usage


def always(server: WireServer, fault: Fault) -> None:
    server.chance = lambda _: fault


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("attempts", [1, 2, ATTEMPTS])
def test_what_fails_on_its_way_is_sent_so_often_and_no_more_and_then_raised_as_it_was(
    server: WireServer, attempts: int
) -> None:
    always(server, DOWN[0])
    with pytest.raises(Unreachable, match="answered 500: The server had an error"):
        send(little(server), attempts)
    assert len(server.requests) == attempts  # the SDK adds none, even where the service asks it to


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", DOWN, ids=[f"{fault.kind} {fault.status}" for fault in DOWN])
def test_what_fails_on_its_way_once_or_twice_does_well_then(
    server: WireServer, fault: Fault
) -> None:
    server.faults.extend([fault, fault])
    response, usage = send(little(server))
    assert np.allclose(response.vectors[0], server.vectors(TEXTS)[0])
    if fault.kind != "fewer":  # which is right but for one row, for the caller to ask for
        assert (usage.retries, len(server.requests)) == (2, 3)


@pytest.mark.usefixtures("hasty")
def test_a_service_that_nobody_reaches_is_asked_so_often_too() -> None:
    with serve(DIALECT) as gone:
        model = little(gone)
    started = time.monotonic()
    with pytest.raises(Unreachable, match="cannot be reached"):
        send(model)
    assert time.monotonic() - started < 5


def test_waits_grow_are_never_the_same_and_are_counted(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(request_module, "LONGEST_WAIT_SECONDS", 0.3)
    sleep = Sender._sleep

    def watched(sender: Sender, seconds: float, request: Request) -> None:
        slept.append(seconds)
        sleep(sender, seconds, request)

    monkeypatch.setattr(Sender, "_sleep", watched)
    rounds = 12
    for _ in range(rounds):
        server.faults.extend([DOWN[0]] * (ATTEMPTS - 1))
        _, usage = send(little(server))
        assert usage.wait_seconds >= sum(slept[-(ATTEMPTS - 1) :])
        assert usage.request_seconds < usage.wait_seconds + 1
    waits = np.array(slept).reshape(rounds, ATTEMPTS - 1)
    most = [min(0.3, 0.02 * 2**attempt) for attempt in range(ATTEMPTS - 1)]
    assert (waits <= most).all()
    assert len(set(slept)) > 0.9 * len(slept)
    assert waits[:, -1].mean() > 2 * waits[:, 0].mean()
    gaps = np.diff(server.times[:ATTEMPTS])
    assert (gaps >= waits[0] - 0.005).all()


@pytest.mark.parametrize(
    ("fault", "meaning"),
    [
        (Fault("status", 400, "No such parameter."), BadInput),
        (Fault("status", 422, "Input should be a valid string."), BadInput),
        (Fault("status", 413, "Payload too large."), TooLarge),
        (Fault("status", 400, "Requested 629204 tokens, max 600000 tokens per request"), TooLarge),
        (Fault("status", 401, "Incorrect API key."), ProviderError),
        (Fault("status", 403, "Not yours."), ProviderError),
        (Fault("status", 404, "No such model."), ProviderError),
        (Fault("status", 429, "You exceeded your current quota."), ProviderError),
    ],
)
def test_what_waiting_does_not_mend_is_sent_once(
    server: WireServer, fault: Fault, meaning: type[ProviderError]
) -> None:
    always(server, fault)
    with pytest.raises(ProviderError) as caught:
        send(little(server))
    assert type(caught.value) is meaning
    assert len(server.requests) == 1


def test_vectors_of_another_length_are_asked_for_again_and_then_a_sentence(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 0.001)
    server.faults.append(Fault("short"))
    assert send(little(server))[1].retries == 1
    always(server, Fault("short"))
    with pytest.raises(ProviderError, match="32"):
        send(little(server))


def test_a_busy_service_is_asked_until_it_lets_the_request_in(server: WireServer) -> None:
    refusals = 4
    server.faults.extend([Fault("status", 429, "Slow down.", {"retry-after-ms": "1"})] * refusals)
    _, usage = send(little(server), 1)
    assert (usage.retries, len(server.requests)) == (refusals, refusals + 1)
    gaps = [later - earlier for earlier, later in pairwise(server.times)]
    assert usage.wait_seconds == pytest.approx(sum(gaps), abs=0.5)


def test_a_service_that_stays_busy_for_too_long_is_told_in_a_sentence(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "BUSY_SECONDS", 0.6)
    always(server, Fault("status", 503, "Overloaded.", {"retry-after-ms": "50"}))
    started = time.monotonic()
    with pytest.raises(
        ProviderError,
        match=r"answered 503: Overloaded\. The service has been busy for 0 minutes\. Run again",
    ) as caught:
        send(little(server))
    assert not isinstance(caught.value, Busy | Unreachable)
    assert isinstance(caught.value.__cause__, Busy)
    assert 0.6 < time.monotonic() - started < 6
    assert len(server.requests) > 1


def test_patience_is_with_refusals_and_not_with_the_wait_for_a_slot(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "BUSY_SECONDS", 0.5)
    model = little(server, requests_per_minute=60)
    send(model)
    server.faults.append(Fault("status", 429, "Slow down.", {"retry-after-ms": "1"}))
    assert send(model)[1].retries == 1  # though its slot was a second away


@pytest.mark.alone
def test_who_cancels_waits_neither_for_a_slot_nor_for_another_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_module, "FIRST_WAIT_SECONDS", 60)
    for fault in (Fault("status", 429, "Later.", {"retry-after": "120"}), Fault("status", 500)):
        started = time.monotonic()
        with serve(DIALECT) as other:  # with a pace of its own
            other.faults.append(fault)
            sender = Sender(little(other))
            threading.Timer(0.2, sender.cancel).start()
            with pytest.raises(Cancelled):
                send(sender.model, sender=sender)
        assert time.monotonic() - started < 1.5


class Broken(Recording):
    """Fails."""

    error: type[ProviderError] = ProviderError

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        super().embed(inputs, input_type)
        raise self.error("It is broken.")


@pytest.mark.parametrize("error", [Unreachable, Busy, ProviderError])
def test_a_model_on_this_machine_is_called_once(error: type[ProviderError]) -> None:
    hashing = Hashing(dimensions=8).open(Path())
    model = Broken(hashing, error=error)
    with pytest.raises(ProviderError, match="It is broken") as caught:
        send(model)
    assert type(caught.value) is error
    assert len(model.calls) == 1
    response, usage = send(hashing)
    assert (response.vectors.shape, usage.retries, usage.wait_seconds) == ((2, 8), 0, 0.0)


def test_threads_that_begin_together_share_one_connection_pool_and_one_pace(
    server: WireServer,
) -> None:
    model, together = little(server, requests_per_minute=600), threading.Barrier(10)
    shared: list[int] = []

    def begin() -> None:
        together.wait(10)
        shared.append(id(model.sdk))
        send(model)  # by a sender of its own

    threads = [threading.Thread(target=begin) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(shared), len(set(shared))) == (10, 1)
    assert server.times[-1] - server.times[0] > 0.85  # 10 a second


def test_a_long_wait_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(request_module, "LONG_WAIT_SECONDS", 0.01)
    with serve(DIALECT) as server:
        server.faults.append(Fault("status", 429, "Slow down.", {"retry-after-ms": "30"}))
        send(little(server))
    own = [record for record in caplog.records if record.name == request_module.__name__]
    assert own[0].getMessage().endswith("answered 429: Slow down. Waiting 0 seconds, as it asks.")
