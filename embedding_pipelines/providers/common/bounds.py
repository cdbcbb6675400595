"""Bounds of a service's reply: how long its body may take, and how large it may be.

HTTP's own timeout counts from one packet to the next: a service that sends a byte now and then
would hold a call for ever, and one that never stops sending would fill the memory.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx2

# 2,048 vectors of 4,096 numbers are 185 MB as JSON; no service gives more in one reply.
MAX_REPLY_BYTES = 256 * 2**20
HEADERS = {"accept-encoding": "identity"}  # a small compressed reply can be a very large one
STREAMED = "/content"  # the end of a path: files of batch jobs, which are read line by line


def bound(reply: "httpx2.Response") -> None:
    """For a client's `event_hooks`: reading the reply's body raises httpx2.ReadTimeout once it has
    taken longer than the request's own timeout, and httpx2.ReadError if it is larger than
    MAX_REPLY_BYTES or compressed."""
    import httpx2

    if reply.request.url.path.endswith(STREAMED):
        return
    encoding = reply.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise httpx2.ReadError(f"the reply is compressed ({encoding}), which was not asked for")
    if int(reply.headers.get("content-length", 0)) > MAX_REPLY_BYTES:
        raise _too_large()
    timeout = reply.request.extensions.get("timeout", {}).get("read")
    stream: Any = reply.stream

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            started, size = time.monotonic(), 0
            for part in stream:
                size += len(part)
                if size > MAX_REPLY_BYTES:
                    raise _too_large()
                if timeout is not None and time.monotonic() - started > timeout:
                    raise httpx2.ReadTimeout(
                        f"the reply was not complete after {timeout:g} s ({size:,} bytes came)"
                    )
                yield part

        def close(self) -> None:
            stream.close()

    reply.stream = Bounded()


def _too_large() -> Exception:
    import httpx2

    return httpx2.ReadError(f"the reply is larger than {MAX_REPLY_BYTES >> 20} MiB")
