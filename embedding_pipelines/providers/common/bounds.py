"""Bounds of one call to a service: how long it may take, and how large its reply may be.

HTTP's own timeout counts from one packet to the next: a service that sends a byte of its headers or
its body now and then would hold a call for ever, and one that never stops sending would fill the
memory.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx2

# 2,048 vectors of 4,096 numbers are 185 MB as JSON; no service gives more in one reply.
MAX_REPLY_BYTES = 256 * 2**20
HEADERS = {"accept-encoding": "identity"}  # a small compressed reply can be a very large one
STREAMED = "/content"  # the end of a path: files of batch jobs, which are read line by line
OPENED = ("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")


class Bounds:
    """The bounds of one client's calls, each of which stays in its thread from request to reply."""

    def __init__(self) -> None:
        self._call = threading.local()

    @property
    def hooks(self) -> dict[str, list[Callable[..., Any]]]:
        """A client's `event_hooks`: a call raises httpx2.ReadTimeout once it has taken longer than
        the request's own timeout, and httpx2.ReadError for a reply that is larger than
        MAX_REPLY_BYTES or compressed."""
        return {"request": [self._begin], "response": [_bound_size]}

    def _begin(self, request: "httpx2.Request") -> None:
        seconds = request.extensions.get("timeout", {}).get("read")
        if seconds is None or _is_streamed(request):
            seconds = math.inf
        self._call.seconds, self._call.end = seconds, time.monotonic() + seconds
        request.extensions["trace"] = self._trace

    def _trace(self, event: str, values: dict[str, Any]) -> None:
        """A connection, which later calls use too, lets nothing take longer than the call of its
        thread may."""
        if event.endswith(OPENED):
            stream = values["return_value"]
            stream.read, stream.write = self._bounded(stream.read), self._bounded(stream.write)

    def _bounded(self, move: Callable[..., Any]) -> Callable[..., Any]:
        """`read` or `write` of a connection, within the time that the call has left."""
        import httpx2

        def bounded(what: Any, timeout: float | None = None) -> Any:
            end = self._call.end
            left = end - time.monotonic()
            try:
                if left > 0:
                    return move(what, min(left, math.inf if timeout is None else timeout))
            except Exception:
                if time.monotonic() < end:
                    raise
            raise httpx2.ReadTimeout(f"the reply was not complete after {self._call.seconds:g} s")

        return bounded


def _bound_size(reply: "httpx2.Response") -> None:
    import httpx2

    if _is_streamed(reply.request):
        return
    encoding = reply.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise httpx2.ReadError(f"the reply is compressed ({encoding}), which was not asked for")
    if int(reply.headers.get("content-length", 0)) > MAX_REPLY_BYTES:
        raise _too_large()
    stream: Any = reply.stream

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in stream:
                size += len(part)
                if size > MAX_REPLY_BYTES:
                    raise _too_large()
                yield part

        def close(self) -> None:
            stream.close()

    reply.stream = Bounded()


def _is_streamed(request: "httpx2.Request") -> bool:
    return bool(request.url.path.endswith(STREAMED))


def _too_large() -> Exception:
    import httpx2

    return httpx2.ReadError(f"the reply is larger than {MAX_REPLY_BYTES >> 20} MiB")
