"""Vectors of texts, as the APIs of OpenAI and of Cohere give them."""

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from pydantic_core import to_json

from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.callers import AnyCaller, Caller
from embedding_pipelines.serving.dimensions import cut
from embedding_pipelines.serving.direct import Function
from embedding_pipelines.serving.encoding import (
    Numbers,
    as_base64,
    as_bits,
    as_numbers,
    json_array,
)
from embedding_pipelines.serving.lanes import Lane
from embedding_pipelines.serving.models import Embedded
from embedding_pipelines.serving.pictures import image_bytes
from embedding_pipelines.serving.server import Served, Server
from embedding_pipelines.serving.wire import (
    MAX_IMAGES,
    SPACE_HEADER,
    BadRequest,
    EmbeddingsRequest,
    EmbeddingsResponse,
    EmbedMeta,
    EmbedRequest,
    EmbedResponse,
    ModelItem,
    ModelsResponse,
)
from embedding_pipelines.vectors import Vectors

router = APIRouter(tags=["embeddings"], dependencies=[Depends(allow("read"))])

INLINE_NUMBERS = 8_192  # of a reply that is written in the event loop: about 5 ms
FORMS: dict[str, Callable[[Vectors], Iterable[Numbers]]] = {
    "float": as_numbers,
    "base64": as_base64,
    "binary": partial(as_bits, is_signed=True),
    "ubinary": partial(as_bits, is_signed=False),
}


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


@router.post("/v1/embeddings", response_model=EmbeddingsResponse)
async def embeddings(body: EmbeddingsRequest, caller: AnyCaller) -> Response:
    """Vectors of one text or of many, in their order, before the pipeline's compression."""
    served = await caller.server.find(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    too_long: TooLong = "cut" if body.truncate else "refuse"
    embedded = await caller.wait_for(
        caller.server.embed(served, texts, body.input_type, too_long, recipient=caller)
    )

    def content(vectors: Vectors) -> bytes:
        form = as_base64 if body.encoding_format == "base64" else as_numbers
        items = (
            {"object": "embedding", "index": index, "embedding": numbers}
            for index, numbers in enumerate(form(vectors))
        )
        usage = {
            "prompt_tokens": embedded.tokens,
            "total_tokens": embedded.tokens,
            "truncated_tokens": embedded.truncated_tokens,
        }
        rest = to_json({"model": body.model or served.name, "usage": usage})
        return b'{"object":"list","data":' + json_array(items) + b"," + rest[1:]

    return await _reply(caller, served, embedded, body.dimensions, content)


@router.post("/v2/embed", response_model=EmbedResponse)
async def embed(body: EmbedRequest, caller: AnyCaller) -> Response:
    """Vectors of texts, with the role that they have, document or query, and of images."""
    texts, images, rows = _inputs(body)
    types = list(dict.fromkeys(body.embedding_types or ["float"]))
    if strangers := [name for name in types if name not in FORMS]:
        raise BadRequest(
            f"embedding_types: {', '.join(strangers)} need a scale that is fitted to vectors. Use "
            f"{', '.join(FORMS)}, or a pipeline with `compression: [int8]`."
        )
    if body.truncate == "START":
        raise BadRequest("truncate: START is not served. Use END, or NONE.")
    served = await caller.server.find(body.model)
    too_long: TooLong = "cut" if body.truncate == "END" else "refuse"
    input_type: InputType = "query" if body.input_type == "search_query" else "document"
    embedded = await caller.wait_for(_embed(caller, served, texts, images, input_type, too_long))
    embedded = replace(embedded, vectors=embedded.vectors[rows])
    dropped = embedded.truncated_tokens
    warnings = [f"{dropped:,} tokens of texts that are too long were not read."] if dropped else []
    units = {"input_tokens": embedded.tokens, **({"images": len(images)} if images else {})}
    meta = EmbedMeta(billed_units=units, warnings=warnings)

    def content(vectors: Vectors) -> bytes:
        forms = b",".join(to_json(name) + b":" + json_array(FORMS[name](vectors)) for name in types)
        rest = {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_by_type",
            "texts": texts,
            "meta": meta.model_dump(),
        }
        return b'{"embeddings":{' + forms + b"}," + to_json(rest)[1:]

    return await _reply(caller, served, embedded, body.output_dimension, content)


DIRECT: Mapping[str, Function] = {"/v1/embeddings": embeddings, "/v2/embed": embed}


async def _reply(
    caller: Caller,
    served: Served,
    embedded: Embedded,
    dimensions: int | None,
    content: Callable[[Vectors], bytes],
) -> Response:
    """The vectors in `dimensions`, and which space they are of."""

    def work() -> tuple[bytes, str]:
        vectors, space = cut(
            embedded.vectors, embedded.space, dimensions, served, caller.server.warehouse
        )
        return content(vectors), space.id

    is_plain = dimensions in (None, embedded.space.dimensions)
    if is_plain and embedded.vectors.size <= INLINE_NUMBERS:
        body, space_id = work()
    else:
        body, space_id = await caller.wait_for(served.model.help(work))
    headers = {SPACE_HEADER: space_id, **served.headers}
    return Response(body, media_type="application/json", headers=headers)


def _inputs(body: EmbedRequest) -> tuple[list[str], list[str], list[int]]:
    """The texts and the images, as data URLs, of a request of Cohere's, and of each input its row in
    texts followed by images. Raises BadRequest for one of both, and without any."""
    if sum(given is not None for given in (body.texts, body.images, body.inputs)) != 1:
        raise BadRequest("texts: send either texts, or images, or inputs.")
    if body.texts is not None:
        return list(body.texts), [], [*range(len(body.texts))]
    if body.images is not None:
        return [], list(body.images), [*range(len(body.images))]
    texts, images, places = list[str](), list[str](), list[tuple[bool, int]]()
    for number, each in enumerate(body.inputs or ()):
        urls = [part.image_url for part in each.content if part.type == "image_url"]
        if not urls:
            places.append((False, len(texts)))
            texts.append("\n".join(part.text or "" for part in each.content))
            continue
        if len(each.content) > 1 or urls[0] is None:
            raise BadRequest(
                f"inputs[{number}]: send one image, or text, in each input; a vector of both is not "
                "computed."
            )
        places.append((True, len(images)))
        images.append(urls[0].url)
    if len(images) > MAX_IMAGES:
        raise BadRequest(f"inputs: {len(images):,} images; at most {MAX_IMAGES} in one request.")
    return texts, images, [row + is_image * len(texts) for is_image, row in places]


async def _embed(
    caller: Caller,
    served: Served,
    texts: Sequence[str],
    images: Sequence[str],
    input_type: InputType,
    too_long: TooLong,
) -> Embedded:
    """The vectors of texts, then of images. Raises BadRequest for a model that takes texts alone."""
    parts = list[Embedded]()
    if images:
        model = served.model
        if not model.options.takes_images:
            raise BadRequest(f"images: {model.title} takes texts alone. Send texts.")
        lane: Lane = "interactive" if len(images) == 1 else "bulk"
        model.admit(lane, caller.seconds_left)
        files = [
            await asyncio.to_thread(image_bytes, url, f"images[{number}]")
            for number, url in enumerate(images)
        ]
        squares = await caller.server.pictures.squares(files, model.model.resize, "images[{}]")
        parts.append(await model.embed_images(squares, lane, caller))
    if texts:
        embedded = await caller.server.embed(
            *(served, texts, input_type, too_long), name="texts[{}]", recipient=caller
        )
        parts.insert(0, embedded)
    vectors = np.concatenate([part.vectors for part in parts])
    return replace(parts[0], vectors=vectors)
