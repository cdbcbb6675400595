"""plan: what a run would do and cost, told before it is done.

It takes the real way: documents are read and chunks are cut as in a run, which then finds that
done. What follows is reckoned, not done: nobody is called, the table is read only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from embedding_pipelines.embedding.batch_jobs import Batches
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.lookup import look_up
from embedding_pipelines.embedding.packing import calls
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.quality.cost import tokens_to_measure
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.steps.chunks import write_chunks
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines.steps.embeddings import (
    current_embeddings,
    refuse_wrong_dimensions,
    without_vector,
)
from embedding_pipelines.steps.train import learn_model
from embedding_pipelines.steps.vector_store import open_table
from embedding_pipelines.stores.base import Table


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
    texts_known: int = 0  # in the cache: they cost nothing
    texts_waiting: int = 0  # with a service that answers later
    texts_to_embed: int = 0
    tokens: int = 0  # by the model's tokenizer, or an estimate from above
    requests: int = 0
    tokens_to_measure: int = 0  # more at most, for the checks of what is made
    usd: float | None = None  # of both; None: nobody knows the price
    within_budget: bool = True  # of one run; else it takes several
    seconds: float | None = None  # at the pace of what was embedded last; None: nothing was yet


def plan(context: StepContext, provider: Provider) -> Plan:
    """What a run of the pipeline would do now.

    Raises as the steps `documents` and `chunks` do, and BusyError if another process is at work on
    the pipeline.
    """
    with context.folder.lock("run", timeout_seconds=0), context.folder.lock(timeout_seconds=0):
        write_documents(context)
        for partition in context.spec.partition_names:
            write_chunks(context, partition, provider)
        if provider.learns:
            learn_model(context, provider)
        refuse_wrong_dimensions(context, provider)
        made = Plan(context.spec.name, str(provider.space))
        _count_rows(context, provider, made)
        with EmbeddingCache(context.warehouse.cache) as cache:
            direct = _count_texts(context, provider, cache, made)
            if made.rows_new or made.rows_changed or made.rows_deleted:
                made.tokens_to_measure = tokens_to_measure(context, provider, cache)
    later = made.tokens - direct
    made.within_budget = BudgetTracker.of(
        context.spec.budget, provider, in_batches=later > 0
    ).holds(later or direct)
    if provider.price is not None and provider.batch_price is not None:
        usd = later * provider.batch_price + (direct + made.tokens_to_measure) * provider.price
        made.usd = round(usd / 1e6, 6)
    made.seconds = _seconds(context, made, provider)
    return made


def _count_rows(context: StepContext, provider: Provider, made: Plan) -> None:
    table = _table(context, provider)
    for partition in context.spec.partition_names:
        wanted = context.folder.chunks.read_columns(partition, ["chunk_id", "chunk_digest"])
        assert wanted is not None
        target = dict(
            zip(wanted["chunk_id"].to_pylist(), wanted["chunk_digest"].to_pylist(), strict=True)
        )
        if current_embeddings(context, partition, provider.space) is not None:
            for name in without_vector(
                context, partition
            ):  # the provider refused it, and is not asked again
                del target[name]
        stored = dict(_stored(table, partition))
        both = target.keys() & stored.keys()
        changed = sum(target[name] != stored[name] for name in both)
        made.rows_new += len(target) - len(both)
        made.rows_changed += changed
        made.rows_unchanged += len(both) - changed
        made.rows_deleted += len(stored) - len(both)


def _table(context: StepContext, provider: Provider) -> Table | None:
    """The table that a run would bring up to date; None if it would be a new one."""
    if codec_path(context, provider.space) is None:
        return None
    table, _ = open_table(context, load_codec(context, provider.space), provider.space)
    return table if table.version is not None else None


def _stored(table: Table | None, partition: str) -> Iterator[tuple[str, bytes]]:
    for batch in table.scan(["chunk_id", "chunk_digest"], partition) if table is not None else ():
        yield from zip(
            batch["chunk_id"].to_pylist(), batch["chunk_digest"].to_pylist(), strict=True
        )


def _count_texts(
    context: StepContext, provider: Provider, cache: EmbeddingCache, made: Plan
) -> int:
    """As `embed` asks: windows in turn, each text once, looked up, cut into calls. The tokens that
    are asked for directly: all, but where the provider answers later those of texts that a batch
    has refused."""
    space, limits, shards, direct = provider.space, provider.limits, context.folder.chunks, 0
    waiting, refused = _with_service(context, provider, cache)
    stale = [
        partition
        for partition in context.spec.partition_names
        if current_embeddings(context, partition, space) is None
    ]
    batches = (batch for partition in stale for batch in shards.read(partition, ["text", "tokens"]))
    for found in look_up(batches, space, "document", cache):
        unsent = {key: text for key, text in found.unknown.items() if key not in waiting}
        at_once = (
            text for key, text in unsent.items() if not provider.answers_later or key in refused
        )
        direct += sum(tokens for _, tokens in at_once)
        missing = list(unsent.values())
        made.texts_waiting += len(found.unknown) - len(missing)
        made.texts_known += found.known
        made.texts_to_embed += len(missing)
        made.tokens += sum(tokens for _, tokens in missing)
        sizes = [len(text.encode()) for text, _ in missing]
        made.requests += sum(1 for _ in calls([tokens for _, tokens in missing], limits, sizes))
    return direct


def _with_service(
    context: StepContext, provider: Provider, cache: EmbeddingCache
) -> tuple[set[bytes], set[bytes]]:
    """Keys of the texts that are with a service, and of those that a batch of it has refused."""
    if not provider.answers_later:
        return set(), set()
    batches = Batches(context.warehouse.batches, provider, provider.batches(), cache, "document")
    return batches.pending(), batches.refused


def _seconds(context: StepContext, made: Plan, provider: Provider) -> float | None:
    """At the pace of what was embedded last, but no faster than the account's stated requests."""
    partitions = [
        context.folder.embeddings.manifest(partition) for partition in context.spec.partition_names
    ]
    paces = [
        entry.statistics["tokens_per_second"]
        for entry in partitions
        if entry and entry.statistics.get("tokens_per_second")
    ]
    stated: float | None = getattr(provider, "requests_per_minute", None)
    slowest = 60 * made.requests / stated if stated else 0.0
    if not made.tokens:
        return 0.0
    if not paces:
        return round(slowest, 1) or None
    pace: float = median(paces)
    return round(max(slowest, made.tokens / pace), 1)
