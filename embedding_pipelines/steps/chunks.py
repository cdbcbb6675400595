"""chunks: the documents of one partition become cleaned pieces of text that the model can take.

A document that has not changed keeps its chunks; only new and changed ones are cut again.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.errors import StoreError
from embedding_pipelines.preprocessing.base import Counts
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.schemas import DOCUMENT_DIGEST, chunks_schema
from embedding_pipelines.spec.pipeline import fingerprint
from embedding_pipelines.steps.chain import StepContext

if TYPE_CHECKING:
    from embedding_pipelines.storage.warehouse import Manifest


def write_chunks(context: StepContext, partition: str, provider: Provider) -> StepReport:
    """Bring one partition of chunks up to date with its documents.

    Raises ConfigError if the chunk size does not fit the model, ProviderError if it cannot be
    loaded.
    """
    configuration = chunk_configuration(context, provider)
    current = current_chunks(context, partition, configuration)
    if current is not None:
        return current

    documents, shards = context.folder.documents, context.folder.chunks
    source = _source(context, partition)
    made = shards.manifest(partition)
    reusable = made is not None and made.configuration == configuration
    old = (
        _identities(shards.read_columns(partition, ["document_id", DOCUMENT_DIGEST]))
        if reusable
        else set()
    )
    kept = old & _identities(documents.read_columns(partition, ["document_id", DOCUMENT_DIGEST]))
    counts = Counts()
    statistics: dict[str, int] = {}

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in shards.read(partition) if kept else ():
            chosen = batch.filter(_mask(batch, kept))
            counts.chunks += chosen.num_rows
            counts.tokens += pc.sum(chosen["tokens"]).as_py() or 0
            counts.truncated += chosen["truncated"].true_count
            yield chosen
        changed = (
            batch.filter(pc.invert(_mask(batch, kept))) for batch in documents.read(partition)
        )
        yield from context.spec.preprocessing.process(
            changed, provider.tokenizer(), provider.limits.max_tokens, counts
        )
        counts.documents += len(kept)
        statistics.update(asdict(counts), reused_documents=len(kept))

    schema = chunks_schema(context.spec.source.metadata_types)
    manifest = shards.write(partition, schema, rows(), source.digest, configuration, statistics)
    return StepReport("chunks", True, _statistics(manifest), partition)


def current_chunks(context: StepContext, partition: str, configuration: str) -> StepReport | None:
    """The report of a partition that is up to date, None if there is something to do."""
    made = context.folder.chunks.current(
        partition, _source(context, partition).digest, configuration
    )
    return StepReport("chunks", False, _statistics(made), partition) if made else None


def chunk_configuration(context: StepContext, provider: Provider) -> str:
    """All that decides how a text is cleaned and cut, the tokenizer's own definition included."""
    preprocessing = context.spec.preprocessing
    columns = str(chunks_schema(context.spec.source.metadata_types))
    limit = str(provider.limits.max_tokens)
    return fingerprint(preprocessing.recipe, limit, columns, provider.tokenizer_digest)


def _source(context: StepContext, partition: str) -> "Manifest":
    source = context.folder.documents.manifest(partition)
    if source is None:
        raise StoreError(
            f"Partition {partition!r} of {context.spec.name!r} has no documents: materialize them first."
        )
    return source


def _statistics(manifest: "Manifest") -> dict[str, int]:
    return {**manifest.statistics, "size_bytes": manifest.size_bytes}


def _identities(table: pa.Table | None) -> set[tuple[str, bytes]]:
    if table is None:
        return set()
    return set(
        zip(table["document_id"].to_pylist(), table[DOCUMENT_DIGEST].to_pylist(), strict=True)
    )


def _mask(batch: pa.RecordBatch, identities: set[tuple[str, bytes]]) -> pa.Array:
    pairs = zip(batch["document_id"].to_pylist(), batch[DOCUMENT_DIGEST].to_pylist(), strict=True)
    return pa.array([pair in identities for pair in pairs], pa.bool_())
