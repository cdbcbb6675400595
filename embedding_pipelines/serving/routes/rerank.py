"""Documents of a request in the order of their relevance to a query, as Cohere and Jina do it."""

import asyncio
import uuid
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Depends, Response
from numpy.typing import NDArray

from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.callers import AnyCaller, Caller
from embedding_pipelines.serving.models import Embedded
from embedding_pipelines.serving.wire import (
    SPACE_HEADER,
    RerankDocument,
    RerankMeta,
    RerankRequest,
    RerankResponse,
    RerankResult,
)
from embedding_pipelines.vectors import cosine

router = APIRouter(tags=["rerank"], dependencies=[Depends(allow("read"))])


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(body: RerankRequest, caller: AnyCaller, response: Response) -> RerankResponse:
    """Score each document by a cross-encoder, where the server has one, or by cosine."""
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    rerankers = await caller.server.rerankers()
    names = {name: each for each in reversed(rerankers) for name in (each.name, each.title)}
    reranker = caller.server.reranker if body.model is None else names.get(body.model)
    if reranker is not None:
        scored = await caller.wait_for(reranker.score(body.query, texts, _too_long(body), caller))
        scores, tokens = scored.scores, scored.tokens
        model, scored_by = reranker.name, f"cross-encoder {reranker.title}"
    else:
        scores, tokens, model, scored_by = await _by_cosine(body, texts, caller, response, [*names])
    order = np.argsort(-scores, kind="stable")[: body.top_n]
    return RerankResponse(
        id=str(uuid.uuid4()),
        model=model,
        results=[
            RerankResult(
                index=int(row),
                relevance_score=float(scores[row]),
                document=RerankDocument(text=texts[row]) if body.return_documents else None,
            )
            for row in order
        ],
        meta=RerankMeta(
            billed_units={"search_units": 1, "total_tokens": tokens},
            tokens={"input_tokens": tokens},
            scored_by=scored_by,
        ),
    )


async def _by_cosine(
    body: RerankRequest,
    texts: list[str],
    caller: Caller,
    response: Response,
    rerankers: Sequence[str],
) -> tuple[NDArray[np.float32], int, str, str]:
    """Scores float32[n], tokens, the model's name, and how it scored. `rerankers` are those that the
    request could have named."""
    server = caller.server
    served = await server.find(body.model, rerankers)
    too_long = _too_long(body)

    async def work() -> tuple[Embedded, Embedded]:
        query = server.embed(
            *(served, [body.query], "query", too_long), name="query", recipient=caller
        )
        documents = server.embed(
            *(served, texts, "document", too_long),
            name="documents[{}]",
            is_awaited=True,
            recipient=caller,
        )
        try:
            async with asyncio.TaskGroup() as both:  # where one is refused, the other ends
                tasks = both.create_task(query), both.create_task(documents)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return tasks[0].result(), tasks[1].result()

    query, documents = await caller.wait_for(work())
    scores = cosine(np.broadcast_to(query.vectors, documents.vectors.shape), documents.vectors)
    response.headers.update({SPACE_HEADER: documents.space.id, **served.headers})
    name = body.model or served.name
    return scores, query.tokens + documents.tokens, name, f"cosine of {documents.space.title}"


def _too_long(body: RerankRequest) -> TooLong:
    return "cut" if body.truncate else "refuse"
