"""`voyage`: Voyage's text models. https://docs.voyageai.com/reference/embeddings-api

The vectors of version 4's models can be compared: documents embedded by the large one can be
searched with queries embedded by the lite one, which `query_model` asks for. Each has a `Space` of
its own all the same, after `model`: who changes to a better one wants its vectors for the
documents. Vectors come back as base64, which is about a quarter of the bytes of decimal numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from embedding_pipelines.errors import ProviderError, TooLarge
from embedding_pipelines.providers.base import InputType, Limits, Reply
from embedding_pipelines.providers.common.http import Remote
from embedding_pipelines.providers.common.prices import (
    chosen_dimensions,
    dimensions_to_ask,
    facts_of,
)
from embedding_pipelines.providers.common.replies import (
    DTYPES,
    WIRE_TYPES,
    ElementType,
    as_float,
    count_within,
    listed,
    placed,
    stacked,
)
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

REQUEST_TEXTS = 1_000  # docs.voyageai.com/reference/embeddings-api, as all numbers here
REQUEST_TOKENS = 120_000  # of a model whose own total is not listed: the least of the text models
MAX_TOKENS = 4_000  # of a model that is not listed: as voyage-2, the least there was
PROMPT_TOKENS = 16  # kept free for the sentence that the service puts before each text
TOO_MANY_TOKENS = "tokens per submitted batch"  # in the words of a 400

BYTES_OF = {"float": "<f4", "int8": "<i1", "uint8": "<u1", "ubinary": "<u1"}


class Voyage(Remote):
    """One model; over-long texts are refused by the service, never cut unseen."""

    kind: Literal["voyage"] = "voyage"
    base_url: str = "https://api.voyageai.com/v1"
    api_key_env: str | None = "VOYAGE_API_KEY"
    model: str
    dimensions: int | None = Field(None, ge=1)
    query_model: str | None = None
    """A model of the same family for queries, e.g. voyage-4-lite beside voyage-4-large: cheaper and
    comparable."""

    output_dtype: ElementType = "float"
    """Quantized by the service, stored as float32: int8 as its numbers, uint8 less 128, bits as -1
    and 1."""

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if (
            chosen_dimensions(self.kind, self.model, self.dimensions) % 8
            and self._wire_type == "ubinary"
        ):
            raise ValueError("packed bits need dimensions that are a multiple of 8")
        own, other = (
            facts_of(self.kind, self.model),
            facts_of(self.kind, self.query_model or self.model),
        )
        if self.query_model is not None and not (
            own and other and own.family and own.family == other.family
        ):
            raise ValueError(
                f"query_model {self.query_model!r} is not known to be of one family with {self.model!r}"
            )
        return self

    @property
    def space(self) -> Space:
        facts = facts_of(self.kind, self.model)
        return Space(
            provider=self.kind,
            model=self.model,
            revision="v1",  # of the interface; Voyage's models carry theirs in their names
            dimensions=chosen_dimensions(self.kind, self.model, self.dimensions),
            pooling="service",
            prompts={
                "document": "document",
                "query": "query",
            },  # as `input_type`; the service adds its sentences
            max_tokens=facts.max_tokens if facts else MAX_TOKENS,
            normalized=self._wire_type == "float",
            dtype=DTYPES[self._wire_type],
        )

    @property
    def limits(self) -> Limits:
        facts = facts_of(self.kind, self.model)
        return Limits(
            max_tokens=(facts.max_tokens if facts else MAX_TOKENS) - PROMPT_TOKENS,
            request_tokens=(facts and facts.request_tokens) or REQUEST_TOKENS,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self.concurrent_requests,
        )

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        if not inputs:
            return Reply(np.empty((0, self.space.dimensions), np.float32))
        body: dict[str, Any] = {
            "model": (self.query_model or self.model) if input_type == "query" else self.model,
            "input": list(inputs),
            "input_type": input_type,
            "truncation": False,
            "output_dtype": self._wire_type,
            "encoding_format": "base64",
        }
        size = dimensions_to_ask(self.kind, self.model, self.dimensions)
        if size is not None:
            body["output_dimension"] = size
        reply = self.request("/embeddings", body, self.bearer)
        found = stacked(self, placed(self, listed(self, reply, "data"), len(inputs)), self._read)
        return Reply(
            as_float(self, found, self._wire_type), count_within(reply, "usage", "total_tokens")
        )

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        """As for all; a 400 for too many tokens in one request is nobody's text's fault."""
        fault = super().fault(status, body, headers)
        return TooLarge(str(fault)) if status == 400 and TOO_MANY_TOKENS in body else fault

    @property
    def _wire_type(self) -> str:
        return WIRE_TYPES[self.output_dtype]

    def _read(self, entry: Any) -> Vectors:
        if not isinstance(entry, str):
            raise ValueError("it is not in base64")
        return np.frombuffer(
            base64.b64decode(entry, validate=True), BYTES_OF[self._wire_type]
        ).astype(np.float32)
