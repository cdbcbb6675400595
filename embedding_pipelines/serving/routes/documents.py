"""Documents that programs put into a pipeline, or delete: searchable when the answer comes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi import Path as InPath

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.home import pipelines_folder
from embedding_pipelines.push import Intake, Pusher, Receipt
from embedding_pipelines.releases import find_released
from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.callers import AnyCaller, Caller
from embedding_pipelines.serving.models import ServedModel
from embedding_pipelines.serving.wire import (
    DocumentIds,
    DocumentsReceipt,
    DocumentsRequest,
    NotFound,
    Unavailable,
)
from embedding_pipelines.spec.load import find_file, read_pipeline

router = APIRouter(
    prefix="/api/embedding-pipelines/{pipeline}/documents",
    tags=["documents"],
    dependencies=[Depends(allow("write"))],
    responses={404: {"description": "There is no such pipeline"}},
)

Pipeline = Annotated[str, InPath(description="Its name or number.")]


@router.post("")
async def put(pipeline: Pipeline, body: DocumentsRequest, caller: AnyCaller) -> DocumentsReceipt:
    """Put documents in place of those with their ids: all or none. They are on the disk, and every
    search sees them, when the answer comes."""
    async with _pusher(caller, pipeline) as (pusher, model):
        values = [value for document in body.documents for value in document.values()]
        size = sum(len(value) for value in values if isinstance(value, str))
        model.admit(None, caller.seconds_left, size)
        # The writing itself is never given up: who is told that the time is over knows that nothing
        # was written.
        intake, computed = await caller.wait_for(_prepare(pusher, model, body, caller))
        receipt = await asyncio.to_thread(pusher.write, intake)
        return _reply(replace(receipt, embedded=computed + receipt.embedded))


async def _prepare(
    pusher: Pusher, model: ServedModel, body: DocumentsRequest, caller: Caller
) -> tuple[Intake, int]:
    """Documents that are ready to be written, and how many of their texts the lanes computed."""
    texts = await model.in_thread(pusher.cut, body.documents)
    computed = 0
    if texts:  # by the lanes, into the embedding cache
        embedded = await model.embed(
            *(texts, "document", list),
            name="chunk {} of the documents".format,
            is_awaited=True,
            recipient=caller,
        )
        computed = embedded.computed
        await model.finish_keeping()  # else the pusher would have them embedded again
    return await model.in_thread(pusher.prepare, body.documents), computed


@router.post("/delete")
async def delete_many(pipeline: Pipeline, body: DocumentIds, caller: AnyCaller) -> DocumentsReceipt:
    """Delete documents, those of files, too. An id that nobody has is named in `unknown`."""
    async with _pusher(caller, pipeline) as (pusher, _):
        return _reply(await asyncio.to_thread(pusher.delete, body.ids))


@router.post("/withdraw")
async def withdraw(pipeline: Pipeline, body: DocumentIds, caller: AnyCaller) -> DocumentsReceipt:
    """Take back what was pushed of documents: from the next run on, what the source's files say of
    them counts again."""
    async with _pusher(caller, pipeline) as (pusher, _):
        return _reply(await asyncio.to_thread(pusher.withdraw, body.ids))


@router.delete("/{document_id:path}")
async def delete(pipeline: Pipeline, document_id: str, caller: AnyCaller) -> DocumentsReceipt:
    """Delete one document. 404 if there is none of that id."""
    async with _pusher(caller, pipeline) as (pusher, _):
        receipt = await asyncio.to_thread(pusher.delete, [document_id], known_only=True)
    if receipt.unknown:
        raise NotFound(f"Pipeline {receipt.pipeline!r} has no document {document_id!r}.")
    return _reply(receipt)


@contextlib.asynccontextmanager
async def _pusher(caller: Caller, pipeline: str) -> AsyncIterator[tuple[Pusher, ServedModel]]:
    """What takes documents for a pipeline, and the model that embeds them."""
    server = caller.server
    try:
        name = await asyncio.to_thread(find_released, server.warehouse, pipeline)
        file = await asyncio.to_thread(find_file, name, server.home)
    except ConfigError as error:
        raise NotFound(str(error).replace(f" in {pipelines_folder(server.home)}", "")) from None
    try:
        spec = await asyncio.to_thread(read_pipeline, file)
    except ConfigError as error:
        raise Unavailable(
            f"Pipeline {name!r} takes no documents, for its file is broken: {error}"
        ) from None
    served = await server.find(name)
    with served.model.in_use():
        arguments = (spec, server.warehouse, served.model.model)
        with await asyncio.to_thread(Pusher, *arguments) as pusher:
            yield pusher, served.model


def _reply(receipt: Receipt) -> DocumentsReceipt:
    return DocumentsReceipt(
        pipeline=receipt.pipeline,
        number=receipt.number,
        documents=receipt.documents,
        chunks=receipt.chunks,
        embedded=receipt.embedded,
        unknown=receipt.unknown,
        ignored=receipt.ignored,
    )
