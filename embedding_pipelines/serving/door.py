"""What would be answered too late is refused here, before it costs anything: its head is not parsed,
its key not checked, its route not looked up, its body not read.

At four times what a server can do, three of four requests are refused, and what each of them takes is
taken from the fourth: a refusal may cost a sixteenth of an answer, or goodput is less than 0.8 of the
peak. That holds for single texts, which wait for the interactive lane of the one model. All else may
wait elsewhere (several texts, a search, texts to rank), or is not plain (a body in chunks or not here
as a whole, a pipelined request, a head in parts, anything that two servers might read in two ways): it
goes the usual way, and is refused where its texts are (`Worker.admit`).

Who has left can be told here before the event loop learns of it (`is_open`): a batch of the
model is taken in one turn of the loop, in which a thousand clients may have closed their connections.

A head also has to come in HEAD_SECONDS, for which uvicorn would wait for ever. Its protocol is not a
public class: pyproject.toml takes the versions that this was tested with.
"""

import asyncio
import math
import re
import select
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from embedding_pipelines.serving.callers import CONNECTION
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import TIMEOUT_HEADER, TooManyRequests, timeout_of

POST, HTTP = b"POST ", b" HTTP/1.1\r\n"
# Lines as RFC 9112 has them and no other: a head that is refused here passes no parser, and whoever
# stands in front must see the end of its body in the same place.
LINES = re.compile(
    rb"POST [!-~]+ HTTP/1\.1\r\n(?:[\w!#$%&'*+.^`|~-]+:[^\x00-\x08\n-\x1f\x7f]*\r\n)+"
)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,15}) *(?=\r\n)")
TIMEOUT = re.compile(rb"\r\n%s: *([^\r\n]*)" % TIMEOUT_HEADER.lower().encode())
UNUSUAL = re.compile(
    rb"\r\n(?:transfer-encoding|expect|upgrade|connection:[^\r]*(?:close|upgrade))"
)
TEXT = rb'"(?:[^"\\]|\\.)*+"'
SINGLE = re.compile(rb'"input"\s*:\s*"|"(?:input|texts)"\s*:\s*\[\s*%s\s*\]' % TEXT, re.DOTALL)
HEAD_SECONDS = 60.0  # in which a head has to come
HUNG_UP = getattr(select, "POLLRDHUP", None)  # Linux's; elsewhere the event loop is waited for


class Door(HttpToolsProtocol):
    """One connection. `paths` are those that give vectors; `refuse` writes a reply."""

    def __init__(
        self,
        *arguments: Any,
        server: Server,
        paths: frozenset[str],
        refuse: Callable[[TooManyRequests], Response],
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._served, self._paths, self._refusal = server, paths, refuse
        self._is_between = True  # two requests: the parser waits for the head of the next
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._is_between = False
        if self._head_timer is None:
            self._await_head()
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: {"is_open": partial(is_open, self.transport)}}

    def on_headers_complete(self) -> None:
        self._end_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_between = True
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        is_idle = self._is_between and (self.cycle is None or self.cycle.response_complete)
        if not (is_idle and self._refuses(data)):
            super().data_received(data)

    def _refuses(self, data: bytes) -> bool:
        """Whether `data` is a request that was refused."""
        started, end = time.perf_counter(), data.find(b"\r\n\r\n")
        if end < 0 or not data.startswith(POST) or self.flow.write_paused:
            return False
        path = data[len(POST) : max(0, data.find(HTTP, 0, end + 2))].decode("latin-1")
        if path not in self._paths or self._served.is_draining:
            return False
        head = data[: end + 2].lower()
        length, timeout = LENGTH.search(head), TIMEOUT.search(head)
        is_plain = head.count(b"\r\ncontent-length:") == 1 and LINES.fullmatch(data, 0, end + 2)
        if length is None or not is_plain or UNUSUAL.search(head):
            return False
        is_whole = len(data) == end + 4 + int(length[1])  # and nothing follows
        if not is_whole or SINGLE.search(data, end + 4) is None:
            return False
        seconds = timeout_of(timeout[1].decode("latin-1")) if timeout else None
        try:
            self._served.admit(seconds or math.inf)
        except TooManyRequests as error:
            self._write(self._refusal(error))
            self._served.metrics.request(path, 429, time.perf_counter() - started)
            return True
        return False

    def _write(self, reply: Response) -> None:
        """Send a reply; the connection may be used again for as long as after any other."""
        headers = [*self.server_state.default_headers, *reply.raw_headers]
        lines = [b"HTTP/1.1 429 Too Many Requests", *(b": ".join(each) for each in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(reply.body)]))
        self._end_timer()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._end_headless)

    def _end_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_headless(self) -> None:
        """Close the connection, unless the request before is still being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()
        else:
            self.transport.close()


def is_open(transport: asyncio.Transport) -> bool:
    """Whether the other end of a connection is there, as far as the kernel knows. One that has closed
    its own side alone has left: so uvicorn sees it, too."""
    if transport.is_closing():  # its number may be another connection's by now
        return False
    if HUNG_UP is None:
        return True
    look = select.poll()
    look.register(transport.get_extra_info("socket").fileno(), HUNG_UP)
    return not look.poll(0)  # nothing is read: it is for the event loop to read
