"""What a server has open: the pipelines of its home folder and their models. Routes are given it.

It follows the warehouse: a pipeline's new release, or its first, is taken up within REFRESH_SECONDS.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.embedding.texts import TooLong, prepare
from embedding_pipelines.errors import EmbeddingPipelinesError, did_you_mean
from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.providers.base import EmbeddingModel, InputType, ProviderOptions
from embedding_pipelines.releases import Release, live_release
from embedding_pipelines.serving.auth import Keys
from embedding_pipelines.serving.wire import NotFound, Unavailable
from embedding_pipelines.space import Space
from embedding_pipelines.spec.load import read_pipelines
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from embedding_pipelines.search import Searcher

log = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0  # between two looks at which releases are live


class ServedModel:
    """One open model: what pipelines with the same model share, and the thread in which it works."""

    def __init__(self, options: ProviderOptions, home: Path) -> None:
        self.options = options
        self.model: EmbeddingModel = options.open(home)
        self.thread = ThreadPoolExecutor(1, "model")  # all work in the model
        self.helpers = ThreadPoolExecutor(2, "texts")  # what texts need before it

    def close(self) -> None:
        """Waits for the batch that is computed, then frees the model."""
        self.helpers.shutdown(cancel_futures=True)
        self.thread.shutdown(cancel_futures=True)
        self.model.close()


@dataclass(frozen=True)
class Served:
    """A pipeline whose texts can be embedded: its live release, or without one its file."""

    spec: PipelineSpec
    release: Release | None
    model: ServedModel

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def names_of_model(self) -> Iterator[str]:
        """What else than the pipeline's name a request may call it by."""
        options = self.model.options
        model = getattr(options, "model", "")
        yield f"{options.kind}:{model}" if model else options.kind
        if model:
            yield str(model)
        for alias, meant in ALIASES.items():
            if meant.provider == options.kind and meant.model == model:
                yield alias


@dataclass(frozen=True)
class Embedded:
    """The vectors of a request's texts, before compression."""

    vectors: Vectors  # float32[n, d]
    tokens: int  # that the model read, special ones included
    space: Space
    truncated_tokens: int = 0  # that it did not read, of texts that were cut
    notes: list[str] = field(default_factory=list)


class Server:
    """Open it once, close it once; in between, any number of requests of one event loop use it."""

    def __init__(self, home: Path, keys: Keys) -> None:
        self.home, self.keys, self.warehouse = home, keys, Warehouse(home)
        self.is_draining = False  # no new requests: the process is about to end
        self.problems: dict[str, str] = {}  # by pipeline: why it is not served
        self._served: dict[str, Served] = {}
        self._models: dict[str, ServedModel] = {}  # by their options as JSON
        self._searchers: dict[str, tuple[int, Searcher]] = {}  # with the release's number
        self._looked_at = float("-inf")
        self._opening: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()

    async def open(self) -> None:
        """Begin to load what is served; `wait_until_ready` waits for the end of it."""
        self._opening = asyncio.create_task(self._load())

    async def wait_until_ready(self) -> None:
        assert self._opening is not None, "the server is not open"
        await asyncio.shield(self._opening)

    @property
    def is_ready(self) -> bool:
        return self._opening is not None and self._opening.done() and not self.is_draining

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        for _, searcher in self._searchers.values():
            searcher.close()
        for model in self._models.values():
            await asyncio.to_thread(model.close)

    async def served(self) -> Mapping[str, Served]:
        """All pipelines that are served now, by name."""
        async with self._looking:
            if time.monotonic() - self._looked_at > REFRESH_SECONDS:
                await asyncio.to_thread(self._look)
                self._looked_at = time.monotonic()
        return self._served

    async def find(self, model: str | None) -> Served:
        """The pipeline of this name, or one that has this model. Raises NotFound with what is
        served; BadRequest if several pipelines of one model clean texts in different ways."""
        served = await self.served()
        if model is not None and model in served:
            return served[model]
        if model is not None and model in self.problems:
            raise Unavailable(f"Pipeline {model!r} cannot be served: {self.problems[model]}")
        fitting = [each for each in served.values() if model in (None, *each.names_of_model)]
        if len({each.model for each in fitting}) == 1:
            return fitting[0]
        names = [*served, *(name for each in served.values() for name in each.names_of_model)]
        which = ", ".join(map(repr, dict.fromkeys(names))) or "no pipeline yet"
        what = "model is missing" if model is None else f"There is no model {model!r} here"
        raise NotFound(f"{what}.{did_you_mean(model or '', names)} Served: {which}.")

    async def embed(
        self,
        served: Served,
        texts: Sequence[str],
        input_type: InputType,
        too_long: TooLong = "refuse",
    ) -> Embedded:
        """Vectors of texts, cleaned as the pipeline's documents are. Raises ConfigError for an
        empty text and for one that is too long, ProviderError if the model is unavailable."""
        loop, model = asyncio.get_running_loop(), served.model.model
        clean = served.spec.preprocessing.clean

        def work() -> Embedded:
            cleaned = clean.texts(list(texts))
            readable = prepare(cleaned, model, input_type, too_long, "input[{}]".format)
            result = embed_all(cleaned, model, None, input_type, readable=readable)
            return Embedded(result.vectors, sum(readable.tokens), model.space, notes=readable.notes)

        return await loop.run_in_executor(served.model.thread, work)

    def searcher(self, pipeline: str | int) -> "Searcher":
        """The open searcher of a pipeline's live release; to be called in a thread. Raises as
        `Searcher`."""
        from embedding_pipelines.releases import find_released
        from embedding_pipelines.search import Searcher

        name = find_released(self.warehouse, pipeline)
        release = live_release(self.warehouse.pipeline(name))
        number, searcher = self._searchers.get(name, (0, None))
        if searcher is None or number != release.number:
            model = self._open(release.spec.model).model
            self._searchers[name] = (release.number, Searcher(self.warehouse, name, model))
        return self._searchers[name][1]

    async def _load(self) -> None:
        for each in (await self.served()).values():
            try:
                await asyncio.get_running_loop().run_in_executor(
                    each.model.thread, embed_all, ["warm"], each.model.model, None
                )
            except EmbeddingPipelinesError as error:
                self.problems[each.name] = str(error)
                log.warning("%s: %s", each.name, error)

    def _look(self) -> None:
        """Take up what is live now, or has a file and no release yet."""
        specs, broken = read_pipelines(self.home)
        self.problems = {path.stem: str(error) for path, error in broken.items()}
        folders = self.warehouse.pipelines.iterdir() if self.warehouse.pipelines.is_dir() else ()
        names = {path.name for path in folders if path.is_dir()} | specs.keys()
        served = dict[str, Served]()
        for name in sorted(names):
            try:
                release = _live(self.warehouse, name)
                spec = release.spec if release else specs.get(name)
                if spec is not None:
                    served[name] = Served(spec, release, self._open(spec.model))
                    self.problems.pop(name, None)
            except EmbeddingPipelinesError as error:
                self.problems[name] = str(error)
        self._served = served

    def _open(self, options: ProviderOptions) -> ServedModel:
        key = options.model_dump_json()
        if key not in self._models:
            self._models[key] = ServedModel(options, self.home)
        return self._models[key]


def _live(warehouse: Warehouse, name: str) -> Release | None:
    """The live release; None before the first."""
    from embedding_pipelines.releases import read_releases

    releases = read_releases(warehouse.pipeline(name))
    return releases.get(releases.live)
