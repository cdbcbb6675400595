"""The short way of a request to its route, for those that many small requests are sent to."""

from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from embedding_pipelines.serving.auth import authorize
from embedding_pipelines.serving.callers import Caller
from embedding_pipelines.serving.wire import Body


class DirectRoute(APIRoute):
    """A route whose function takes `body` and `caller`, for keys that may read.

    FastAPI finds the arguments of any function, which takes longer than the embedding of a short
    text may. Here the key is checked, and the body is read by its model. What is wrong with a request is for FastAPI to
    say: it is given each that does not pass.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        general = super().get_route_handler()
        model = get_type_hints(self.endpoint).get("body")
        if model is None:
            return general
        assert issubclass(model, Body)

        async def direct(request: Request) -> Response:
            authorize(request, "read")
            caller = Caller.of(request)
            kind = request.headers.get("content-type", "").partition(";")[0].strip()
            if caller is None or kind != "application/json":
                return await general(request)
            try:
                body = model.model_validate_json(await request.body())
            except ValidationError:
                return await general(request)
            reply: Response = await self.endpoint(body, caller)
            return reply

        return direct
