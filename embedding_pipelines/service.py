"""An embedding service for programs: texts in, vectors out, with the pipelines' embedding cache."""

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

from pydantic import BaseModel, Field, ValidationError

from embedding_pipelines.embedding.cache import EmbeddingCache as EmbeddingCache
from embedding_pipelines.embedding.embed import count_tokens, embed_all
from embedding_pipelines.environment import home as home_of_environment
from embedding_pipelines.errors import BadInput, ConfigError
from embedding_pipelines.metrics.similarity import cosine_similarity
from embedding_pipelines.once import once
from embedding_pipelines.plugins import choices
from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.providers.base import NO_SECRETS, InputType, ProviderOptions
from embedding_pipelines.providers.common.http import ServiceOptions
from embedding_pipelines.providers.common.tokenizers import estimate
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors

log = logging.getLogger(__name__)

SURROGATE = re.compile("[\ud800-\udfff]")


class EmbeddingConfig(BaseModel, frozen=True, extra="forbid"):
    """`provider` is "local" (the same as "hf") or any other kind; `model` its name there, or an
    alias.

    An alias without a provider brings its own.
    """

    provider: str = "openai"
    model: str = "text-embedding-3-small"
    dimensions: int | None = Field(None, ge=1)  # shorter vectors, of a model that can give them
    batch_size: int | None = Field(100, ge=1)
    """Texts per request at most; None: the provider's own limit, which always holds."""

    cache_enabled: bool = True
    options: dict[str, Any] = {}
    """The provider's other options, e.g. base_url, api_key_env, prompts."""


class EmbeddingService:
    """Returns vectors for all texts of a call, or raises an error; finished vectors stay in the
    cache.

    `home` is by default the environment's home folder at this moment, and `cache` the one of its
    pipelines. `secrets`, by name, come before the environment's variables. Any number of threads
    may use a service. `close()` frees connections and memory; so does garbage collection.
    """

    def __init__(
        self,
        config: EmbeddingConfig | None = None,
        cache: EmbeddingCache | None = None,
        home: Path | None = None,
        secrets: Mapping[str, str] = NO_SECRETS,
    ) -> None:
        self.config, self.home = config or EmbeddingConfig(), home or home_of_environment()
        self.model = _options(self.config, self.home).open(self.home, secrets=secrets)
        self._given_cache = cache
        self._resources = contextlib.ExitStack()  # the model, and the cache from its first use on
        self._resources.callback(self.model.close)
        self.close = weakref.finalize(self, self._resources.close)

    @once
    def cache(self) -> EmbeddingCache | None:
        """The open cache, until the service is closed; None if the configuration turns it off."""
        if not self.config.cache_enabled:
            return None
        cache = self._given_cache
        cache = EmbeddingCache(Warehouse(self.home).cache) if cache is None else cache
        return self._resources.enter_context(cache)

    def embed(self, text: str, input_type: InputType = "document") -> Vectors:
        """float32[d]; raises as `embed_batch`."""
        vector: Vectors = self.embed_batch([text], input_type)[0]
        return vector

    def embed_batch(self, texts: Sequence[str], input_type: InputType = "document") -> Vectors:
        """float32[n, d] in the order of `texts`.

        Raises ConfigError, before any request, for an empty text and for one longer than the model
        reads; BadInput for a text that the provider rejects; ProviderError if the model is
        unavailable.
        """
        _check_texts(texts, input_type)
        started, limits = time.perf_counter(), self.model.limits
        if self.config.batch_size is not None:
            most = min(limits.request_texts, self.config.batch_size)
            limits = replace(limits, request_texts=most)
        tokens = self._count_tokens(texts, input_type)
        result = embed_all(texts, self.model, self.cache, input_type, tokens=tokens, limits=limits)
        hits, seconds = result.usage.cache_hits, time.perf_counter() - started
        words = "%s: %d texts, %d of them from the cache, in %.3f s"
        log.info(words, self.model.space, len(texts), hits, seconds)
        if result.rejected:
            row, reason = next(iter(result.rejected.items()))
            others = len(result.rejected) - 1
            more = f", and {others:,} more" if others else ""
            cached = "" if self.cache is None else " The vectors of the others are in the cache."
            raise BadInput(f"No vector for {_describe(texts[row], row)}{more}: {reason}{cached}")
        return result.vectors

    def similarity(self, text1: str, text2: str) -> float:
        """Cosine of two texts as documents, in [-1, 1]; raises as `embed_batch`."""
        return cosine_similarity(*self.embed_batch([text1, text2]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _count_tokens(self, texts: Sequence[str], input_type: InputType) -> list[int]:
        """The number of each text. Raises ConfigError for a text that is too long for the model."""
        model, prompts, options = self.model, self.model.space.prompts, self.model.options
        # Estimate first where that is possible: OpenAI's vocabulary may have to be downloaded, and
        # only texts that exceed the estimate need it.
        can_estimate = isinstance(options, ServiceOptions) and options.tokenizer_of is None
        for is_estimate in (True, False) if can_estimate else (False,):
            tokenizer = estimate() if is_estimate else model.tokenizer
            pair = [prompts.get(input_type, ""), prompts.get("document", "")]
            own, documents = count_tokens(pair, tokenizer)
            # The model's limit excludes the prompt of documents.
            limit = model.limits.max_tokens - max(0, own - documents)
            tokens = count_tokens(texts, tokenizer)
            longest = max(tokens, default=0)
            if longest <= limit:
                return tokens
        is_estimate = tokenizer.to_str() == estimate().to_str()
        row = tokens.index(longest)
        exact = " Or name the model's tokenizer with options.tokenizer_of, which counts exactly."
        raise ConfigError(
            f"{_describe(texts[row], row)} has {longest:,} "
            f"tokens{' at most' if is_estimate else ''}; of a {input_type}, {model.space} reads "
            f"{limit:,}. Divide the text into chunks.{exact if is_estimate else ''}"
        )


def _options(config: EmbeddingConfig, home: Path) -> ProviderOptions:
    """The provider's options. Raises ConfigError for an unknown provider or option."""
    explicit = config.model_fields_set
    kind = "hf" if config.provider == "local" else config.provider
    alias = ALIASES.get(config.model)
    if alias is not None and (alias.provider == kind or "provider" not in explicit):
        kind, model, revision = alias
    else:
        model, revision = config.model if kind == "openai" or "model" in explicit else "", None
    kinds: dict[str, Any] = choices("providers", ProviderOptions)
    if kind not in kinds:
        raise ConfigError(f"provider is {kind!r}: write 'local' or one of {', '.join(kinds)}.")
    if kind == "hf" and model and "/" not in model and not (home / model).is_dir():
        model = f"sentence-transformers/{model}"  # as that library completes a bare name
    values = {"model": model, "revision": revision, "dimensions": config.dimensions}
    if kind == "openai":
        values["base_url"] = os.environ.get("OPENAI_BASE_URL")  # as the SDK does
    values = {name: value for name, value in values.items() if value}
    try:
        options: ProviderOptions = kinds[kind].model_validate(values | config.options)
    except ValidationError as error:
        faults = [": ".join([*map(str, fault["loc"]), fault["msg"]]) for fault in error.errors()]
        raise ConfigError(f"provider {kind!r}: {'; '.join(faults)}") from None
    if options.uses_batch_jobs:
        raise ConfigError(
            f"provider {kind!r}: a service does not wait for a batch job; leave out mode."
        )
    return options


def _check_texts(texts: Sequence[str], input_type: str) -> None:
    if input_type not in ("document", "query"):
        raise ConfigError(f"input_type is {input_type!r}: write 'document' or 'query'.")
    if isinstance(texts, str):
        raise ConfigError("embed_batch takes a list of texts; give a single one to embed.")
    for row, text in enumerate(texts):
        if not text.strip():
            raise ConfigError(f"texts[{row}] is empty. Leave it out: it has no meaning to embed.")
        if SURROGATE.search(text):
            raise ConfigError(f"texts[{row}] holds half a character, a lone surrogate. Replace it.")


def _describe(text: str, row: int) -> str:
    return f"texts[{row}] ({text[:80]!r})"
