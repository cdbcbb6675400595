"""`openai`: OpenAI's models, and whatever server speaks as theirs do: Azure, vLLM, Infinity, LM
Studio, llama.cpp …

https://platform.openai.com/docs/api-reference/embeddings, through the official SDK, whose retries
are switched off. OpenAI's own models are in the table of published models. Of another one, the user
says how long its vectors are and how much it reads; what the server returns must agree with that.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from embedding_pipelines.extras import need
from embedding_pipelines.once import once
from embedding_pipelines.providers import _tiktoken
from embedding_pipelines.providers._openai_batch import OpenaiBatches
from embedding_pipelines.providers._openai_sdk import (
    BASE_URL,
    is_openai,
    request_headers,
    translated_errors,
)
from embedding_pipelines.providers.base import NO_SECRETS, InputType, Limits, Response
from embedding_pipelines.providers.common.http import RemoteModel, RemoteOptions
from embedding_pipelines.providers.common.prices import (
    PublishedModel,
    choose_dimensions,
    published,
)
from embedding_pipelines.providers.common.prompts import prompts_of
from embedding_pipelines.providers.common.replies import (
    count_at,
    list_at,
    order_by_index,
    read_base64,
    read_numbers,
    stack,
)
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from openai import OpenAI
    from tokenizers import Tokenizer

KEY = "OPENAI_API_KEY"

# The SDK's docstring of `embeddings.create` states inputs and tokens. Tokens of a request are
# judged before they are counted, at a quarter of its bytes.
REQUEST_TEXTS, REQUEST_TOKENS, REQUEST_BYTES = 2_048, 300_000, 1_200_000

BATCH_TEXTS = 50_000  # as the guide to the Batch interface states it

# A server of one's own: what a processor embeds in seconds, so that a request ends before
# `timeout_seconds`.
OTHER_REQUEST_TEXTS, OTHER_REQUEST_TOKENS, OTHER_MAX_TOKENS = 256, 16_384, 512


class Openai(RemoteOptions):
    """One model at one address. Texts too long for the model are rejected by the service, by some
    servers cut."""

    kind: Literal["openai"] = "openai"
    base_url: str = BASE_URL
    """Up to and with /v1. Azure: https://<resource>.openai.azure.com/openai/v1, and the deployment
    as `model`."""

    api_key_env: str | None = None
    """Default: OPENAI_API_KEY at api.openai.com. Elsewhere none is sent unless this names one, so
    that the key to one service never reaches another."""

    model: str = Field(min_length=1)
    dimensions: int | None = Field(None, ge=1)
    """Required of a model that is not OpenAI's own. Of theirs, a smaller number asks for shortened
    vectors."""

    mode: Literal["direct", "batch"] = "direct"
    """batch: documents go through the Batch interface, answered within a day for half the price.
    Queries never do."""

    batch_texts: int = Field(BATCH_TEXTS, ge=1, le=BATCH_TEXTS)
    """Of one batch job at most. Fewer where the account may not have so many tokens waiting."""

    revision: str | None = None
    """What distinguishes the weights of a model that is not OpenAI's own. Default: the server's
    address; say the same for servers that serve the same weights, or for one that moves."""

    send_dimensions: bool = False
    """Ask the server for `dimensions`, where it is not published that the model can shorten its
    vectors."""

    max_tokens: int | None = Field(None, ge=8)
    """What the model reads of a text. Default: 8,191 for OpenAI's own; 512 for others, the least
    that is usual."""

    prompts: dict[InputType, str] | None = None
    """What stands before a text, by input type; one left out gets none. Default: what the model's
    family asks for."""

    @model_validator(mode="before")
    @classmethod
    def _default_key(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "api_key_env" in values:
            return values
        is_own = is_openai(str(values.get("base_url", BASE_URL)))
        return {**values, "api_key_env": KEY if is_own else None}

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        choose_dimensions(self.kind, self.model, self.dimensions)
        entry = self.published
        if entry is not None and self.send_dimensions:
            raise ValueError(
                "send_dimensions is for models that are not published; leave it out with "
                f"{self.model!r}"
            )
        if entry is not None and self.text_tokens > entry.max_tokens:
            raise ValueError(
                f"{self.model!r} reads {entry.max_tokens} tokens of a text; max_tokens cannot be "
                "more"
            )
        return self

    @property
    def published(self) -> PublishedModel | None:
        """None for a model that is not OpenAI's own."""
        return published(self.kind, self.model)

    @property
    def text_tokens(self) -> int:
        """What the model reads of a text."""
        most = self.published.max_tokens if self.published else OTHER_MAX_TOKENS
        return most if self.max_tokens is None else self.max_tokens

    @property
    def batch_price(self) -> float | None:
        if self.usd_per_million_tokens is not None or self.published is None:
            return self.usd_per_million_tokens
        return self.published.usd_batch

    @property
    def uses_batch_jobs(self) -> bool:
        return self.mode == "batch"

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> OpenaiModel:
        return OpenaiModel(self, home, secrets)


class OpenaiModel(RemoteModel):
    options: Openai

    @once
    def sdk(self) -> OpenAI:
        """Keeps its connections open. Raises ConfigError without the SDK."""
        # Without a key, the SDK would look for one of its own accord. Which one is sent is said
        # with each request: `request_headers`.
        address = self.address
        client: OpenAI = need("openai", "openai").OpenAI(
            api_key="none", base_url=address, max_retries=0
        )
        return client

    def close(self) -> None:
        sdk = self.__dict__.pop("sdk", None)
        if sdk is not None:
            sdk.close()
        super().close()

    @functools.cached_property
    def batch_service(self) -> OpenaiBatches:  # type: ignore[override]
        return OpenaiBatches(self)

    @functools.cached_property
    def space(self) -> Space:
        """With the address of a model that is not OpenAI's own: two servers may call different ones
        alike."""
        options, is_published = self.options, self.options.published is not None
        return Space(
            provider=options.kind,
            model=options.model,
            # OpenAI's own models carry their version in their names, behind Azure too; "v1" is the
            # interface's.
            revision=options.revision or ("v1" if is_published else urlsplit(self.address).netloc),
            dimensions=choose_dimensions(options.kind, options.model, options.dimensions),
            pooling="service",
            prompts=self._prompts,
            max_tokens=options.text_tokens,
            normalized=is_published,  # another server does as it was started
            dtype="float32",
        )

    @functools.cached_property
    def limits(self) -> Limits:
        options = self.options
        left = self.room(options.text_tokens, self._prompts)
        if options.published is None:
            tokens = max(OTHER_REQUEST_TOKENS, left)
            return Limits(left, tokens, OTHER_REQUEST_TEXTS, options.concurrent_requests)
        return Limits(
            left, REQUEST_TOKENS, REQUEST_TEXTS, options.concurrent_requests, REQUEST_BYTES
        )

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return _tiktoken.cl100k() if self._counts_as_openai else super().tokenizer

    @functools.cached_property
    def tokenizer_digest(self) -> str:
        return _tiktoken.cl100k_digest() if self._counts_as_openai else super().tokenizer_digest

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        if not inputs:
            return self.empty_response()
        with translated_errors(self):
            reply = self.sdk.embeddings.with_raw_response.create(
                **self.body(inputs, input_type),
                timeout=self.options.timeout_seconds,
                extra_headers=request_headers(self),
            )
        return self.read(self.json_of(reply.content), len(inputs))

    def body(self, inputs: Sequence[str], input_type: InputType) -> dict[str, Any]:
        """A request for the vectors of `inputs`."""
        options, entry = self.options, self.options.published
        prompt, size = self._prompts.get(input_type, ""), self.space.dimensions
        # Not for a model's own number: the older ones reject any.
        asks = options.send_dimensions if entry is None else size != entry.dimensions
        return {
            "model": options.model,
            "input": [prompt + text for text in inputs],
            **({"dimensions": size} if asks else {}),
            "encoding_format": "base64",
        }

    def read(self, reply: Any, count: int) -> Response:
        """What a reply's JSON says of `count` texts. Raises as `embed`."""
        entries = order_by_index(self, list_at(self, reply, "data"), count)
        # Servers that do not count tokens say 0.
        totals = (count_at(reply, "usage", name) for name in ("total_tokens", "prompt_tokens"))
        return Response(stack(self, entries, _read), next(filter(None, totals), None))

    @property
    def _prompts(self) -> dict[str, str]:
        return prompts_of(self.options.model, self.options.prompts)

    @property
    def _counts_as_openai(self) -> bool:
        return self.options.tokenizer_of is None and self.options.published is not None


def _read(vector: Any) -> Vectors:
    """float32[d] of base64, or of the list of numbers that some servers send all the same."""
    return read_base64(vector) if isinstance(vector, str) else read_numbers(vector)
