"""Replies that never end, that are too large or that came compressed: each ends the call in time,
with a bounded memory, by our own client and by OpenAI's SDK."""

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embedding_pipelines.errors import Unreachable
from embedding_pipelines.providers.common import bounds
from embedding_pipelines.providers.ollama import Ollama
from embedding_pipelines.providers.openai import Openai

TIMEOUT_SECONDS = 0.4
PATIENCE = 20.0  # of the test, which imports the SDK: the server goes on for five times as long


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_POST(self) -> None:
        kind = self.server.kind  # type: ignore[attr-defined]
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.encodings.append(self.headers["accept-encoding"])  # type: ignore[attr-defined]
        if kind == "drips headers":
            return self.drip(b"HTTP/1.0 200 OK\r\nX-Waiting: ")
        self.send_response(200)
        self.send_header("content-type", "application/json")
        if kind == "compressed":
            self.send_header("content-encoding", "gzip")
        if kind == "announced":
            self.send_header("content-length", str(1 << 40))
        self.end_headers()
        try:
            if kind == "drips":
                self.drip()
            elif kind == "compressed":
                self.wfile.write(gzip.compress(b" " * 1_000_000))
            else:
                for _ in range(200):
                    self.wfile.write(b" " * 65_536)
        except OSError:
            self.server.hung_up.set()  # type: ignore[attr-defined]

    def drip(self, start: bytes = b"") -> None:
        """A byte now and then, each well within the timeout from packet to packet."""
        try:
            self.wfile.write(start)
            for _ in range(2_000):
                self.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            self.server.hung_up.set()  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind, self.hung_up, self.encodings = "", threading.Event(), list[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(bounds, "MAX_REPLY_BYTES", 1 << 20)
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("drips headers", "was not complete after 0.4 s"),
        ("drips", "was not complete after 0.4 s"),
        ("endless", "larger than 1 MiB"),
        ("announced", "larger than 1 MiB"),
        ("compressed", "compressed (gzip), which was not asked for"),
    ],
)
@pytest.mark.parametrize("client", ["ours", "SDK"])
def test_a_reply_without_bounds_ends_the_call(
    server: _Server, kind: str, words: str, client: str
) -> None:
    server.kind = kind
    options = (
        Ollama(base_url=server.url, model="m", timeout_seconds=TIMEOUT_SECONDS)
        if client == "ours"
        else Openai(
            base_url=server.url,
            model="m",
            timeout_seconds=TIMEOUT_SECONDS,
            dimensions=4,
            tokenizer_of="estimate",
        )
    )
    started = time.monotonic()
    with options.open(Path()) as model, pytest.raises(Unreachable) as caught:
        model.request("/api/embed", {}) if client == "ours" else model.embed(["a"], "document")
    assert time.monotonic() - started < PATIENCE
    assert kind in ("announced", "compressed") or server.hung_up.wait(PATIENCE)
    assert words in str(caught.value)
    assert set(server.encodings) == {"identity"}


def test_files_of_batch_jobs_are_not_bounded(server: _Server) -> None:
    import httpx2

    server.kind = "endless"
    with httpx2.Client(event_hooks=bounds.Bounds().hooks) as client:
        reply = client.post(f"{server.url}/v1/files/1/content")
    assert len(reply.content) == 200 * 65_536
