"""What a server has open: the pipelines of its home folder and their models. Routes are given it.

It follows the warehouse: a pipeline's new release, or its first, is taken up within REFRESH_SECONDS.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from embedding_pipelines.access import Access
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.errors import (
    ConfigError,
    EmbeddingPipelinesError,
    describe_os_error,
    did_you_mean,
)
from embedding_pipelines.files import is_absent
from embedding_pipelines.providers.aliases import ALIASES
from embedding_pipelines.providers.base import InputType, ProviderOptions
from embedding_pipelines.releases import Release, find_released, read_releases
from embedding_pipelines.serving.admission import Lag, Line
from embedding_pipelines.serving.auth import Keys
from embedding_pipelines.serving.lanes import FOR_EVER, Recipient
from embedding_pipelines.serving.maps import Maps
from embedding_pipelines.serving.metrics import Metrics
from embedding_pipelines.serving.models import Embedded, ServedModel, ServedReranker, Worker
from embedding_pipelines.serving.permissions import Permissions
from embedding_pipelines.serving.pictures import Pictures
from embedding_pipelines.serving.runs import Runs
from embedding_pipelines.serving.wire import (
    RELEASE_HEADER,
    BadRequest,
    NotFound,
    Unavailable,
)
from embedding_pipelines.spec.load import pipeline_files, read_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.spec.receipts import ReceiptOptions
from embedding_pipelines.storage.warehouse import Warehouse

if TYPE_CHECKING:
    from embedding_pipelines.search import Searcher
    from embedding_pipelines.search.unreleased import UnreleasedTexts

log = logging.getLogger(__name__)

T = TypeVar("T")

REFRESH_SECONDS = 1.0  # between two looks at which releases are live
UNKNOWN_SECONDS = 0.1  # the same, for a request that names what was not there at the last look
RETRY_SECONDS = 10.0  # between two attempts to load models that nobody can ask for
SEARCH_THREADS = min(32, (os.cpu_count() or 1) + 4)
Stamps = tuple[tuple[int, int, int], ...]  # of files: size, modification and change time


@dataclass(frozen=True)
class Served:
    """A pipeline whose texts can be embedded: its live release, or without one its file."""

    spec: PipelineSpec
    release: Release | None
    model: ServedModel
    receipts: ReceiptOptions  # as the file says today: no release waits for them
    image_places: tuple[str, ...] = ()  # what the file says of where images are; no file, none

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def headers(self) -> dict[str, str]:
        """What a reply says of the release, if there is one."""
        return {RELEASE_HEADER: str(self.release.number)} if self.release else {}

    @property
    def names_of_model(self) -> Iterator[str]:
        """What else than the pipeline's name a request may call it by."""
        options = self.model.options
        model = getattr(options, "model", "")
        yield f"{options.kind}:{model}" if model else options.kind
        if model:
            yield str(model)
        for alias, meant in ALIASES.items():
            if model and meant.provider == options.kind and meant.model == model:
                yield alias

    def tidy(self, texts: Sequence[str], input_type: InputType) -> list[str]:
        """Texts as the pipeline's documents are, or its queries, before its model reads them."""
        preprocessing = self.spec.preprocessing
        if input_type == "query":
            return preprocessing.clean.texts(texts)
        return preprocessing.tidy(texts)[0]


class Server:
    """Open it once, close it once; in between, any number of requests of one event loop use it."""

    def __init__(
        self,
        home: Path,
        keys: Keys,
        reranker: str = "",
        permissions: Permissions | None = None,
    ) -> None:
        """`reranker` names a cross-encoder: a folder below the home folder, or a model of the hub.
        `permissions` are those of pipelines that are sent to the server."""
        self.home, self.keys, self.warehouse = home, keys, Warehouse(home)
        self.permissions = permissions or Permissions()
        self.metrics, self.lag = Metrics(), Lag()
        self.searches = Line()  # queries that are not answered yet
        self.runs = Runs(home)
        self.maps = Maps(self.warehouse)
        self.pictures = Pictures(home)
        self.reranker = ServedReranker(reranker, home, self.metrics, self.lag) if reranker else None
        self._rerankers: dict[str, ServedReranker] = {}  # by name: those of pipelines
        self.is_draining = False  # no new requests: the process is about to end
        self.problems: dict[str, str] = {}  # by pipeline: why it is not served
        self._unread: set[str] = set()  # of these pipelines with a live release, or none can tell
        self._served: dict[str, Served] = {}
        self._models: dict[str, ServedModel] = {}  # by their options as JSON
        self._opening_models = threading.Lock()
        self._searchers: dict[str, tuple[Release, Searcher]] = {}  # with what it was opened for
        self._accesses: dict[str, Access] = {}  # by pipeline
        self._texts: dict[str, UnreleasedTexts] = {}  # of pipelines without a release
        self._opening_searchers = threading.Lock()
        # Their own: what else is done in threads, for embeddings too, does not wait behind searches.
        self._searching = ThreadPoolExecutor(SEARCH_THREADS, "search")
        self._memory = ThreadPoolExecutor(1, "memory")  # builds what is searched in memory
        self._is_closed = False
        self._cache: EmbeddingCache | None = None
        self._stamps: dict[str, Stamps] = {}  # by pipeline, when it was last read
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._loading_rest: asyncio.Task[None] | None = None  # of what has no release yet
        self._loading_again: asyncio.Task[None] | None = None  # of what could not be loaded
        self._tried_at = float("-inf")
        self._watching: asyncio.Task[None] | None = None  # of the lag

    async def open(self) -> None:
        """Begin to load what is released; `wait_until_ready` waits for the end of it."""
        self._cache = await asyncio.to_thread(_open_cache, self.warehouse)
        self._watching = asyncio.create_task(self.lag.watch())
        self._loading = asyncio.create_task(self._load())

    async def wait_until_ready(self) -> None:
        assert self._loading is not None, "the server is not open"
        await asyncio.shield(self._loading)

    @property
    def is_ready(self) -> bool:
        return self._loading is not None and self._loading.done() and not self.is_draining

    @property
    def is_failing(self) -> bool:
        """Whether none of the live releases can be searched: models that they need cannot be loaded,
        or their records not be read. Searches by words that a file chooses embed nothing."""
        released = [each for each in self._served.values() if each.release]
        can_answer = [
            not any(
                worker.problem
                for worker in self._workers_of(each)
                if worker is not each.model or each.spec.search.mode != "text"
            )
            for each in released
        ]
        return bool(released or self._unread) and not any(can_answer)

    def _workers_of(self, served: Served) -> list[Worker]:
        """The models of a pipeline: what embeds, and what orders hits where it names that."""
        reranker = self.reranker_of(served.name)
        return [served.model, *([reranker] if reranker else [])]

    def load_again(self) -> None:
        """Begin to load what could not be loaded. A server that is failing is sent no request, with
        which it would be tried."""
        if time.monotonic() - self._tried_at > RETRY_SECONDS:
            self._tried_at = time.monotonic()
            if self._loading_again is None or self._loading_again.done():
                failed = [worker for worker in self.workers if worker.problem]
                self._loading_again = asyncio.create_task(self._load_all(failed))

    async def close(self) -> None:
        """Wait for batches that are computed, and free everything."""
        loading = (self._loading, self._loading_rest, self._loading_again)
        for task in (*loading, self._watching, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._is_closed = True  # an index that is being built is given up
        for pool in (self._searching, self._memory):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        await asyncio.to_thread(self.maps.close)
        await asyncio.to_thread(self.pictures.close)
        for _, searcher in self._searchers.values():
            searcher.close()
        for model in self.workers:
            await model.close()
        if self._cache is not None:
            self._cache.close()

    @property
    def faults(self) -> dict[str, str]:
        """By pipeline: why it is not served, or why its models could not be loaded; in the event
        loop."""
        faults = dict(self.problems)
        for name, served in self._served.items():
            if problems := [each.problem for each in self._workers_of(served) if each.problem]:
                faults[name] = "\n".join(problems)
        return faults

    @property
    def models(self) -> list[ServedModel]:
        """The embedding models that are open."""
        return list(self._models.values())

    @property
    def workers(self) -> list[Worker]:
        """All models that are open."""
        own = [self.reranker] if self.reranker else []
        return [*self.models, *own, *self._rerankers.values()]

    def reranker_of(self, pipeline: str) -> ServedReranker | None:
        """The cross-encoder that a pipeline's live release names, if it does; in the event loop."""
        served = self._served.get(pipeline)
        name = served.spec.search.rerank if served else None
        if name is None or (self.reranker and self.reranker.name == name):
            return self.reranker if name else None
        if name not in self._rerankers:
            self._rerankers[name] = ServedReranker(name, self.home, self.metrics, self.lag)
        return self._rerankers[name]

    async def rerankers(self) -> list[ServedReranker]:
        """All cross-encoders that a request may name: the server's own, and those of pipelines."""
        names = filter(None, map(self.reranker_of, await self.served()))
        return list(dict.fromkeys([*([self.reranker] if self.reranker else []), *names]))

    async def served(self, *, unknown: bool = False) -> Mapping[str, Served]:
        """All pipelines that are served now, by name; `unknown`: for a request that names none of
        those of the last look, after which one may have been released.

        Whoever comes during a look waits for its end, all together: a lock would let one of them go
        in each turn of the event loop, and where requests come faster than that, no more than one.
        """
        seconds = UNKNOWN_SECONDS if unknown else REFRESH_SECONDS
        if time.monotonic() - self._looked_at > seconds:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._refresh())
            await asyncio.shield(self._looking)
        return self._served

    async def _refresh(self) -> None:
        try:
            await asyncio.to_thread(self._look)
        except OSError as error:  # nobody can tell what is there: it is as it was
            log.warning("What is served cannot be looked up: %s", describe_os_error(error))
        await self._close_unused()
        self._looked_at = time.monotonic()

    async def find(self, model: str | None, others: Sequence[str] = ()) -> Served:
        """The pipeline of this name, or one that has this model. Raises NotFound with what is
        served, and what `others` a request may name; Unavailable with what is the matter with a
        pipeline, and BadRequest if several pipelines of one model clean texts in different ways."""
        served = await self.served()
        if not (fitting := _fitting(served, model)):
            served = await self.served(unknown=True)
            fitting = _fitting(served, model)
        if model is not None and model not in served and model in self.problems:
            raise Unavailable(f"Pipeline {model!r} cannot be served: {self.problems[model]}")
        if not fitting or len({each.model for each in fitting}) > 1:
            names = [*served, *(name for each in served.values() for name in each.names_of_model)]
            names += others
            which = ", ".join(map(repr, dict.fromkeys(names))) or "no pipeline yet"
            if model is None:
                raise BadRequest(f"model is missing. Name one of: {which}.")
            what = f"There is no model {model!r} here.{did_you_mean(model, names)}"
            raise NotFound(f"{what} Served: {which}.")
        if len(fitting) > 1 and len({each.spec.preprocessing.version for each in fitting}) > 1:
            names = [each.name for each in fitting]
            raise BadRequest(
                f"The pipelines {', '.join(map(repr, names))} have this model and clean texts in "
                "different ways. Name one of them as the model."
            )
        return fitting[0]

    async def embed(
        self,
        served: Served,
        texts: Sequence[str],
        input_type: InputType,
        too_long: TooLong = "refuse",
        *,
        name: str = "input[{}]",
        is_awaited: bool = False,
        recipient: Recipient = FOR_EVER,
    ) -> Embedded:
        """Vectors of texts, cleaned as the pipeline's documents or queries are; as
        `ServedModel.embed`. `name` says what errors call a text, by its number."""
        return await served.model.embed(
            texts,
            input_type,
            lambda texts: served.tidy(texts, input_type),
            too_long,
            name=name.format,
            is_awaited=is_awaited,
            recipient=recipient,
        )

    def admit(self, seconds_left: float) -> None:
        """Raises TooManyRequests if a single text would wait for too long, whatever it is: before it is
        read, where all are for one model."""
        if len(self._models) == 1:
            (model,) = self._models.values()
            model.admit("interactive", seconds_left)

    def searcher(self, pipeline: str | int) -> "Searcher":
        """The open searcher of a pipeline's live release; to be called in a thread. Raises as
        `Searcher`."""
        from embedding_pipelines.overlay import searched_release
        from embedding_pipelines.search import Searcher

        name = str(pipeline)
        served = self._served.get(name)
        if served is None or served.release is None:
            name = find_released(self.warehouse, pipeline)
            served = self._served.get(name)
        release = served.release if served else None
        release = release or searched_release(self.warehouse, self.warehouse.pipeline(name))
        access = self.access(name)
        with self._opening_searchers:
            opened, searcher = self._searchers.get(name, (None, None))
            # By all of it: of a pipeline that was deleted and made again the numbers come again.
            if searcher is None or opened != release:
                self._texts.pop(name, None)
                model = self._open(release.spec.model).model
                searcher = Searcher(self.warehouse, name, model, access=access)
                self._searchers[name] = (release, searcher)
                self._memory.submit(self._load_memory, name, searcher)
        return searcher

    async def search(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do what a searcher does, out of the event loop."""
        work = partial(function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._searching, work)

    def access(self, pipeline: str) -> Access:
        """The permissions of a pipeline, whether it has a release or not; to be called in a thread."""
        served = self._served.get(pipeline)
        live = served.release if served else None
        released = live.spec.permissions if live else None
        with self._opening_searchers:
            access = self._accesses.get(pipeline)
            if access is None or access.released != released:
                self._accesses[pipeline] = access = Access(self.home, pipeline, released)
        return access

    def unreleased(self, served: Served) -> "UnreleasedTexts":
        """The texts of a pipeline without a release, as they are cut now; to be called in a thread.
        Raises as `UnreleasedTexts`."""
        from embedding_pipelines.search.unreleased import UnreleasedTexts

        chunks = self.warehouse.pipeline(served.name).chunks
        manifests = chunks.manifests(served.spec.partition_names)
        with self._opening_searchers:
            texts = self._texts.get(served.name)
            if texts is None or texts.digests != tuple(each.digest for each in manifests):
                texts = UnreleasedTexts(self.warehouse, served.name)
                self._texts[served.name] = texts
        return texts

    def _load_memory(self, name: str, searcher: "Searcher") -> None:
        """Hold a release in memory, if it fits; the stored table answers until then."""

        def is_wanted() -> bool:
            return not self._is_closed and self._searchers.get(name, (None, None))[1] is searcher

        try:
            searcher.load_memory(is_wanted)
        except (EmbeddingPipelinesError, OSError, MemoryError) as error:
            log.warning("%s is searched on the disk, not in memory: %s", name, error)

    async def _load(self) -> None:
        """Load the models of all releases. Those of pipelines without one follow while requests are
        answered: nobody knows yet whether there are such models, and a hub may be asked for long."""
        served = await self.served()
        released = [name for name, each in served.items() if each.release]
        first: list[Worker] = [*([self.reranker] if self.reranker else [])]
        first += [served[name].model for name in released]
        first += filter(None, map(self.reranker_of, released))
        await self._load_all(list(dict.fromkeys(first)))
        self._loading_rest = asyncio.create_task(self._load_rest(first))

    async def _load_rest(self, loaded: Sequence[Worker]) -> None:
        for name in self._served:
            self.reranker_of(name)
        await self._load_all([worker for worker in self.workers if worker not in loaded])

    async def _load_all(self, workers: Sequence[Worker]) -> None:
        """One after the other, for they are measured. One that cannot be loaded is tried again when
        it is used."""
        for worker in workers:
            if worker not in self.workers:  # closed meanwhile: no pipeline has it any more
                continue
            try:
                await worker.load()
            except Exception:  # noqa: BLE001  # its `problem` says what, and others may load
                names = [
                    name for name, each in self._served.items() if worker in self._workers_of(each)
                ]
                of = f" (of {', '.join(map(repr, names))})" if names else ""
                log.warning("%s%s cannot be loaded yet: %s", worker.title, of, worker.problem)

    def _look(self) -> None:
        """Take up what is live now, or has a file and no release yet; in a thread. A pipeline whose
        files are as they were is not read again."""
        files = {path.stem: path for path in pipeline_files(self.home)}
        folders = self.warehouse.pipelines.iterdir() if self.warehouse.pipelines.is_dir() else ()
        names = {path.name for path in folders if path.is_dir()} | files.keys()
        served, problems, unread = dict[str, Served](), dict[str, str](), set[str]()
        for name in sorted(names):
            folder = self.warehouse.pipeline(name)
            may_be_live = folder.releases.exists()
            paths = [folder.releases, *([files[name]] if name in files else [])]
            try:
                stamps = tuple(map(_stamp, paths))
                if name in self._served and self._stamps.get(name) == stamps:
                    served[name] = self._served[name]
                    continue
                self._stamps[name] = stamps
                releases = read_releases(folder)
                release = releases.get(releases.live)
                may_be_live = release is not None
                if release is None and name not in files:
                    continue
                spec = release.spec if release else read_pipeline(files[name])
                if release is None and spec.model.trains:
                    raise ConfigError(
                        f"Its model is trained by the first run: `embedding-pipelines run {name}`."
                    )
                today = _file_spec(files.get(name))
                receipts, source = (today or spec).receipts, today.source if today else None
                places = getattr(source, "path", ()) if source and source.has_images else ()
                served[name] = Served(spec, release, self._open(spec.model), receipts, places)
            except EmbeddingPipelinesError as error:
                problems[name] = str(error)
            except OSError as error:  # what cannot be read is not gone
                problems[name] = describe_os_error(error)
                self._stamps.pop(name, None)
                if name in self._served:
                    served[name] = self._served[name]
            if name in problems and may_be_live:
                unread.add(name)
        self._served, self.problems, self._unread = served, problems, unread
        self._drop_old_searchers()

    def _drop_old_searchers(self) -> None:
        """Forget the searchers of what is not searched any more, whose rows may be in memory."""
        with self._opening_searchers:
            for name, (opened, _) in list(self._searchers.items()):
                served = self._served.get(name)
                live = served.release if served else None
                is_unreleased = served is not None and live is None and not opened.number
                if opened != live and not is_unreleased:
                    del self._searchers[name]

    async def _close_unused(self) -> None:
        """Close the models and cross-encoders that no pipeline has any more, once no request is in
        them."""
        used = {id(each.model) for each in self._served.values()}
        used |= {id(searcher.model) for _, searcher in self._searchers.values()}
        for key, model in list(self._models.items()):
            if id(model) not in used and id(model.model) not in used and not model.users:
                del self._models[key]
                await model.close()
        names = {each.spec.search.rerank for each in self._served.values()}
        for name, reranker in list(self._rerankers.items()):
            if name not in names and not reranker.users:
                del self._rerankers[name]
                await reranker.close()

    def _open(self, options: ProviderOptions) -> ServedModel:
        key = options.model_dump_json()
        with self._opening_models:
            if key not in self._models:
                model = ServedModel(options, self.home, self._cache, self.metrics, self.lag)
                self._models[key] = model
            return self._models[key]


def _fitting(served: Mapping[str, Served], model: str | None) -> list[Served]:
    """The pipeline of this name, or those that have this model; all for None."""
    if model is not None and model in served:
        return [served[model]]
    return [each for each in served.values() if model in (None, *each.names_of_model)]


def _open_cache(warehouse: Warehouse) -> EmbeddingCache | None:
    """The embedding cache of the pipelines, until it is closed; None where it cannot be written."""
    cache = EmbeddingCache(warehouse.cache)
    try:
        return cache.__enter__()
    except (EmbeddingPipelinesError, OSError) as error:
        log.warning("Vectors of documents are not kept: %s", error)
        return None


def _file_spec(file: Path | None) -> PipelineSpec | None:
    """What the pipeline's file says now; None where there is none, or none that can be read."""
    try:
        return read_pipeline(file) if file else None
    except EmbeddingPipelinesError:
        return None  # `validate` and `status` say what is wrong with the file


def _stamp(path: Path) -> tuple[int, int, int]:
    """Equal as long as a file is the same; zeros without it."""
    if is_absent(path):
        return (0, 0, 0)
    status = path.stat()
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
