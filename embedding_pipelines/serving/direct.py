"""The short way of a request to its function, for paths that many small requests are sent to."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, get_type_hints

from fastapi import Request, Response
from pydantic import ValidationError
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_pipelines.serving.auth import authorize
from embedding_pipelines.serving.callers import Caller
from embedding_pipelines.serving.wire import Body, ClientLeft

Function = Callable[..., Coroutine[Any, Any, Response]]  # of `body`, a `Body`, and `caller`


class Direct:
    """ASGI middleware in front of all routes, for POSTs to `functions` by path with keys that may
    read.

    FastAPI finds route, dependencies and arguments of any function, which takes longer than the
    embedding of a short text may. Here the path is looked up, the key is checked, and the body is
    read by its model. What is wrong with a request is for the route of the same function to say: it
    is given each that does not pass, and each that OpenTelemetry follows.
    """

    def __init__(
        self,
        app: ASGIApp,
        functions: Mapping[str, Function],
        error_handlers: Mapping[Any, Callable[..., Any]],
    ) -> None:
        self._app, self._functions = app, functions
        self._models: dict[str, type[Body]] = {
            path: get_type_hints(function)["body"] for path, function in functions.items()
        }
        self._call = ExceptionMiddleware(self._answer, error_handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_direct = (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and scope["path"] in self._functions
            and "fastapi.telemetry" not in scope
        )
        await (self._call if is_direct else self._app)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        authorize(request, "read")
        caller = Caller.of(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if caller is None or kind != "application/json":
            await self._app(scope, receive, send)
            return
        path, content = scope["path"], await _read(receive)
        try:
            body = self._models[path].model_validate_json(content)
        except ValidationError:
            await self._app(scope, _replay(content, receive), send)
            return
        reply = await self._functions[path](body, caller)
        await reply(scope, receive, send)


async def _read(receive: Receive) -> bytes:
    """A request's body. Raises ClientLeft if it does not come whole."""
    parts = list[bytes]()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(content: bytes, receive: Receive) -> Receive:
    """What gives a body again that has been read."""
    waiting: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
