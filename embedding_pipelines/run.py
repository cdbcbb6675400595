"""One run of a pipeline in a warehouse, the argument of every step, check and verb."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from typing import Self

from embedding_pipelines.embedding.budget import Usage
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.images import ImageLoader
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.once import forget
from embedding_pipelines.progress import Progress, Silent
from embedding_pipelines.providers.base import EmbeddingModel, ProviderOptions
from embedding_pipelines.sources.inputs import Contents
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import NEW_LINE, PipelineFolder, Warehouse


def line_of(spec: PipelineSpec, is_old_line: bool = False) -> str:
    """Which of a pipeline's lines a run works on, as `Warehouse.pipeline` takes it."""
    return "" if spec.migration is None or is_old_line else NEW_LINE


class Run:
    """A pipeline's configuration with warehouse, model, cache and progress; close it, or use it in
    a `with` block.

    Model and cache are opened at first use and closed with the run, which leaves a given `model`
    open. `options` replace the pipeline file's model for this run, in `spec.model`, and `override`
    holds them as text.
    """

    def __init__(
        self,
        spec: PipelineSpec,
        warehouse: Warehouse,
        progress: Progress | None = None,
        model: EmbeddingModel | None = None,
        options: ProviderOptions | None = None,
        is_old_line: bool = False,
        require_lease: Callable[[], None] = lambda: None,
    ) -> None:
        """`is_old_line`: of a pipeline that migrates, with the model that it leaves. `require_lease`
        raises BusyError if another machine has taken over what this run writes."""
        self.override, self.is_old_line = "", is_old_line
        if is_old_line:
            assert spec.migration is not None
            before = {"model": spec.migration.old_model, "output_dim": None}
            spec = spec.model_copy(update=before)
        if options is not None and options != spec.model:
            if spec.source.has_images and not options.takes_images:
                raise ConfigError(
                    f"Pipeline {spec.name!r} is of images, and the provider {options.kind} takes "
                    "texts alone. Name one that takes images, such as clip."
                )
            spec = spec.model_copy(update={"model": options})
            values = options.model_dump(mode="json", exclude_defaults=True)
            self.override = json.dumps(
                spec.as_written(values), ensure_ascii=False, separators=(",", ":")
            )
        self.spec, self.warehouse, self.progress = spec, warehouse, progress or Silent()
        self.folder: PipelineFolder = warehouse.pipeline(spec.name, line_of(spec, is_old_line))
        self._given_model, self.require_lease = model, require_lease

    @functools.cached_property
    def model(self) -> EmbeddingModel:
        """The live model, which loads nothing yet."""
        home = self.warehouse.home
        return self._given_model or self.spec.model.open(home, self.folder.model.parent)

    @functools.cached_property
    def cache(self) -> EmbeddingCache:
        return EmbeddingCache(self.warehouse.cache, read_only=self.warehouse.is_copy)

    @contextlib.contextmanager
    def image_loader(self) -> Iterator[ImageLoader | None]:
        """What reads the source's images again for the model; None where it has none."""
        if not self.spec.source.has_images:
            yield None
            return
        read, model = Contents(self.warehouse.home).read, self.model
        with ImageLoader(read, model.resize, model.cores) as loader:
            yield loader

    def release_options(self) -> ProviderOptions:
        """The model's options as a release records them, with copies of files that may change."""
        return self.model.release_options(self.warehouse.root / "calibration")

    def close(self) -> None:
        if self._given_model is None:
            forget(self, "model")
        forget(self, "cache")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def usage(self) -> dict[str, float]:
        """The pipeline's sums so far: tokens, seconds of the provider and USD."""
        names = ("embedded_tokens", "provider_seconds", "usd")
        return read_json(self.folder.usage) or dict.fromkeys(names, 0)

    def add_usage(self, usage: Usage, price: float | None) -> None:
        """Add the usage of texts, a batch job or checks; `price` in USD per million tokens."""
        if not usage.embedded_tokens and not usage.billed_tokens:
            return
        sums = self.usage()
        sums["embedded_tokens"] += usage.embedded_tokens
        sums["provider_seconds"] += usage.provider_seconds
        sums["usd"] += usage.billed_tokens * (price or 0) / 1e6
        write_json(self.folder.usage, {name: round(value, 9) for name, value in sums.items()})
