"""Search of live releases: by vectors, by words, or by both; one query, or many in one request."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Response
from pydantic_core import to_json

from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.callers import AnyCaller, Caller
from embedding_pipelines.serving.direct import Function
from embedding_pipelines.serving.pictures import image_bytes
from embedding_pipelines.serving.receipts import keep_receipts
from embedding_pipelines.serving.searching import (
    admit_search,
    find_pipeline,
    search_by_documents,
    search_by_image,
    search_pipeline,
)
from embedding_pipelines.serving.wire import (
    MAX_HITS,
    RELEASE_HEADER,
    SPACE_HEADER,
    BadRequest,
    SearchAnswer,
    SearchAnswers,
    SearchRequest,
)

if TYPE_CHECKING:
    from embedding_pipelines.search import SearchResult

router = APIRouter(tags=["search"], dependencies=[Depends(allow("read"))])


INLINE_HITS = 100  # of a reply that is written in the event loop: about a millisecond


@router.post("/search", response_model=SearchAnswer | SearchAnswers)
async def search(body: SearchRequest, caller: AnyCaller) -> Response:
    """The best chunks for a query. A list of queries is answered by `results`, one for each; it may
    ask for 100,000 hits in all. In place of a query an image, or documents by their ids (`like`),
    finds what is like it."""
    if [body.query is None, body.image is None, body.like is None].count(False) != 1:
        raise BadRequest("query: send one of query, image and like.")
    if body.query is None:
        return await _search_like(body, caller)
    queries = [body.query] if isinstance(body.query, str) else body.query
    if len(queries) * body.k > MAX_HITS:
        raise BadRequest(
            f"{len(queries):,} queries with k {body.k:,} ask for {len(queries) * body.k:,} hits; a "
            f"request may ask for {MAX_HITS:,}. Send fewer queries at once, or a smaller k."
        )
    name = await find_pipeline(caller.server, body.pipeline)
    too_long: TooLong = "cut" if body.truncate else "refuse"
    with admit_search(caller.server, name, caller, len(queries)):
        results = await caller.wait_for(
            search_pipeline(
                *(caller.server, name, queries, body.k, body.filter, body.mode),
                *(too_long, body.rerank),
                principals=caller.principals,
                label="query" if isinstance(body.query, str) else "query[{}]",
                recipient=caller,
            )
        )
    is_released = results[0].release > 0
    receipts: Sequence[str | None] = [None] * len(results)
    if is_released:
        receipts = await keep_receipts(
            caller.server, name, results, body.k, body.filter, caller.seconds_left
        )

    def content() -> bytes:
        answers = [_answer(*pair) for pair in zip(results, receipts, strict=True)]
        return _json(answers[0] if isinstance(body.query, str) else {"results": answers})

    is_short = sum(len(result.hits) for result in results) <= INLINE_HITS
    data = content() if is_short else await asyncio.to_thread(content)
    headers = {}
    if is_released:
        headers = {SPACE_HEADER: results[0].space_id, RELEASE_HEADER: str(results[0].release)}
    return Response(data, media_type="application/json", headers=headers)


DIRECT: Mapping[str, Function] = {"/search": search}


def _answer(result: "SearchResult", receipt: str | None = None) -> dict[str, Any]:
    """The fields of a `SearchAnswer`, in their order."""
    return {**vars(result), "receipt_id": receipt}


def _json(reply: dict[str, Any]) -> bytes:
    """As the models write themselves, without making them of what is right already."""
    return to_json(reply, inf_nan_mode="null")


async def _search_like(body: SearchRequest, caller: Caller) -> Response:
    """By an image, or by documents. No receipt is kept of it: what checks ask again is texts."""
    field = "like" if body.image is None else "image"
    if body.mode not in (None, "vector"):
        raise BadRequest(f"mode: {field} is compared by vectors alone. Leave mode out.")
    if body.rerank:
        raise BadRequest(f"rerank: a cross-encoder reads texts alone. Leave it out with {field}.")
    if body.truncate:
        raise BadRequest(f"truncate: {field} is not read in part. Leave it out.")
    data = b""
    if body.image is not None:
        data = await asyncio.to_thread(image_bytes, body.image, "image")
    name = await find_pipeline(caller.server, body.pipeline)
    options = (body.k, body.filter, caller.principals)
    with admit_search(caller.server, name, caller):
        if body.like is None:
            search = search_by_image(caller.server, name, data, *options, caller)
        else:
            search = search_by_documents(caller.server, name, body.like, *options)
        result = await caller.wait_for(search)
    headers = {SPACE_HEADER: result.space_id, RELEASE_HEADER: str(result.release)}
    data = await asyncio.to_thread(_json, _answer(result))
    return Response(data, media_type="application/json", headers=headers)
