"""OpenAI's Batch interface on loopback, as documented: files, batches, results, and direct requests
beside them.

A batch stays `in_progress` until a test ends it. What becomes of a text is said by `fate`; what
becomes of a request by `faults`, a queue per step. The server keeps account of every text that it
was paid for, batch or not.
"""

import base64
import email.parser
import email.policy
import json
import re
import socket
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.providers.hashing import Hashing

Body = dict[str, Any]

STEPS = {  # method and path of each
    "upload": ("POST", re.compile(r"/v1/files")),
    "create": ("POST", re.compile(r"/v1/batches")),
    "list": ("GET", re.compile(r"/v1/batches")),
    "retrieve": ("GET", re.compile(r"/v1/batches/([^/]+)")),
    "content": ("GET", re.compile(r"/v1/files/([^/]+)/content")),
    "embed": ("POST", re.compile(r"/v1/embeddings")),
}
HIGHEST_PAGE = 100
CREATED_AT = 1_767_225_600


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of the right answer. `kind`:

    status  an HTTP error `status` with `headers`; nothing was done
    reset   the connection is torn down; nothing was done
    deaf    what was asked for is done, then the connection is torn down
    page    what was asked for is done, and answered with a page of HTML
    cut     the right answer, torn off in the middle
    """

    kind: str
    status: int = 500
    message: str = "The server had an error."
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Stored:
    """A batch as its JSON stands, and the lines of its file."""

    shown: Body
    lines: list[Body]

    def texts(self) -> list[str]:
        return [line["body"]["input"][0] for line in self.lines]


class BatchServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, dimensions: int, key: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dimensions, self.key = dimensions, key
        self.fate: Callable[[str], str | None] = lambda text: None
        """Of a text in a batch; None: it is answered. refused: 400; broken: 500; lost: nobody came
        to it; unnamed: it is in no file; junk: its line is no JSON; stranger: its line has an id
        that nobody gave; empty: 200 without a vector; nan, zero, short: its vector is that; alike:
        it is the vector of all others of this fate."""
        self.refuses: Callable[[str], bool] = lambda text: (
            False
        )  # of a text in a direct request: 400
        self.page_size = HIGHEST_PAGE
        self.faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.asked: Counter[str] = Counter()  # requests by step
        self.direct: list[str] = []  # texts of direct requests
        self.billed: Counter[str] = Counter()
        self.keys: set[str | None] = set()  # headers `authorization`
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Stored] = {}
        self._number, self.lock = 0, threading.Lock()
        self.models = ExitStack()

    def open(self, options: ProviderOptions) -> Any:
        """The live model; it is closed when the server ends."""
        return self.models.enter_context(options.open(Path()))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def out(self) -> list[str]:
        """Batches that have not ended, oldest first."""
        return [
            name for name, batch in self.batches.items() if batch.shown["status"] == "in_progress"
        ]

    def finish(self, name: str, status: str | None = None, count: int | None = None) -> None:
        """End a batch: the first `count` texts (all) get their fate, the others are lost."""
        batch = self.batches[name]
        batch.shown["status"] = "finalizing"
        outcomes = [self._outcome(line, number, count) for number, line in enumerate(batch.lines)]
        answered = [line for line, is_error in outcomes if line and not is_error]
        failed = [line for line, is_error in outcomes if line and is_error]
        lost = any(b"batch_expired" in line for line in failed)
        tokens = sum(
            len(text.split())
            for text in batch.texts()[:count]
            if self.fate(text) not in ("refused", "lost")
        )
        batch.shown |= {
            "output_file_id": self._stored(answered) if answered else None,
            "error_file_id": self._stored(failed) if failed else None,
            "request_counts": {
                "total": len(batch.lines),
                "completed": len(answered),
                "failed": len(failed),
            },
            "usage": {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens},
            "status": status or ("expired" if lost else "completed"),
        }

    def finish_all(self) -> None:
        for name in self.out:
            self.finish(name)

    def fail(self, name: str, message: str) -> None:
        """Refuse a batch as a whole."""
        errors = [{"code": "invalid", "line": None, "message": message, "param": None}]
        self.batches[name].shown |= {
            "status": "failed",
            "errors": {"object": "list", "data": errors},
        }

    def vector(self, text: str) -> Any:
        """float32[dimensions], unit length; near texts get near vectors."""
        return Hashing(dimensions=self.dimensions).open(Path()).embed([text], "document").vectors[0]

    def submitted(self) -> Counter[str]:
        """How often each text is in a batch."""
        return Counter(text for batch in self.batches.values() for text in batch.texts())

    def upload(self, content: bytes) -> Body:
        name = self._stored([content])
        return self._file(name, "texts.jsonl", "batch")

    def create(self, wanted: Body) -> Body:
        assert wanted.keys() == {"input_file_id", "endpoint", "completion_window", "metadata"}
        lines = [
            json.loads(line) for line in self.files[wanted["input_file_id"]].split(b"\n") if line
        ]
        name = self._name("batch")
        shown = {
            "id": name,
            "object": "batch",
            "endpoint": wanted["endpoint"],
            "errors": None,
            "input_file_id": wanted["input_file_id"],
            "completion_window": wanted["completion_window"],
            "status": "in_progress",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": CREATED_AT + self._number,
            "metadata": wanted["metadata"],
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        self.batches[name] = Stored(shown, lines)
        if (fault := _invalid(lines)) is not None:
            self.fail(name, fault)
        return shown

    def page(self, after: str | None, limit: int) -> Body:
        """The newest first."""
        names = list(reversed(self.batches))
        first = names.index(after) + 1 if after else 0
        part = names[first : first + min(limit, self.page_size)]
        data = [self.batches[name].shown for name in part]
        ends = (
            {"first_id": part[0], "last_id": part[-1]}
            if part
            else {"first_id": None, "last_id": None}
        )
        return {"object": "list", "data": data, **ends, "has_more": first + len(part) < len(names)}

    def answer(self, body: Body, vectors: list[Any]) -> Body:
        rows = [base64.b64encode(np.asarray(row, "<f4").tobytes()).decode() for row in vectors]
        data = [
            {"object": "embedding", "index": at, "embedding": row} for at, row in enumerate(rows)
        ]
        tokens = sum(len(text.split()) for text in body["input"])
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": body["model"], "usage": usage}

    def _outcome(self, line: Body, number: int, count: int | None) -> tuple[bytes, bool]:
        """A line of a result, and whether it belongs in the file of errors; empty for none."""
        (text,) = line["body"]["input"]
        fate = self.fate(text) if count is None or number < count else "lost"
        if fate == "unnamed":
            return b"", False
        result: Body = {
            "id": self._name("batch_req"),
            "custom_id": line["custom_id"],
            "response": None,
            "error": None,
        }
        if fate == "lost":
            result["error"] = {
                "code": "batch_expired",
                "message": "This request could not be executed in time.",
            }
            return _line(result), True
        if fate in ("refused", "broken"):
            status = 400 if fate == "refused" else 500
            result["response"] = self._response(
                status, {"error": {"message": f"It is {fate}.", "code": None}}
            )
            return _line(result), True
        self.billed[text] += 1
        if fate == "junk":
            return b'{"id": "batch_req_' + b"\n", False
        vector = self.vector("the same" if fate == "alike" else text)
        if fate in ("nan", "zero"):
            vector = np.full(self.dimensions, np.nan if fate == "nan" else 0.0, np.float32)
        reply = self.answer(
            line["body"], [vector[: self.dimensions // 2] if fate == "short" else vector]
        )
        result["response"] = self._response(
            200, {**reply, "data": []} if fate == "empty" else reply
        )
        if fate == "stranger":
            result["custom_id"] = "request-1"
        return _line(result), False

    def _response(self, status: int, body: Body) -> Body:
        return {"status_code": status, "request_id": self._name("req"), "body": body}

    def _stored(self, lines: list[bytes]) -> str:
        name = self._name("file")
        self.files[name] = b"".join(lines)
        return name

    def _file(self, name: str, filename: str, purpose: str) -> Body:
        size = len(self.files[name])
        shown = {
            "id": name,
            "object": "file",
            "bytes": size,
            "created_at": CREATED_AT + self._number,
        }
        return {
            **shown,
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
            "expires_at": None,
        }

    def _name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}_{self._number:06d}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


def _line(result: Body) -> bytes:
    return json.dumps(result).encode() + b"\n"


def _invalid(lines: list[Body]) -> str | None:
    """What the service would say of a file that it does not take."""
    if not lines:
        return "The file is empty."
    if len({line["custom_id"] for line in lines}) != len(lines):
        return "The custom_id is not unique."
    for line in lines:
        if line.keys() != {"custom_id", "method", "url", "body"} or (
            line["method"],
            line["url"],
        ) != (
            "POST",
            "/v1/embeddings",
        ):
            return f"A line is no request: {sorted(line)}."
        if not {"model", "input"} <= line["body"].keys() or not line["body"]["input"][0]:
            return "A body is no request for embeddings."
    return None


class _Handler(BaseHTTPRequestHandler):
    server: BatchServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        with self.server.lock:
            self._answer(content)

    def do_POST(self) -> None:
        self.do_GET()

    def _answer(self, content: bytes) -> None:
        path = urlsplit(self.path).path
        steps = ((step, found) for step, (method, route) in STEPS.items() if method == self.command
                 for found in [route.fullmatch(path)] if found)  # fmt: skip
        step, found = next(steps, ("", None))
        if found is None:
            return self._error(404, f"Invalid URL ({self.command} {path}).")
        server = self.server
        server.asked[step] += 1
        server.keys.add(self.headers.get("authorization"))
        if server.key is not None and self.headers.get("authorization") != f"Bearer {server.key}":
            shown = (self.headers.get("authorization") or "").removeprefix("Bearer ")
            return self._error(401, f"Incorrect API key provided: {shown}.")
        fault = server.faults[step].popleft() if server.faults[step] else None
        if fault is not None and fault.kind == "status":
            return self._error(fault.status, fault.message, fault.headers)
        if fault is not None and fault.kind == "reset":
            return self._reset()
        status, reply = self._done(step, found, content)
        if fault is not None and fault.kind == "deaf":
            return self._reset()
        if fault is not None and fault.kind == "page":
            return self._send(200, b"<html>Gateway of the hotel</html>", content_type="text/html")
        return self._send(status, reply, is_cut=fault is not None and fault.kind == "cut")

    def _done(self, step: str, found: re.Match[str], content: bytes) -> tuple[int, bytes]:
        """The right answer to a request."""
        server = self.server
        if step == "upload":
            return _json(server.upload(self._uploaded(content)))
        if step == "create":
            return _json(server.create(json.loads(content)))
        if step == "list":
            query = parse_qs(urlsplit(self.path).query)
            return _json(
                server.page(query.get("after", [None])[0], int(query.get("limit", ["20"])[0]))
            )
        if step == "retrieve":
            if found[1] not in server.batches:
                return _json(_error(f"No batch found with id '{found[1]}'."), 404)
            return _json(server.batches[found[1]].shown)
        if step == "content":
            if found[1] not in server.files:
                return _json(_error(f"No such File object: {found[1]}"), 404)
            return 200, server.files[found[1]]
        body = json.loads(content)
        server.direct += body["input"]
        if any(map(server.refuses, body["input"])):
            return _json(_error("It is not to be said."), 400)
        server.billed.update(body["input"])
        return _json(server.answer(body, [server.vector(text) for text in body["input"]]))

    def _uploaded(self, content: bytes) -> bytes:
        """The file of a form, which has to say what it is for."""
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
        parts = {
            part.get_param("name", header="content-disposition"): part for part in form.iter_parts()
        }
        assert parts.keys() == {"file", "purpose"}
        assert parts["purpose"].get_payload(decode=True) == b"batch"
        file = parts["file"].get_payload(decode=True)
        assert isinstance(file, bytes)
        return file

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        self.connection.close()

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(_error(message)).encode(), headers)

    def _send(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        is_cut: bool = False,
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(content)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if is_cut else content)
        if is_cut:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _json(value: Body, status: int = 200) -> tuple[int, bytes]:
    return status, json.dumps(value).encode()


def _error(message: str) -> Body:
    return {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    }


@contextmanager
def serve_batches(dimensions: int = 64, key: str | None = None) -> Iterator[BatchServer]:
    """A running server; ended when the block ends."""
    server = BatchServer(dimensions, key)
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
