"""`openai`: OpenAI's models, and whatever server speaks as theirs do: Azure, vLLM, Infinity, LM
Studio, llama.cpp …

https://platform.openai.com/docs/api-reference/embeddings, through the official SDK, whose retries
are switched off. Of OpenAI's own models all is known. Of another one, the user says how long its
vectors are and how much it reads; what the server returns must agree with that.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field, model_validator

from embedding_pipelines.providers import _tiktoken
from embedding_pipelines.providers._openai_batch import OpenaiBatches
from embedding_pipelines.providers._openai_sdk import BASE_URL, client, is_openai, told, unsent
from embedding_pipelines.providers.base import BatchService, InputType, Limits, Reply
from embedding_pipelines.providers.common.http import Remote
from embedding_pipelines.providers.common.prices import (
    ModelFacts,
    chosen_dimensions,
    facts_of,
)
from embedding_pipelines.providers.common.replies import (
    count_within,
    listed,
    numbers,
    placed,
    stacked,
)
from embedding_pipelines.providers.common.served import prompts_by_input_type, room
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEY = "OPENAI_API_KEY"

# The SDK's docstring of `embeddings.create` states inputs and tokens. Tokens of a request are
# judged before they are counted, at a quarter of its bytes.
REQUEST_TEXTS, REQUEST_TOKENS, REQUEST_BYTES = 2_048, 300_000, 1_200_000

BATCH_TEXTS = 50_000  # as the guide to the Batch interface states it

# A server of one's own: what a processor embeds in seconds, so that a request ends before
# `timeout_seconds`.
OTHER_REQUEST_TEXTS, OTHER_REQUEST_TOKENS, OTHER_MAX_TOKENS = 256, 16_384, 512


class Openai(Remote):
    """One model at one address. Texts too long for the model are refused by the service, by some
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
    """Of one batch at most. Fewer where the account may not have so many tokens waiting."""

    revision: str | None = None
    """What distinguishes the weights of a model that is not OpenAI's own. Default: the server's
    address; say the same for servers that serve the same weights, or for one that moves."""

    send_dimensions: bool = False
    """Ask the server for `dimensions`, where nobody here knows that the model can shorten its
    vectors."""

    max_tokens: int | None = Field(None, ge=8)
    """What the model reads of a text. Default: 8,191 for OpenAI's own; 512 for others, the least
    that is usual."""

    prompts: dict[InputType, str] | None = None
    """What stands before a text, by input type; a input type left out gets none. Default: what the
    model's family asks for."""

    @model_validator(mode="before")
    @classmethod
    def _usual_key(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "api_key_env" in values:
            return values
        return {
            **values,
            "api_key_env": KEY if is_openai(str(values.get("base_url", BASE_URL))) else None,
        }

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        chosen_dimensions(self.kind, self.model, self.dimensions)
        facts = self._facts
        if facts is not None and self.send_dimensions:
            raise ValueError(
                f"send_dimensions is for models that are not known; leave it out with {self.model!r}"
            )
        if facts is not None and self._max_tokens > facts.max_tokens:
            raise ValueError(
                f"{self.model!r} reads {facts.max_tokens} tokens of a text; max_tokens cannot be more"
            )
        return self

    @property
    def space(self) -> Space:
        """With the address of a model that is not OpenAI's own: two servers may call different ones
        alike."""
        return Space(
            provider=self.kind,
            model=self.model,
            # OpenAI's own models carry their version in their names, behind Azure too; "v1" is the
            # interface's.
            revision=self.revision or ("v1" if self._facts else urlsplit(self.base_url).netloc),
            dimensions=self._dimensions,
            pooling="service",
            prompts=prompts_by_input_type(self.model, self.prompts),
            max_tokens=self._max_tokens,
            normalized=self._facts is not None,  # another server does as it was started
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        left = room(self, self._max_tokens, prompts_by_input_type(self.model, self.prompts))
        if self._facts is None:
            tokens = max(OTHER_REQUEST_TOKENS, left)
            return Limits(left, tokens, OTHER_REQUEST_TEXTS, self.concurrent_requests)
        return Limits(left, REQUEST_TOKENS, REQUEST_TEXTS, self.concurrent_requests, REQUEST_BYTES)

    @property
    def batch_price(self) -> float | None:
        if self.usd_per_million_tokens is not None or self._facts is None:
            return self.usd_per_million_tokens
        return self._facts.usd_batch

    def tokenizer(self) -> Tokenizer:
        return _tiktoken.cl100k() if self._counts_as_openai else super().tokenizer()

    @property
    def tokenizer_digest(self) -> str:
        return _tiktoken.cl100k_digest() if self._counts_as_openai else super().tokenizer_digest

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        if not inputs:
            return Reply(np.empty((0, self._dimensions), np.float32))
        return self.read(self.json_of(self._post(self.body(inputs, input_type))), len(inputs))

    @property
    def answers_later(self) -> bool:
        return self.mode == "batch"

    def batches(self) -> BatchService:
        return OpenaiBatches(self)

    def body(self, inputs: Sequence[str], input_type: InputType) -> dict[str, Any]:
        """A request for the vectors of `inputs`."""
        prompt = prompts_by_input_type(self.model, self.prompts).get(input_type, "")
        made = {"model": self.model, "input": [prompt + text for text in inputs]}
        size = {"dimensions": self._dimensions} if self._asks_for_dimensions else {}
        return {
            **made,
            **size,
            "encoding_format": "base64",
        }  # a quarter of the bytes of decimal numbers

    def read(self, reply: Any, count: int) -> Reply:
        """What a reply's JSON says of `count` texts. Raises as `ask`."""
        vectors = stacked(self, placed(self, listed(self, reply, "data"), count), _read)
        # Servers that do not count tokens say 0.
        tokens = count_within(reply, "usage", "total_tokens") or count_within(
            reply, "usage", "prompt_tokens"
        )
        return Reply(vectors, tokens or None)

    def _post(self, body: dict[str, Any]) -> bytes:
        """One request through the SDK: what a 200 brought, unread. Raises as `ask`."""
        sdk, headers = client(self.base_url, self.api_key), unsent(self.base_url, self.api_key)
        with told(self):
            made = sdk.embeddings.with_raw_response.create(
                **body, timeout=self.timeout_seconds, extra_headers=headers
            )
        return made.content

    @property
    def _facts(self) -> ModelFacts | None:
        return facts_of(self.kind, self.model)

    @property
    def _dimensions(self) -> int:
        return chosen_dimensions(self.kind, self.model, self.dimensions)

    @property
    def _asks_for_dimensions(self) -> bool:
        """Not for a model's own number: the older ones refuse any."""
        facts = self._facts
        return self.send_dimensions if facts is None else self._dimensions != facts.dimensions

    @property
    def _max_tokens(self) -> int:
        known = self._facts.max_tokens if self._facts else OTHER_MAX_TOKENS
        return known if self.max_tokens is None else self.max_tokens

    @property
    def _counts_as_openai(self) -> bool:
        return self.tokenizer_of is None and self._facts is not None


def _read(vector: Any) -> Vectors:
    """float32[d] of little-endian floats in base64, or of the list of numbers that some servers
    send all the same."""
    if isinstance(vector, str):
        return np.frombuffer(base64.b64decode(vector, validate=True), "<f4").astype(np.float32)
    return numbers(vector)
