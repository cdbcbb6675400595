"""One open model as a server uses it: its thread, its lanes, and the way of a text through it.

A text is cleaned as the documents of its pipeline, counted, and looked up in the embedding cache,
by the functions that batch runs use; what is not there waits in a lane.
"""

import asyncio
import contextlib
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.embedding.request import Request, Sender
from embedding_pipelines.embedding.texts import ReadableTexts, TooLong, prepare
from embedding_pipelines.errors import (
    BadInput,
    ConfigError,
    EmbeddingPipelinesError,
    TooLarge,
    describe_os_error,
)
from embedding_pipelines.inference.cross_encoder import CrossEncoder, Pair
from embedding_pipelines.preprocessing.chunk import Cutter
from embedding_pipelines.providers.base import (
    EmbeddingModel,
    InputType,
    ProviderOptions,
    faulty_rows,
)
from embedding_pipelines.serving.admission import Lag, Line
from embedding_pipelines.serving.lanes import (
    FOR_EVER,
    Budget,
    Computed,
    ItemRejected,
    Lane,
    Lanes,
    Recipient,
)
from embedding_pipelines.serving.metrics import Metrics
from embedding_pipelines.serving.wire import MAX_TEXTS
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedding_pipelines.images import Pixels

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of a request to a service, since somebody waits
REMEDY = "Divide it, or send `truncate: true` to embed its beginning."
# Up to where texts are counted in the event loop, which takes a millisecond, less than a thread; and
# up to where they do not wait for larger ones.
INLINE_CHARACTERS, SMALL_CHARACTERS = 500, 32_000
WARM_WORDS, WARM_TEXTS = 48, 256  # of a batch that measures how fast a local model is, at most

IMAGE, IMAGE_TOKENS = "image", 256  # the kind of a batch of images; patches that a lane counts each

T = TypeVar("T")
Arguments = ParamSpec("Arguments")
Tidy = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Embedded:
    """The vectors of a request's texts, before compression."""

    vectors: Vectors  # float32[n, d]
    tokens: int  # that the model read, special ones included
    space: Space
    truncated_tokens: int = 0  # that it did not read, of texts that were cut
    unknown: str = ""  # a sentence, where the model lacks the words of the texts
    computed: int = 0  # texts that reached the model; all others were in the embedding cache


@dataclass(frozen=True)
class Prepared:
    """A request's texts before the model: what is in the cache, and what is not."""

    readable: ReadableTexts
    keys: list[bytes]  # of each text
    hits: dict[bytes, Vectors]

    @cached_property
    def misses(self) -> list[int]:
        """One row of each text that is to be computed."""
        first = {key: row for row, key in reversed([*enumerate(self.keys)])}
        return sorted(row for key, row in first.items() if key not in self.hits)

    @property
    def tokens_to_compute(self) -> list[int]:
        """Of each of `misses`."""
        return [self.readable.tokens[row] for row in self.misses]


class Worker(ABC):
    """An open model with its lanes. It belongs to one event loop.

    All work in the model is done in one thread of its own, and what texts need before it in two
    others: one for large requests, so that small ones do not wait for them there either.
    """

    def __init__(self, title: str, metrics: Metrics, lag: Lag) -> None:
        self.title, self._metrics, self._lag = title, metrics, lag
        self.users = 0  # requests that are in it
        self._thread = ThreadPoolExecutor(1, "model")
        self._small, self._large = ThreadPoolExecutor(1, "small"), ThreadPoolExecutor(1, "large")
        self._lines = {self._small: Line(), self._large: Line()}
        self._loading: asyncio.Task[Lanes] | None = None
        self.problem = ""  # why it could not be loaded when that was last tried; empty: it could

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Open while the body runs, whatever becomes live meanwhile."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1

    async def in_thread(
        self,
        function: Callable[Arguments, T],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> T:
        """What a function gives in a thread. A thread cannot be given up: the model stays open until
        it ends, though nobody waits for it any more."""
        self.users += 1
        task = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **options))
        task.add_done_callback(self._leave)
        return await asyncio.shield(task)

    def _leave(self, _: "asyncio.Future[Any]") -> None:
        self.users -= 1

    @property
    def lanes(self) -> Lanes | None:
        """What waits for the model; None until it is loaded."""
        task = self._loading
        if task is None or not task.done() or task.cancelled() or task.exception():
            return None
        return task.result()

    async def load(self) -> Lanes:
        """Load the model, once; a failure is tried again with the next call. Raises ProviderError
        if it is unavailable."""
        task = self._loading
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._loading = asyncio.create_task(self._load())
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for the batch that is computed, then frees the model."""
        if self.lanes:
            self.lanes.close()
        for pool in (self._small, self._large, self._thread):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._free)

    def admit(
        self, lane: Lane | None, seconds_left: float = math.inf, characters: int = SMALL_CHARACTERS
    ) -> None:
        """Raises TooManyRequests if a request of so many characters that comes now would be answered
        too late; before anything is done for it. `lane`: as in `Lanes.admit`."""
        lanes, lines = self.lanes, [*self._lines.values()]
        if lanes is None or (lanes.is_idle and not any(line.waiting for line in lines)):
            return
        line = self._lines[self._pool(characters)]
        lanes.admit(lane, seconds_left, 2 * self._lag.seconds + line.wait_seconds)

    def _pool(self, characters: int) -> ThreadPoolExecutor:
        return self._small if characters <= SMALL_CHARACTERS else self._large

    async def help(self, function: Callable[[], T]) -> T:
        """Do work beside the model, out of the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._large, function)

    async def _in_line(self, characters: int, function: Callable[..., T], *arguments: Any) -> T:
        """Do what a request of so many characters needs before the model, when it is its turn."""
        pool = self._pool(characters)
        # Small ones take as long as each other, large ones by their length.
        with self._lines[pool].stand(1 if pool is self._small else characters):
            return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    async def _load(self) -> Lanes:
        loop = asyncio.get_running_loop()
        try:
            budget, tokens, seconds = await loop.run_in_executor(self._thread, self._warm)
        except Exception as error:
            self.problem = describe_os_error(error) if isinstance(error, OSError) else str(error)
            raise
        self.problem = ""
        lanes = Lanes(self._compute, self._thread, budget, self._metrics, self.title)
        if tokens:
            lanes.record_rate(tokens, seconds)
        return lanes

    @abstractmethod
    def _warm(self) -> tuple[Budget, int, float]:
        """Load the model; and, if it computes on this machine, how many seconds a batch of how many
        tokens takes."""

    @abstractmethod
    def _compute(self, items: Sequence[Any], tokens: Sequence[int], kind: str) -> Computed:
        """One batch, in the model's thread."""

    @abstractmethod
    def _free(self) -> None: ...


class ServedModel(Worker):
    """An embedding model, shared by all pipelines that name it with the same options."""

    def __init__(
        self,
        options: ProviderOptions,
        home: Path,
        cache: EmbeddingCache | None,
        metrics: Metrics,
        lag: Lag,
    ) -> None:
        title = f"{options.kind}:{getattr(options, 'model', '')}".rstrip(":")
        super().__init__(title, metrics, lag)
        self.options, self._cache = options, cache
        self.model: EmbeddingModel = options.open(home)
        self._sender = Sender(self.model)
        self._cutters: dict[int, Cutter] = {}  # by their limits

    async def close(self) -> None:
        self._sender.cancel()
        await super().close()

    def _free(self) -> None:
        self.model.close()

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        tidy: Tidy,
        too_long: TooLong = "refuse",
        *,
        name: Callable[[int], str] = "input[{}]".format,
        is_awaited: bool = False,
        recipient: Recipient = FOR_EVER,
    ) -> Embedded:
        """The vectors of texts, in their order. `name` says what errors call a text.

        A single text is interactive, and so are queries, and texts that somebody waits for, if they
        fit one batch. All others are bulk. Documents go through the embedding cache; a query is
        typed once, so it does not.

        Raises ConfigError for an empty text and, with its count of tokens, for one that is too
        long; BadInput for one that the model rejects; ProviderError if the model is unavailable;
        TooManyRequests as `Lanes.compute`.
        """
        with self.in_use():
            lanes = self.lanes or await self.load()
            size = sum(map(len, texts))
            lane: Lane | None = "interactive" if len(texts) == 1 else "bulk"
            if lane == "bulk" and (is_awaited or input_type == "query"):
                lane = None  # their tokens decide
            self.admit(lane, recipient.seconds_left, size)
            started = time.perf_counter()
            arguments = (texts, input_type, tidy, too_long, name)
            if input_type == "query" and size <= INLINE_CHARACTERS:  # nothing touches the disk
                prepared = self._prepare(*arguments)
            else:
                prepared = await self._in_line(size, self._prepare, *arguments)
            lane = lane or lanes.lane_of(prepared.tokens_to_compute)
            self._note(prepared, lane, time.perf_counter() - started)
            computed = await self._compute_misses(
                lanes, prepared, input_type, lane, name, recipient
            )
            by_key, readable = prepared.hits | computed, prepared.readable
            return Embedded(
                np.stack([by_key[key] for key in prepared.keys]),
                sum(readable.tokens),
                self.model.space,
                readable.unseen,
                readable.unknown,
                len(computed),
            )

    def _note(self, prepared: Prepared, lane: Lane, seconds: float) -> None:
        """Count what came before the model, and took so long."""
        labels = {"model": self.title, "lane": lane}
        self._metrics.observe("tokenize_seconds", seconds, **labels)
        if len(prepared.hits):
            self._metrics.count("cache_hits_total", len(prepared.hits), **labels)

    async def _compute_misses(
        self,
        lanes: Lanes,
        prepared: Prepared,
        input_type: InputType,
        lane: Lane,
        name: Callable[[int], str],
        recipient: Recipient,
    ) -> dict[bytes, Vectors]:
        """By their keys, the vectors of the texts that are not in the cache; those of documents are
        kept there. Raises as `embed`."""
        rows = prepared.misses
        if not rows:
            return {}
        items = [prepared.readable.texts[row] for row in rows]
        tokens = prepared.tokens_to_compute
        try:
            vectors = await lanes.compute(items, tokens, input_type, lane, recipient)
        except ItemRejected as fault:
            which = name(rows[fault.row])
            raise BadInput(f"{which} has no vector: {fault}") from None
        keys = [prepared.keys[row] for row in rows]
        if input_type == "document":
            self._keep(keys, vectors)
        return dict(zip(keys, vectors, strict=True))

    async def embed_images(
        self, squares: "Pixels", lane: Lane, recipient: Recipient = FOR_EVER
    ) -> Embedded:
        """The vectors of images uint8[n, size, size, 3], as `images.prepare` makes them for the
        model. Raises ProviderError if it is unavailable, BadInput for an image that it rejects,
        TooManyRequests as `Lanes.compute`."""
        with self.in_use():
            lanes = await self.load()
            tokens = [IMAGE_TOKENS] * len(squares)
            try:
                vectors = await lanes.compute(list(squares), tokens, IMAGE, lane, recipient)
            except ItemRejected as fault:
                raise BadInput(f"images[{fault.row}] has no vector: {fault}") from None
            return Embedded(vectors, 0, self.model.space)

    async def finish_keeping(self) -> None:
        """Wait until the vectors of all documents that were embedded so far are in the cache."""
        await self.help(lambda: None)

    def _warm(self) -> tuple[Budget, int, float]:
        model = self.model
        budget = Budget(model.batch_tokens, model.limits.request_texts)
        if model.rate_limit is not None:  # a service, which would bill it
            return budget, 0, 0.0
        text = " ".join(["words"] * WARM_WORDS)
        (count,) = prepare([text], model, "document", "cut").tokens
        texts = [text] * max(1, min(WARM_TEXTS, budget.items, budget.tokens // count))
        tokens = [count] * len(texts)
        self._compute(texts[:1], tokens[:1], "document")
        started = time.perf_counter()
        self._compute(texts, tokens, "document")
        return budget, sum(tokens), time.perf_counter() - started

    def _prepare(
        self,
        texts: Sequence[str],
        input_type: InputType,
        tidy: Tidy,
        too_long: TooLong,
        name: Callable[[int], str],
    ) -> Prepared:
        cleaned, model = tidy(texts), self.model
        readable = prepare(cleaned, model, input_type, too_long, name, REMEDY, self._cutter)
        space = model.space
        keys = [EmbeddingCache.key(space.id, input_type, text) for text in readable.texts]
        hits: dict[bytes, Vectors] = {}
        if self._cache is not None and input_type == "document":
            hits = self._cache.get_many(list(dict.fromkeys(keys)), space.dimensions)
        return Prepared(readable, keys, hits)

    def _cutter(self, tokenizer: "Tokenizer", limit: int) -> Cutter:
        """Kept, since it takes 30 ms to make; two threads may each make one at first."""
        if limit not in self._cutters:
            self._cutters[limit] = Cutter(tokenizer, limit, None)
        return self._cutters[limit]

    def _compute(self, texts: Sequence[str], tokens: Sequence[int], kind: str) -> Computed:
        """A batch that the model does not take as it is goes the way of batch runs, which finds the
        texts that are at fault."""
        if kind == IMAGE:
            vectors = self.model.embed_images(np.stack(texts))
            return Computed(vectors, faulty_rows(vectors, ["image"] * len(texts), self.model.space))
        input_type: InputType = "query" if kind == "query" else "document"
        request = Request(texts, input_type, tokens, attempts=ATTEMPTS)
        try:
            response = self._sender.send(request)
            faults = response.rejected or faulty_rows(response.vectors, texts, self.model.space)
            if not faults:
                return Computed(response.vectors)
        except (BadInput, TooLarge):
            pass
        readable = ReadableTexts(list(texts), list(tokens))
        result = embed_all(texts, self.model, None, input_type, readable=readable)
        return Computed(result.vectors, result.rejected)

    def _keep(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """File vectors in the cache, while the reply is on its way."""
        cache = self._cache
        if cache is None:
            return

        def put() -> None:
            try:
                cache.put_many(keys, vectors, self.model.space.id)
            except EmbeddingPipelinesError as error:  # the vectors are right, and computed again
                log.warning("%s", error)

        self._large.submit(put)


@dataclass(frozen=True)
class Scored:
    """How well each text of a request fits its query."""

    scores: NDArray[np.float32]  # [n]
    tokens: int  # of all pairs, as the model read them


class ServedReranker(Worker):
    """A cross-encoder, which scores pairs of a query and a text."""

    def __init__(self, name: str, home: Path, metrics: Metrics, lag: Lag) -> None:
        super().__init__(f"hf:{name}", metrics, lag)
        self.name, self._model = name, CrossEncoder(name, home)

    async def score(
        self,
        query: str,
        texts: Sequence[str],
        too_long: TooLong = "refuse",
        recipient: Recipient = FOR_EVER,
        is_admitted: bool = False,
    ) -> Scored:
        """Raises ConfigError for a text that is longer than the model reads beside the query,
        ProviderError if the model is unavailable, TooManyRequests as `Lanes.compute`. `is_admitted`:
        whoever asks was let in before other work was done for them, and is not refused now."""
        with self.in_use():
            lanes = self.lanes or await self.load()
            pairs = [(query, text) for text in texts]
            size = sum(len(query) + len(text) for text in texts)
            if not is_admitted:
                self.admit(None, recipient.seconds_left, size)  # its tokens decide the lane
            started = time.perf_counter()
            tokens = await self._in_line(size, self._count, pairs, too_long)
            lane = lanes.lane_of(tokens)
            spent = time.perf_counter() - started
            self._metrics.observe("tokenize_seconds", spent, model=self.title, lane=lane)
            scores = await lanes.compute(pairs, tokens, "pair", lane, recipient, is_admitted)
            return Scored(scores, sum(tokens))

    def _count(self, pairs: Sequence[Pair], too_long: TooLong) -> list[int]:
        counts, limit = self._model.count(pairs), self._model.max_tokens
        for row, count in enumerate(counts):
            if count > limit and too_long == "refuse":
                raise ConfigError(
                    f"documents[{row}] has {count:,} tokens beside the query; {self.title} reads "
                    f"{limit:,}. Divide it, or send `truncate: true` to read its beginning."
                )
        return [min(count, limit) for count in counts]

    def _warm(self) -> tuple[Budget, int, float]:
        model = self._model
        text = " ".join(["words"] * WARM_WORDS)
        (count,) = self._count([(text, text)], "cut")
        pairs = [(text, text)] * max(1, model.batch_tokens // count)
        model.scores(pairs[:1])
        started = time.perf_counter()
        model.scores(pairs)
        budget = Budget(model.batch_tokens, MAX_TEXTS)
        return budget, count * len(pairs), time.perf_counter() - started

    def _compute(self, items: Sequence[Pair], tokens: Sequence[int], kind: str) -> Computed:
        return Computed(self._model.scores(items))

    def _free(self) -> None:
        self._model.close()
