"""Who hangs up costs no inference; shown on a real server with real connections."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from embedding_pipelines.providers.base import InputType, Response
from embedding_pipelines.providers.hashing import HashingModel
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import TIMEOUT_HEADER
from embedding_pipelines_tests.serving.live import live, wait_until


class Gate:
    """Holds the model before each batch while it is closed, and notes the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.held = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate, embed = Gate(), HashingModel.embed

    def slow(self: HashingModel, inputs: Sequence[str], input_type: InputType) -> Response:
        gate.texts += inputs
        if not gate.open.is_set():
            gate.held.set()
            assert gate.open.wait(30)
        return embed(self, inputs, input_type)

    monkeypatch.setattr(HashingModel, "embed", slow)
    return gate


@pytest.fixture
def served(built_home: Path, gate: Gate) -> Iterator[tuple[str, Server]]:
    with live(built_home) as (address, server, _):
        yield address, server
        gate.open.set()


def send(address: str, body: dict[str, Any], **headers: str) -> socket.socket:
    """A request whose answer nobody has read yet."""
    host, port = address.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    lines = [
        "POST /v1/embeddings HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "",
        "",
    ]
    connection = socket.create_connection((host, int(port)))
    connection.sendall("\r\n".join(lines).encode() + content)
    return connection


def test_a_thousand_who_hang_up_cost_no_inference(served: tuple[str, Server], gate: Gate) -> None:
    address, server = served
    (model,) = server.models
    gate.open.clear()
    first = send(address, {"input": "held back", "input_type": "query"})
    assert gate.held.wait(20)
    gate.texts.clear()
    for number in range(1_000):
        connection = send(address, {"input": f"gone {number}", "input_type": "query"})
        if number % 100 == 99:  # all of these wait in the lane when they leave
            wait_until(lambda: model.lanes and model.lanes.queued_tokens["interactive"] >= 2)
        connection.close()
    wait_until(lambda: server.metrics.value("abandoned_total", reason="left") >= 1_000)
    assert model.lanes is not None
    assert model.lanes.queued_tokens == {"interactive": 0, "bulk": 0}
    gate.open.set()
    assert first.recv(100).startswith(b"HTTP/1.1 200")
    first.close()
    reply = httpx2.post(f"{address}/v1/embeddings", json={"input": "stays", "input_type": "query"})
    assert reply.status_code == 200
    assert gate.texts == ["stays"]


def test_a_batch_is_taken_without_those_who_have_left(
    served: tuple[str, Server], gate: Gate
) -> None:
    """However busy the event loop is, which learns of it afterwards."""
    address, server = served
    (model,) = server.models
    gate.open.clear()
    first = send(address, {"input": "held back", "input_type": "query"})
    assert gate.held.wait(20)
    gate.texts.clear()
    gone = [send(address, {"input": f"gone {each}", "input_type": "query"}) for each in range(50)]
    stays = send(address, {"input": "it stays", "input_type": "query"})
    wait_until(lambda: model.lanes and model.lanes.queued_tokens["interactive"] == 51 * 2)
    is_busy, go = threading.Event(), threading.Event()

    def work() -> None:
        is_busy.set()
        assert go.wait(20)

    assert server._loading is not None
    server._loading.get_loop().call_soon_threadsafe(work)
    assert is_busy.wait(20)
    for connection in gone:
        connection.close()
    gate.open.set()
    model._thread.submit(int).result(20)  # the batch is at its end
    go.set()
    for connection in (first, stays):
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
    assert gate.texts == ["it stays"]
    wait_until(lambda: server.metrics.value("abandoned_total", reason="left") >= 50)
    assert server.metrics.value("abandoned_total", reason="left") == 50


def test_a_passed_deadline_takes_a_request_out(served: tuple[str, Server], gate: Gate) -> None:
    address, _ = served
    gate.open.clear()
    first = send(address, {"input": "held back", "input_type": "query"})
    assert gate.held.wait(20)
    gate.texts.clear()
    headers = {TIMEOUT_HEADER: "0.5"}
    body = {"input": "too late", "input_type": "query"}
    reply = httpx2.post(f"{address}/v1/embeddings", json=body, headers=headers)
    assert reply.status_code == 504
    gate.open.set()
    assert first.recv(100).startswith(b"HTTP/1.1 200")
    first.close()
    assert httpx2.post(f"{address}/v1/embeddings", json={"input": "next"}).status_code == 200
    assert gate.texts == ["next"]


def test_too_much_is_429_with_the_seconds_until_then(
    served: tuple[str, Server], gate: Gate
) -> None:
    address, server = served
    (model,) = server.models
    assert model.lanes is not None
    model.lanes.record_rate(1_000, 1_000.0)  # about one token a second
    gate.open.clear()
    first = send(address, {"input": "held back", "input_type": "query"})
    assert gate.held.wait(20)
    many = send(address, {"input": [f"bulk {number}" for number in range(300)]})
    wait_until(lambda: model.lanes and model.lanes.queued_tokens["bulk"] == 600)
    reply = httpx2.post(f"{address}/v1/embeddings", json={"input": ["more", "bulk"]})
    assert reply.status_code == 429
    assert "602 tokens before yours" in reply.json()["error"]
    rate = model.lanes.tokens_per_second
    assert rate is not None
    assert float(reply.headers["Retry-After-Ms"]) == pytest.approx(602 / rate * 1000, rel=0.01)
    assert int(reply.headers["Retry-After"]) == round(602 / rate)
    gate.open.set()
    for connection in (first, many):
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        connection.close()
