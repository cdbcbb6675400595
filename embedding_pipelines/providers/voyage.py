"""`voyage`: Voyage's text models. https://docs.voyageai.com/reference/embeddings-api

The models of version 4 share one space: `query_model` asks queries of a smaller model than the one
that embedded the documents. The `Space` names `model` alone all the same, so that a change of it
embeds the documents again. Vectors come back as base64, a quarter of the bytes of decimal numbers.
"""

import functools
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import model_validator

from embedding_pipelines.errors import TooLarge
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.hosted import HostedModel, HostedOptions
from embedding_pipelines.providers.common.http import Meaning
from embedding_pipelines.providers.common.prices import find_published
from embedding_pipelines.providers.common.replies import (
    DTYPES,
    NUMPY_TYPES,
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
REQUEST_TOKENS = 120_000  # where the model's own is not published: the least of the text models
MAX_TOKENS = 4_000  # of a model that is not published: voyage-2's, the least of all
PROMPT_TOKENS = 16  # left free for the sentence that the service puts before each text


class VoyageModel(HostedModel):
    options: "Voyage"
    meanings = (Meaning([400], TooLarge, words="tokens per submitted batch"),)

    @functools.cached_property
    def space(self) -> Space:
        wire_type = self.options.wire_type
        return self.make_space(
            revision="v1",  # of the interface; the names of Voyage's models hold their versions
            prompts={"document": "document", "query": "query"},  # as `input_type`
            normalized=wire_type == "float",
            dtype=DTYPES[wire_type],
        )

    @functools.cached_property
    def limits(self) -> Limits:
        entry = self.options.published_model
        return Limits(
            max_tokens=self.options.model_tokens - PROMPT_TOKENS,
            request_tokens=(entry and entry.request_tokens) or REQUEST_TOKENS,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self.options.concurrent_requests,
        )

    def send(self, inputs: Sequence[str], input_type: InputType) -> Response:
        options, dtype = self.options, self.options.wire_type
        body = {
            "model": (options.query_model if input_type == "query" else None) or options.model,
            "input": list(inputs),
            "input_type": input_type,
            "truncation": False,
            "output_dtype": dtype,
            "encoding_format": "base64",
            "output_dimension": options.requested_size,
        }
        reply = self.request("/embeddings", body)
        entries = order_by_index(self, list_at(self, reply, "data"), len(inputs))
        codes = stack(self, entries, lambda entry: read_base64(entry, NUMPY_TYPES[dtype]))
        return Response(as_float(self, codes, dtype), count_at(reply, "usage", "total_tokens"))


class Voyage(HostedOptions):
    """One model; the service rejects texts that are too long and never cuts them."""

    model_class = VoyageModel
    default_max_tokens = MAX_TOKENS

    kind: Literal["voyage"] = "voyage"
    base_url: str = "https://api.voyageai.com/v1"
    api_key_env: str | None = "VOYAGE_API_KEY"
    query_model: str | None = None
    """A cheaper model of the same family for queries, e.g. voyage-4-lite for voyage-4-large."""

    output_dtype: ElementType = "float"
    """The service quantizes; the pipeline stores float32: int8 as its numbers, uint8 less 128, bits
    as -1 and 1."""

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.size % 8 and self.wire_type == "ubinary":
            raise ValueError("packed bits need dimensions that are a multiple of 8")
        if self.query_model is not None:
            entries = [find_published(self.kind, name) for name in (self.model, self.query_model)]
            families = {entry.family if entry else None for entry in entries}
            if len(families) > 1 or None in families:
                raise ValueError(
                    f"query_model {self.query_model!r} is not published as one family with "
                    f"{self.model!r}"
                )
        return self

    @property
    def wire_type(self) -> str:
        """`output_dtype` as requests name it."""
        return WIRE_TYPES[self.output_dtype]
