"""Rows that are like a document of a live table: recommendations, related items."""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.access import Permitted, Principals
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.explore.table import LiveTable
from embedding_pipelines.ranking import Filter, nearest
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import SearchResult, check_k, hits_of
from embedding_pipelines.spec.pipeline import partition_of
from embedding_pipelines.vectors import Vectors, to_matrix, unit


def find_like(
    home: Path,
    name: str,
    document_id: str,
    k: int = 10,
    filter: Filter | None = None,
    principals: Principals = None,
) -> SearchResult:
    """The `k` chunks of a live table nearest to a document, among those of other documents that
    pass `filter`, nearest first.

    The document stands for the mean direction of its chunks, as the table keeps them: no model is
    asked. Scores are cosines with it. Raises ReleaseError without a release, ConfigError for an id
    that is not in it or not for these `principals`, or a wrong `k`, StoreError for a wrong filter,
    PermissionsError as a search does.
    """
    started = time.perf_counter()
    check_k(k)
    live = LiveTable(home, name, principals)
    vectors = _vectors(live, document_id)
    mean, version = unit(vectors).mean(axis=0), live.release.version
    names = live.release.spec.source.table_names
    table = live.table if live.visible is None else Permitted(live.table, live.visible)
    rows = nearest(table, live.codec, mean, k + len(vectors), filter, version, names)
    others = rows.filter(pc.not_equal(rows["document_id"], document_id))
    return SearchResult(
        pipeline=name,
        release=live.release.number,
        space_id=live.release.space.id,
        query=f"like {document_id}",
        hits=hits_of(others.slice(0, k)),
        milliseconds=round((time.perf_counter() - started) * 1000, 3),
    )


def _vectors(live: LiveTable, document_id: str) -> Vectors:
    """float32[n, d] of the chunks of a document; ConfigError if there is none."""
    spec, columns = live.release.spec, ["document_id", VECTOR]
    is_visible = live.visible is None or document_id in live.visible
    partition = spec.partition_names[partition_of(document_id, spec.partitions)]
    parts = [
        batch.filter(pc.equal(batch["document_id"], document_id))
        for batch in live.table.scan(columns, partition, live.release.version)
        if is_visible
    ]
    rows = pa.Table.from_batches(parts) if parts else None
    if rows is None or not len(rows):
        raise ConfigError(
            f"There is no document {document_id!r} in release {live.release.number} of "
            f"{spec.name!r}. A search shows the ids, in front of each hit."
        )
    return live.codec.decode(to_matrix(rows[VECTOR].combine_chunks()))
