"""embeddings: each chunk gets its vector, from the embedding cache or from the model: that of its
image if it has one, else of its text.

A text that the provider rejects has no vector (null), and stands with the provider's words in the
table of rejected texts. It is sent again when its partition has other chunks, or by `retry`, which
sends nothing else.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.compression.base import check_chain
from embedding_pipelines.embedding.batch import EmbeddedBatch
from embedding_pipelines.embedding.batch_jobs import BatchJobs, BatchPending
from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.cache import content_keys
from embedding_pipelines.embedding.cluster import (
    Hub,
    SharedBudget,
    SharedCache,
    SharedLimiter,
    check_probes,
    probe_vectors,
)
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.embedding.images import ImageLoader
from embedding_pipelines.embedding.limiter import Limiter
from embedding_pipelines.embedding.lookup import look_up
from embedding_pipelines.engines.base import Advance, Shared, Worker
from embedding_pipelines.errors import ConfigError, EngineError, QuarantineError, StoreError
from embedding_pipelines.files import delete, read_json, write_json
from embedding_pipelines.progress import StepReport, compute_rates
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.providers.common.prices import possible_dimensions
from embedding_pipelines.quality.queries import query_texts
from embedding_pipelines.remote import writing
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import REJECTED_TEXTS, VECTOR, embeddings_schema
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Option, Options, Reports, Step
from embedding_pipelines.steps.elsewhere import RunKit, RunWork, map_shards
from embedding_pipelines.storage.warehouse import (
    Manifest,
    Shards,
    ShardWriters,
    replace_rows,
)
from embedding_pipelines.vectors import Vectors, to_column, to_matrix

RETRY = "retry_rejected"  # the step's option


class EmbeddingsStep(Step):
    name = "embeddings"
    inputs = ("chunks", "train")
    partitioned = True
    description = "One vector per chunk. Texts in the embedding cache never reach the model."
    technologies = ("{spec.model.kind}", "parquet")
    sentence = (
        "{vectors}: {embedded:,} embedded, {reused:,} from the cache, {unchanged:,} unchanged"
    )
    extras: ClassVar[Mapping[str, str]] = {
        "rejected": "{:,} rejected (see status)",
        "usd": "{:.4f} USD",
        "tokens_per_edited_token": "{} tokens embedded for each one edited",
        "tokens_per_second": "{:,} tokens/s",
        "images_per_second": "{:,} images/s",
    }
    row_statistic = "vectors"
    lineage: ClassVar[Mapping[str, str]] = {VECTOR: "text"}
    options = (Option(RETRY, False, "Send the rejected texts again, and no others."),)

    def shards(self, run: Run) -> Shards:
        return run.folder.embeddings

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.model)

    def columns(self, spec: PipelineSpec) -> pa.Schema:
        return embeddings_schema(1, "")

    def written_columns(self, run: Run) -> pa.Schema:
        return embeddings_schema(run.model.space.dimensions, "")

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        assert partition is not None
        check_dimensions(run)
        inputs = run.folder.chunks.required(partition).digest
        if partition in _to_embed_anew(run):
            return None
        manifest = run.folder.embeddings.current(partition, inputs, run.model.space.id)
        if manifest is None:
            return None
        statistics = _statistics(manifest, Usage(rejected=manifest.rejected), None, False)
        return StepReport(self.name, False, statistics, partition)

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """While one partition is written, the next ones are being embedded, and read.

        Raises ProviderError if the model fails, BudgetError if the pipeline's budget is exhausted,
        BatchPending while a batch job is running, Paused where the run is told to stop by itself;
        what was embedded until then is in the cache, and its cost is on record.
        """
        if (options or {}).get(RETRY):
            yield from _retry(self, run, partitions)
            return
        budget = BudgetTracker.of(run.spec.budget, run.spec.model)
        chunks, stale, done = run.folder.chunks, list[str](), 0
        total = sum(map(_amount, chunks.manifests(partitions)))
        unit = _unit(run)

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            run.progress.update(self.name, done, total, unit)

        for partition in partitions:
            report = self.current(run, partition)
            if report is None:
                stale.append(partition)
            else:
                done += _amount(chunks.required(partition))
                yield report
        if stale:
            advance(0)
        is_whole, collected = set(partitions) == set(run.spec.partition_names), 0
        awaits_jobs = is_whole and run.folder.batch_jobs.exists()
        if run.spec.model.uses_batch_jobs and (stale or awaits_jobs):
            collected = _through_batch_jobs(run, stale, is_whole)
        if not stale:
            return
        reports = map_shards(run, _Embedding(run, budget, advance), stale)
        try:
            with closing(reports):  # type: ignore[type-var]
                for report in reports:
                    _settle(run, report.partition)
                    yield _with_collected(report, collected, run.spec.model)
                    collected = 0  # reported once
        except QuarantineError as error:
            aside = quarantined(run) | dict(error.shards)
            write_json(run.folder.quarantine, {"partitions": aside})
            raise


def _columns(run: Run) -> list[str]:
    return ["chunk_id", "tokens", *run.spec.source.content_columns]


def _amount(chunks: Manifest) -> int:
    """What there is to embed of a partition, as `embed` counts it."""
    return int(chunks.statistics["tokens"]) + int(chunks.statistics.get("images", 0))


def _unit(run: Run) -> str:
    return "images" if run.spec.source.has_images else "tokens"


def _through_batch_jobs(run: Run, partitions: list[str], is_whole: bool) -> int:
    """Collect finished batch jobs and submit what is not in the cache; the tokens billed for what
    was collected.

    `partitions` are the stale ones; `is_whole`: they are all that the pipeline needs. A text that
    a batch job rejected is left for a direct request, which says why. Raises BatchPending while a
    text of these partitions is in a batch job.
    """
    model, budget = run.model, BudgetTracker.of(run.spec.budget, run.spec.model, batch_jobs=True)
    with run.warehouse.batch_jobs_lock():
        jobs = BatchJobs(run.warehouse.batch_jobs, model, run.cache, "document")
        _collect(run, jobs)
        pending, needed = jobs.pending_keys(), set[bytes]()
        awaited = _pending_jobs(run)

        def misses() -> Iterator[tuple[bytes, str, int]]:
            shards, columns = run.folder.chunks, ["tokens", *run.spec.source.content_columns]
            chunks = (batch for name in partitions for batch in shards.read(name, columns))
            for texts in look_up(chunks, model.space, "document", run.cache):
                needed.update(texts.misses)
                for key, (text, tokens) in texts.misses.items():
                    if key not in pending and key not in jobs.rejected:
                        yield key, text, tokens

        try:
            jobs.submit(misses(), budget, lambda tag: _await(run, _pending_jobs(run) | {tag}))
        finally:  # what was handed over has to be collected, however this ended
            running = {job.tag: set(map(bytes.fromhex, job.keys)) for job in jobs.jobs()}
            mine = {tag for tag, keys in running.items() if not needed.isdisjoint(keys)}
            # Partitions that are not in this run may wait for other jobs.
            _await(run, mine | (awaited & running.keys() if is_whole else awaited))
        if mine:
            raise BatchPending(str(jobs.running()))
    return jobs.billed_tokens


def _collect(run: Run, jobs: BatchJobs) -> None:
    """Put finished vectors into the cache, and their cost on record, even if some jobs failed."""
    try:
        jobs.collect()
    finally:
        run.add_usage(Usage(billed_tokens=jobs.billed_tokens), run.spec.model.batch_price)
    if jobs.billed_tokens:
        run.progress.note(f"Collected from batch jobs: {jobs.billed_tokens:,} tokens.")


def _pending_jobs(run: Run) -> set[str]:
    """Tags of the batch jobs that the pipeline waits for: its sensor asks for a run when one has
    ended."""
    return set((read_json(run.folder.batch_jobs) or {"batches": []})["batches"])


def _await(run: Run, tags: set[str]) -> None:
    """Replace what `_pending_jobs` returns, while the warehouse's `batch_jobs_lock` is held."""
    if tags == _pending_jobs(run):  # the file's time tells the sensor when to ask again
        return
    if tags:
        write_json(run.folder.batch_jobs, {"batches": sorted(tags)})
    else:
        delete(run.folder.batch_jobs)


def rejected_texts(run: Run) -> int:
    """How many texts have no vector since the provider rejected them.

    Raises ConfigError if a partition has chunks that were never embedded with today's model.
    """
    step, chunks = EmbeddingsStep(), run.folder.chunks
    reports = [
        step.current(run, name) if chunks.manifest(name) else None
        for name in run.spec.partition_names
    ]
    unfinished = sum(report is None for report in reports)
    if unfinished:
        raise ConfigError(
            f"Pipeline {run.spec.name!r}: {unfinished} of {len(reports)} partitions have texts that "
            f"were never embedded. Run `embedding-pipelines run {run.spec.name}` first."
        )
    return sum(report.statistics["rejected"] for report in reports if report)


def _retry(step: EmbeddingsStep, run: Run, partitions: Sequence[str]) -> Reports:
    """Send the rejected texts of some partitions again; all other vectors stay as they are in the
    shards, so that nothing else is paid for, whatever the cache holds. Raises as `rejected_texts`.
    """
    rejected_texts(run)
    budget = BudgetTracker.of(run.spec.budget, run.spec.model)
    for partition in partitions:
        report = step.current(run, partition)
        assert report is not None
        if not report.statistics["rejected"]:
            yield report
            continue
        with (
            run.image_loader() as loader,
            ShardWriters(run.folder.embeddings) as writers,
            closing(_filled_up(run, partition, budget, loader)) as embedded,  # type: ignore[type-var]
        ):
            writing = _Writing(run, partition, writers, _Books(run))
            writing.fill(embedded)
            _settle(run, partition)
            yield writing.report()


def _filled_up(
    run: Run, partition: str, budget: BudgetTracker, loader: ImageLoader | None
) -> Iterator[EmbeddedBatch]:
    """The chunks of a partition with the vectors that they have, and new ones where they have
    none."""
    chunks = run.folder.chunks.read(partition, _columns(run))
    stored, unfinished = run.folder.embeddings.read(partition, [VECTOR]), Usage()
    try:
        for rows, old in zip(chunks, stored, strict=True):
            missing = np.flatnonzero(old[VECTOR].is_null().to_numpy(zero_copy_only=False))
            vectors = np.full((len(rows), run.model.space.dimensions), np.nan, np.float32)
            vectors[np.delete(np.arange(len(rows)), missing)] = to_matrix(old[VECTOR].drop_null())
            rejected, usage = dict[int, str](), Usage()
            if len(missing):
                lacking = iter([rows.take(pa.array(missing))])
                advance = partial(
                    run.progress.update, EmbeddingsStep.name, total=None, unit=_unit(run)
                )
                for part in embed(
                    *(lacking, run.model, run.cache, "document", advance, budget, unfinished),
                    loader=loader,
                ):
                    vectors[missing] = part.vectors
                    rejected = {int(missing[at]): reason for at, reason in part.rejected.items()}
                    usage = part.usage
            yield EmbeddedBatch(vectors, rejected, usage, rows)
    finally:
        run.add_usage(unfinished, run.spec.model.price)


def re_embed(run: Run) -> None:
    """Let the next run make all vectors of the pipeline anew: its texts and those of its checks
    leave the embedding cache, and all partitions are to be embedded.

    What is embedded then is kept as ever, so that a run that was stopped, by the budget say, is
    gone on with. Raises BusyError if another process is at work on the pipeline.
    """
    folder, space, names = run.folder, run.model.space, run.spec.partition_names
    with (
        folder.lock("run", timeout_seconds=0),
        writing(run.warehouse, run.spec.name, run.progress),
    ):
        if _to_embed_anew(run):  # it has begun
            return
        keys = [run.cache.key(space.id, kind, text) for text, kind in query_texts(run)]
        for partition in names:
            for batch in folder.chunks.read(partition, run.spec.source.content_columns):
                keys += content_keys(space.id, "document", batch)
        run.cache.remove_many(keys)
        write_json(folder.embed_anew, {"partitions": names})


def _to_embed_anew(run: Run) -> list[str]:
    """The partitions that `re_embed` named and that no run has embedded since."""
    return list((read_json(run.folder.embed_anew) or {"partitions": []})["partitions"])


def quarantined(run: Run) -> dict[str, str]:
    """The partitions that ended every worker which had them, and how; a run tries them again."""
    with contextlib.suppress(StoreError):  # a damaged record, which a run removes
        return dict((read_json(run.folder.quarantine) or {"partitions": {}})["partitions"])
    return {}


def quarantine_note(run: Run) -> str | None:
    """What is put aside, and how it comes back; None if nothing is."""
    if not (aside := quarantined(run)):
        return None
    reasons = "; ".join(f"partition {partition}: {reason}" for partition, reason in aside.items())
    return (
        f"{reasons}. It ended every worker that had it, and has no new vectors. See to what is in it, "
        f"or give workers more memory; `embedding-pipelines run {run.spec.name}` tries it again."
    )


def _settle(run: Run, partition: str) -> None:
    """A partition is embedded: it need not be any more, and is in no quarantine."""
    for path in (run.folder.embed_anew, run.folder.quarantine):
        entries = (read_json(path) or {"partitions": []})["partitions"]
        if partition not in entries:
            continue
        if isinstance(entries, dict):
            del entries[partition]
        else:
            entries.remove(partition)
        if entries:
            write_json(path, {"partitions": entries})
        else:
            delete(path)


def _with_collected(report: StepReport, collected: int, options: ProviderOptions) -> StepReport:
    """The report with the tokens that were billed before, in batch jobs, for texts that are in the
    cache now."""
    if not collected:
        return report
    statistics = dict(report.statistics)
    statistics["billed_tokens"] += collected
    if "usd" in statistics:
        usd = statistics["usd"] + collected * (options.batch_price or 0) / 1e6
        statistics["usd"] = round(usd, 6)
    return replace(report, statistics=statistics)


class _Books:
    """What is kept of all partitions beside their shards. One process at a time may write it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def add_usage(self, usage: Usage) -> None:
        self._run.add_usage(usage, self._run.spec.model.price)

    def keep_rejected(self, partition: str, rejected: Sequence[pa.RecordBatch]) -> None:
        others = pc.field("partition") != partition
        replace_rows(self._run.folder.rejected_texts, REJECTED_TEXTS, others, rejected)


class _SharedBooks(_Books):
    """The hub's, in a worker."""

    def __init__(self, hub: Shared) -> None:
        self._hub = hub

    def add_usage(self, usage: Usage) -> None:
        self._hub.call("add_usage", usage)

    def keep_rejected(self, partition: str, rejected: Sequence[pa.RecordBatch]) -> None:
        self._hub.call("keep_rejected", partition, rejected)


class _Hub(Hub):
    """What the workers of a cluster share, with the pipeline's books."""

    def __init__(self, run: Run) -> None:
        spec, warehouse = run.spec, run.warehouse
        super().__init__(warehouse.cache, spec.budget, spec.model, warehouse.is_copy)
        self._books = _Books(run)

    def add_usage(self, worker: str, usage: Usage) -> None:
        self.recorded.add(usage)
        self._books.add_usage(usage)

    def keep_rejected(self, worker: str, partition: str, rejected: list[pa.RecordBatch]) -> None:
        self._books.keep_rejected(partition, rejected)

    def close(self) -> str:
        self._books.add_usage(self.unrecorded())
        return super().close()


class _Embedding(RunWork):
    """The step's work, as an engine is given it."""

    def __init__(self, run: Run, budget: BudgetTracker, advance: Advance) -> None:
        super().__init__(run, advance)
        self._budget = budget

    def here(self) -> "_Embedder":
        return _Embedder(self._run, _Books(self._run), self._budget)

    def kit(self) -> "_Kit":
        model = self._run.model
        vectors = probe_vectors(model, "document", self._budget, None)
        _Books(self._run).add_usage(
            Usage(embedded_tokens=self._budget.counted, billed_tokens=self._budget.billed)
        )
        return _Kit(*self.identity(), model.space.id, model.precision, vectors)


@dataclass(frozen=True)
class _Kit(RunKit):
    """With the model that all workers have to compute as."""

    space: str
    precision: str  # that everybody computes in; empty: nobody can say
    vectors: Vectors | None  # float32[n, d] of known texts

    def open_shared(self) -> _Hub:
        return _Hub(self.open_run())

    def open(self, shared: Shared, cores: int | None) -> "_Embedder":
        """Raises EngineError for a machine that has another version, folder, model or precision."""
        run = self.open_run()
        model = run.model
        model.fixed_precision, model.cores = self.precision or None, cores
        if model.space.id != self.space:
            raise EngineError(f"its model is another one: {model.space}")
        limiter = SharedLimiter(shared, model.rate_limit) if model.rate_limit else None
        budget = SharedBudget(shared, self.spec.budget, self.spec.model.price)
        vectors = probe_vectors(model, "document", budget, limiter)
        if model.precision != self.precision:
            raise EngineError(f"it computes in {model.precision}, and the run in {self.precision}")
        check_probes(vectors, self.vectors, self.precision)
        run.cache = SharedCache(shared)
        return _Embedder(run, _SharedBooks(shared), budget, limiter)


class _Embedder(Worker):
    """Embeds partitions. While one is written, the next ones are being embedded, and read."""

    def __init__(
        self, run: Run, books: _Books, budget: BudgetTracker, limiter: Limiter | None = None
    ) -> None:
        self._run, self._books, self._budget, self._limiter = run, books, budget, limiter

    def work(self, partitions: Sequence[str], advance: Advance) -> Iterator[StepReport]:
        run, unfinished = self._run, Usage()
        chunks, columns = run.folder.chunks, _columns(run)
        batches = (batch for name in partitions for batch in chunks.read(name, columns))
        loading = contextlib.ExitStack()
        loader = loading.enter_context(run.image_loader()) if partitions else None
        stream = embed(
            *(batches, run.model, run.cache, "document", advance, self._budget, unfinished),
            loader=loader,
            limiter=self._limiter,
        )
        try:
            with (
                loading,
                ShardWriters(run.folder.embeddings) as writers,
                closing(stream) as embedded,  # type: ignore[type-var]
            ):
                last: _Writing | None = None
                try:
                    for partition in partitions:
                        writing = _Writing(run, partition, writers, self._books)
                        writing.fill(embedded)
                        if last is not None:
                            yield last.report()
                        last = writing
                except Exception:
                    if last is not None:  # all of its rows have come
                        yield last.report()
                    raise
                if last is not None:
                    yield last.report()
        finally:
            self._books.add_usage(unfinished)
            if note := run.cache.damage_note:
                run.progress.note(note)


class _Writing:
    """A partition that is being written."""

    def __init__(self, run: Run, partition: str, writers: ShardWriters, books: _Books) -> None:
        self._run, self._partition, self._books = run, partition, books
        self._source = run.folder.chunks.required(partition)
        self._usage, self._statistics = Usage(), dict[str, Any]()
        self._before = run.folder.embeddings.manifest(partition)
        space = run.model.space
        has_images = run.spec.source.has_images
        self._schema = embeddings_schema(space.dimensions, space.id, has_images)
        self._draft = writers.begin(
            partition, self._schema, self._source.digest, space.id, self._statistics
        )

    def fill(self, embedded: Iterator[EmbeddedBatch]) -> None:
        """Take all rows of the partition, and what is on record of them beside the shard."""
        usage, partition = self._usage, self._partition
        left, rejected = self._source.rows, list[pa.RecordBatch]()
        while left:
            part = next(embedded)
            left -= part.rows.num_rows
            usage.add(part.usage)
            # At once: it is paid for, whatever comes.
            self._books.add_usage(part.usage)
            rejected.append(_rejected_rows(partition, part))
            nulls = np.isin(np.arange(part.rows.num_rows), list(part.rejected))
            columns = [part.rows["chunk_id"], to_column(part.vectors, nulls=nulls)]
            self._draft.add(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        usage.rejected = sum(batch.num_rows for batch in rejected)  # rows, not texts
        self._statistics.update(rejected=usage.rejected, **compute_rates(asdict(usage)))
        if usage.rejected or self._before is None or self._before.rejected:
            self._books.keep_rejected(partition, rejected)
        self._draft.add(None)

    def report(self) -> StepReport:
        """Once the shard is written."""
        run, model, usage = self._run, self._run.model, self._usage
        manifest = self._draft.manifest.result()
        price = run.spec.model.price
        usd = usage.billed_tokens * (price or 0) / 1e6
        statistics = _statistics(
            manifest, usage, usd if price else None, True, self._edited_tokens()
        )
        report = statistics | {"space": str(model.space)}
        if usage.embedded and model.computed_by:
            report["computed_by"] = model.computed_by
        return StepReport(EmbeddingsStep.name, True, report, self._partition)

    def _edited_tokens(self) -> int:
        """Of its texts since it was last embedded; 0 if all would be embedded without an edit, too."""
        before, source = self._before, self._source
        if before is None or before.configuration != self._run.model.space.id:
            return 0
        if before.inputs == source.digest:
            return 0
        return int(source.statistics.get("edited_tokens", 0))


def _rejected_rows(partition: str, part: EmbeddedBatch) -> pa.RecordBatch:
    """The texts of a batch that the provider rejected, with its reasons."""
    rows = part.rows.take(pa.array(list(part.rejected), pa.int32()))
    reasons = pa.array(part.rejected.values(), pa.string())
    columns = [pa.repeat(partition, len(reasons)), rows["chunk_id"], rows["text"], reasons]
    return pa.RecordBatch.from_arrays(columns, schema=REJECTED_TEXTS)


def check_dimensions(run: Run) -> None:
    """ConfigError if the file says `output_dim` and the vectors have another number of dimensions,
    or if the store cannot keep or search what the compression makes of them."""
    spec, space = run.spec, run.model.space
    chain, expected = spec.compression, spec.output_dim
    actual = check_chain(chain, space.dimensions)
    spec.store.check(chain[-1].codec.dtype if chain else "float32", actual)
    if expected is None or expected == actual:
        return
    can_shorten = expected < space.dimensions and not chain
    pca = f", or add `compression: [{{kind: pca, dimensions: {expected}}}]`" if can_shorten else ""
    choices = possible_dimensions(spec.model.kind, getattr(spec.model, "model", ""))
    others = f" The model itself can give {choices}: say which with its option `dimensions`."
    raise ConfigError(
        f"Pipeline {spec.name!r}: output_dim is {expected}, but {space.title} gives {actual}. "
        f"Set output_dim to {actual}{pca}.{others if ' ' in choices else ''}"
    )


def _statistics(
    manifest: Manifest, usage: Usage, usd: float | None, changed: bool, edited: int = 0
) -> dict[str, Any]:
    """Every vector was embedded, reused (its text was in the cache, or stood twice), or is in a
    partition that has not changed. `edited`: tokens that are new or gone since it was embedded."""
    vectors, counts = manifest.rows - manifest.rejected, asdict(usage) | {"edited_tokens": edited}
    return {
        "vectors": vectors,
        "reused": max(vectors - usage.embedded, 0) if changed else 0,
        "unchanged": 0 if changed else vectors,
        "size_bytes": manifest.size_bytes,
        **counts,
        **({} if usd is None else {"usd": round(usd, 6)}),
        **compute_rates(counts),
    }
