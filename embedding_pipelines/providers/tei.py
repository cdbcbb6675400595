"""`tei`: a server of Text Embeddings Inference, which describes its own model and limits."""

import functools
from collections.abc import Sequence
from typing import Literal

from pydantic import AliasPath, BaseModel, ConfigDict, Field, ValidationError

from embedding_pipelines.errors import (
    BadInput,
    ProviderError,
    TooLarge,
    Unreachable,
    faults_in_words,
)
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.http import Meaning, RemoteModel, RemoteOptions
from embedding_pipelines.providers.common.prompts import PromptModel, PromptOptions, prompts_of
from embedding_pipelines.providers.common.replies import read_numbers, value_at, vectors_at
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

# The server's --payload-limit is 2 MB; JSON's escapes and commas come on top of the texts.
REQUEST_BYTES = 1_500_000


class Info(BaseModel):
    """The server's own description, from `/info`."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str | None = None  # None if the server was started without --revision
    model_dtype: str
    pooling: str = Field(validation_alias=AliasPath("model_type", "embedding", "pooling"))
    max_input_length: int  # tokens of one text, special tokens included
    max_client_batch_size: int  # texts of one request
    max_batch_tokens: int


class TeiModel(RemoteModel, PromptModel):
    options: "Tei"
    # 413 is any kind of `Validation`: too many texts, one text that is too long or empty, a wrong
    # option.
    meanings = (
        Meaning([413], TooLarge, words="batch size"),
        Meaning([413], ProviderError, "Check dimensions.", "dimensions"),
        Meaning([413], BadInput, words="error_type"),
    )

    @functools.cached_property
    def space(self) -> Space:
        info = self._info
        # `/info` lacks the length of a vector: request one.
        size = self.options.dimensions or self._vectors(["dimensions"]).shape[1]
        return Space(
            provider=self.options.kind,
            model=info.model_id,
            revision=info.model_sha or "main",
            dimensions=size,
            pooling=info.pooling,
            prompts=self.prompts,
            max_tokens=info.max_input_length,
            normalized=True,
            dtype=info.model_dtype,
        )

    @functools.cached_property
    def limits(self) -> Limits:
        info = self._info
        return Limits(
            max_tokens=self.text_tokens(info.max_input_length),
            request_tokens=max(info.max_batch_tokens, info.max_input_length),
            request_texts=info.max_client_batch_size,
            concurrent_requests=self.options.concurrent_requests,
            request_bytes=REQUEST_BYTES,
        )

    def send(self, inputs: Sequence[str], input_type: InputType) -> Response:
        return Response(self._vectors(self.add_prompt(inputs, input_type)))

    def _vectors(self, texts: list[str]) -> Vectors:
        body = {
            "inputs": texts,
            "truncate": False,
            "normalize": True,
            "dimensions": self.options.dimensions,
        }
        return vectors_at(self, self.request("/embed", body), (), len(texts), read_numbers)

    @property
    def prompts(self) -> dict[str, str]:
        return prompts_of(self._info.model_id, self.options.prompts)

    @once
    def _info(self) -> Info:
        reply = self.request("/info")
        kind = value_at(reply, "model_type") if isinstance(reply, dict) else reply
        if value_at(kind, "embedding", "pooling") is None:
            raise ProviderError(
                f"{self.where} serves no embedding model: its model_type is {kind!r}. Check "
                "base_url."
            )
        try:
            return Info.model_validate(reply)
        except ValidationError as error:
            first = error.errors()[:1]
            raise Unreachable(
                f"{self.where}: /info does not describe the model ({faults_in_words(first)})."
            ) from error


class Tei(RemoteOptions, PromptOptions):
    """A model behind Text Embeddings Inference."""

    model_class = TeiModel
    default_price = 0.0

    kind: Literal["tei"] = "tei"
    base_url: str = "http://localhost:8080"
    dimensions: int | None = Field(None, ge=1)
    """Shorter vectors, of a model that was trained for it; sent with each request."""
