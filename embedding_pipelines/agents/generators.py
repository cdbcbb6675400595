"""The generators for OpenAI, Hugging Face and AIOS: faces on the providers `openai`, `hf` and
`aios`."""

import functools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from embedding_pipelines.agents.base import AbstractEmbeddingGenerator, Vector
from embedding_pipelines.agents.keys import key_variable
from embedding_pipelines.embedding.packing import calls
from embedding_pipelines.embedding.request import ask_patiently
from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.plugins import parse
from embedding_pipelines.providers.base import InputType, Provider, checked

log = logging.getLogger(__name__)

DEVICES = ("cpu", "cuda", "mps")


class _ProviderGenerator(AbstractEmbeddingGenerator):
    """A face on one of this package's providers. `input_type` says which input type of an
    asymmetric model texts have."""

    def __init__(
        self, normalize: bool, dims: int | None, batch_size: int | None, input_type: InputType
    ) -> None:
        super().__init__()
        self.normalize, self.dims, self.batch_size, self.input_type = (
            normalize,
            dims,
            batch_size,
            input_type,
        )
        self._check()

    def set_parameter(self, key: str, value: Any) -> None:
        before = self.get_parameter(key)
        setattr(self, key, value)
        try:
            self._check()
        except ConfigError:
            setattr(self, key, before)
            raise

    def _check(self) -> None:
        if not isinstance(self.normalize, bool):
            raise ConfigError(f"normalize is {self.normalize!r}: write true or false.")
        for name in ("dims", "batch_size"):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < 1):
                raise ConfigError(f"{name} is {number!r}: write a whole number, 1 or more.")
        if self.input_type not in ("document", "query"):
            raise ConfigError(f"input_type is {self.input_type!r}: write 'document' or 'query'.")

    def _options(self) -> dict[str, Any]:
        """The provider's own; None stands for its default."""
        raise NotImplementedError

    def _infer(self, text: str) -> Vector:
        return self._infer_batch([text])[0]

    def _infer_batch(self, texts: Sequence[str]) -> Sequence[Vector]:
        if isinstance(texts, str):
            raise TypeError("generate_batch takes a list of texts; give a single one to generate.")
        if not texts:
            return []
        options = {name: value for name, value in self._options().items() if value is not None}
        provider = _provider(json.dumps({"kind": self.provider, **options}, sort_keys=True))
        space, limits = provider.space, provider.limits
        if self.dims not in (None, space.dimensions):
            raise ProviderError(
                f"{space}: dims is {self.dims}. Correct dims, or choose another model."
            )
        limits = replace(
            limits, request_texts=min(limits.request_texts, self.batch_size or limits.request_texts)
        )
        tokens = [len(entry.ids) for entry in provider.tokenizer().encode_batch_fast(list(texts))]
        vectors = np.empty((len(texts), space.dimensions), np.float32)
        for rows in calls(tokens, limits, [len(text.encode()) for text in texts]):
            part = [texts[row] for row in rows]
            asked = ask_patiently(provider, part, self.input_type, sum(tokens[row] for row in rows))
            vectors[rows] = checked(asked.reply.vectors, part, space)
        return list(vectors)


class OpenAIEmbeddingGenerator(_ProviderGenerator):
    """OpenAI's models, or a server that speaks as they do at `base_url` (default: $OPENAI_BASE_URL,
    else OpenAI).

    `api_key`: the key itself, which is kept out of every text; or "env:NAME", or "file:/path" that
    holds it. Default: OPENAI_API_KEY. `dims` asks for vectors of that length.
    """

    provider = "openai"

    def __init__(
        self,
        api_key: str | None = None,
        model: str = "text-embedding-3-small",
        normalize: bool = True,
        dims: int | None = None,
        batch_size: int | None = None,
        timeout_s: float | None = None,
        base_url: str | None = None,
        input_type: InputType = "document",
    ) -> None:
        super().__init__(normalize, dims, batch_size, input_type)
        self.model, self.timeout_s, self.base_url = model, timeout_s, base_url
        self._api_key_env = key_variable(self, api_key)

    def _options(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "dimensions": self.dims,
            "timeout_seconds": self.timeout_s,
            "base_url": self.base_url or os.environ.get("OPENAI_BASE_URL"),
            "api_key_env": self._api_key_env,
            "tokenizer_of": "estimate",  # tokens are only counted to divide calls: no vocabulary is downloaded for it
        }


class HuggingFaceEmbeddingGenerator(_ProviderGenerator):
    """A local sentence-transformers model. A `device` that this machine lacks is told in the log,
    and done without."""

    provider = "hf"

    def __init__(
        self,
        model_name: str,
        device: str = "cpu",
        batch_size: int = 32,
        normalize: bool = True,
        dims: int | None = None,
        input_type: InputType = "document",
    ) -> None:
        self.model_name, self.device = model_name, device
        super().__init__(normalize, dims, batch_size, input_type)

    def _check(self) -> None:
        super()._check()
        if not isinstance(self.device, str) or self.device.split(":")[0] not in DEVICES:
            raise ConfigError(f"device is {self.device!r}: write one of {', '.join(DEVICES)}.")

    def _options(self) -> dict[str, Any]:
        _say_where(self.device.split(":")[0])
        return {"model": self.model_name}


class AIOSEmbeddings(_ProviderGenerator):
    """A block of AIOS behind gRPC: `block_id`, or the one that `selection_query` finds. `api_key`
    as with OpenAI's."""

    provider = "aios"

    def __init__(
        self,
        grpc_url: str,
        dims: int = 768,
        timeout_s: float = 15,
        normalize: bool = True,
        block_id: str = "",
        selection_query: dict[str, Any] | None = None,
        api_key: str | None = None,
        batch_size: int | None = None,
        input_type: InputType = "document",
    ) -> None:
        super().__init__(normalize, dims, batch_size, input_type)
        self.grpc_url, self.timeout_s = grpc_url, timeout_s
        self.block_id, self.selection_query = block_id, selection_query
        self._api_key_env = key_variable(self, api_key)

    def _options(self) -> dict[str, Any]:
        return {
            "grpc_url": self.grpc_url,
            "dimensions": self.dims,
            "timeout_seconds": self.timeout_s,
            "normalize": self.normalize,
            "model": self.block_id,
            "selection_query": self.selection_query or None,
            "api_key_env": self._api_key_env,
        }


@functools.lru_cache(maxsize=64)
def _provider(options: str) -> Provider:
    """The provider that these options make, in JSON. Raises ConfigError if they are wrong."""
    try:
        provider: Provider = parse("providers", Provider, json.loads(options))
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in error.errors()
        ]
        raise ConfigError("; ".join(fault.removeprefix(": ") for fault in faults)) from None
    return provider


@functools.cache
def _say_where(wanted: str) -> None:
    """Once per device: a model runs on the best that this machine has, whatever was asked for."""
    from embedding_pipelines.inference.torch import accelerator

    found = accelerator() or "cpu"
    if found != wanted:
        log.warning(
            "device: %r was asked for; this machine's is %r, and models run on that", wanted, found
        )
