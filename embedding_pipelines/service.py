"""An embedding service for programs: texts in, vectors out. A face on the providers, `embed` and
the cache.

How a model is asked, repeated and believed is decided there; nothing here waits, retries or keeps a
vector of its own.
"""

import functools
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_pipelines.embedding.cache import EmbeddingCache as VectorCache
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.home import home
from embedding_pipelines.metrics.similarity import cosine_similarity
from embedding_pipelines.plugins import choices
from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.providers.base import InputType, Limits, Provider, checked
from embedding_pipelines.providers.common.estimate import estimate
from embedding_pipelines.providers.common.http import Service
from embedding_pipelines.space import Space
from embedding_pipelines.storage.warehouse import ROW_GROUP_ROWS, Warehouse
from embedding_pipelines.vectors import Vectors

log = logging.getLogger(__name__)

SURROGATE = re.compile("[\ud800-\udfff]")
IN_MEMORY = Path(":memory:")  # SQLite's name for a database that is gone when it is closed


class EmbeddingConfig(BaseModel):
    """`provider`: "local" (the same as "hf") or the kind of any other. `model`: its name there, or
    an alias.

    An alias that stands without a provider brings its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    provider: str = "openai"
    model: str = "text-embedding-3-small"
    dimensions: int | None = Field(None, ge=1)  # shorter vectors, of a model that can give them
    batch_size: int = Field(
        100, ge=1
    )  # texts per request at most; the provider's own limit holds as well
    cache_enabled: bool = True
    options: dict[
        str, Any
    ] = {}  # what else the provider may be told, e.g. base_url, api_key_env, prompts


class EmbeddingCache:
    """The cache of the home folder's warehouse, or the one at `path`; what pipelines have embedded
    is in it, too.

    A vector is filed under its space (model, revision, dimensions, prompts …), the input type and
    the exact text. It never goes stale, since a changed model is another space. Any number of
    threads and processes may use it.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Warehouse(home()).cache if path is None else Path(path)

    def get(self, text: str, space: Space, input_type: InputType = "document") -> Vectors | None:
        """float32[d], None if it is not known."""
        key = VectorCache.key(space.id, input_type, text)
        with VectorCache(self.path) as cache:
            found = cache.get([key], space.dimensions).get(key)
        return None if found is None else found.copy()

    def set(
        self, text: str, space: Space, embedding: Vectors, input_type: InputType = "document"
    ) -> None:
        """Raises ProviderError for what can be no vector [d] of this space."""
        vectors = checked(np.asarray([embedding], np.float32), [text], space)
        with VectorCache(self.path) as cache:
            cache.put([VectorCache.key(space.id, input_type, text)], vectors)

    def get_or_create(
        self,
        text: str,
        space: Space,
        embed_func: Callable[[str], Vectors],
        input_type: InputType = "document",
    ) -> Vectors:
        """float32[d]; what `embed_func` makes of the text if it is not known. Raises as `set`."""
        found = self.get(text, space, input_type)
        if found is None:
            found = np.array(embed_func(text), np.float32)
            self.set(text, space, found, input_type)
        return found


class EmbeddingService:
    """Vectors for all texts of a call, or an error; what was embedded until then is in the
    cache."""

    def __init__(
        self, config: EmbeddingConfig | None = None, cache: EmbeddingCache | None = None
    ) -> None:
        self.config = config or EmbeddingConfig()
        self.cache = (cache or EmbeddingCache()) if self.config.cache_enabled else None
        self.provider = _provider(self.config)

    def embed(self, text: str, input_type: InputType = "document") -> Vectors:
        """float32[d]; raises as `embed_batch`."""
        vector: Vectors = self.embed_batch([text], input_type)[0]
        return vector

    def embed_batch(self, texts: Sequence[str], input_type: InputType = "document") -> Vectors:
        """float32[n, d] in the order of `texts`.

        Raises ConfigError, before anything is asked, for an empty text and for one longer than the
        model reads; ProviderError for a text that the provider refuses, and if the model cannot be
        had.
        """
        _refuse_unusable(texts, input_type)
        started, space, rejected, from_cache = (
            time.perf_counter(),
            self.provider.space,
            dict[int, str](),
            0,
        )
        vectors = np.empty((len(texts), space.dimensions), np.float32)
        firsts = range(0, len(texts), ROW_GROUP_ROWS)
        windows = [
            self._window(texts[first : first + ROW_GROUP_ROWS], first, input_type)
            for first in firsts
        ]
        with VectorCache(IN_MEMORY if self.cache is None else self.cache.path) as cache:
            found = embed(windows, self.provider, cache, input_type, lambda _: None)
            for first, part in zip(firsts, found, strict=True):
                vectors[first : first + ROW_GROUP_ROWS] = part.vectors
                rejected |= {first + row: reason for row, reason in part.rejected.items()}
                from_cache += part.counts.from_cache
        seconds = time.perf_counter() - started
        log.info(
            "%s: %d texts, %d of them from the cache, in %.3f s",
            space,
            len(texts),
            from_cache,
            seconds,
        )
        if rejected:
            row, reason = next(iter(rejected.items()))
            kept = "" if self.cache is None else " The vectors of the others are in the cache."
            more = f", and {len(rejected) - 1:,} more" if len(rejected) > 1 else ""
            raise ProviderError(f"No vector for {_named(texts[row], row)}{more}: {reason}{kept}")
        return vectors

    def similarity(self, text1: str, text2: str) -> float:
        """Cosine of two texts as documents, in [-1, 1]; raises as `embed_batch`."""
        return cosine_similarity(*self.embed_batch([text1, text2]))

    def _window(self, texts: Sequence[str], first: int, input_type: InputType) -> pa.RecordBatch:
        """What `embed` takes. Raises ConfigError for a text that the model would not read whole."""
        provider, prompts = self.provider, self.provider.space.prompts
        # OpenAI's vocabulary is only fetched for texts that an estimate, which is from above, finds
        # too long.
        rough = isinstance(provider, Service) and provider.tokenizer_of is None
        for tokenizer in (estimate, provider.tokenizer) if rough else (provider.tokenizer,):
            own, usual, *tokens = (
                len(entry.ids)
                for entry in tokenizer().encode_batch_fast(
                    [prompts.get(input_type, ""), prompts.get("document", ""), *texts]
                )
            )
            most = provider.limits.max_tokens - max(
                0, own - usual
            )  # the limit is what documents' prompts leave
            row = int(np.argmax(tokens))
            if tokens[row] <= most:
                return pa.RecordBatch.from_pydict(
                    {"text": list(texts), "tokens": pa.array(tokens, pa.int32())}
                )
        estimated = tokenizer() is estimate()
        raise ConfigError(
            f"{_named(texts[row], first + row)} has {tokens[row]:,} tokens{' at most' if estimated else ''}; of a "
            f"{input_type}, {provider.space} reads {most:,}. Nothing is cut unseen: divide it into chunks."
            + (
                " Or name the model's tokenizer with options.tokenizer_of, which counts exactly."
                if estimated
                else ""
            )
        )


def _provider(config: EmbeddingConfig) -> Provider:
    """Raises ConfigError for a provider that there is not, and for what it cannot be told."""
    kind, given = "hf" if config.provider == "local" else config.provider, config.model_fields_set
    alias = ALIASES.get(config.model)
    if alias is not None and (alias.provider == kind or "provider" not in given):
        kind, model, revision = alias
    else:
        model, revision = config.model if kind == "openai" or "model" in given else "", None
    known = choices("providers", Provider)
    if kind not in known:
        raise ConfigError(f"provider is {kind!r}: write 'local' or one of {', '.join(known)}.")
    if kind == "hf" and model and "/" not in model and not (home() / model).is_dir():
        model = f"sentence-transformers/{model}"  # as that library takes a bare name
    base_url = os.environ.get("OPENAI_BASE_URL") if kind == "openai" else None  # as the SDK does
    usual = {
        "model": model,
        "revision": revision,
        "dimensions": config.dimensions,
        "base_url": base_url,
    }
    try:
        provider = _capped(known[kind], config.batch_size).model_validate(
            {name: value for name, value in usual.items() if value} | config.options
        )
    except ValidationError as error:
        faults = [": ".join([*map(str, fault["loc"]), fault["msg"]]) for fault in error.errors()]
        raise ConfigError(f"provider {kind!r}: {'; '.join(faults)}") from None
    if provider.answers_later:
        raise ConfigError(
            f"provider {kind!r}: a service does not wait for a batch; leave out mode."
        )
    return provider


@functools.cache
def _capped(cls: Any, batch_size: int) -> type[Provider]:
    """A provider whose calls hold `batch_size` texts at most."""

    class Capped(cls):  # type: ignore[misc]
        @property
        def limits(self) -> Limits:
            own: Limits = super().limits
            return replace(own, request_texts=min(own.request_texts, batch_size))

    return Capped


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
