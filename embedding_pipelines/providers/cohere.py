"""`cohere`: Cohere's models, version 3 and later. https://docs.cohere.com/reference/embed

A request asks for all of `embedding_types` at once, for the price of one: the first is what the
pipeline stores, the others go to the cache, so that a second pipeline with another type pays
nothing. All arrive as float32: float of unit length; int8 as its numbers; uint8 less 128; binary
and ubinary, which are the same bits, as -1 and 1.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from embedding_pipelines.errors import ProviderError
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
    read_numbers,
    vectors_at,
)
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors, unit

REQUEST_TEXTS = 96  # of a request, docs.cohere.com/reference/embed
MAX_TOKENS = 512  # of a model that is not listed: the least that Cohere has
OWN_TOKENS = 8  # kept free for what the service puts around a text, by its input type
INPUT_TYPES: dict[InputType, str] = {"document": "search_document", "query": "search_query"}


class Cohere(RemoteOptions):
    """One model; the service rejects texts that are too long and never cuts them unseen."""

    kind: Literal["cohere"] = "cohere"
    base_url: str = "https://api.cohere.com"
    api_key_env: str | None = "COHERE_API_KEY"
    model: str
    dimensions: int | None = Field(None, ge=1)
    """Fewer than the model's own; from version 4 on."""

    task: Literal["classification", "clustering"] | None = None
    """What the vectors are for, if not search; then documents and queries are treated alike."""

    embedding_types: tuple[ElementType, ...] = Field(("float",), min_length=1)
    """The first is what the pipeline uses; the others are kept for other pipelines."""

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if len({WIRE_TYPES[name] for name in self.embedding_types}) < len(self.embedding_types):
            raise ValueError(
                "embedding_types names one type twice; binary and ubinary are the same bits"
            )
        if (
            choose_dimensions(self.kind, self.model, self.dimensions) % 8
            and "ubinary" in self.wire_types
        ):
            raise ValueError("packed bits need dimensions that are a multiple of 8")
        return self

    @property
    def wire_types(self) -> list[str]:
        """`embedding_types` as requests name them."""
        return [WIRE_TYPES[name] for name in self.embedding_types]

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> CohereModel:
        return CohereModel(self, home, secrets)


class CohereModel(RemoteModel):
    options: Cohere

    @functools.cached_property
    def space(self) -> Space:
        return self._space_in(self.options.wire_types[0])

    @functools.cached_property
    def limits(self) -> Limits:
        entry = published(self.options.kind, self.options.model)
        most = entry.max_tokens if entry else MAX_TOKENS
        # No total of a request is documented: as much as 96 texts of version 3 or one of the later
        # ones.
        return Limits(
            most - OWN_TOKENS,
            max(most, REQUEST_TEXTS * MAX_TOKENS),
            REQUEST_TEXTS,
            self.options.concurrent_requests,
        )

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        options, names = self.options, self.options.wire_types
        if not inputs:
            return self.empty_response()
        body: dict[str, Any] = {
            "model": options.model,
            "texts": list(inputs),
            "input_type": options.task or INPUT_TYPES[input_type],
            "embedding_types": names,
            "truncate": "NONE",
        }
        size = dimensions_to_ask(options.kind, options.model, options.dimensions)
        if size is not None:
            body["output_dimension"] = size
        reply = self.request("/v2/embed", body, self.bearer)
        vectors, *others = (self._vectors(reply, name, len(inputs)) for name in names)
        copies = {self._space_in(name): copy for name, copy in zip(names[1:], others, strict=True)}
        tokens = count_at(reply, "meta", "billed_units", "input_tokens")
        return Response(vectors, tokens, copies)

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        """As for all, and what Cohere means by a trial key's 429 and by 498."""
        problem = f"{self.where} answered {status}: {self.quote(body)}"
        if status == 429 and "/ month" in body:
            return ProviderError(
                f"{problem} The trial key is used up for this month; nothing is lost."
            )
        if status == 498:  # "invalid token", docs.cohere.com/reference/errors
            key = self.options.api_key_env
            return ProviderError(f"{problem} Check the key: api_key_env is {key!r}.")
        return super().fault(status, body, headers)

    def _vectors(self, reply: Any, name: str, count: int) -> Vectors:
        codes = vectors_at(self, reply, ("embeddings", name), count, read_numbers)
        vectors = as_float(self, codes, name)
        # Cohere does not say that shortened ones are of unit length.
        return unit(vectors) if name == "float" else vectors

    def _space_in(self, name: str) -> Space:
        options = self.options
        entry = published(options.kind, options.model)
        return Space(
            provider=options.kind,
            model=options.model,
            revision="v2",  # of the interface; Cohere's models carry theirs in their names
            dimensions=choose_dimensions(options.kind, options.model, options.dimensions),
            pooling="service",
            prompts={input_type: options.task or name for input_type, name in INPUT_TYPES.items()},
            max_tokens=entry.max_tokens if entry else MAX_TOKENS,
            normalized=name == "float",
            dtype=DTYPES[name],
        )
