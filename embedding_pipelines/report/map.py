"""The data of the report's map: points of the live table, their texts and colours, and queries.

The warehouse keeps one layout per model, so that the next release's map looks like this one. No
model is called: queries that are not in the embedding cache are left out.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.files import read_json
from embedding_pipelines.metrics.clusters import cluster_labels
from embedding_pipelines.progress import Progress
from embedding_pipelines.releases import Release
from embedding_pipelines.report.layout import (
    MAX_POINTS,
    SCHEMA,
    Layout,
    layout,
    needs_fit,
    place_beside,
)
from embedding_pipelines.schemas import VECTOR, digest
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse, write_table
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, to_matrix

TEXT_CHARACTERS = 200  # of a text that the map shows
KINDS = 20  # of a column, with a colour each
LEAST_SHARE = 0.05  # of the points that these must cover, else the colours would say nothing
MAX_QUERIES = 1_000
DIGITS = 4  # after the point, of places and numbers: finer than a screen


@dataclass
class Points:
    """The rows of the table that the map shows."""

    chunk_ids: list[str]
    document_ids: list[str]
    texts: list[str]
    vectors: Vectors  # float32[n, d] of the model's own space, decoded
    metadata: dict[str, list[Any]]


def map_of(
    warehouse: Warehouse, release: Release, codec: CodecChain, progress: Progress
) -> dict[str, Any]:
    """The map as JSON values, lists over points: places, texts, columns to colour by; queries."""
    table = release.spec.store.table(warehouse.tables, release.table)
    folder = warehouse.pipeline(release.spec.name)
    points = read_points(table, release, codec, progress)
    xy = place_points(folder, release, points, progress).xy
    x, y = np.round(xy.T.astype(np.float64), DIGITS).tolist()
    types = release.spec.source.metadata_types
    metadata = {
        name: _column(name, types[name], values) for name, values in points.metadata.items()
    }
    columns = [column for column in metadata.values() if column is not None]
    if points.chunk_ids:
        numbers, labels = cluster_labels(points.vectors, points.texts, seed=release.spec.seed)
        names = [name for name, _ in labels]
        columns += [{"name": "cluster", "kind": "kinds", "names": names, "codes": numbers.tolist()}]
    lengths = [len(text) for text in points.texts]
    columns += [{"name": "length of the text", "kind": "numbers", "values": lengths}]
    return {
        "rows": release.rows,
        "x": x,
        "y": y,
        "texts": [_cut(text) for text in points.texts],
        "documents": points.document_ids,
        "columns": columns,
        "left_out": [name for name, column in metadata.items() if column is None],
        "queries": _queries(warehouse, folder, release, points, xy),
    }


def read_points(table: Table, release: Release, codec: CodecChain, progress: Progress) -> Points:
    """All rows, or MAX_POINTS, in every release the same: those of the ids' smallest digests."""
    limit = _limit(table, release)
    names = list(release.spec.source.metadata_types)
    columns = ["chunk_id", "document_id", "text", *names]
    parts = [np.empty((0, codec.input_dimensions), np.float32)]
    rows: dict[str, list[Any]] = {name: [] for name in columns}
    done = 0
    for batch in table.scan([*columns, VECTOR], version=release.version):
        done += batch.num_rows
        progress.update("report", done, release.rows, "rows")
        is_shown = [_rank(name) <= limit for name in batch["chunk_id"].to_pylist()]
        batch = batch.filter(pa.array(is_shown, pa.bool_()))
        parts.append(codec.decode(to_matrix(batch[VECTOR])))
        for name, values in rows.items():
            values += batch[name].to_pylist()
    metadata = {name: rows[name] for name in names}
    vectors = np.concatenate(parts)
    return Points(rows["chunk_id"], rows["document_id"], rows["text"], vectors, metadata)


def point_id(chunk_id: str, text: str) -> str:
    """A point's id on this map and the next: a changed text is another point."""
    return digest(chunk_id.encode(), text.encode()).hex()


def _limit(table: Table, release: Release) -> int:
    """The largest rank on the map."""
    if release.rows <= MAX_POINTS:
        return 1 << 64
    batches = table.scan(["chunk_id"], version=release.version)
    names = (name for batch in batches for name in batch["chunk_id"].to_pylist())
    ranks = np.fromiter(map(_rank, names), np.uint64)
    return int(np.partition(ranks, MAX_POINTS - 1)[MAX_POINTS - 1])


def _rank(chunk_id: str) -> int:
    return int.from_bytes(digest(chunk_id.encode())[:8], "little")


def place_points(
    folder: PipelineFolder, release: Release, points: Points, progress: Progress
) -> Layout:
    """The layout, from that of the last map; saved for the next one."""
    path = folder.folder / "maps" / f"{release.space.with_codec(None).id[:16]}.parquet"
    try:
        before = Layout.of(pq.read_table(path, schema=SCHEMA))
    except (OSError, pa.ArrowException):
        before = None  # there is none, or a damaged one, which is no loss
    ids = [point_id(*pair) for pair in zip(points.chunk_ids, points.texts, strict=True)]
    if needs_fit(ids, before):
        progress.note(
            f"Laying out the map of {len(ids):,} points; 50,000 take a few minutes, and next time "
            "none."
        )
    places = layout(points.vectors, ids, before, release.spec.seed)
    write_table(path, SCHEMA, [places.batch()])
    return places


def _column(name: str, kind: str, values: Sequence[Any]) -> dict[str, Any] | None:
    """A metadata column as colours; None if it has too many kinds for them."""
    if kind in ("int", "float"):
        return {"name": name, "kind": "numbers", "values": [_number(value) for value in values]}
    if kind in ("date", "timestamp"):
        return {"name": name, "kind": "days", "values": [_day(value) for value in values]}
    words = [_as_text(value) for value in values]
    counts = Counter(words)
    kinds = sorted(counts, key=lambda word: (-counts[word], word))[:KINDS]
    if len(counts) > KINDS and sum(counts[word] for word in kinds) < LEAST_SHARE * len(values):
        return None
    codes = {word: code for code, word in enumerate(kinds)}
    names = kinds + (["other"] if len(counts) > KINDS else [])
    numbers = [codes.get(word, KINDS) for word in words]
    return {"name": name, "kind": "kinds", "names": names, "codes": numbers}


def _as_text(value: Any) -> str:
    if value is None or value == []:
        return "(none)"
    return _cut(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def _day(value: date | datetime | None) -> float | None:
    """Days since 1970."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return round(value.timestamp() / 86_400, DIGITS)


def _queries(
    warehouse: Warehouse, folder: PipelineFolder, release: Release, points: Points, xy: Vectors
) -> dict[str, list[Any]]:
    """The queries of the release's metrics, beside the chunks that are nearest to them."""
    queries = (read_json(folder.queries) or {}).get("queries", [])
    texts = list(dict.fromkeys(str(query["text"]) for query in queries))[:MAX_QUERIES]
    cache = EmbeddingCache(warehouse.cache, read_only=True)
    space = release.space.with_codec(None)
    keys = {cache.key(space.id, "query", text): text for text in texts}
    vectors = cache.get_many(list(keys), space.dimensions)
    if not vectors or not len(xy):
        return {"x": [], "y": [], "texts": []}
    hits = [key for key in keys if key in vectors]
    places = place_beside(np.stack([vectors[key] for key in hits]), points.vectors, xy)
    x, y = np.round(places.T.astype(np.float64), DIGITS).tolist()
    return {"x": x, "y": y, "texts": [_cut(keys[key]) for key in hits]}


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}…"
