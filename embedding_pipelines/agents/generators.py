"""The generators for OpenAI, Hugging Face and AIOS, on top of the embedding service."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from embedding_pipelines.agents.base import AbstractEmbeddingGenerator, Vector
from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.environment import home
from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.providers.common.local import DEVICE
from embedding_pipelines.providers.common.prices import find_published
from embedding_pipelines.service import (
    EmbeddingCache,
    EmbeddingConfig,
    EmbeddingService,
    default_cache,
)

log = logging.getLogger(__name__)


class _Secrets(dict[str, str]):
    """Keys by name. Its representation shows the names only."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"


class _ServiceGenerator(AbstractEmbeddingGenerator):
    """A generator with an embedding service, which a changed parameter replaces.

    `input_type` is that of the texts, for asymmetric models. `cache_enabled`: use the embedding
    cache that `service.default_cache` names when the generator is made. `too_long` "cut" embeds the
    beginning of a text that is longer than the model reads, and warns in the log; else it is an
    error. So is an empty text, always.
    """

    OPTIONS: ClassVar[Mapping[str, str]]  # the provider's options: the parameter of each
    dims: int | None
    batch_size: int | None
    input_type: InputType
    cache_enabled: bool
    too_long: TooLong

    def __post_init__(self, api_key: str | None = None) -> None:
        self._api_key_env, self._secrets = _resolve_key(type(self).__name__, api_key)
        self._home, self._cache = home(), default_cache()
        self._service: EmbeddingService | None = None
        for name, value in vars(self).items():
            self._check(name, value)
        self._verify(self._current_service())

    def _verify(self, service: EmbeddingService) -> None:
        """Raise ConfigError for what is known to be wrong before anything is loaded; the service
        has checked its own options."""

    def set_parameter(self, key: str, value: Any) -> None:
        self.get_parameter(key)
        self._check(key, value)
        setattr(self, key, value)

    def _check(self, name: str, value: Any) -> None:
        if name in ("normalize", "cache_enabled") and not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}: write true or false.")
        is_size = value is None or (type(value) is int and value >= 1)
        if name in ("dims", "batch_size") and not is_size:
            raise ConfigError(f"{name} is {value!r}: write a whole number, 1 or more.")
        if name == "input_type" and value not in ("document", "query"):
            raise ConfigError(f"{name} is {value!r}: write 'document' or 'query'.")
        if name == "too_long" and value not in ("refuse", "cut"):
            raise ConfigError(f"{name} is {value!r}: write 'refuse' or 'cut'.")

    def _infer(self, text: str) -> Vector:
        return self._infer_batch([text])[0]

    def _infer_batch(self, texts: Sequence[str]) -> Sequence[Vector]:
        if isinstance(texts, str):
            raise TypeError("generate_batch takes a list of texts; give a single one to generate.")
        if not texts:
            return []
        service = self._current_service()
        space = service.model.space
        if self.dims not in (None, space.dimensions):
            raise ProviderError(
                f"{space.title}: dims is {self.dims}, not {space.dimensions}. Correct dims, or choose "
                "another model."
            )
        return list(service.embed_batch(texts, self.input_type))

    def _options(self) -> dict[str, Any]:
        """The provider's options of the current parameters."""
        options = {option: getattr(self, name) for option, name in self.OPTIONS.items()}
        return {**options, "api_key_env": self._api_key_env}

    def _current_service(self) -> EmbeddingService:
        """The service of the current parameters."""
        options = self._options()
        config = EmbeddingConfig(
            provider=self.provider,
            batch_size=self.batch_size,
            cache_enabled=self.cache_enabled,
            too_long=self.too_long,
            options={name: value for name, value in options.items() if value not in (None, {})},
        )
        if self._service is None or self._service.config != config:
            # Another thread may still use the old one, which closes when the last reference goes.
            cache = EmbeddingCache(self._cache)
            self._service = EmbeddingService(config, cache, self._home, self._secrets)
        return self._service


@dataclass(eq=False, repr=False)
class OpenAIEmbeddingGenerator(_ServiceGenerator):
    """OpenAI's models, or a server with the same interface at `base_url` (default:
    $OPENAI_BASE_URL, else OpenAI).

    `api_key` is the key itself, which no text ever shows, "env:NAME", or "file:/path". Default:
    OPENAI_API_KEY. `dims` requests vectors of that length.
    """

    provider = "openai"
    OPTIONS: ClassVar = {
        "model": "model",
        "dimensions": "dims",
        "timeout_seconds": "timeout_s",
        "base_url": "base_url",
    }

    api_key: InitVar[str | None] = None
    model: str = "text-embedding-3-small"
    normalize: bool = True
    dims: int | None = None
    batch_size: int | None = None
    timeout_s: float | None = None
    base_url: str | None = None
    input_type: InputType = "document"
    cache_enabled: bool = True
    too_long: TooLong = "refuse"


@dataclass(eq=False, repr=False)
class HuggingFaceEmbeddingGenerator(_ServiceGenerator):
    """A local sentence-transformers model on `device`: auto, cpu, cuda, cuda:1 or mps.

    Where the machine does not have it, the model runs on its best one, with a warning in the log.
    """

    provider = "hf"
    OPTIONS: ClassVar = {"model": "model_name", "device": "device"}

    model_name: str
    device: str = "cpu"
    batch_size: int = 32
    normalize: bool = True
    dims: int | None = None
    input_type: InputType = "document"
    cache_enabled: bool = True
    too_long: TooLong = "refuse"

    _replaced_device: str = field(default="", init=False)  # one that this machine does not have

    def _verify(self, service: EmbeddingService) -> None:
        options: Any = service.model.options
        entry = find_published(options.kind, options.model)
        if self.dims is not None and entry is not None and self.dims != entry.dimensions:
            raise ConfigError(
                f"dims is {self.dims}: {options.model} gives {entry.dimensions}. Correct dims, or "
                "choose another model."
            )

    def _check(self, name: str, value: Any) -> None:
        super()._check(name, value)
        if name == "device" and not (isinstance(value, str) and re.fullmatch(DEVICE, value)):
            raise ConfigError(f"{name} is {value!r}: write auto, cpu, cuda, cuda:1 or mps.")

    def _infer_batch(self, texts: Sequence[str]) -> Sequence[Vector]:
        if self.device not in ("auto", "cpu", self._replaced_device):
            from embedding_pipelines.inference.torch import accelerator, is_here

            if not is_here(self.device):
                words = "device is %r, but models run on %r, the best of this machine"
                log.warning(words, self.device, accelerator() or "cpu")
                self._replaced_device = self.device
        return super()._infer_batch(texts)

    def _options(self) -> dict[str, Any]:
        device = "auto" if self.device == self._replaced_device else self.device
        return {**super()._options(), "device": device}


@dataclass(eq=False, repr=False)
class AIOSEmbeddings(_ServiceGenerator):
    """A block of AIOS over gRPC: `block_id`, or the one that `selection_query` picks. `api_key` as
    for OpenAI."""

    provider = "aios"
    OPTIONS: ClassVar = {
        "grpc_url": "grpc_url",
        "dimensions": "dims",
        "timeout_seconds": "timeout_s",
        "normalize": "normalize",
        "model": "block_id",
        "selection_query": "selection_query",
    }

    grpc_url: str
    dims: int = 768
    timeout_s: float = 15
    normalize: bool = True
    block_id: str = ""
    selection_query: dict[str, Any] | None = None
    api_key: InitVar[str | None] = None
    batch_size: int | None = None
    input_type: InputType = "document"
    cache_enabled: bool = True
    too_long: TooLong = "refuse"


def _resolve_key(owner: str, api_key: str | None) -> tuple[str | None, _Secrets]:
    """A provider's `api_key_env` (None: its default), and the secret of that name.

    `api_key` is the key itself, "env:NAME" or "file:/path". Raises ConfigError for an unreadable
    file.
    """
    if not api_key:
        return None, _Secrets()
    if not isinstance(api_key, str):
        raise ConfigError("api_key is not a text.")
    if api_key.startswith("env:"):
        return api_key.removeprefix("env:"), _Secrets()
    if api_key.startswith("file:"):
        path = api_key.removeprefix("file:")
        try:
            api_key = Path(path).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problem = f"{path}: cannot read the API key: {type(error).__name__}."
            raise ConfigError(problem) from error
        if not api_key:
            raise ConfigError(f"{path}: holds no API key.")
    name = f"API_KEY_OF_{owner}"
    return name, _Secrets({name: api_key})
