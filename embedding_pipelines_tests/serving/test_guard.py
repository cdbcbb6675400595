"""What is too large or too slow is refused, and costs no more than that."""

import socket
import time
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.serving import guard
from embedding_pipelines.serving.guard import MAX_BODY_BYTES
from embedding_pipelines_tests.serving.homes import KEY
from embedding_pipelines_tests.serving.live import live


def test_a_body_that_is_too_large_is_413_whether_it_says_so_or_not(client: TestClient) -> None:
    def endless() -> object:
        for _ in range(MAX_BODY_BYTES // 65_536 + 2):
            yield b" " * 65_536

    whole = client.post(
        "/v1/embeddings",
        content=b" " * (MAX_BODY_BYTES + 1),
        headers={"Content-Type": "application/json"},
    )
    parts = client.post(
        "/v1/embeddings",
        content=endless(),  # type: ignore[arg-type]
        headers={"Content-Type": "application/json"},
    )
    for reply in (whole, parts):
        assert reply.status_code == 413
        assert "32 MB at most" in reply.json()["error"]


def test_a_body_that_does_not_come_is_408(
    built_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    with live(built_home, KEY) as (address, _, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = (
                f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n"
                f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n\r\n{{"
            )
            connection.sendall(head.encode())
            started = time.monotonic()
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - started < 20
        headers = {"Authorization": f"Bearer {KEY}"}
        reply = httpx2.post(f"{address}/v1/embeddings", json={"input": "x"}, headers=headers)
        assert reply.status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'"x"', b'{"input": NaN}', b"\xff\xfe", b'{"input": "\\ud800"}',
     b'{"\\ud800": 1, "input": "x"}', b'{"input": ' + b"[" * 5_000, b'{"input": 1e999}'],
)  # fmt: skip
def test_what_is_no_request_is_400_with_a_sentence(client: TestClient, body: bytes) -> None:
    reply = client.post(
        "/v1/embeddings", content=body, headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]
