"""`tei`: a server of Hugging Face's Text Embeddings Inference, which describes its own model and
limits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from embedding_pipelines.errors import BadInput, ProviderError, TooLarge, Unreachable
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.http import Meaning, RemoteModel, RemoteOptions
from embedding_pipelines.providers.common.prompts import PromptModel, PromptOptions
from embedding_pipelines.providers.common.replies import read_numbers, vectors_at
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

# The server's --payload-limit is 2 MB; JSON's escapes and commas come on top of the texts.
REQUEST_BYTES = 1_500_000


@dataclass(frozen=True)
class Info:
    """The server's own description, from `/info`."""

    model: str
    revision: str
    dtype: str
    pooling: str
    max_input_tokens: int  # of one text, special tokens included
    batch_texts: int
    batch_tokens: int


class TeiModel(RemoteModel, PromptModel):
    options: Tei
    # 413 is any kind of `Validation`: too many texts, one text that is too long or empty, a wrong
    # option.
    meanings = (
        Meaning([413], TooLarge, signs=("batch size",)),
        Meaning([413], ProviderError, "Check dimensions.", ("dimensions",)),
        Meaning([413], BadInput, signs=("error_type",)),
    )

    @functools.cached_property
    def space(self) -> Space:
        info = self._info
        # `/info` lacks the length of a vector: request one.
        size = self.options.dimensions or self._vectors(["dimensions"]).shape[1]
        return Space(
            provider=self.options.kind,
            model=info.model,
            revision=info.revision,
            dimensions=size,
            pooling=info.pooling,
            prompts=self.prompts,
            max_tokens=info.max_input_tokens,
            normalized=True,
            dtype=info.dtype,
        )

    @functools.cached_property
    def limits(self) -> Limits:
        info = self._info
        return Limits(
            max_tokens=self.text_tokens(info.max_input_tokens),
            request_tokens=max(info.batch_tokens, info.max_input_tokens),
            request_texts=info.batch_texts,
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
    def model_name(self) -> str:
        return self._info.model

    @once
    def _info(self) -> Info:
        reply = self.request("/info")
        try:
            pooling = reply["model_type"]["embedding"]["pooling"]
        except (KeyError, TypeError):
            kind = reply.get("model_type") if isinstance(reply, dict) else reply
            raise ProviderError(
                f"{self.where} serves no embedding model: its model_type is {kind!r}. Check "
                "base_url."
            ) from None
        try:
            return Info(
                model=str(reply["model_id"]),
                # null if the server was started without --revision
                revision=str(reply.get("model_sha") or "main"),
                dtype=str(reply["model_dtype"]),
                pooling=str(pooling),
                max_input_tokens=int(reply["max_input_length"]),
                batch_texts=int(reply["max_client_batch_size"]),
                batch_tokens=int(reply["max_batch_tokens"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Unreachable(
                f"{self.where}: /info does not describe the model ({error!r})."
            ) from error


class Tei(RemoteOptions, PromptOptions):
    """A model behind Text Embeddings Inference."""

    model_class = TeiModel
    default_price = 0.0

    kind: Literal["tei"] = "tei"
    base_url: str = "http://localhost:8080"
    dimensions: int | None = Field(None, ge=1)
    """Shorter vectors, of a model that was trained for it; sent with each request."""
