"""`cohere`: Cohere's models, version 3 and later. https://docs.cohere.com/reference/embed

A request asks for all `embedding_types` at once, for the price of one. The pipeline stores the
first; the others go to the cache, so that a second pipeline with another type pays nothing. All
arrive as float32: float of unit length; int8 as its numbers; uint8 less 128; binary and ubinary,
which are the same bits, as -1 and 1.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.hosted import HostedModel, HostedOptions
from embedding_pipelines.providers.common.http import Meaning
from embedding_pipelines.providers.common.replies import (
    DTYPES,
    WIRE_TYPES,
    ElementType,
    as_float,
    count_at,
    read_numbers,
    vectors_at,
)
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors, unit

REQUEST_TEXTS = 96  # docs.cohere.com/reference/embed
MAX_TOKENS = 512  # of a model that is not published: the least of Cohere's
OWN_TOKENS = 8  # left free for what the service adds to a text, by its input type
INPUT_TYPES: dict[InputType, str] = {"document": "search_document", "query": "search_query"}


class CohereModel(HostedModel):
    options: "Cohere"
    meanings = (
        Meaning(
            [429],
            ProviderError,
            "The trial key is exhausted for this month; nothing is lost.",
            "/ month",
        ),
        # "invalid token", docs.cohere.com/reference/errors
        Meaning([498], ProviderError, "Check {key}."),
    )

    @functools.cached_property
    def space(self) -> Space:
        return self._space_in(self.options.wire_types[0])

    @functools.cached_property
    def limits(self) -> Limits:
        # The documentation names no total of a request: take 96 texts of version 3, or one of a
        # later version.
        most = self.options.model_tokens
        return Limits(
            max_tokens=most - OWN_TOKENS,
            request_tokens=max(most, REQUEST_TEXTS * MAX_TOKENS),
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self.options.concurrent_requests,
        )

    def send(self, inputs: Sequence[str], input_type: InputType) -> Response:
        options, names = self.options, self.options.wire_types
        body = {
            "model": options.model,
            "texts": list(inputs),
            "input_type": options.task or INPUT_TYPES[input_type],
            "embedding_types": names,
            "truncate": "NONE",
            "output_dimension": options.requested_size,
        }
        reply = self.request("/v2/embed", body)
        vectors, *others = (self._vectors(reply, name, len(inputs)) for name in names)
        copies = {self._space_in(name): copy for name, copy in zip(names[1:], others, strict=True)}
        tokens = count_at(reply, "meta", "billed_units", "input_tokens")
        return Response(vectors, tokens, copies)

    def _vectors(self, reply: Any, name: str, count: int) -> Vectors:
        codes = vectors_at(self, reply, ("embeddings", name), count, read_numbers)
        vectors = as_float(self, codes, name)
        # Cohere does not promise unit length for shortened vectors.
        return unit(vectors) if name == "float" else vectors

    def _space_in(self, wire_type: str) -> Space:
        return self.make_space(
            revision="v2",  # of the interface; the names of Cohere's models hold their versions
            prompts={name: self.options.task or words for name, words in INPUT_TYPES.items()},
            normalized=wire_type == "float",
            dtype=DTYPES[wire_type],
        )


class Cohere(HostedOptions):
    """One model; the service rejects texts that are too long and never cuts them."""

    model_class = CohereModel
    default_max_tokens = MAX_TOKENS

    kind: Literal["cohere"] = "cohere"
    base_url: str = "https://api.cohere.com"
    api_key_env: str | None = "COHERE_API_KEY"
    task: Literal["classification", "clustering"] | None = None
    """The use of the vectors, if not search; documents and queries are then treated alike."""

    embedding_types: tuple[ElementType, ...] = Field(("float",), min_length=1)
    """The pipeline uses the first; the others go to the cache, for other pipelines."""

    @model_validator(mode="after")
    def _check_types(self) -> Self:
        if len(set(self.wire_types)) < len(self.wire_types):
            raise ValueError(
                "embedding_types names one type twice; binary and ubinary are the same bits"
            )
        if self.size % 8 and "ubinary" in self.wire_types:
            raise ValueError("packed bits need dimensions that are a multiple of 8")
        return self

    @property
    def wire_types(self) -> list[str]:
        """`embedding_types` as requests name them."""
        return [WIRE_TYPES[name] for name in self.embedding_types]
