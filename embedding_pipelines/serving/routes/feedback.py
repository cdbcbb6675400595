"""What people say of results: it becomes relevance judgements for the checks of later candidates."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Path

from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.callers import AnyCaller
from embedding_pipelines.serving.searching import find_pipeline
from embedding_pipelines.serving.wire import FeedbackReply, FeedbackRequest, NotFound
from embedding_pipelines.storage.receipts import CLICK, Receipts

router = APIRouter(tags=["search"], dependencies=[Depends(allow("read"))])


@router.post(
    "/api/embedding-pipelines/{pipeline_id}/feedback",
    responses={404: {"description": "There is no such pipeline or receipt"}},
)
async def feedback(
    pipeline_id: Annotated[str, Path(description="The pipeline's number, or its name.")],
    body: FeedbackRequest,
    caller: AnyCaller,
) -> FeedbackReply:
    """Rate a document for a search that has a receipt, or say that it was clicked."""
    server = caller.server
    name = await find_pipeline(server, pipeline_id)

    def write() -> None:
        visible = server.access(name).visible(caller.principals)
        is_visible = visible is None or body.document_id in visible
        receipts = Receipts(server.warehouse.pipeline(name).folder)
        rating = CLICK if body.rating is None else body.rating
        if not is_visible or not receipts.rate(body.receipt_id, body.document_id, rating):
            raise NotFound(
                f"Pipeline {name!r} has no receipt {body.receipt_id!r} that shows document "
                f"{body.document_id[:80]!r}. Send the receipt_id of a search's reply and one of its "
                "documents; it is null for searches of which none is kept."
            )

    await asyncio.to_thread(write)
    return FeedbackReply(receipt_id=body.receipt_id, document_id=body.document_id)
