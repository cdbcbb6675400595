"""embeddings: each chunk gets its vector, from the cache or from the provider.

A text that the provider refuses has no vector (null), and stands with the provider's words in the
table of rejected texts. It is asked for again when its partition has other chunks, or when the run
is told to.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_pipelines.compression.base import check_chain
from embedding_pipelines.embedding.batch import EmbedCounts, Embedded
from embedding_pipelines.embedding.batch_jobs import Batches, NotYet
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.embedding.lookup import look_up
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import delete, read_json, write_json
from embedding_pipelines.progress import StepReport, rates
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.providers.common.prices import possible_dimensions
from embedding_pipelines.schemas import REJECTED_TEXTS, VECTOR, embeddings_schema
from embedding_pipelines.space import Space
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.storage.warehouse import Manifest, write_table
from embedding_pipelines.vectors import to_column


def write_embeddings(
    context: StepContext,
    partitions: Sequence[str],
    provider: Provider,
    cache: EmbeddingCache,
    advance: Callable[[int], None],
) -> Iterator[StepReport]:
    """Bring partitions of embeddings up to date with their chunks, and report each once it is
    committed.

    `advance` is told tokens finished. While one partition is written the next ones are being
    embedded. Raises ProviderError when the model fails, BudgetError when the pipeline's budget is
    spent, NotYet while texts are with a service that answers later; what was embedded until then is
    in the cache, and what it cost on record.
    """
    budget = BudgetTracker.of(context.spec.budget, provider)
    space, stale, unfinished = provider.space, [], EmbedCounts()
    for partition in partitions:
        report = current_embeddings(context, partition, space)
        if report is None:
            stale.append(partition)
        else:
            advance(_source(context, partition).statistics["tokens"])
            yield report
    is_whole, collected = set(partitions) == set(context.spec.partition_names), 0
    if provider.answers_later and (stale or (is_whole and context.folder.waiting.exists())):
        collected = _through_batches(context, stale, is_whole, provider, cache)
    chunks = context.folder.chunks
    batches = (
        batch
        for partition in stale
        for batch in chunks.read(partition, ["chunk_id", "text", "tokens"])
    )
    made = embed(batches, provider, cache, "document", advance, budget, unfinished)
    try:
        with closing(made) as embedded:  # type: ignore[type-var]
            for partition in stale:
                yield _write_partition(context, partition, embedded, provider, collected)
                collected = 0  # is told once
    finally:
        add_to_spent(context, unfinished, provider.price)


def _through_batches(
    context: StepContext,
    partitions: Sequence[str],
    is_whole: bool,
    provider: Provider,
    cache: EmbeddingCache,
) -> int:
    """Collect what a service has done and hand it what nobody knows; the tokens billed for what was
    collected.

    `partitions` are what has to be done; `is_whole`: nothing else has to be. Raises NotYet while a
    text of these partitions is with the service.

    What the service refused within a batch is left to be asked for directly, which says why.
    """
    budget = BudgetTracker.of(context.spec.budget, provider, in_batches=True)
    with context.warehouse.batches_lock():
        batches = Batches(
            context.warehouse.batches, provider, provider.batches(), cache, "document"
        )
        _collect(context, batches, provider)
        pending, needed = batches.pending(), set[bytes]()
        noted = _noted(context)

        def new() -> Iterator[tuple[bytes, str, int]]:
            chunks = (
                batch
                for name in partitions
                for batch in context.folder.chunks.read(name, ["text", "tokens"])
            )
            for found in look_up(chunks, provider.space, "document", cache):
                needed.update(found.unknown)
                for key, (text, tokens) in found.unknown.items():
                    if key not in pending and key not in batches.refused:
                        yield key, text, tokens

        try:
            batches.submit(new(), budget, lambda tag: _note(context, _noted(context) | {tag}))
        finally:  # what was handed over has to be collected, however this ended
            out = {batch.tag: set(map(bytes.fromhex, batch.keys)) for batch in batches.on_record()}
            awaited = {tag for tag, keys in out.items() if not needed.isdisjoint(keys)}
            # Other partitions may wait for what was noted for them, though it be collected now.
            _note(context, awaited | (noted & out.keys() if is_whole else noted))
        if awaited:
            raise NotYet(str(batches.waiting()))
    return batches.tokens


def _collect(context: StepContext, batches: Batches, provider: Provider) -> None:
    """File what has come back, and what it cost, even if some of it is a failure."""
    try:
        batches.collect()
    finally:
        add_to_spent(context, EmbedCounts(billed_tokens=batches.tokens), provider.batch_price)
    if batches.tokens:
        context.progress.note(f"Collected from batches: {batches.tokens:,} tokens.")


def _noted(context: StepContext) -> set[str]:
    """Tags of the batches that the pipeline waits for: when one has ended, its sensor asks for a
    run."""
    return set((read_json(context.folder.waiting) or {"batches": []})["batches"])


def _note(context: StepContext, tags: set[str]) -> None:
    """Replace what `_noted` tells, while the warehouse's `batches_lock` is held."""
    if tags == _noted(context):  # when it was noted tells the sensor when to ask again
        return
    if tags:
        write_json(context.folder.waiting, {"batches": sorted(tags)})
    else:
        delete(context.folder.waiting)


def current_embeddings(context: StepContext, partition: str, space: Space) -> StepReport | None:
    """The report of a partition that is up to date, None if there is something to do."""
    made = context.folder.embeddings.current(
        partition, _source(context, partition).digest, space.id
    )
    if made is None:
        return None
    counts = EmbedCounts(rejected=made.statistics.get("rejected", 0))
    return StepReport("embeddings", False, _statistics(made, counts, None), partition)


def ask_again(context: StepContext) -> int:
    """Let the next run ask for the texts that the provider refused; how many there are.

    Raises BusyError if another process is at work on the pipeline.
    """
    count = 0
    with context.folder.lock("run", timeout_seconds=0):
        for partition in context.spec.partition_names:
            made = context.folder.embeddings.manifest(partition)
            if made is not None and made.statistics.get("rejected"):
                count += made.statistics["rejected"]
                context.folder.embeddings.forget(partition)
    return count


def without_vector(context: StepContext, partition: str) -> set[str]:
    """The chunk ids of a partition whose texts the provider refused."""
    shards = context.folder.embeddings
    made = shards.manifest(partition)
    if made is None or not made.statistics.get("rejected"):
        return set()
    found = shards.read(partition, ["chunk_id", VECTOR])
    return {
        name
        for batch in found
        for name in batch.filter(pc.is_null(batch[VECTOR]))["chunk_id"].to_pylist()
    }


def _source(context: StepContext, partition: str) -> Manifest:
    source = context.folder.chunks.manifest(partition)
    if source is None:
        raise StoreError(
            f"Partition {partition!r} of {context.spec.name!r} has no chunks: materialize them first."
        )
    return source


def _write_partition(
    context: StepContext,
    partition: str,
    embedded: Iterator[Embedded],
    provider: Provider,
    collected: int,
) -> StepReport:
    """`collected` tokens were billed before, in batches, for texts that are in the cache now."""
    source, space, counts = _source(context, partition), provider.space, EmbedCounts()
    schema = embeddings_schema(space.dimensions, space.id)

    def rows() -> Iterator[pa.RecordBatch]:
        left, rejected = source.rows, []
        while left:
            window = next(embedded)
            left -= window.batch.num_rows
            counts.add(window.counts)
            add_to_spent(
                context, window.counts, provider.price
            )  # at once: it is paid for, whatever comes
            rejected += [_rejection(partition, window, row) for row in window.rejected]
            yield pa.RecordBatch.from_arrays(
                [window.batch["chunk_id"], _vectors(window)], schema=schema
            )
        counts.rejected = len(rejected)  # rows, not texts
        statistics.update(rejected=len(rejected), **rates(asdict(counts)))
        _write_rejected(context, partition, rejected)

    statistics: dict[str, Any] = {}
    made = context.folder.embeddings.write(
        partition, schema, rows(), source.digest, space.id, statistics
    )
    usd = (
        counts.billed_tokens * (provider.price or 0) + collected * (provider.batch_price or 0)
    ) / 1e6
    counts.billed_tokens += collected
    reported = _statistics(made, counts, usd if provider.price else None) | {"space": str(space)}
    if counts.embedded and provider.computed_by:
        reported["computed_by"] = provider.computed_by
    return StepReport("embeddings", True, reported, partition)


def spent(context: StepContext) -> dict[str, float]:
    """What the pipeline has embedded in its life, in tokens, seconds of the provider and USD."""
    return read_json(context.folder.spent) or dict.fromkeys(
        ("embedded_tokens", "provider_seconds", "usd"), 0
    )


def add_to_spent(context: StepContext, counts: EmbedCounts, price: float | None) -> None:
    """Add what texts, a batch or measuring has taken."""
    if counts.embedded or counts.billed_tokens:
        known, usd = spent(context), counts.billed_tokens * (price or 0) / 1e6
        now = {
            "embedded_tokens": counts.embedded_tokens,
            "provider_seconds": counts.provider_seconds,
            "usd": usd,
        }
        write_json(
            context.folder.spent,
            {name: round(known[name] + value, 9) for name, value in now.items()},
        )


def _vectors(window: Embedded) -> pa.FixedSizeListArray:
    """The column `vector`: null for what was rejected."""
    rejected = np.isin(np.arange(window.batch.num_rows), list(window.rejected))
    return to_column(window.vectors, nulls=rejected)


def _rejection(partition: str, window: Embedded, row: int) -> dict[str, str]:
    batch = window.batch
    chunk_id, text = batch["chunk_id"][row].as_py(), batch["text"][row].as_py()
    return {
        "partition": partition,
        "chunk_id": chunk_id,
        "text": text,
        "reason": window.rejected[row],
    }


def _write_rejected(context: StepContext, partition: str, rejected: list[dict[str, str]]) -> None:
    """Replace what the table of rejected texts says of a partition."""
    path = context.folder.rejected_texts
    known = pq.read_table(path) if path.exists() else REJECTED_TEXTS.empty_table()
    others = known.filter(pc.not_equal(known["partition"], partition))
    if rejected or len(others) != len(known):
        write_table(
            path,
            REJECTED_TEXTS,
            [*others.to_batches(), pa.RecordBatch.from_pylist(rejected, REJECTED_TEXTS)],
        )


def refuse_wrong_dimensions(context: StepContext, provider: Provider) -> None:
    """ConfigError if the file says `output_dim` and the vectors will have another number, or if the
    store cannot keep or search what the compression makes of them."""
    wanted, chain = context.spec.output_dim, context.spec.compression
    given = check_chain(chain, provider.space.dimensions)
    context.spec.store.check(chain[-1].codec.dtype if chain else "float32", given)
    if wanted is not None and wanted != given:
        can_shorten = wanted < provider.space.dimensions and not context.spec.compression
        shorten = (
            f", or add `compression: [{{kind: pca, dimensions: {wanted}}}]`" if can_shorten else ""
        )
        can = possible_dimensions(provider.kind, getattr(provider, "model", ""))
        others = (
            f" The model itself can give {can}: say which with its option `dimensions`."
            if " " in can
            else ""
        )
        raise ConfigError(
            f"Pipeline {context.spec.name!r}: output_dim is {wanted}, but {provider.space} gives {given}. "
            f"Set output_dim to {given}{shorten}.{others}"
        )


def _statistics(made: Manifest, counts: EmbedCounts, usd: float | None) -> dict[str, Any]:
    return {
        "vectors": made.rows - made.statistics.get("rejected", 0),
        "size_bytes": made.size_bytes,
        **asdict(counts),
        **({} if usd is None else {"usd": round(usd, 6)}),
        **rates(asdict(counts)),
    }
