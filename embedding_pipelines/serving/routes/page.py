"""Pages for people: the search page at `/`, which asks the same API as programs do, and the API's
description at `/docs`. Both load nothing from anywhere else."""

import asyncio
from collections.abc import Mapping
from importlib.resources import files
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.callers import AnyCaller
from embedding_pipelines.serving.searching import (
    admit_map,
    find_pipeline,
    open_searcher,
    without_quotes,
)
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import PRINCIPALS_HEADER, MapResponse, PagePipeline

router = APIRouter(tags=["search page"])
reader = [Depends(allow("read"))]

Name = Annotated[str, Query(min_length=1, max_length=1024)]
JPEG = "image/jpeg"
FOLDER = files("embedding_pipelines.serving") / "page"
HEADERS = {
    # Nothing but this server's own files is loaded or run, whatever stands in a document.
    "Content-Security-Policy": "default-src 'self'; img-src data: blob:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# Swagger UI writes styles into the page.
DOCS_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": HEADERS["Content-Security-Policy"]
    + "; style-src 'self' 'unsafe-inline'",
}
SWAGGER_FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}


def _file(name: str, media_type: str, headers: Mapping[str, str] = HEADERS) -> Response:
    return Response((FOLDER / name).read_bytes(), media_type=media_type, headers=dict(headers))


@router.get("/", include_in_schema=False)
def page() -> Response:
    return _file("index.html", "text/html; charset=utf-8")


@router.get("/page/page.css", include_in_schema=False)
def style() -> Response:
    return _file("page.css", "text/css; charset=utf-8")


@router.get("/page/page.js", include_in_schema=False)
def script() -> Response:
    return _file("page.js", "text/javascript; charset=utf-8")


@router.get("/docs", include_in_schema=False)
def docs() -> Response:
    return _file("docs.html", "text/html; charset=utf-8", DOCS_HEADERS)


@router.get("/page/docs.js", include_in_schema=False)
def docs_script() -> Response:
    return _file("docs.js", "text/javascript; charset=utf-8")


@router.get("/page/swagger/{name}", include_in_schema=False)
def swagger(name: Literal["swagger-ui-bundle.js", "swagger-ui.css"]) -> Response:
    """Swagger UI's own files, out of the package that brings them."""
    data = (files("fastapi_offline") / "static" / name).read_bytes()
    headers = {**HEADERS, "Cache-Control": "max-age=86400"}
    return Response(data, media_type=SWAGGER_FILES[name], headers=headers)


@router.get("/page/pipelines", dependencies=reader)
async def pipelines(request: Request) -> list[PagePipeline]:
    """The pipelines that can be searched."""
    server: Server = request.app.state.server
    served = (await server.served()).values()
    return [
        PagePipeline(name=each.name, takes_images=each.spec.model.takes_images)
        for each in served
        if each.release is not None
    ]


@router.get(
    "/page/thumbnail",
    dependencies=reader,
    responses={200: {"content": {JPEG: {}}}, 304: {"description": "It is as the caller has it"}},
)
async def thumbnail(
    pipeline: Name,
    document: Name,
    caller: AnyCaller,
    etags: Annotated[str, Header(alias="If-None-Match")] = "",
) -> Response:
    """A small JPEG of the image that a document of a pipeline's live release is. Whoever keeps it
    asks each time whether it may still be shown: the document may have been forgotten."""
    server = caller.server
    name = await find_pipeline(server, pipeline)
    searcher = await open_searcher(server, name, caller.principals)
    served = (await server.served()).get(name)
    places = served.image_places if served else ()
    picture = server.pictures.thumbnail(searcher, document, places, etags, caller.principals)
    etag, data = await caller.wait_for(picture)
    headers = {
        "Cache-Control": "private, no-cache",
        "ETag": etag,
        "Vary": f"Authorization, {PRINCIPALS_HEADER}",
        "X-Content-Type-Options": "nosniff",
    }
    if data is None:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=JPEG, headers=headers)


@router.get("/page/map", dependencies=reader)
async def map_of(pipeline: Annotated[str, Query()], caller: AnyCaller) -> MapResponse:
    """Where each chunk of a pipeline's live release stands on a plane; 50,000 at most. Chunks that
    the sender may not see are left out."""
    server = caller.server
    name = await find_pipeline(server, pipeline)
    served = (await server.served()).get(name)
    with admit_map(server, name, served.release if served else None, caller):
        visible = await asyncio.to_thread(server.access(name).visible, caller.principals)
        with without_quotes(name, visible):
            return await caller.wait_for(server.maps.get(name, visible))
