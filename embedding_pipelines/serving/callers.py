"""Whoever waits for an answer: work ends when they leave, or when their time is over."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request

from embedding_pipelines.serving.auth import principals_of
from embedding_pipelines.serving.lanes import Recipient
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import (
    MAX_TIMEOUT_SECONDS,
    TIMEOUT_HEADER,
    ClientLeft,
    DeadlineExceeded,
    timeout_of,
)

T = TypeVar("T")


# What an ASGI server adds to a request's scope, below `extensions`: under `is_open` a function that
# says whether the connection is open, without waiting for the event loop to learn of it.
CONNECTION = "embedding_pipelines.connection"


class Caller(Recipient):
    """One request's sender, and how long they wait."""

    def __init__(self, request: Request, timeout_seconds: float | None) -> None:
        self._request, self.timeout_seconds = request, timeout_seconds
        self._deadline = time.monotonic() + (timeout_seconds or math.inf)
        connection = request.scope.get("extensions", {}).get(CONNECTION, {})
        self._is_open: Callable[[], bool] | None = connection.get("is_open")

    @property
    def server(self) -> Server:
        server: Server = self._request.app.state.server
        return server

    @property
    def principals(self) -> tuple[str, ...] | None:
        """For whom it reads. Raises as `auth.principals_of`."""
        return principals_of(self._request)

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    @property
    def is_here(self) -> bool:
        return self._is_open is None or self._is_open()

    @classmethod
    def of(cls, request: Request) -> "Caller | None":
        """The sender of a request; None where its header is for FastAPI to complain of."""
        text = request.headers.get(TIMEOUT_HEADER)
        seconds = None if text is None else timeout_of(text)
        return None if seconds is None and text is not None else cls(request, seconds)

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the connection closes or the time is over.
        Raises DeadlineExceeded or ClientLeft then."""
        timeout = None if math.isinf(self._deadline) else max(0.0, self.seconds_left)
        watch = asyncio.timeout(timeout)
        gone = asyncio.ensure_future(self._leave(watch))
        try:
            async with watch:
                return await work
        except ClientLeft:  # as the lane saw, before the event loop did
            self._count("left")
            raise
        except TimeoutError:
            if not watch.expired():  # it is one of `work`
                raise
            if gone.done():
                self._count("left")
                raise ClientLeft from None
            self._count("deadline")
            raise DeadlineExceeded(
                f"{TIMEOUT_HEADER}: {self.timeout_seconds:g} seconds are over. What was not computed "
                "by then was given up. Allow more time, or send less."
            ) from None
        finally:
            gone.cancel()

    def _count(self, reason: str) -> None:
        self.server.metrics.count("abandoned_total", reason=reason)

    async def _leave(self, watch: asyncio.Timeout) -> None:
        """Ends `watch` when the connection is closed; the body has been read."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        watch.reschedule(asyncio.get_running_loop().time())


async def _caller(  # in the event loop: a thread would take longer than the work
    request: Request,
    timeout_seconds: Annotated[
        float | None,
        Header(
            alias=TIMEOUT_HEADER,
            gt=0,
            le=MAX_TIMEOUT_SECONDS,
            allow_inf_nan=False,
            description="Seconds after which you have no use for the answer: 504 then.",
        ),
    ] = None,
) -> Caller:
    return Caller(request, timeout_seconds)


AnyCaller = Annotated[Caller, Depends(_caller)]
