"""A real HTTP server on loopback that speaks a provider's documented format, and fails as it does.

A test gives it a `Dialect`: how a request is read, and how vectors and errors are written. Faults
are taken from a queue, one per request, or drawn at random by `chance`. It keeps account of every
text that it was paid for.
"""

import json
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.providers.hashing import Hashing

Vectors = NDArray[np.float32]
Body = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of the right answer. `kind`:

    status    an HTTP error `status`, as the dialect words it, with `headers`
    reset     the connection is torn down, nothing was computed
    drip      the right answer, a few bytes at a time, over `seconds`
    fewer     200 with one vector too few
    reversed  the right vectors in another order (the index, where there is one, still says whose)
    nan       200, one row is NaN
    zero      200, one row is zero
    alike     200, all rows are the same vector
    short     200, vectors of half the dimensions
    inside    200 with an error in it
    """

    kind: str
    status: int = 429
    message: str = "Rate limit reached."
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.3


@dataclass(frozen=True)
class Dialect:
    """One provider's wire format."""

    path: str
    texts: Callable[[Body], list[str]]  # of a request
    answer: Callable[
        [Body, Vectors, list[int]], Any
    ]  # request, vectors, index of each; the reply's JSON
    error: Callable[[int, str], Any]  # status and message; the error's JSON
    key_header: str = "authorization"
    key: str | None = None  # the header's value that is let in; None: anyone
    others: Mapping[str, Callable[[Body], Any]] = field(
        default_factory=dict
    )  # other paths, e.g. /info


class WireServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, dialect: Dialect, dimensions: int, latency_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dialect, self.dimensions, self.latency_seconds = dialect, dimensions, latency_seconds
        self.faults: deque[Fault] = deque()
        self.chance: Callable[[random.Random], Fault | None] = lambda _: None
        self.poisoned: Callable[[str], str | None] = lambda _: None  # a text's own fault, as a 400
        self.most_texts: int | None = None  # of a request; a larger one gets a 413
        self.requests: list[Body] = []
        self.times: list[float] = []
        self.billed: Counter[str] = Counter()  # texts answered with 200
        self.headers: list[dict[str, str]] = []
        self._random, self._lock = random.Random(0), threading.Lock()
        self._hashing = Hashing(dimensions=dimensions).open(Path())
        self.models = ExitStack()

    def open(self, options: ProviderOptions) -> Any:
        """The live model; it is closed when the server ends."""
        return self.models.enter_context(options.open(Path()))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def vectors(self, texts: list[str]) -> Vectors:
        """float32[n, dimensions], unit length; near texts get near vectors."""
        return self._hashing.embed(texts, "document").vectors

    def draw(self) -> Fault | None:
        with self._lock:
            return self.faults.popleft() if self.faults else self.chance(self._random)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: WireServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        dialect, server = self.server.dialect, self.server
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        if self.path in dialect.others:
            return self._send(200, dialect.others[self.path](body))
        if self.path != dialect.path:
            return self._send(404, dialect.error(404, f"no such path: {self.path}"))
        if dialect.key is not None and self.headers.get(dialect.key_header) != dialect.key:
            return self._send(401, dialect.error(401, "invalid or expired key"))
        with server._lock:
            server.requests.append(body)
            server.times.append(time.monotonic())
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
        texts, fault = dialect.texts(body), server.draw()
        if fault is not None and fault.kind == "status":
            return self._send(
                fault.status, dialect.error(fault.status, fault.message), fault.headers
            )
        if server.most_texts is not None and len(texts) > server.most_texts:
            return self._send(413, dialect.error(413, "Payload too large."))
        if fault is not None and fault.kind == "reset":
            self.close_connection = True
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
            )
            return self.connection.close()
        faults = [words for text in texts if (words := server.poisoned(text)) is not None]
        if faults:
            return self._send(400, dialect.error(400, faults[0]))
        if fault is not None and fault.kind == "inside":
            return self._send(200, dialect.error(500, fault.message))
        time.sleep(server.latency_seconds)
        with server._lock:
            server.billed.update(texts)
        vectors, order = _spoilt(server.vectors(texts), fault)
        drip = fault.seconds if fault is not None and fault.kind == "drip" else 0.0
        return self._send(200, dialect.answer(body, vectors, order), drip_seconds=drip)

    def _send(
        self,
        status: int,
        value: Any,
        headers: Mapping[str, str] | None = None,
        drip_seconds: float = 0.0,
    ) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        parts = 10 if drip_seconds else 1
        size = -(-len(content) // parts)
        for start in range(0, len(content), size):
            self.wfile.write(content[start : start + size])
            self.wfile.flush()
            time.sleep(drip_seconds / parts)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _spoilt(vectors: Vectors, fault: Fault | None) -> tuple[Vectors, list[int]]:
    order = list(range(len(vectors)))
    kind = fault.kind if fault is not None else ""
    if kind == "fewer":
        return vectors[:-1], order[:-1]
    if kind == "reversed":
        return vectors[::-1], order[::-1]
    if kind == "short":
        return vectors[:, : vectors.shape[1] // 2], order
    if kind == "alike":
        return np.repeat(vectors[:1], len(vectors), axis=0), order
    if kind in ("nan", "zero"):
        vectors[len(vectors) // 2] = np.nan if kind == "nan" else 0
    return vectors, order


@contextmanager
def serve(
    dialect: Dialect, dimensions: int = 64, latency_seconds: float = 0.0
) -> Iterator[WireServer]:
    """A running server; ended when the block ends."""
    server = WireServer(dialect, dimensions, latency_seconds)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.models.close()
        server.shutdown()
        server.server_close()
        thread.join()
