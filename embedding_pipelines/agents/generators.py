"""The generators for OpenAI, Hugging Face and AIOS: faces on the embedding service."""

import logging
from collections.abc import Sequence
from typing import Any

from embedding_pipelines.agents.base import AbstractEmbeddingGenerator, Vector
from embedding_pipelines.agents.keys import resolve_key
from embedding_pipelines.environment import home
from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.service import EmbeddingConfig, EmbeddingService

log = logging.getLogger(__name__)

DEVICES = ("cpu", "cuda", "mps")


class _ServiceGenerator(AbstractEmbeddingGenerator):
    """A face on an embedding service, whose model is opened again when a parameter was changed.

    `input_type` says which of an asymmetric model's inputs texts are. `cache_enabled`: vectors are
    looked up in the embedding cache of the home folder, as the environment names it when the
    generator is made.
    """

    def __init__(
        self,
        normalize: bool,
        dims: int | None,
        batch_size: int | None,
        input_type: InputType,
        cache_enabled: bool,
        api_key: str | None = None,
    ) -> None:
        super().__init__()
        self.normalize, self.dims, self.batch_size = normalize, dims, batch_size
        self.input_type: InputType = input_type
        self.cache_enabled = cache_enabled
        self._api_key_env, self._secrets = resolve_key(type(self).__name__, api_key)
        self._home = home()
        self._service: EmbeddingService | None = None
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
        for name in ("normalize", "cache_enabled"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: write true or false.")
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
        service = self._opened_service()
        space = service.model.space
        if self.dims not in (None, space.dimensions):
            raise ProviderError(
                f"{space}: dims is {self.dims}. Correct dims, or choose another model."
            )
        return list(service.embed_batch(texts, self.input_type))

    def _opened_service(self) -> EmbeddingService:
        """The service of the parameters as they are now."""
        options = {name: value for name, value in self._options().items() if value is not None}
        config = EmbeddingConfig(
            provider=self.provider,
            batch_size=self.batch_size,
            cache_enabled=self.cache_enabled,
            options=options,
        )
        if self._service is None or self._service.config != config:
            # Another thread may still use the one before: it closes when nobody has it any more.
            self._service = EmbeddingService(config, home=self._home, secrets=self._secrets)
        return self._service


class OpenAIEmbeddingGenerator(_ServiceGenerator):
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
        cache_enabled: bool = True,
    ) -> None:
        super().__init__(normalize, dims, batch_size, input_type, cache_enabled, api_key)
        self.model, self.timeout_s, self.base_url = model, timeout_s, base_url

    def _options(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "dimensions": self.dims,
            "timeout_seconds": self.timeout_s,
            "base_url": self.base_url,
            "api_key_env": self._api_key_env,
        }


class HuggingFaceEmbeddingGenerator(_ServiceGenerator):
    """A local sentence-transformers model. A `device` that this machine lacks is named in the log,
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
        cache_enabled: bool = True,
    ) -> None:
        self.model_name, self.device = model_name, device
        super().__init__(normalize, dims, batch_size, input_type, cache_enabled)

    def _check(self) -> None:
        super()._check()
        if not isinstance(self.device, str) or self.device.split(":")[0] not in DEVICES:
            raise ConfigError(f"device is {self.device!r}: write one of {', '.join(DEVICES)}.")

    def _options(self) -> dict[str, Any]:
        return {"model": self.model_name}

    def _opened_service(self) -> EmbeddingService:
        before, service = self._service, super()._opened_service()
        if service is not before:
            _log_device(self.device.split(":")[0])
        return service


class AIOSEmbeddings(_ServiceGenerator):
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
        cache_enabled: bool = True,
    ) -> None:
        super().__init__(normalize, dims, batch_size, input_type, cache_enabled, api_key)
        self.grpc_url, self.timeout_s = grpc_url, timeout_s
        self.block_id, self.selection_query = block_id, selection_query

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


def _log_device(device: str) -> None:
    """A model runs on the best device that this machine has, whatever was asked for."""
    from embedding_pipelines.inference.torch import accelerator

    best = accelerator() or "cpu"
    if best != device:
        log.warning(
            "device: %r was asked for; this machine's is %r, and models run on that", device, best
        )
