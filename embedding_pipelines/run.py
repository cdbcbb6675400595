"""One pipeline at work in one warehouse: what every step, check and verb is given."""

import functools
from typing import Any, Self

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import Progress, Silent
from embedding_pipelines.providers.base import EmbeddingModel, ProviderOptions
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse


class Run:
    """A pipeline's configuration with what it works on; close it, or use it in a `with` block.

    The model and the embedding cache are opened when they are first used and closed with the run;
    a `model` that is handed in stays open. `options` replace the model of the pipeline file for
    this run: `spec.model` is what runs, and `override` says so.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        warehouse: Warehouse,
        progress: Progress | None = None,
        model: EmbeddingModel | None = None,
        options: ProviderOptions | None = None,
    ) -> None:
        self.override = ""
        if options is not None and options != spec.model:
            spec = spec.model_copy(update={"model": options})
            self.override = options.model_dump_json(exclude_defaults=True)
        self.spec, self.warehouse, self.progress = spec, warehouse, progress or Silent()
        self.folder: PipelineFolder = warehouse.pipeline(spec.name)
        self._lent = model

    @functools.cached_property
    def model(self) -> EmbeddingModel:
        """The live model; opening it loads nothing yet."""
        home = self.warehouse.home
        return self._lent or self.spec.model.open(home, self.folder.model.parent)

    @functools.cached_property
    def cache(self) -> EmbeddingCache:
        return EmbeddingCache(self.warehouse.cache, read_only=self.warehouse.is_copy)

    def release_options(self) -> ProviderOptions:
        """The model's options as a release records them: a file that may change is copied."""
        return self.model.release_options(self.warehouse.root / "calibration")

    def close(self) -> None:
        opened = vars(self)
        if "model" in opened and self._lent is None:
            opened.pop("model").close()
        if "cache" in opened:
            opened.pop("cache").close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def usage(self) -> dict[str, float]:
        """What the pipeline has embedded in its life: tokens, seconds of the provider and USD."""
        names = ("embedded_tokens", "provider_seconds", "usd")
        return read_json(self.folder.usage) or dict.fromkeys(names, 0)

    def add_usage(
        self,
        embedded_tokens: int = 0,
        provider_seconds: float = 0.0,
        billed_tokens: int = 0,
        price: float | None = None,
    ) -> None:
        """Add what texts, a batch job or checks have taken; `price` in USD per million tokens."""
        if not embedded_tokens and not billed_tokens:
            return
        more: dict[str, Any] = {
            "embedded_tokens": embedded_tokens,
            "provider_seconds": provider_seconds,
            "usd": billed_tokens * (price or 0) / 1e6,
        }
        before = self.usage()
        write_json(self.folder.usage, {name: round(before[name] + more[name], 9) for name in more})
