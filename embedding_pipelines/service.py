"""An embedding service for programs: texts in, vectors out, by `embed_all` and the cache that
pipelines fill."""

import contextlib
import logging
import os
import re
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_pipelines.embedding.cache import EmbeddingCache as EmbeddingCache
from embedding_pipelines.embedding.embed import count_tokens, embed_all
from embedding_pipelines.environment import home as home_of_environment
from embedding_pipelines.errors import BadInput, ConfigError
from embedding_pipelines.metrics.similarity import cosine_similarity
from embedding_pipelines.plugins import choices
from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.providers.base import NO_SECRETS, InputType, ProviderOptions
from embedding_pipelines.providers.common.http import ServiceOptions
from embedding_pipelines.providers.common.tokenizers import estimate
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors

log = logging.getLogger(__name__)

SURROGATE = re.compile("[\ud800-\udfff]")


class EmbeddingConfig(BaseModel):
    """`provider`: "local" (the same as "hf") or the kind of any other. `model`: its name there, or
    an alias.

    An alias that stands without a provider brings its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    provider: str = "openai"
    model: str = "text-embedding-3-small"
    dimensions: int | None = Field(None, ge=1)  # shorter vectors, of a model that can give them
    batch_size: int | None = Field(100, ge=1)
    """Texts per request at most, within the provider's own limit; None: that limit."""

    cache_enabled: bool = True
    options: dict[str, Any] = {}
    """The provider's other options, e.g. base_url, api_key_env, prompts."""


class EmbeddingService:
    """Vectors for all texts of a call, or an error; what was embedded until then is in the cache.

    `home` is the home folder, by default as the environment says when the service is made; `cache`
    is by default the one that its pipelines use. `secrets` are looked up by name before the
    environment is. Any number of threads may use a service.

    `close()` frees the model's connections and memory, as happens when nobody has the service any
    more.
    """

    def __init__(
        self,
        config: EmbeddingConfig | None = None,
        cache: EmbeddingCache | None = None,
        home: Path | None = None,
        secrets: Mapping[str, str] = NO_SECRETS,
    ) -> None:
        self.config, self.home = config or EmbeddingConfig(), home or home_of_environment()
        self.cache: EmbeddingCache | None = None
        if self.config.cache_enabled:
            self.cache = EmbeddingCache(Warehouse(self.home).cache) if cache is None else cache
        self.model = _options(self.config, self.home).open(self.home, secrets=secrets)
        self._open = contextlib.ExitStack()  # the model, and the cache from its first use on
        self._open.callback(self.model.close)
        self._holds_cache = False
        self.close = weakref.finalize(self, self._open.close)

    def embed(self, text: str, input_type: InputType = "document") -> Vectors:
        """float32[d]; raises as `embed_batch`."""
        vector: Vectors = self.embed_batch([text], input_type)[0]
        return vector

    def embed_batch(self, texts: Sequence[str], input_type: InputType = "document") -> Vectors:
        """float32[n, d] in the order of `texts`.

        Raises ConfigError, before anything is requested, for an empty text and for one longer than
        the model reads; BadInput for a text that the provider rejects; ProviderError if the model
        is unavailable.
        """
        _refuse_unusable(texts, input_type)
        if self.cache is not None and not self._holds_cache:
            self._open.enter_context(self.cache)  # opened for each call, it would cost more
            self._holds_cache = True
        started, limits = time.perf_counter(), self.model.limits
        limits = replace(
            limits, request_texts=min(limits.request_texts, self.config.batch_size or 1_000_000)
        )
        tokens = self._count_tokens(texts, input_type)
        result = embed_all(texts, self.model, self.cache, input_type, tokens=tokens, limits=limits)
        log.info(
            "%s: %d texts, %d of them from the cache, in %.3f s",
            self.model.space,
            len(texts),
            result.usage.cache_hits,
            time.perf_counter() - started,
        )
        if result.rejected:
            row, reason = next(iter(result.rejected.items()))
            others = len(result.rejected) - 1
            more = f", and {others:,} more" if others else ""
            cached = "" if self.cache is None else " The vectors of the others are in the cache."
            raise BadInput(f"No vector for {_named(texts[row], row)}{more}: {reason}{cached}")
        return result.vectors

    def similarity(self, text1: str, text2: str) -> float:
        """Cosine of two texts as documents, in [-1, 1]; raises as `embed_batch`."""
        return cosine_similarity(*self.embed_batch([text1, text2]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _count_tokens(self, texts: Sequence[str], input_type: InputType) -> list[int]:
        """Of each text. Raises ConfigError for one that the model would not read whole."""
        model, prompts, options = self.model, self.model.space.prompts, self.model.options
        # OpenAI's vocabulary is fetched only for texts that the estimate, which is from above,
        # finds too long.
        is_rough = isinstance(options, ServiceOptions) and options.tokenizer_of is None
        for is_estimate in (True, False) if is_rough else (False,):
            tokenizer = estimate() if is_estimate else model.tokenizer
            own, usual = count_tokens(
                [prompts.get(input_type, ""), prompts.get("document", "")], tokenizer
            )
            # The limit is what documents' prompts leave.
            limit = model.limits.max_tokens - max(0, own - usual)
            tokens = count_tokens(texts, tokenizer)
            longest = max(tokens, default=0)
            if longest <= limit:
                return tokens
        is_estimate = tokenizer.to_str() == estimate().to_str()
        row = tokens.index(longest)
        exact = " Or name the model's tokenizer with options.tokenizer_of, which counts exactly."
        raise ConfigError(
            f"{_named(texts[row], row)} has {longest:,} tokens{' at most' if is_estimate else ''}; "
            f"of a {input_type}, {model.space} reads {limit:,}. Nothing is cut unseen: divide it "
            f"into chunks.{exact if is_estimate else ''}"
        )


def _options(config: EmbeddingConfig, home: Path) -> ProviderOptions:
    """Raises ConfigError for a provider that does not exist, and for options that it does not
    have."""
    explicit, base_url = config.model_fields_set, None
    kind = "hf" if config.provider == "local" else config.provider
    alias = ALIASES.get(config.model)
    if alias is not None and (alias.provider == kind or "provider" not in explicit):
        kind, model, revision = alias
    else:
        model, revision = config.model if kind == "openai" or "model" in explicit else "", None
    kinds = choices("providers", ProviderOptions)
    if kind not in kinds:
        raise ConfigError(f"provider is {kind!r}: write 'local' or one of {', '.join(kinds)}.")
    if kind == "hf" and model and "/" not in model and not (home / model).is_dir():
        model = f"sentence-transformers/{model}"  # as that library takes a bare name
    if kind == "openai":
        base_url = os.environ.get("OPENAI_BASE_URL")  # as the SDK does
    usual = {
        "model": model,
        "revision": revision,
        "dimensions": config.dimensions,
        "base_url": base_url,
    }
    try:
        options: Any = kinds[kind].model_validate(
            {name: value for name, value in usual.items() if value} | config.options
        )
    except ValidationError as error:
        faults = [": ".join([*map(str, fault["loc"]), fault["msg"]]) for fault in error.errors()]
        raise ConfigError(f"provider {kind!r}: {'; '.join(faults)}") from None
    if options.uses_batch_jobs:
        raise ConfigError(
            f"provider {kind!r}: a service does not wait for a batch job; leave out mode."
        )
    opened: ProviderOptions = options
    return opened


def _refuse_unusable(texts: Sequence[str], input_type: str) -> None:
    if input_type not in ("document", "query"):
        raise ConfigError(f"input_type is {input_type!r}: write 'document' or 'query'.")
    if isinstance(texts, str):
        raise ConfigError("embed_batch takes a list of texts; give a single one to embed.")
    for row, text in enumerate(texts):
        if not text.strip():
            raise ConfigError(f"texts[{row}] is empty: no vector can mean nothing. Leave it out.")
        if SURROGATE.search(text):
            raise ConfigError(f"texts[{row}] holds half a character, a lone surrogate: replace it.")


def _named(text: str, row: int) -> str:
    return f"texts[{row}] ({text[:80]!r})"
