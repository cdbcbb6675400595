"""A small service for tests of flow control: the provider `openai` in little calls, and windows of
texts."""

import base64
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from embedding_pipelines.providers.base import Limits
from embedding_pipelines.providers.openai import Openai
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.providers.wire import Body, Dialect, WireServer

TEXTS = 10_000
REQUEST_TEXTS = 25
WINDOW = 1_000


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


class Little(Openai):
    """Calls of REQUEST_TEXTS texts at most."""

    @property
    def limits(self) -> Limits:
        return Limits(256, 8_192, REQUEST_TEXTS, self.concurrent_requests)


def little(server: WireServer, **options: Any) -> Little:
    return Little(
        base_url=f"{server.url}/v1", model="little", dimensions=server.dimensions, **options
    )


def windows(texts: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches as chunks come, with tokens counted by words."""
    for start in range(0, len(texts), WINDOW):
        part = texts[start : start + WINDOW]
        tokens = pa.array([len(text.split()) for text in part], pa.int32())
        yield pa.RecordBatch.from_arrays([pa.array(part), tokens], ["text", "tokens"])
