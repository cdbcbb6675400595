"""embeddings: each chunk of one bucket gets its vector, from the ledger or from the provider."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from embedding_pipelines.compression.base import check_chain
from embedding_pipelines.embedding.embed import EmbedCounts, embed
from embedding_pipelines.embedding.ledger import Ledger
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.schemas import embeddings_schema
from embedding_pipelines.steps.context import StepContext


def write_embeddings(
    context: StepContext, bucket: str, provider: Provider, ledger: Ledger, advance: Callable[[int], None]
) -> StepReport:
    """Bring one bucket of embeddings up to date with its chunks; `advance` is told tokens finished.

    Raises ProviderError when the model fails; what it had embedded until then is in the ledger.
    """
    shards, space = context.folder.embeddings, provider.space
    source = context.folder.chunks.manifest(bucket)
    if source is None:
        raise StoreError(f"Bucket {bucket!r} of {context.spec.name!r} has no chunks: materialize them first.")
    if shards.is_current(bucket, source.digest, space.id):
        made = shards.manifest(bucket)
        assert made is not None
        advance(source.facts["tokens"])
        return StepReport("embeddings", False, _facts(made.rows, made.size_bytes, EmbedCounts()), bucket)

    counts = EmbedCounts()
    schema = embeddings_schema(space.dimensions, space.id)

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in context.folder.chunks.read(bucket, ["chunk_id", "text", "tokens"]):
            texts, tokens = batch["text"].to_pylist(), batch["tokens"].to_pylist()
            vectors = embed(texts, tokens, provider, ledger, "document", counts, advance)
            values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), space.dimensions)
            yield pa.RecordBatch.from_arrays([batch["chunk_id"], values], schema=schema)

    made = shards.write(bucket, schema, rows(), source.digest, space.id, {})
    return StepReport("embeddings", True, _facts(made.rows, made.size_bytes, counts), bucket)


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
