"""A real server on loopback: uvicorn in a thread of this process, so that a test sees its inside."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from embedding_pipelines.serving.auth import Keys
from embedding_pipelines.serving.process import Process
from embedding_pipelines.serving.server import Server


@contextlib.contextmanager
def live(home: Path, key: str | None = None) -> Iterator[tuple[str, Server, Process]]:
    """Its address, what it has open, and its process; closed in the end."""
    ready, address = threading.Event(), list[str]()

    def on_ready(text: str) -> None:
        address.append(text)
        ready.set()

    server = Server(home, Keys(key))
    process = Process(server, "127.0.0.1", 0, on_ready)
    thread = threading.Thread(target=process.run)
    thread.start()
    try:
        assert ready.wait(60)
        yield address[0], server, process
    finally:
        process.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def wait_until(condition: object, seconds: float = 20) -> None:
    """Until a function without arguments gives something true."""
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)
