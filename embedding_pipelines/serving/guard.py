"""What every request passes on its way in and out: it is counted, and must not be endless."""

import asyncio
import time
from typing import Any

from fastapi.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_pipelines.serving.server import Server

BODY_SECONDS = 60.0  # in which a body has to come
MAX_BODY_BYTES = 32 << 20
TOO_LARGE = f"The body is too large: {MAX_BODY_BYTES >> 20} MB at most. Send it in parts."


class Guard:
    """ASGI middleware around all routes; `direct_paths` are answered by none of them."""

    def __init__(self, app: ASGIApp, server: Server, direct_paths: frozenset[str]) -> None:
        self._app, self._server, self._direct_paths = app, server, direct_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, is_whole = time.perf_counter(), 500, False
        size, declared = 0, dict(scope["headers"]).get(b"content-length", b"")

        async def receive_in_time() -> Message:
            nonlocal is_whole, size
            if is_whole:
                return await receive()
            if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
                raise HTTPException(413, TOO_LARGE)
            left = BODY_SECONDS - (time.perf_counter() - started)
            try:
                async with asyncio.timeout(left):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"The body did not come within {BODY_SECONDS:g} seconds. Send it faster."
                ) from None
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                raise HTTPException(413, TOO_LARGE)
            is_whole = not message.get("more_body", False)
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._server.is_draining:  # the next request goes elsewhere
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, receive_in_time, send_and_note)
        finally:
            path = scope["path"] if scope["path"] in self._direct_paths else _path(scope)
            self._server.metrics.request(path, status, time.perf_counter() - started)


def _path(scope: dict[str, Any] | Any) -> str:
    """The route's path, so that there are as many labels as routes."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))
