"""What the report's map shows: points of the live table, their texts, what they may be coloured by,
and queries.

The layout is kept in the warehouse per model, so that the map of the next release looks like this
one. No provider is called: queries that the cache does not know are left out.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
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
from embedding_pipelines.report.layout import MAX_POINTS, SCHEMA, Layout, beside, layout, needs_fit
from embedding_pipelines.schemas import VECTOR, digest
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse, write_table
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, to_matrix

TEXT_CHARACTERS = 200  # of a text that the map shows
KINDS = 20  # of a column that have a colour of their own
TELLING_SHARE = 0.05  # of the points that these must cover, else the colours would say nothing
MAX_QUERIES = 1_000
DIGITS = 4  # behind the point, of places and of numbers: finer than a screen


@dataclass
class Points:
    """Rows of the table that are shown."""

    chunk_ids: list[str]
    document_ids: list[str]
    texts: list[str]
    vectors: Vectors  # float32[n, d] of the model's own space, as far as the codec has kept them
    metadata: dict[str, list[Any]]

    @property
    def ids(self) -> list[str]:
        return [point_id(*pair) for pair in zip(self.chunk_ids, self.texts, strict=True)]


def map_of(
    warehouse: Warehouse, release: Release, codec: CodecChain, progress: Progress
) -> dict[str, Any]:
    """The map as JSON values: places, texts, columns to colour by, queries; lists run over the
    points."""
    table = release.spec.store.table(warehouse.tables, release.table)
    folder = warehouse.pipeline(release.spec.name)
    points = read_points(table, release, codec, progress)
    placed = place_points(folder, release, points, progress)
    columns = [
        _column(name, release.spec.source.metadata_types[name], found)
        for name, found in points.metadata.items()
    ]
    lengths = {
        "name": "length of the text",
        "kind": "numbers",
        "values": [len(text) for text in points.texts],
    }
    return {
        "rows": release.rows,
        "x": _rounded(placed.xy[:, 0]),
        "y": _rounded(placed.xy[:, 1]),
        "texts": [_cut(text) for text in points.texts],
        "documents": points.document_ids,
        "columns": [
            *(column for column in columns if column is not None),
            *_clusters(points, release.spec.seed),
            lengths,
        ],
        "left_out": [
            name for name, column in zip(points.metadata, columns, strict=True) if column is None
        ],
        "queries": _queries(warehouse, folder, release, points, placed.xy),
    }


def read_points(table: Table, release: Release, codec: CodecChain, progress: Progress) -> Points:
    """All rows, or MAX_POINTS of a large table: those whose ids have the smallest digests, in every
    release alike."""
    limit = _limit(table, release)
    names = list(release.spec.source.metadata_types)
    wanted = ["chunk_id", "document_id", "text", *names, VECTOR]
    parts = [np.empty((0, codec.input_dimensions), np.float32)]
    rows: dict[str, list[Any]] = {name: [] for name in wanted[:-1]}
    done = 0
    for batch in table.scan(wanted, version=release.version):
        done += batch.num_rows
        progress.update("report", done, release.rows, "rows")
        chosen = batch.filter(
            pa.array([_rank(name) <= limit for name in batch["chunk_id"].to_pylist()], pa.bool_())
        )
        parts.append(codec.decode(to_matrix(chosen[VECTOR])))
        for name, values in rows.items():
            values += chosen[name].to_pylist()
    metadata = {name: rows[name] for name in names}
    return Points(
        rows["chunk_id"], rows["document_id"], rows["text"], np.concatenate(parts), metadata
    )


def point_id(chunk_id: str, text: str) -> str:
    """What a point is known by on the next map: a changed text is another point."""
    return digest(chunk_id.encode(), text.encode()).hex()


def _clusters(points: Points, seed: int) -> Iterator[dict[str, Any]]:
    """The column that colours points by their cluster, named by its keywords; none of no points."""
    if points.chunk_ids:
        numbers, labels = cluster_labels(points.vectors, points.texts, seed=seed)
        names = [name for name, _ in labels]
        yield {"name": "cluster", "kind": "kinds", "names": names, "codes": numbers.tolist()}


def _limit(table: Table, release: Release) -> int:
    """The largest rank that is shown."""
    if release.rows <= MAX_POINTS:
        return 1 << 64
    batches = table.scan(["chunk_id"], version=release.version)
    ranks = np.fromiter(
        (_rank(name) for batch in batches for name in batch["chunk_id"].to_pylist()), np.uint64
    )
    return int(np.partition(ranks, MAX_POINTS - 1)[MAX_POINTS - 1])


def _rank(chunk_id: str) -> int:
    return int.from_bytes(digest(chunk_id.encode())[:8], "little")


def place_points(
    folder: PipelineFolder, release: Release, points: Points, progress: Progress
) -> Layout:
    """Where the points are: where they were before, as far as that is known. The layout is kept for
    the next map."""
    path = folder.folder / "maps" / f"{release.space.with_codec(None).id[:16]}.parquet"
    before, ids = _kept(path), points.ids
    if needs_fit(ids, before):
        progress.note(
            f"The map of {len(ids):,} points is being laid out; 50,000 take a few minutes, and next time none."
        )
    placed = layout(points.vectors, ids, before, release.spec.seed)
    write_table(path, SCHEMA, [placed.batch()])
    return placed


def _kept(path: Path) -> Layout | None:
    """The layout of the last map; None if there is none that can be read: it is then made anew."""
    try:
        return Layout.of(pq.read_table(path, schema=SCHEMA))
    except (OSError, pa.ArrowException):
        return None


def _column(name: str, kind: str, values: Sequence[Any]) -> dict[str, Any] | None:
    """A metadata column as colours; None if it has so many kinds that they would tell nothing."""
    if kind in ("int", "float"):
        return {"name": name, "kind": "numbers", "values": [_number(value) for value in values]}
    if kind in ("date", "timestamp"):
        return {"name": name, "kind": "days", "values": [_day(value) for value in values]}
    spoken = [_spoken(value) for value in values]
    counts = Counter(spoken)
    kinds = sorted(counts, key=lambda word: (-counts[word], word))[:KINDS]
    if len(counts) > KINDS and sum(counts[word] for word in kinds) < TELLING_SHARE * len(values):
        return None
    codes = {word: code for code, word in enumerate(kinds)}
    names = kinds + (["other"] if len(counts) > KINDS else [])
    return {
        "name": name,
        "kind": "kinds",
        "names": names,
        "codes": [codes.get(word, KINDS) for word in spoken],
    }


def _spoken(value: Any) -> str:
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
    """The queries that the release was measured with, beside the chunks that are nearest to
    them."""
    asked = (read_json(folder.queries) or {}).get("queries", [])
    texts = list(dict.fromkeys(str(query["text"]) for query in asked))[:MAX_QUERIES]
    found = list(_known(warehouse.cache, release, texts)) if len(xy) else []
    if not found:
        return {"x": [], "y": [], "texts": []}
    places = beside(np.stack([vector for _, vector in found]), points.vectors, xy)
    shown = [_cut(text) for text, _ in found]
    return {"x": _rounded(places[:, 0]), "y": _rounded(places[:, 1]), "texts": shown}


def _known(path: Path, release: Release, texts: Sequence[str]) -> Iterator[tuple[str, Vectors]]:
    """Queries with their vectors, of those that the cache knows."""
    if not path.exists():
        return
    space = release.space.with_codec(None)
    keys = {EmbeddingCache.key(space.id, "query", text): text for text in texts}
    with EmbeddingCache(path) as cache:
        vectors: Mapping[bytes, Vectors] = cache.get_many(list(keys), space.dimensions)
    yield from ((text, vectors[key]) for key, text in keys.items() if key in vectors)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}…"


def _rounded(values: Vectors) -> list[float]:
    rounded: list[float] = np.round(values.astype(np.float64), DIGITS).tolist()
    return rounded
