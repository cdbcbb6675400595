"""Buckets to test with: a real S3 server on loopback, and a proxy before it that has faults.

The server is moto. EMBEDDING_PIPELINES_TEST_S3 names the address of another one that runs already:
ministack, say, which is written independently of moto. It needs an environment of its own, since it pins
another version of boto's core: `BIND_HOST=127.0.0.1 GATEWAY_PORT=4599 SERVICES=s3,sqs ministack`.
"""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

# Moto answers many requests at once, and then lets two of them create one object: here it has its
# answers one after the other.
SERVER = """\
import sys, threading
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app, run_simple
application, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
def one_by_one(environ, start_response):
    with lock:
        return list(application(environ, start_response))
run_simple("127.0.0.1", int(sys.argv[1]), one_by_one, threaded=True, request_handler=MotoRequestHandler)
"""
OTHER_SERVER = "EMBEDDING_PIPELINES_TEST_S3"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATEST",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
    "AWS_REGION": "us-east-1",
}
SIGNED = (
    "AWS4-HMAC-SHA256 Credential=AKIATEST/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, "
    "Signature=0"
)


@contextlib.contextmanager
def serve_s3(log: Path) -> Iterator[str]:
    """The address of an empty S3 server of this process's own."""
    if address := os.environ.get(OTHER_SERVER):
        yield address
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-c", SERVER, port]
    with log.open("wb") as output:
        environment = {**os.environ, "MOTO_PORT": port}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()  # not SIGTERM, which a shell may have told all that it starts to ignore
        process.wait()


def request(address: str, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request with a signature that these servers do not check."""
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port)
    with contextlib.closing(connection):
        connection.request(method, quote(path), body, {"Authorization": SIGNED, **headers})
        response = connection.getresponse()
        content = response.read()
        assert response.status < 300, (method, path, response.status, content)
        return content


@dataclass(frozen=True)
class TestBucket:
    """A bucket that is written by plain requests, not by what is tested."""

    address: str
    name: str

    __test__ = False

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes | str) -> None:
        data = content.encode() if isinstance(content, str) else content
        request(self.address, "PUT", f"/{self.name}/{key}", data)

    def copy(self, key: str, to: str) -> None:
        source = {"x-amz-copy-source": quote(f"/{self.name}/{key}")}
        request(self.address, "PUT", f"/{self.name}/{to}", b"", **source)

    def delete(self, *keys: str) -> None:
        for key in keys:
            request(self.address, "DELETE", f"/{self.name}/{key}")


def new_bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> TestBucket:
    """A new bucket, which the environment says how to reach."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    name = f"bucket{time.time_ns()}"
    request(address, "PUT", f"/{name}")
    return TestBucket(address, name)


Fault = Callable[["Exchange"], bool]


@dataclass
class Exchange:
    """A request on its way through the proxy. A fault answers it in the server's place, and returns
    True, or changes something first."""

    number: int  # from 0, of all requests
    handler: BaseHTTPRequestHandler
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.handler.path

    def answer(self, status: int, body: bytes = b"", length: int | None = None) -> bool:
        """An answer; one that is shorter than its `length` ends in the middle."""
        self.handler.send_response(status)
        self.handler.send_header("Content-Length", str(len(body) if length is None else length))
        self.handler.end_headers()
        if self.handler.command != "HEAD":  # a body would be taken for the next answer
            self.handler.wfile.write(body)
        if length is not None:
            self.handler.close_connection = True
        return True

    def reset(self) -> bool:
        """The line breaks."""
        self.handler.connection.close()
        self.handler.close_connection = True
        return True


@dataclass
class Proxy:
    """Passes requests on to a server, but for what its `fault` does with them."""

    server: str
    fault: Fault = field(default=lambda _: False)
    address: str = ""
    paths: list[str] = field(default_factory=list)  # of all requests, with their method


@contextlib.contextmanager
def proxy_to(server: str, fault: Fault = lambda _: False) -> Iterator[Proxy]:
    proxy, lock, url = Proxy(server, fault), threading.Lock(), urlsplit(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError, ValueError):  # the other side hung up
                super().handle_one_request()

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                exchange = Exchange(len(proxy.paths), self, body)
                proxy.paths.append(f"{self.command} {self.path}")
            if proxy.fault(exchange):
                return
            connection = http.client.HTTPConnection(url.hostname or "", url.port)
            with contextlib.closing(connection):
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                content = response.read()
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = response.getheader("Content-Length") or str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        proxy.address = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            httpd.shutdown()
            thread.join()
