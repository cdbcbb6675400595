"""What SageMaker sees of a server: `/ping` and `/invocations`, and nothing else.

A request's body says what it asks for, as in the API: `input` for `/v1/embeddings`, `texts`,
`images` or `inputs` for `/v2/embed`, `query` for `/search`, and `query` with `documents` for
`/v1/rerank`. The replies are those of these paths.
"""

import json
from typing import Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

INVOCATIONS = "/invocations"
MAX_BODY_BYTES = 32 << 20  # SageMaker sends 25 MB at most
ROUTES = (  # the first whose fields are all there
    ({"query", "documents"}, "/v1/rerank"),
    ({"query"}, "/search"),
    ({"texts"}, "/v2/embed"),
    ({"inputs"}, "/v2/embed"),
    ({"images"}, "/v2/embed"),
    ({"input"}, "/v1/embeddings"),
)
UNKNOWN = (
    "The body says nothing that is served here. Send a JSON object with `input` (texts to embed), "
    "`texts` (the same in Cohere's form), `query` (a search), or `query` and `documents` (to rank)."
)


class Container:
    """An ASGI application in front of the API."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = (scope.get("method"), scope["path"]) if scope["type"] == "http" else None
        if request == ("GET", "/ping"):
            await self._app(_to(scope, "/ready"), receive, send)
        elif request == ("POST", INVOCATIONS):
            await self._invoke(scope, receive, send)
        elif request is not None:
            error = "This endpoint answers GET /ping and POST /invocations."
            await JSONResponse({"error": error}, 404)(scope, receive, send)

    async def _invoke(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            error = f"The body is larger than {MAX_BODY_BYTES >> 20} MB. Send fewer texts at once."
            await JSONResponse({"error": error}, 413)(scope, receive, send)
            return
        path = _path_for(body)
        if path is None:
            await JSONResponse({"error": UNKNOWN}, 400)(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(_to(scope, path), replay, send)


async def _read(receive: Receive) -> bytes | None:
    """A request's body; None for one that is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _path_for(body: bytes) -> str | None:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return next((path for fields, path in ROUTES if fields <= value.keys()), None)


def _to(scope: Scope, path: str) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    headers.append((b"content-type", b"application/json"))
    return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}
