"""`tei`: a server of Hugging Face's Text Embeddings Inference. What it serves and what it takes, it
says itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field

from embedding_pipelines.errors import BadInput, ProviderError, TooLarge, Unreachable
from embedding_pipelines.providers.base import InputType, Limits, Reply
from embedding_pipelines.providers.common.http import Remote
from embedding_pipelines.providers.common.replies import in_order, numbers
from embedding_pipelines.providers.common.served import prompts_by_input_type, room
from embedding_pipelines.space import Space

REQUEST_BYTES = 1_500_000  # the server's --payload-limit is 2 MB; JSON's escapes and commas come on top of the texts


@dataclass(frozen=True)
class Info:
    """What `/info` says of the server."""

    model: str
    revision: str
    dtype: str
    pooling: str
    max_input_tokens: int  # of one text, special tokens included
    batch_texts: int
    batch_tokens: int


class Tei(Remote):
    """A model behind Text Embeddings Inference. `/info` is read once per process."""

    kind: Literal["tei"] = "tei"
    base_url: str = "http://localhost:8080"
    dimensions: int | None = Field(None, ge=1)
    """Shorter vectors, of a model that was trained to give them; asked of the server with each
    request."""

    prompts: dict[InputType, str] | None = None
    """What stands before a text, by input type ("query", "document"). Default: what the model's
    family asks for."""

    @property
    def space(self) -> Space:
        return Space(
            provider=self.kind,
            model=self._info.model,
            revision=self._info.revision,
            dimensions=self.dimensions or _dimensions(self._asker),
            pooling=self._info.pooling,
            prompts=self._prompts,
            max_tokens=self._info.max_input_tokens,
            normalized=True,
            dtype=self._info.dtype,
        )

    @property
    def limits(self) -> Limits:
        info = self._info
        return Limits(
            max_tokens=room(self, info.max_input_tokens, self._prompts),
            request_tokens=max(info.batch_tokens, info.max_input_tokens),
            request_texts=info.batch_texts,
            concurrent_requests=self.concurrent_requests,
            request_bytes=REQUEST_BYTES,
        )

    @property
    def price(self) -> float | None:
        return self.usd_per_million_tokens or 0.0

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        if not inputs:
            return Reply(np.empty((0, self.space.dimensions), np.float32))
        prompt = self._prompts.get(input_type, "")
        return Reply(
            in_order(
                self, self._embed([prompt + text for text in inputs]), (), len(inputs), numbers
            )
        )

    def fault(self, status: int, body: str, headers: Mapping[str, str]) -> ProviderError:
        # 413 is every kind of `Validation`: a call of too many texts, one text that is too long or
        # empty, an option.
        if status == 413 and "error_type" in body:
            said = f"{self.kind} at {self.base_url} answered {status}: {self.quoted(body)}"
            if "batch size" in body:
                return TooLarge(said)
            if "dimensions" in body:
                return ProviderError(f"{said} Check dimensions.")
            return BadInput(said)
        return super().fault(status, body, headers)

    def _embed(self, texts: list[str]) -> Any:
        body = {"inputs": texts, "truncate": False, "normalize": True}
        if self.dimensions is not None:
            body["dimensions"] = self.dimensions
        return self.request("/embed", body, self.bearer)

    @property
    def _prompts(self) -> dict[str, str]:
        return prompts_by_input_type(self._info.model, self.prompts)

    @property
    def _info(self) -> Info:
        return _info(self._asker)

    @property
    def _asker(self) -> Self:
        """The same without what cannot be hashed, to remember by."""
        return self.model_copy(update={"prompts": None})


@functools.lru_cache(maxsize=32)
def _info(tei: Tei) -> Info:
    found = tei.request("/info", headers=tei.bearer)
    try:
        pooling = found["model_type"]["embedding"]["pooling"]
    except (KeyError, TypeError):
        kind = found.get("model_type") if isinstance(found, dict) else found
        raise ProviderError(
            f"tei at {tei.base_url} serves no embedding model: its model_type is {kind!r}. Check base_url."
        ) from None
    try:
        return Info(
            model=str(found["model_id"]),
            revision=str(
                found.get("model_sha") or "main"
            ),  # null if the server was started without --revision
            dtype=str(found["model_dtype"]),
            pooling=str(pooling),
            max_input_tokens=int(found["max_input_length"]),
            batch_texts=int(found["max_client_batch_size"]),
            batch_tokens=int(found["max_batch_tokens"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Unreachable(
            f"tei at {tei.base_url}: /info lacks what it should say ({error!r})."
        ) from error


@functools.lru_cache(maxsize=32)
def _dimensions(tei: Tei) -> int:
    """`/info` does not say: the length of one vector."""
    return int(in_order(tei, tei._embed(["dimensions"]), (), 1, numbers).shape[1])
