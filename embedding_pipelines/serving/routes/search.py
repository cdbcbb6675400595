"""Search of live releases: by vectors, by words, or by both; one query, or many in one request."""

from collections.abc import Sequence

from fastapi import APIRouter, Depends, Response

from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.callers import AnyCaller
from embedding_pipelines.serving.receipts import keep_receipts
from embedding_pipelines.serving.searching import find_pipeline, search_pipeline
from embedding_pipelines.serving.wire import (
    RELEASE_HEADER,
    SPACE_HEADER,
    SearchAnswer,
    SearchAnswers,
    SearchRequest,
)

router = APIRouter(tags=["search"], dependencies=[Depends(allow("read"))])


@router.post("/search")
async def search(
    body: SearchRequest, caller: AnyCaller, response: Response
) -> SearchAnswer | SearchAnswers:
    """The best chunks for a query. A list of queries is answered by `results`, one for each."""
    name = await find_pipeline(caller.server, body.pipeline)
    too_long: TooLong = "cut" if body.truncate else "refuse"
    queries = [body.query] if isinstance(body.query, str) else body.query
    results = await caller.wait_for(
        search_pipeline(
            *(caller.server, name, queries, body.k, body.filter, body.mode, too_long),
            label="query" if isinstance(body.query, str) else "query[{}]",
            seconds_left=caller.seconds_left,
        )
    )
    is_released = results[0].release > 0
    receipts: Sequence[str | None] = [None] * len(results)
    if is_released:
        receipts = await keep_receipts(caller.server, name, results, body.k, body.filter)
    answers = [
        SearchAnswer.model_validate({**result.model_dump(), "receipt_id": receipt})
        for result, receipt in zip(results, receipts, strict=True)
    ]
    if is_released:
        response.headers[SPACE_HEADER] = answers[0].space_id
        response.headers[RELEASE_HEADER] = str(answers[0].release)
    return answers[0] if isinstance(body.query, str) else SearchAnswers(results=answers)
