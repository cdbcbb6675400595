"""Whoever waits for an answer: work ends when they leave, or when their time is over."""

import asyncio
import contextlib
import math
import time
from collections.abc import Coroutine
from typing import Annotated, Any, ClassVar, TypeVar

from fastapi import Depends, Header, Request

from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import TIMEOUT_HEADER, DeadlineExceeded, ServingError

T = TypeVar("T")


class ClientLeft(ServingError):
    """The connection is closed: nobody reads this. The status is nginx's."""

    status: ClassVar[int] = 499


class Caller:
    """One request's sender, and how long they wait."""

    def __init__(self, request: Request, timeout_seconds: float | None) -> None:
        self._request, self.timeout_seconds = request, timeout_seconds
        self._deadline = time.monotonic() + (timeout_seconds or math.inf)

    @property
    def server(self) -> Server:
        server: Server = self._request.app.state.server
        return server

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the connection closes or the time is over.
        Raises DeadlineExceeded or ClientLeft then."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._leave())
        timeout = None if math.isinf(self._deadline) else max(0.0, self.seconds_left)
        try:
            await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            reason = "left" if gone.done() else "deadline"
            self.server.metrics.count("abandoned_total", reason=reason)
            if gone.done():
                raise ClientLeft("The client closed the connection.")
            raise DeadlineExceeded(
                f"{TIMEOUT_HEADER}: {self.timeout_seconds:g} seconds are over. What was not computed "
                "by then was given up. Allow more time, or send less."
            )
        finally:
            for each in (task, gone):
                if not each.done():
                    each.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await each

    async def _leave(self) -> None:
        """Returns when the connection is closed; the body has been read."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


async def _caller(  # in the event loop: a thread would take longer than the work
    request: Request,
    timeout_seconds: Annotated[
        float | None,
        Header(
            alias=TIMEOUT_HEADER,
            gt=0,
            le=3600,
            allow_inf_nan=False,
            description="Seconds after which you have no use for the answer: 504 then.",
        ),
    ] = None,
) -> Caller:
    return Caller(request, timeout_seconds)


AnyCaller = Annotated[Caller, Depends(_caller)]
