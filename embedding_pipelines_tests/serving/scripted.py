"""A server that answers, fails and breaks off as a script says."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = {
    "pipeline": "photos",
    "release": 2,
    "space_id": "abc",
    "query": "",
    "mode": "vector",
    "hits": [
        {
            "score": 0.9,
            "chunk_id": "cat.jpg#0",
            "document_id": "cat.jpg",
            "start": 0,
            "end": 5,
            "text": "a cat",
            "metadata": {"file": "cat.jpg"},
        }
    ],
    "milliseconds": 1.0,
}
BREAKS = "breaks"  # in a script: the connection ends without an answer
Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]] | str


class Script:
    """A server that gives these answers in turn, and has on record what it was sent."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                values = json.loads(body) if body else None
                script.requests.append((self.command, self.path, dict(self.headers), values))
                answer = script.answers.pop(0)
                if isinstance(answer, str):
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                status, content, *more = answer
                data = (
                    content.encode() if isinstance(content, str) else json.dumps(content).encode()
                )
                self.send_response(status)
                for name, value in (more[0] if more else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = handle_one

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@contextlib.contextmanager
def scripted() -> Iterator[Script]:
    """It must have given all of its answers in the end."""
    script = Script()
    thread = threading.Thread(target=script.server.serve_forever, args=(0.01,))
    thread.start()
    yield script
    script.server.shutdown()
    thread.join()
    script.server.server_close()
    assert not script.answers
