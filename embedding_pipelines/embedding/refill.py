"""Puts vectors that stand elsewhere back into the embedding cache, so that no text is paid for twice."""

from collections.abc import Iterable

import pyarrow as pa

from embedding_pipelines.embedding.cache import EmbeddingCache, content_keys
from embedding_pipelines.schemas import HAS_IMAGES_KEY, IMAGE, SPACE_ID_KEY, TEXT, VECTOR
from embedding_pipelines.storage.warehouse import PipelineFolder
from embedding_pipelines.vectors import to_matrix


def file_vectors(
    folder: PipelineFolder,
    cache: EmbeddingCache,
    partitions: Iterable[str],
    only_missing: bool = False,
) -> int:
    """File the vectors of these partitions' shards; how many. A partition whose shards are lost,
    damaged or do not belong together is left out. With `only_missing` what the cache has stays."""
    count = 0
    with cache:
        for partition in partitions:
            chunks, embeddings = folder.chunks, folder.embeddings
            cut, manifest = chunks.manifest(partition), embeddings.manifest(partition)
            if cut is None or manifest is None or manifest.inputs != cut.digest:
                continue
            if not (chunks.is_intact(partition) and embeddings.is_intact(partition)):
                continue
            schema = embeddings.schema(partition)
            metadata = (schema and schema.metadata) or {}
            space = metadata.get(SPACE_ID_KEY, b"").decode()
            contents = [TEXT, IMAGE] if HAS_IMAGES_KEY in metadata else [TEXT]
            pairs = zip(
                chunks.read(partition, contents),
                embeddings.read(partition, [VECTOR]),
                strict=True,
            )
            rows = ((part, vectors[VECTOR]) for part, vectors in pairs)
            count += put(cache, space, rows, only_missing)
    return count


def put(
    cache: EmbeddingCache,
    space_id: str,
    rows: Iterable[tuple[pa.RecordBatch, pa.Array]],
    only_missing: bool = False,
) -> int:
    """File the vectors of chunks, of which the columns are given that say what was embedded; how
    many. Nulls are left out."""
    count = 0
    for contents, vectors in rows:
        has_vector = vectors.is_valid()
        keys = content_keys(space_id, "document", contents.filter(has_vector))
        if not keys:
            continue
        matrix = to_matrix(vectors.filter(has_vector))
        there = cache.get_many(keys, matrix.shape[1]) if only_missing else {}
        at = [row for row, key in enumerate(keys) if key not in there]
        if at:
            cache.put_many([keys[row] for row in at], matrix[at], space_id)
        count += len(at)
    return count
