"""Vectors of texts, as OpenAI's API gives them."""

import base64

from fastapi import APIRouter, Depends, Request, Response

from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import (
    SPACE_HEADER,
    BadRequest,
    EmbeddingItem,
    EmbeddingsRequest,
    EmbeddingsResponse,
    EmbeddingsUsage,
    ModelItem,
    ModelsResponse,
)

router = APIRouter(tags=["embeddings"], dependencies=[Depends(allow("read"))])


@router.get("/v1/models")
async def models(request: Request) -> ModelsResponse:
    """The names that `model` may be: pipelines, and their models."""
    server: Server = request.app.state.server
    names = [
        name
        for each in (await server.served()).values()
        for name in (each.name, *each.names_of_model)
    ]
    return ModelsResponse(data=[ModelItem(id=name) for name in dict.fromkeys(names)])


@router.post("/v1/embeddings")
async def embeddings(
    body: EmbeddingsRequest, request: Request, response: Response
) -> EmbeddingsResponse:
    """Vectors of one text or of many, in their order, before the pipeline's compression."""
    server: Server = request.app.state.server
    served = await server.find(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    too_long: TooLong = "cut" if body.truncate else "refuse"
    embedded = await server.embed(served, texts, body.input_type, too_long)
    if body.dimensions not in (None, embedded.space.dimensions):
        raise BadRequest(f"dimensions may be {embedded.space.dimensions}.")
    response.headers[SPACE_HEADER] = embedded.space.id
    is_base64 = body.encoding_format == "base64"
    return EmbeddingsResponse(
        data=[
            EmbeddingItem(
                index=index,
                embedding=base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if is_base64
                else vector.tolist(),
            )
            for index, vector in enumerate(embedded.vectors)
        ],
        model=body.model or served.name,
        usage=EmbeddingsUsage(prompt_tokens=embedded.tokens, total_tokens=embedded.tokens),
    )
