"""`voyage`: Voyage's text models. https://docs.voyageai.com/reference/embeddings-api

The vectors of version 4's models can be compared: documents embedded by the large one can be
searched with queries embedded by the lite one, which `query_model` asks for. Each has a `Space` of
its own all the same, after `model`: who changes to a better one wants its vectors for the
documents. Vectors come back as base64, which is about a quarter of the bytes of decimal numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from embedding_pipelines.errors import ProviderError, TooLarge
from embedding_pipelines.providers.base import NO_SECRETS, InputType, Limits, Response
from embedding_pipelines.providers.common.http import RemoteModel, RemoteOptions
from embedding_pipelines.providers.common.prices import (
    choose_dimensions,
    dimensions_to_ask,
    published,
)
from embedding_pipelines.providers.common.replies import (
    DTYPES,
    WIRE_TYPES,
    ElementType,
    as_float,
    count_at,
    list_at,
    order_by_index,
    read_base64,
    stack,
)
from embedding_pipelines.space import Space

REQUEST_TEXTS = 1_000  # docs.voyageai.com/reference/embeddings-api, as all numbers here
REQUEST_TOKENS = 120_000  # of a model whose own total is not listed: the least of the text models
MAX_TOKENS = 4_000  # of a model that is not listed: as voyage-2, the least there was
PROMPT_TOKENS = 16  # kept free for the sentence that the service puts before each text
TOO_MANY_TOKENS = "tokens per submitted batch"  # in the words of a 400

BYTES_OF = {"float": "<f4", "int8": "<i1", "uint8": "<u1", "ubinary": "<u1"}


class Voyage(RemoteOptions):
    """One model; the service rejects texts that are too long and never cuts them unseen."""

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
    def _check_combination(self) -> Self:
        dimensions = choose_dimensions(self.kind, self.model, self.dimensions)
        if dimensions % 8 and self.wire_type == "ubinary":
            raise ValueError("packed bits need dimensions that are a multiple of 8")
        own = published(self.kind, self.model)
        other = published(self.kind, self.query_model or self.model)
        if self.query_model is not None and not (
            own and other and own.family and own.family == other.family
        ):
            raise ValueError(
                f"query_model {self.query_model!r} is not known to be of one family with "
                f"{self.model!r}"
            )
        return self

    @property
    def wire_type(self) -> str:
        """`output_dtype` as requests name it."""
        return WIRE_TYPES[self.output_dtype]

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> VoyageModel:
        return VoyageModel(self, home, secrets)


class VoyageModel(RemoteModel):
    options: Voyage

    @functools.cached_property
    def space(self) -> Space:
        options, entry = self.options, published(self.options.kind, self.options.model)
        return Space(
            provider=options.kind,
            model=options.model,
            revision="v1",  # of the interface; Voyage's models carry theirs in their names
            dimensions=choose_dimensions(options.kind, options.model, options.dimensions),
            pooling="service",
            # As `input_type`; the service adds its sentences.
            prompts={"document": "document", "query": "query"},
            max_tokens=entry.max_tokens if entry else MAX_TOKENS,
            normalized=options.wire_type == "float",
            dtype=DTYPES[options.wire_type],
        )

    @functools.cached_property
    def limits(self) -> Limits:
        entry = published(self.options.kind, self.options.model)
        return Limits(
            max_tokens=(entry.max_tokens if entry else MAX_TOKENS) - PROMPT_TOKENS,
            request_tokens=(entry and entry.request_tokens) or REQUEST_TOKENS,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self.options.concurrent_requests,
        )

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        if not inputs:
            return self.empty_response()
        options, dtype = self.options, self.options.wire_type
        body: dict[str, Any] = {
            "model": (options.query_model if input_type == "query" else None) or options.model,
            "input": list(inputs),
            "input_type": input_type,
            "truncation": False,
            "output_dtype": dtype,
            "encoding_format": "base64",
        }
        size = dimensions_to_ask(options.kind, options.model, options.dimensions)
        if size is not None:
            body["output_dimension"] = size
        reply = self.request("/embeddings", body, self.bearer)
        entries = order_by_index(self, list_at(self, reply, "data"), len(inputs))
        codes = stack(self, entries, lambda entry: read_base64(entry, BYTES_OF[dtype]))
        return Response(as_float(self, codes, dtype), count_at(reply, "usage", "total_tokens"))

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        """As for all; a 400 for too many tokens in one request is nobody's text's fault."""
        fault = super().fault(status, body, headers)
        return TooLarge(str(fault)) if status == 400 and TOO_MANY_TOKENS in body else fault
