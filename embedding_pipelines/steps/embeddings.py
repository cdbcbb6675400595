"""embeddings: each chunk gets its vector, from the ledger or from the provider."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from embedding_pipelines.compression.base import check_chain
from embedding_pipelines.embedding.embed import EmbedCounts, Embedded, embed
from embedding_pipelines.embedding.ledger import Ledger
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.schemas import embeddings_schema
from embedding_pipelines.space import Space
from embedding_pipelines.steps.context import StepContext
from embedding_pipelines.warehouse import Manifest


def write_embeddings(
    context: StepContext, buckets: Sequence[str], provider: Provider, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[StepReport]:
    """Bring buckets of embeddings up to date with their chunks, and report each once it is committed.

    `advance` is told tokens finished. While one bucket is written the next ones are being embedded.
    Raises ProviderError when the model fails; what it had embedded until then is in the ledger.
    """
    space, stale = provider.space, []
    for bucket in buckets:
        report = current_embeddings(context, bucket, space)
        if report is None:
            stale.append(bucket)
        else:
            advance(_source(context, bucket).facts["tokens"])
            yield report
    chunks = context.folder.chunks
    batches = (batch for bucket in stale for batch in chunks.read(bucket, ["chunk_id", "text", "tokens"]))
    with closing(embed(batches, provider, ledger, "document", advance)) as embedded:  # type: ignore[type-var]
        for bucket in stale:
            yield _write_bucket(context, bucket, embedded, provider)


def current_embeddings(context: StepContext, bucket: str, space: Space) -> StepReport | None:
    """The report of a bucket that is up to date, None if there is something to do."""
    made = context.folder.embeddings.current(bucket, _source(context, bucket).digest, space.id)
    return StepReport("embeddings", False, _facts(made.rows, made.size_bytes, EmbedCounts()), bucket) if made else None


def _source(context: StepContext, bucket: str) -> Manifest:
    source = context.folder.chunks.manifest(bucket)
    if source is None:
        raise StoreError(f"Bucket {bucket!r} of {context.spec.name!r} has no chunks: materialize them first.")
    return source


def _write_bucket(context: StepContext, bucket: str, embedded: Iterator[Embedded], provider: Provider) -> StepReport:
    source, space, counts = _source(context, bucket), provider.space, EmbedCounts()
    schema = embeddings_schema(space.dimensions, space.id)

    def rows() -> Iterator[pa.RecordBatch]:
        left = source.rows
        while left:
            window = next(embedded)
            left -= window.batch.num_rows
            counts.add(window.counts)
            values = pa.FixedSizeListArray.from_arrays(pa.array(window.vectors.ravel()), space.dimensions)
            yield pa.RecordBatch.from_arrays([window.batch["chunk_id"], values], schema=schema)

    made = context.folder.embeddings.write(bucket, schema, rows(), source.digest, space.id, {})
    facts = _facts(made.rows, made.size_bytes, counts)
    if counts.embedded and provider.computed_by:
        facts["computed_by"] = provider.computed_by
    return StepReport("embeddings", True, facts, bucket)


def refuse_wrong_dimensions(context: StepContext, provider: Provider) -> None:
    """ConfigError if the file says `output_dim` and the vectors will have another number."""
    wanted, given = context.spec.output_dim, provider.space.dimensions
    given = check_chain(context.spec.compression, given)
    if wanted is not None and wanted != given:
        raise ConfigError(
            f"Pipeline {context.spec.name!r}: output_dim is {wanted}, but {provider.space} gives {given}. "
            f"Set output_dim to {given}, or add `compression: [{{kind: pca, dimensions: {wanted}}}]`."
        )


def _facts(rows: int, size_bytes: int, counts: EmbedCounts) -> dict[str, Any]:
    rate = counts.embedded_tokens / counts.provider_seconds if counts.provider_seconds else None
    return {
        "vectors": rows,
        "size_bytes": size_bytes,
        **asdict(counts),
        **({"tokens_per_second": round(rate)} if rate else {}),
    }
