"""The HTTP API: every module of `routes/` that has a `router`, and one form for all errors."""

import contextlib
import importlib
import logging
import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from embedding_pipelines import __version__
from embedding_pipelines.errors import (
    BadInput,
    BundleError,
    Busy,
    BusyError,
    ConfigError,
    DocumentError,
    EmbeddingPipelinesError,
    FilterError,
    PermissionsError,
    PermissionsLostError,
    ProviderError,
    ReleaseError,
    TargetError,
    describe_os_error,
    faults_in_words,
)
from embedding_pipelines.serving import routes
from embedding_pipelines.serving.direct import Direct
from embedding_pipelines.serving.guard import Guard
from embedding_pipelines.serving.routes import embeddings, search
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import ErrorBody, ServingError

log = logging.getLogger(__name__)

Handler = Callable[[Request, Exception], Awaitable[Response]]
STATUS: dict[type[EmbeddingPipelinesError], int] = {  # of errors that are none of an API
    BusyError: 409,
    ReleaseError: 409,
    ConfigError: 400,
    DocumentError: 400,
    FilterError: 400,
    BadInput: 400,
    BundleError: 400,
    PermissionsError: 403,
    PermissionsLostError: 503,
    ProviderError: 503,
    TargetError: 503,
}
INTERNAL = "The server failed on this request. Its log says why; nothing was changed by it."
ERROR_STATUSES = {
    400: "What was sent is wrong",
    401: "No key, or a wrong one",
    403: "The key does not allow this",
    404: "There is no such thing",
    408: "The body did not come in time",
    409: "Something else is under way",
    413: "The body is too large",
    429: "Too much is waiting: try again after Retry-After",
    500: "The server failed",
    503: "A model cannot answer now",
    504: "X-Request-Timeout is over",
}


def create_app(server: Server) -> FastAPI:
    """The application that serves `server`, which it opens and closes."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.open()
        try:
            yield
        finally:
            await server.close()

    app = FastAPI(
        title="embedding-pipelines",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # `routes/page.py` has it, from this server alone
        redoc_url=None,
    )
    app.state.server = server
    handlers: dict[type[Exception], Handler] = {
        EmbeddingPipelinesError: _on_error,
        HTTPException: _on_http_error,
        RequestValidationError: _on_invalid,
        OSError: _on_os_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(Exception, _on_fault)
    direct = {**embeddings.DIRECT, **search.DIRECT}
    app.add_middleware(Direct, functions=direct, error_handlers=handlers)
    app.add_middleware(Guard, server=server, direct_paths=frozenset(direct))
    for module in pkgutil.iter_modules(routes.__path__):
        part = importlib.import_module(f"{routes.__name__}.{module.name}")
        if hasattr(part, "router"):
            app.include_router(part.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def error_reply(status: int, text: str, retry_after_seconds: float | None = None) -> JSONResponse:
    """The body and the headers of an error."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(retry_after_seconds)))
        headers["Retry-After-Ms"] = str(max(1, round(retry_after_seconds * 1000)))
    # What was sent may be quoted, and need not be Unicode.
    return JSONResponse({"error": text.encode(errors="replace").decode()}, status, headers)


def serving_reply(error: ServingError) -> JSONResponse:
    """What an error of the API's own says."""
    return error_reply(error.status, str(error), error.retry_after_seconds)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ServingError):
        return serving_reply(error)
    if isinstance(error, Busy):
        return error_reply(503, str(error), error.retry_after_seconds)
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    if status == 500 or isinstance(error, PermissionsLostError):
        log.error("%s %s: %s", request.method, request.url.path, error)
    text = error.brief if isinstance(error, PermissionsLostError) else str(error)
    return error_reply(status, text)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    sentences = {
        404: f"There is no {request.url.path!r} here. /docs lists what there is.",
        405: f"{request.url.path!r} does not take {request.method}. /docs says what it takes.",
        400: "The body cannot be read. Send JSON in UTF-8, nested less deeply.",
    }
    reply = error_reply(error.status_code, sentences.get(error.status_code, str(error.detail)))
    reply.headers.update(error.headers or {})
    return reply


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_reply(400, f"The request is wrong: {_describe(error.errors())}.")


async def _on_os_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    log.error("%s %s: %s", request.method, request.url.path, error)
    return error_reply(500, describe_os_error(error))


async def _on_fault(request: Request, error: Exception) -> JSONResponse:
    """A fault of this program, whose traceback Starlette logs."""
    return error_reply(500, INTERNAL)


def _describe(faults: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong, and where: `input[3]` of the body, `filter` of the query."""
    first = faults[0]
    if first["type"] == "json_invalid":
        return f"the body is no JSON at character {first['loc'][-1]}: {first['ctx']['error']}"
    if first["loc"] == ("body",) and first["type"] == "model_attributes_type":
        return (
            "the body is not an object of JSON, or not said to be. Send one, with the header "
            "`Content-Type: application/json`"
        )
    return faults_in_words({**each, "loc": each["loc"][1:] or each["loc"]} for each in faults)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """What FastAPI writes, without the status 422, which is a 400 here, and with the errors, which
    every operation has: FastAPI would build a model for each, four fifths of a first request."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                _add_errors(operation["responses"])
        models = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            models.pop(name, None)
        models["ErrorBody"] = ErrorBody.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema


def _add_errors(responses: dict[str, Any]) -> None:
    """Beside what an operation's own module says of them."""
    responses.pop("422", None)
    body = {"schema": {"$ref": "#/components/schemas/ErrorBody"}}
    for status, text in ERROR_STATUSES.items():
        reply = responses.setdefault(str(status), {"description": text})
        reply.setdefault("content", {"application/json": body})
