"""plan: what a run would do and cost. Nothing is embedded, and the warehouse stays as it is.

Documents are read and chunks are cut as in a run, in a copy of the pipeline's folder that is
removed afterwards; what follows is counted from them.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import pyarrow as pa

from embedding_pipelines.embedding.batch_jobs import BatchJobs
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.lookup import Lookup, look_up
from embedding_pipelines.embedding.packing import pack
from embedding_pipelines.quality.evaluate import cost
from embedding_pipelines.run import Run
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines.steps.embeddings import Embeddings, check_dimensions, rejected_chunks
from embedding_pipelines.steps.vector_store import open_table
from embedding_pipelines.stores.base import Table

BEFORE_EMBEDDING = ("documents", "chunks")  # steps that cost nothing but time


@dataclass
class Plan:
    """Rows are chunks, as they stand in the table; texts are counted once, however often they
    occur."""

    pipeline: str
    model: str
    rows_new: int = 0
    rows_changed: int = 0
    rows_deleted: int = 0
    rows_unchanged: int = 0
    cache_hits: int = 0  # texts in the embedding cache: they cost nothing
    texts_waiting: int = 0  # in batch jobs that are running
    texts_to_embed: int = 0
    tokens: int = 0  # by the model's tokenizer, or an estimate from above
    requests: int = 0
    tokens_to_check: int = 0  # more at most, for the checks
    usd: float | None = None  # of both; None: the price is unknown
    within_budget: bool = True  # of one run; else it takes several
    seconds: float | None = None  # at the pace of the last run; None: there was none


def plan(run: Run) -> Plan:
    """What a run of the pipeline would do now.

    Raises as the steps `documents` and `chunks` do, and BusyError if another process is at work on
    the pipeline.
    """
    with contextlib.ExitStack() as stack:
        locks: tuple[Literal["run", "step"], ...] = ("run", "step")
        for lock in locks:
            if run.folder.has_lock(lock):  # else nobody has ever run the pipeline
                stack.enter_context(run.folder.lock(lock, timeout_seconds=0))
        copy = stack.enter_context(_copy(run))
        for step in steps_of(run.spec):
            if step.name in BEFORE_EMBEDDING:
                for _ in step.work(copy, run.spec.partition_names):
                    pass
        return _count(copy)


@contextlib.contextmanager
def _copy(run: Run) -> Iterator[Run]:
    """The same run in a copy of its folder: shards are linked, so that nothing is read twice."""
    with tempfile.TemporaryDirectory(prefix="embedding-pipelines-plan-") as folder:
        warehouse = run.warehouse.copy_for_reading(Path(folder), run.spec.name)
        with Run(run.spec, warehouse, run.progress, run.model) as copy:
            yield copy


def _count(run: Run) -> Plan:
    """What stands between the copy's chunks and a release."""
    spec, options = run.spec, run.spec.model
    is_trained = all(
        step.current(run) is not None for step in steps_of(spec) if step.name == "train"
    )
    if is_trained:
        check_dimensions(run)
    result = Plan(spec.name, str(run.model.space) if is_trained else options.kind)
    _count_rows(run, result, is_trained)
    direct = _count_texts(run, result, is_trained)
    if is_trained and (result.rows_new or result.rows_changed or result.rows_deleted):
        result.tokens_to_check = cost(run)
    later = result.tokens - direct
    budget = BudgetTracker.of(spec.budget, options, batch_jobs=later > 0)
    result.within_budget = budget.holds(later or direct)
    if options.price is not None and options.batch_price is not None:
        direct += result.tokens_to_check
        result.usd = round((later * options.batch_price + direct * options.price) / 1e6, 6)
    result.seconds = _seconds(run, result)
    return result


def _count_rows(run: Run, result: Plan, is_trained: bool) -> None:
    table = _table(run) if is_trained else None
    for partition in run.spec.partition_names:
        chunks = run.folder.chunks.read_columns(partition, ["chunk_id", "chunk_digest"])
        assert chunks is not None
        ids, digests = chunks["chunk_id"].to_pylist(), chunks["chunk_digest"].to_pylist()
        target = dict(zip(ids, digests, strict=True))
        if is_trained and Embeddings().current(run, partition) is not None:
            for name in rejected_chunks(run, partition):  # is not sent again
                del target[name]
        stored = dict(_stored(table, partition))
        both = target.keys() & stored.keys()
        changed = sum(target[name] != stored[name] for name in both)
        result.rows_new += len(target) - len(both)
        result.rows_changed += changed
        result.rows_unchanged += len(both) - changed
        result.rows_deleted += len(stored) - len(both)


def _table(run: Run) -> Table | None:
    """The table that a run would bring up to date; None if it would be a new one."""
    if codec_path(run) is None:
        return None
    table, _ = open_table(run, load_codec(run))
    return table if table.version is not None else None


def _stored(table: Table | None, partition: str) -> Iterator[tuple[str, bytes]]:
    if table is not None:
        for batch in table.scan(["chunk_id", "chunk_digest"], partition):
            yield from zip(
                batch["chunk_id"].to_pylist(), batch["chunk_digest"].to_pylist(), strict=True
            )


def _count_texts(run: Run, result: Plan, is_trained: bool) -> int:
    """Count as `embed` works: each text once, looked up, packed into requests. Returns the tokens
    of direct requests: all of them, or with batch jobs those of texts that a job has rejected.

    A model that is still to be trained finds nothing in the cache.
    """
    model, shards, names, direct = run.model, run.folder.chunks, run.spec.partition_names, 0
    waiting, rejected = _in_batch_jobs(run)
    step = Embeddings()
    stale = [name for name in names if not is_trained or step.current(run, name) is None]
    batches = (batch for name in stale for batch in shards.read(name, ["text", "tokens"]))
    looked_up = (
        look_up(batches, model.space, "document", run.cache) if is_trained else _misses(batches)
    )
    for texts in looked_up:
        unsent = {key: text for key, text in texts.misses.items() if key not in waiting}
        at_once = (
            tokens
            for key, (_, tokens) in unsent.items()
            if not run.spec.model.uses_batch_jobs or key in rejected
        )
        direct += sum(at_once)
        misses = list(unsent.values())
        result.texts_waiting += len(texts.misses) - len(misses)
        result.cache_hits += texts.hits
        result.texts_to_embed += len(misses)
        result.tokens += sum(tokens for _, tokens in misses)
        sizes = [len(text.encode()) for text, _ in misses]
        tokens_of = [tokens for _, tokens in misses]
        result.requests += sum(1 for _ in pack(tokens_of, model.limits, sizes))
    return direct


def _misses(batches: Iterable[pa.RecordBatch]) -> Iterator[Lookup]:
    """Every text once, as for a model that is still to be trained: its space is new."""
    seen: set[str] = set()
    for batch in batches:
        texts = dict(zip(batch["text"].to_pylist(), batch["tokens"].to_pylist(), strict=True))
        new = {text: tokens for text, tokens in texts.items() if text not in seen}
        seen.update(new)
        yield Lookup(0, {text.encode(): (text, tokens) for text, tokens in new.items()})


def _in_batch_jobs(run: Run) -> tuple[set[bytes], set[bytes]]:
    """Keys of the texts in running batch jobs, and of those that a job has rejected."""
    if not run.spec.model.uses_batch_jobs:
        return set(), set()
    jobs = BatchJobs(run.warehouse.batch_jobs, run.model, run.cache, "document")
    return jobs.pending_keys(), jobs.rejected


def _seconds(run: Run, result: Plan) -> float | None:
    """At the pace of the last run, but no faster than the account's stated requests."""
    manifests = [run.folder.embeddings.manifest(name) for name in run.spec.partition_names]
    rates: list[float] = [
        rate
        for entry in manifests
        if entry is not None and (rate := entry.statistics.get("tokens_per_second"))
    ]
    stated: float | None = getattr(run.spec.model, "requests_per_minute", None)
    slowest = 60 * result.requests / stated if stated else 0.0
    if not result.tokens:
        return 0.0
    if not rates:
        return round(slowest, 1) or None
    return round(max(slowest, result.tokens / median(rates)), 1)
