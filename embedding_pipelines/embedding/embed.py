"""From texts and images to vectors through the cache: only what is not in it reaches the model.

    batches ──▶ look up ──── hits ───────────────────────▶ vectors ──▶ yielded in order
                   │                                          ▲
                 misses, packed                               │ committed to the cache
                   ▼                                          │
                 queue ── within the budget ──▶ out ── reply ─┤
                   ▲                             │            │ rows with a wrong vector
                   │                           fault          │
                   └──────── halves, or once more ◀───────────┘ ── a text alone ──▶ rejected

A stream: while the model computes `limits.concurrent_requests` requests, and their threads commit
its replies, the next batches are read and looked up. BATCHES_AHEAD batches are in memory, or as
many more as keep these threads at work. What a fault means for the texts of its request stands in
`request.POLICY`. The images of a request are loaded from when it is submitted, one before its turn.
"""

import contextlib
import time
from bisect import bisect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.embedding.batch import Batch, BatchRequest, EmbeddedBatch, Embeddings
from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.cache import IN_MEMORY, EmbeddingCache, content_keys
from embedding_pipelines.embedding.images import ImageLoader
from embedding_pipelines.embedding.limiter import Limiter
from embedding_pipelines.embedding.packing import pack
from embedding_pipelines.embedding.request import ATTEMPTS, POLICY, Sender, WrongVector
from embedding_pipelines.embedding.sanity import probe, send_verified
from embedding_pipelines.embedding.texts import ReadableTexts, prepare
from embedding_pipelines.embedding.workers import Workers
from embedding_pipelines.errors import BadInput, ProviderError, TooLarge, Unreachable
from embedding_pipelines.providers.base import (
    EmbeddingModel,
    InputType,
    Limits,
    Response,
    faulty_rows,
)
from embedding_pipelines.schemas import IMAGE, TEXT, URI

# Of 4,096 texts at most: enough to reach past the end of a partition while it is finished.
BATCHES_AHEAD = 3
BATCH_TEXTS = 4_096  # that `embed_all` looks up at once
# For requests that are out when something fails or the user stops; one to a local model takes 3.
PATIENCE_SECONDS = 10.0
LOOK_SECONDS = 0.2  # between two looks at what other workers are embedding


def embed(
    batches: Iterable[pa.RecordBatch],
    model: EmbeddingModel,
    cache: EmbeddingCache,
    input_type: InputType,
    advance: Callable[[int], None],
    budget: BudgetTracker | None = None,
    unfinished: Usage | None = None,
    *,
    limits: Limits | None = None,
    loader: ImageLoader | None = None,
    limiter: Limiter | None = None,
) -> Iterator[EmbeddedBatch]:
    """Each batch with its vectors, in order. Batches need the columns `text` and `tokens`; with
    `loader`, those of images have `image` and `uri`, and a row with an image is embedded as that.

    `advance` is given the tokens of texts that are done, and 1 for each image. `limits` are the
    model's by default, `limiter` as `Sender`'s.

    The vectors of each reply are committed to the cache when it has come, also of requests that are
    out when something fails, within PATIENCE_SECONDS. A process that is killed loses what is out:
    `limits.concurrent_requests` requests and one more. What batches took that never come back,
    since something failed, is added to `unfinished`. Raises ProviderError if the model is
    unavailable, BudgetError if the next request would cost more than `budget` holds.
    """
    source = iter(batches)
    stream = _Stream(
        model, cache, input_type, budget or BudgetTracker(), limits or model.limits, loader, limiter
    )
    with cache, stream.closing(unfinished or Usage()):
        rows: pa.RecordBatch | None = None
        while True:
            while stream.has_room and (rows := next(source, None)) is not None:
                stream.add(rows)
            if not stream.batches:
                return
            if stream.batches[0].pending:
                advance(stream.finish_requests())
            else:
                batch = stream.batches.popleft()
                advance(
                    stream.size(batch) - batch.usage.embedded_tokens - batch.usage.embedded_images
                )
                yield batch.embedded(model.space.dimensions)


def embed_all(
    texts: Sequence[str],
    model: EmbeddingModel,
    cache: EmbeddingCache | None,
    input_type: InputType = "document",
    budget: BudgetTracker | None = None,
    *,
    readable: ReadableTexts | None = None,
    on_cut: Callable[[str], None] | None = None,
    advance: Callable[[int], None] = lambda _: None,
    limits: Limits | None = None,
) -> Embeddings:
    """The vectors of all texts, through the cache if there is one.

    With `on_cut`, texts that are longer than the model reads are cut, and it is given a sentence
    that says so. `readable` is what `prepare` has made of the texts already; `advance` is as that
    of `embed`. Raises as `embed`, and ConfigError as `prepare`.
    """
    if readable is None:
        if on_cut is None:
            readable = prepare(texts, model, input_type)
        else:
            names = [repr(text[:80]) for text in texts]
            readable = prepare(texts, model, input_type, "cut", names.__getitem__)
            if readable.cut:
                on_cut(readable.cut)
    texts, tokens = readable.texts, readable.tokens
    count, size = len(texts), model.space.dimensions
    whole = Embeddings(np.empty((count, size), np.float32), {}, Usage())
    starts = range(0, count, BATCH_TEXTS)

    def batches() -> Iterator[pa.RecordBatch]:
        for first in starts:
            part = slice(first, first + BATCH_TEXTS)
            columns = {"text": texts[part], "tokens": pa.array(tokens[part], pa.int32())}
            yield pa.RecordBatch.from_pydict(columns)

    with EmbeddingCache(IN_MEMORY) if cache is None else cache as store:
        parts = embed(batches(), model, store, input_type, advance, budget, limits=limits)
        for first, part in zip(starts, parts, strict=True):
            whole.vectors[first : first + len(part.vectors)] = part.vectors
            whole.rejected |= {first + row: reason for row, reason in part.rejected.items()}
            whole.usage.add(part.usage)
    return whole


class _Stream:
    """Batches with pending vectors, requests in the queue, and requests that are out."""

    def __init__(
        self,
        model: EmbeddingModel,
        cache: EmbeddingCache,
        input_type: InputType,
        budget: BudgetTracker,
        limits: Limits,
        loader: ImageLoader | None,
        limiter: Limiter | None,
    ) -> None:
        self._loader = loader
        self.batches: deque[Batch] = deque()
        self._cache, self._budget, self._space, self._limits = cache, budget, model.space, limits
        self._input_type: InputType = input_type
        self._queue: deque[BatchRequest] = deque()
        self._out: dict[Future[Response], BatchRequest] = {}
        self._requested: set[bytes] = set()  # keys of both
        self._rejected: dict[bytes, str] = {}
        # When the provider last gave a right vector, and until when its time is counted, by the
        # clock `time.perf_counter`.
        self._right_at = self._counted_until = 0.0
        self._sender = Sender(model, limiter)
        self._workers = Workers(limits.concurrent_requests)

    @property
    def has_room(self) -> bool:
        most, concurrent = BATCHES_AHEAD, self._limits.concurrent_requests
        if len(self._out) <= concurrent:
            most = max(most, concurrent + 1)
        return len(self.batches) < most and not self._queue

    def add(self, rows: pa.RecordBatch) -> None:
        """Look a batch up, and request the misses that are not requested yet."""
        if not rows.num_rows:
            return
        space = self._space
        # Without a loader a column of that name is the user's own.
        names = [TEXT, IMAGE] if self._loader else [TEXT]
        batch = Batch(rows, content_keys(space.id, self._input_type, rows.select(names)))
        unique, usage = set(batch.keys), batch.usage
        batch.vectors, elsewhere = self._cache.get_or_claim(
            list(unique - self._requested - self._rejected.keys()), space.dimensions
        )
        batch.rejected = {key: self._rejected[key] for key in unique & self._rejected.keys()}
        batch.pending = unique - batch.vectors.keys() - batch.rejected.keys()
        misses = batch.pending - self._requested - elsewhere
        usage.texts, usage.rejected = len(unique), len(batch.rejected)
        usage.cache_hits = len(unique) - len(misses) - len(batch.rejected)
        self.batches.append(batch)
        self._queue.extend(self._requests(batch, misses))
        self._requested |= misses
        self._submit()

    def size(self, batch: Batch) -> int:
        """As `advance` counts a batch."""
        rows = batch.rows
        images = len(rows) - rows[IMAGE].null_count if self._loader else 0
        return int(pc.sum(rows["tokens"]).as_py()) + images

    def finish_requests(self) -> int:
        """Wait until a request has ended, and finish that one; what got vectors, as `advance` counts
        it. One at a time, so that what is whole is out before a request that failed ends all. If
        none is out, others are embedding what is pending: look whether they have."""
        if not self._out:
            self._look_again()
            return 0
        ended, _ = wait(self._out, return_when=FIRST_COMPLETED)
        tokens = self._finish(next(future for future in self._out if future in ended))
        self._submit()
        return tokens

    def _look_again(self) -> None:
        """Take the vectors that other workers have filed since, and request what they gave up."""
        time.sleep(LOOK_SECONDS)
        batch = self.batches[0]
        keys = list(batch.pending)
        hits, elsewhere = self._cache.get_or_claim(keys, self._space.dimensions)
        for other in self.batches:
            for key in other.pending & hits.keys():
                other.pending.remove(key)
                other.vectors[key] = hits[key]
        misses = batch.pending - elsewhere
        batch.usage.cache_hits -= len(misses)
        self._queue.extend(self._requests(batch, misses))
        self._requested |= misses
        self._submit()

    @contextlib.contextmanager
    def closing(self, unfinished: Usage) -> Iterator[None]:
        """In the end, wait PATIENCE_SECONDS for what requests that are out still bring; those not
        begun are not sent."""
        try:
            yield
        finally:
            self._sender.cancel()
            out = {future: self._out[future] for future in self._out if not future.cancel()}
            self._workers.close()
            for future in wait(out, PATIENCE_SECONDS).done:
                if future.exception() is None:
                    self._deliver(out[future], future.result())
                self._spend(out[future].batch, out[future].usage)
            for batch in self.batches:
                unfinished.add(batch.usage)

    def _requests(self, batch: Batch, misses: set[bytes]) -> Iterator[BatchRequest]:
        rows = {key: row for row, key in enumerate(batch.keys) if key in misses}
        if self._loader:
            images = batch.rows[IMAGE].is_valid().to_numpy(zero_copy_only=False)
            yield from self._image_requests(
                batch, {key: row for key, row in rows.items() if images[row]}
            )
            rows = {key: row for key, row in rows.items() if not images[row]}
        part = batch.rows.take(pa.array(rows.values(), pa.int32()))
        texts, tokens = part["text"].to_pylist(), part["tokens"].to_pylist()
        sizes = [len(text.encode()) for text in texts] if self._limits.request_bytes else None
        whole = BatchRequest(texts, self._input_type, tokens, keys=list(rows), batch=batch)
        for positions in pack(tokens, self._limits, sizes):
            yield replace(whole.part(positions), is_part=False)

    def _image_requests(self, batch: Batch, rows: dict[bytes, int]) -> Iterator[BatchRequest]:
        part = batch.rows.take(pa.array(rows.values(), pa.int32()))
        names, digests = part[URI].to_pylist(), part[IMAGE].to_pylist()
        tokens = [0] * len(names)
        whole = BatchRequest(
            *(names, self._input_type, tokens), keys=list(rows), digests=digests, batch=batch
        )
        most = self._limits.request_images
        for start in range(0, len(names), most):
            positions = range(start, min(start + most, len(names)))
            yield replace(whole.part(positions), is_part=False)

    def _submit(self) -> None:
        """One more than are computed at a time, so that none waits for the next."""
        while self._queue and len(self._out) <= self._limits.concurrent_requests:
            if not self._queue[0].digests and (
                len(self._queue[0].inputs) > self._limits.request_texts
            ):  # which were lowered since
                self._queue.extendleft(reversed(self._queue.popleft().halves()))
                continue
            out = sum(sum(request.tokens) for request in self._out.values())
            if not self._budget.holds(out + sum(self._queue[0].tokens)):
                if self._out:
                    return  # what is out may cost less than was reckoned
                self._cut_to_budget()
            request = self._queue.popleft()
            request.submitted_at = time.perf_counter()
            if request.digests and not request.images:
                assert self._loader is not None
                pairs = zip(request.inputs, request.digests, strict=True)
                request.images = [self._loader.load(name, each) for name, each in pairs]
            future = self._workers.submit(_send, self._sender, self._cache, request)
            self._out[future] = request

    def _cut_to_budget(self) -> None:
        """Put what can still be paid for of the first request before the rest of it. Raises
        BudgetError if nothing can."""
        request = self._queue[0]
        totals = np.cumsum(request.tokens).tolist()
        # Ten looks, where each is a call to the hub of a cluster; the last that is held counts there.
        count = bisect(totals, False, key=lambda total: not self._budget.holds(total))
        if not count:
            raise self._budget.exhausted_error()
        self._queue[0] = request.part(range(count, len(totals)))
        self._queue.appendleft(request.part(range(count)))

    def _finish(self, future: "Future[Response]") -> int:
        """Deliver the vectors of a request that has ended, and see to the texts that got none."""
        request = self._out[future]
        try:
            response = future.result()
        except (BadInput, TooLarge, Unreachable) as fault:
            del self._out[future]
            self._spend(request.batch, request.usage)
            self._recover(request, fault)
            return 0
        tokens, faults = self._deliver(request, response)
        del self._out[future]
        self._spend(request.batch, request.usage)
        for at, reason in response.rejected.items():
            self._reject(request, at, reason)
        if 0 < len(faults) < len(request.inputs):
            self._queue.appendleft(request.part(list(faults)))
        elif faults:
            self._recover(request, WrongVector(f"The provider returned {faults[0]}."))
        return tokens

    def _recover(self, request: BatchRequest, fault: ProviderError) -> None:
        """What a fault means for the texts of its request, by `request.POLICY`: the provider is
        verified, then they are halved; a text alone is requested once more, or rejected."""
        rule = next(POLICY[kind] for kind in type(fault).__mro__ if kind in POLICY)
        is_alone = len(request.inputs) == 1
        if isinstance(fault, Unreachable):
            # What came while this request was out may have come before the service went away.
            self._right_at = 0.0
        if is_alone or rule.probe:
            self._verify(request, fault)
        if not is_alone:
            if isinstance(fault, TooLarge) and not request.is_part:
                # For the rest of the stream. A part says no more: it may hold one huge text.
                texts = min(self._limits.request_texts, len(request.inputs) // 2)
                self._limits = replace(self._limits, request_texts=texts)
            attempts = min(rule.half_attempts or request.attempts, request.attempts)
            self._queue.extendleft(reversed(request.halves(attempts)))
        elif rule.repeat_alone and not request.is_final:
            again = replace(request.part([0]), attempts=ATTEMPTS, is_final=True)
            self._queue.appendleft(again)
        else:
            self._reject(request, 0, str(fault))

    def _verify(self, request: BatchRequest, fault: ProviderError) -> None:
        """ProviderError unless the provider has given a right vector since the request was
        submitted, or does so now."""
        if self._right_at >= request.submitted_at:
            return
        usage = Usage()
        try:
            probe(self._sender, self._input_type, usage)
        except (BadInput, TooLarge, Unreachable) as error:  # so it is not these texts
            raise error if isinstance(fault, WrongVector) else fault from error
        finally:
            self._spend(request.batch, usage)
        self._right_at = time.perf_counter()

    def _deliver(self, request: BatchRequest, response: Response) -> tuple[int, dict[int, str]]:
        """Count and deliver the right vectors of a reply: as `advance` counts them, and what is
        wrong with others that the provider did not reject itself."""
        faults = request.faults
        sound = [at for at in range(len(request.inputs)) if at not in faults]
        vectors = {request.keys[at]: response.vectors[at] for at in sound}
        if sound:
            self._right_at = time.perf_counter()
        self._requested.difference_update(vectors)
        for batch in self.batches:
            for key in batch.pending & vectors.keys():
                batch.pending.remove(key)
                batch.vectors[key] = vectors[key]
        usage, tokens = request.batch.usage, sum(request.tokens[at] for at in sound)
        usage.embedded += len(sound)
        images = len(sound) if request.digests else 0
        usage.embedded_images += images
        usage.embedded_tokens += tokens
        uncounted = request.ended_at - max(request.started_at, self._counted_until)
        usage.provider_seconds += max(0.0, uncounted)
        self._counted_until = max(self._counted_until, request.ended_at)
        return tokens + images, {
            at: words for at, words in faults.items() if at not in response.rejected
        }

    def _spend(self, batch: Batch, usage: Usage) -> None:
        batch.usage.add(usage)
        self._budget.spend(usage.counted_tokens, usage.billed_tokens)

    def _reject(self, request: BatchRequest, at: int, reason: str) -> None:
        key = request.keys[at]
        self._requested.discard(key)
        self._rejected[key] = reason
        self._cache.give_up([key])
        request.batch.usage.rejected += 1
        for batch in self.batches:
            if key in batch.pending:
                batch.pending.remove(key)
                batch.rejected[key] = reason


def _send(sender: Sender, cache: EmbeddingCache, request: BatchRequest) -> Response:
    """In a thread of its own: the reply, once what is right of it is committed."""
    request.started_at = time.perf_counter()
    try:
        response = send_verified(sender, request)
    finally:
        request.ended_at = time.perf_counter()
    request.faults = faulty_rows(response.vectors, request.inputs, sender.model.space)
    _commit(cache, request, response, sender.model.space.id)
    return response


def _commit(
    cache: EmbeddingCache, request: BatchRequest, response: Response, space_id: str
) -> None:
    """The right vectors of a reply, and those of other spaces that came for nothing. Whoever wants
    one of these that is wrong requests it."""
    sound = [at for at in range(len(request.inputs)) if at not in request.faults]
    if sound:
        keys, vectors = [request.keys[at] for at in sound], response.vectors[sound]
        cache.put_many(keys, vectors, space_id)
    for space, copies in response.copies.items() if sound else ():
        with contextlib.suppress(ProviderError):  # of a wrong shape
            faults = faulty_rows(copies, request.inputs, space)
            right = [at for at in sound if at not in faults]
            texts = [request.inputs[at] for at in right]
            keys = [cache.key(space.id, request.input_type, text) for text in texts]
            cache.put_many(keys, copies[right], space.id)
