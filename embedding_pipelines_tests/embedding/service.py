"""A small service for tests of flow control: the provider `openai` in little requests, and batches
of texts."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedding_pipelines.providers.base import Limits
from embedding_pipelines.providers.openai import Openai, OpenaiModel
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.providers.wire import Body, Dialect, WireServer

TEXTS = 5_000
REQUEST_TEXTS = 25
BATCH_TEXTS = 1_000


def _answer(body: Body, vectors: Vectors, order: list[int]) -> Any:
    encoded = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    data = [
        {"object": "embedding", "index": i, "embedding": row}
        for i, row in zip(order, encoded, strict=True)
    ]
    tokens = sum(len(text.split()) for text in body["input"])
    return {
        "object": "list",
        "data": data,
        "model": body["model"],
        "usage": {"total_tokens": tokens},
    }


DIALECT = Dialect(
    path="/v1/embeddings",
    texts=lambda body: body["input"],
    answer=_answer,
    error=lambda status, words: {
        "error": {"message": words, "type": "invalid_request_error", "code": None}
    },
)


class Little(OpenaiModel):
    """Requests of REQUEST_TEXTS texts at most."""

    @property
    def limits(self) -> Limits:  # type: ignore[override]
        return Limits(256, 8_192, REQUEST_TEXTS, self.options.concurrent_requests)


def little_options(server: WireServer, **options: Any) -> Openai:
    return Openai(
        base_url=f"{server.url}/v1", model="little", dimensions=server.dimensions, **options
    )


def little(server: WireServer, **options: Any) -> Little:
    """It is closed when the server ends."""
    return server.models.enter_context(Little(little_options(server, **options), Path()))


def batches(texts: list[str]) -> Iterator[pa.RecordBatch]:
    """As chunks come, with tokens counted by words."""
    for start in range(0, len(texts), BATCH_TEXTS):
        part = texts[start : start + BATCH_TEXTS]
        tokens = pa.array([len(text.split()) for text in part], pa.int32())
        yield pa.RecordBatch.from_arrays([pa.array(part), tokens], ["text", "tokens"])
