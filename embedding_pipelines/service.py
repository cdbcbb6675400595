"""An embedding service for programs: texts in, vectors out, with the pipelines' embedding cache."""

import asyncio
import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from platformdirs import user_cache_path
from pydantic import BaseModel, Field, ValidationError

from embedding_pipelines.embedding.cache import FILE_NAME
from embedding_pipelines.embedding.cache import EmbeddingCache as EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.embedding.texts import ReadableTexts, TooLong, prepare
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.environment import home as home_of_environment
from embedding_pipelines.errors import BadInput, ConfigError, did_you_mean, faults_in_words
from embedding_pipelines.metrics.similarity import cosine_similarity
from embedding_pipelines.once import once
from embedding_pipelines.plugins import choices
from embedding_pipelines.providers.aliases import ALIASES, parse_model
from embedding_pipelines.providers.base import NO_SECRETS, InputType, ProviderOptions
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors

log = logging.getLogger(__name__)

PROGRESS_TEXTS = 500  # of a call that draws no bar


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
    too_long: TooLong = "refuse"
    """cut: of a text that is longer than the model reads the beginning is embedded, and a warning
    in the log says so."""

    options: dict[str, Any] = {}
    """The provider's other options, e.g. base_url, api_key_env, prompts."""


class EmbeddingService:
    """Returns vectors for all texts of a call, or raises an error; finished vectors stay in the
    cache.

    `config` is also an alias or `provider:model` alone, such as "minilm" or "openai:
    text-embedding-3-small". `home` is by default the environment's home folder at this moment, and
    `cache` the one that `default_cache` names. `secrets`, by name, come before the environment's
    variables. A call with more than PROGRESS_TEXTS texts draws a bar on a terminal or in a notebook
    unless `show_progress` is false. Any number of threads may use a service. `close()` frees
    connections and memory; so does garbage collection.
    """

    def __init__(
        self,
        config: EmbeddingConfig | str | None = None,
        cache: EmbeddingCache | None = None,
        home: Path | str | None = None,
        secrets: Mapping[str, str] = NO_SECRETS,
        show_progress: bool = True,
    ) -> None:
        self.config = _config(config) if isinstance(config, str) else config or EmbeddingConfig()
        self.home = home_of_environment() if home is None else Path(home).expanduser().resolve()
        self.show_progress = show_progress
        self.model = _options(self.config, self.home).open(self.home, secrets=secrets)
        self._given_cache, self._cache_path = cache, default_cache(home)
        self._resources = contextlib.ExitStack()  # the model, and the cache from its first use on
        self._resources.callback(self.model.close)
        self.close = weakref.finalize(self, self._resources.close)

    @once
    def cache(self) -> EmbeddingCache | None:
        """The open cache, until the service is closed; None if the configuration turns it off."""
        if not self.config.cache_enabled:
            return None
        cache = self._given_cache
        cache = EmbeddingCache(self._cache_path) if cache is None else cache
        return self._resources.enter_context(cache)

    def embed(self, text: str, input_type: InputType = "document") -> Vectors:
        """float32[d]; raises as `embed_batch`."""
        vector: Vectors = self.embed_batch([text], input_type)[0]
        return vector

    def embed_batch(self, texts: Iterable[str], input_type: InputType = "document") -> Vectors:
        """float32[n, d] in the order of `texts`, which may be a column of a DataFrame.

        Raises ConfigError, before any request, for an empty text and for one longer than the model
        reads, unless `too_long` is "cut"; BadInput for a text that the provider rejects;
        ProviderError if the model is unavailable. What was cut, and that the model does not know
        the words of the texts, is a warning in the log.
        """
        if isinstance(texts, str):
            raise ConfigError("embed_batch takes a list of texts; give a single one to embed.")
        remedy = "Divide the text into chunks, or set too_long='cut' to embed its beginning."
        texts = list(texts)
        readable = prepare(
            texts, self.model, input_type, self.config.too_long, "texts[{}]".format, remedy
        )
        for note in readable.notes:
            log.warning("%s", note)
        started, limits = time.perf_counter(), self.model.limits
        if self.config.batch_size is not None:
            most = min(limits.request_texts, self.config.batch_size)
            limits = replace(limits, request_texts=most)
        with _progress(readable, self.show_progress) as advance:
            result = embed_all(
                *(texts, self.model, self.cache, input_type),
                readable=readable,
                advance=advance,
                limits=limits,
            )
        hits, seconds = result.usage.cache_hits, time.perf_counter() - started
        words = "%s: %d texts, %d of them from the cache, in %.3f s"
        log.info(words, self.model.space, len(texts), hits, seconds)
        if result.rejected:
            row, reason = next(iter(result.rejected.items()))
            others = len(result.rejected) - 1
            more = f", and {others:,} more" if others else ""
            cached = "" if self.cache is None else " The vectors of the others are in the cache."
            which = f"texts[{row}] ({texts[row][:80]!r}){more}"
            raise BadInput(f"No vector for {which}: {reason}{cached}")
        return result.vectors

    async def embed_async(self, text: str, input_type: InputType = "document") -> Vectors:
        """As `embed`, in a thread."""
        return await asyncio.to_thread(self.embed, text, input_type)

    async def embed_batch_async(
        self, texts: Iterable[str], input_type: InputType = "document"
    ) -> Vectors:
        """As `embed_batch`, in a thread."""
        return await asyncio.to_thread(self.embed_batch, texts, input_type)

    def similarity(self, text1: str, text2: str) -> float:
        """Cosine of two texts as documents, in [-1, 1]; raises as `embed_batch`."""
        return cosine_similarity(*self.embed_batch([text1, text2]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def default_cache(home: Path | str | None = None) -> Path:
    """The file of the embedding cache: that of the pipelines of `home`, of the folder that the
    environment names, or of the current folder if it has a warehouse. Else one in the user's cache
    folder, so that nothing is written where nobody said so."""
    folder = home_of_environment() if home is None else Path(home).expanduser().resolve()
    warehouse = Warehouse(folder)
    if home is not None or os.environ.get(HOME_VARIABLE) or warehouse.root.is_dir():
        return warehouse.cache
    return user_cache_path("embedding-pipelines") / FILE_NAME


@contextlib.contextmanager
def _progress(readable: ReadableTexts, is_on: bool) -> Iterator[Callable[[int], None]]:
    """What `embed_all` tells of tokens that are done, as a bar where somebody can see it."""
    if not is_on or len(readable.texts) <= PROGRESS_TEXTS:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    visible = console.is_terminal or console.is_jupyter
    with Progress(console=console, disable=not visible, transient=True) as bar:
        total = sum(readable.tokens)
        task = bar.add_task(f"embedding {len(readable.texts):,} texts", total=total)
        yield lambda tokens: bar.advance(task, tokens)


def _config(model: str) -> EmbeddingConfig:
    """The configuration of an alias or of `provider:model`, in requests as large as it allows."""
    try:
        options = parse_model(model)
    except ValueError as error:
        raise ConfigError(f"{error}.{did_you_mean(model, ALIASES)}") from None
    names = {name: options[name] for name in options.keys() & {"model"}}
    others = {name: value for name, value in options.items() if name not in ("kind", "model")}
    kind = options["kind"]
    return EmbeddingConfig(provider=kind, **names, batch_size=None, options=others)


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
        raise ConfigError(f"provider {kind!r}: {faults_in_words(error.errors())}") from None
    if options.uses_batch_jobs:
        raise ConfigError(
            f"provider {kind!r}: a service does not wait for a batch job; leave out mode."
        )
    return options
