"""The process of a server: uvicorn, the line that says it is ready, and an end without a loss."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from embedding_pipelines.serving.api import create_app, serving_reply
from embedding_pipelines.serving.container import INVOCATIONS, Container
from embedding_pipelines.serving.door import Door
from embedding_pipelines.serving.routes import embeddings
from embedding_pipelines.serving.server import Server

# After SIGTERM: how long `/ready` says 503 while requests are still taken, so that whoever sends
# them learns of it, and how long those that are out may take. Together less than the 30 seconds
# after which SageMaker and Kubernetes kill.
NOTICE_SECONDS, FINISH_SECONDS = 3.0, 22


class Process(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C; `on_ready` is given the address once models are loaded."""

    def __init__(
        self,
        server: Server,
        host: str,
        port: int,
        on_ready: Callable[[str], None],
        is_container: bool = False,
    ) -> None:
        self.served, self._on_ready, self._ends_at = server, on_ready, float("inf")
        self._accepting = set[asyncio.Task[tuple[asyncio.Transport, asyncio.Protocol]]]()
        app, paths = create_app(server), {INVOCATIONS} if is_container else embeddings.DIRECT.keys()
        door = partial(Door, server=server, paths=frozenset(paths), refuse=serving_reply)
        super().__init__(
            uvicorn.Config(
                Container(app) if is_container else app,
                host=host,
                port=port,
                http=door,  # type: ignore[arg-type]  # which is called as the class is
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=FINISH_SECONDS,
            )
        )

    async def main_loop(self) -> None:
        telling = asyncio.create_task(self._tell())
        loop, listening = asyncio.get_running_loop(), list[socket.socket]()
        if type(loop).__module__.startswith("uvloop"):
            sockets = [each for server in self.servers for each in server.sockets]
            listening = [socket.socket(fileno=os.dup(each.fileno())) for each in sockets]
        for each in listening:
            loop.add_reader(each, self._accept, each)
        try:
            await super().main_loop()
        finally:
            telling.cancel()
            for each in listening:
                loop.remove_reader(each)
                each.close()

    def _accept(self, listening: socket.socket) -> None:
        """Take all connections that wait. uvloop takes one in each turn of the event loop: when
        turns are long, a new caller would wait for seconds where nobody counts it."""
        loop = asyncio.get_running_loop()
        # No more wait, or no more can be open: what uvloop does then is done by uvloop.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                connection.setblocking(False)
                task = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
                self._accepting.add(task)
                task.add_done_callback(self._accepting.discard)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def _tell(self) -> None:
        await self.served.wait_until_ready()
        host, port, *_ = self.servers[0].sockets[0].getsockname()
        self._on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """At SIGTERM give notice first; at Ctrl-C, or the second signal, end at once."""
        if sig == signal.SIGTERM and not self.served.is_draining:
            self.served.is_draining = True
            self._ends_at = time.monotonic() + NOTICE_SECONDS
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or time.monotonic() >= self._ends_at
        return await super().on_tick(counter)
