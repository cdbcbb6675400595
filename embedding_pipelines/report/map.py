"""The data of the report's map: points of the live table, their texts and colours, and queries.

The warehouse keeps one layout per model, so that the next release's map looks like this one.
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
from numpy.typing import NDArray

from embedding_pipelines.compression.base import CodecChain
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
from embedding_pipelines.report.searches import Query, cut
from embedding_pipelines.schemas import VECTOR, digest
from embedding_pipelines.storage.warehouse import PipelineFolder, write_table
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, to_matrix, unit

KINDS = 20  # of a column, with a colour each
LEAST_SHARE = 0.05  # of the points that these must cover, else the colours would say nothing
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
    release: Release, points: Points, queries: Sequence[Query], xy: Vectors
) -> dict[str, Any]:
    """The map as JSON values, lists over points at `xy` float32[n, 2]: places, texts, columns to
    colour by; clusters; queries."""
    x, y = _numbers(xy)
    types = release.spec.metadata_types
    metadata = {
        name: _column(name, types[name], values) for name, values in points.metadata.items()
    }
    clusters, columns = list[dict[str, Any]](), list[dict[str, Any]]()
    if points.chunk_ids:
        numbers, labels = cluster_labels(points.vectors, points.texts, seed=release.spec.seed)
        names = [name for name, _ in labels]
        clusters = _clusters(numbers, [words for _, words in labels], points, xy)
        columns = [{"name": "cluster", "kind": "kinds", "names": names, "codes": numbers.tolist()}]
    columns += [column for column in metadata.values() if column is not None]
    lengths = [len(text) for text in points.texts]
    columns += [{"name": "length of the text", "kind": "numbers", "values": lengths}]
    return {
        "rows": release.rows,
        "x": x,
        "y": y,
        "texts": [cut(text) for text in points.texts],
        "documents": points.document_ids,
        "columns": columns,
        "clusters": clusters,
        "left_out": [name for name, column in metadata.items() if column is None],
        "queries": _queries(points, queries, xy),
    }


def read_points(table: Table, release: Release, codec: CodecChain, progress: Progress) -> Points:
    """All rows, or MAX_POINTS, in every release the same: those of the ids' smallest digests."""
    limit = _limit(table, release)
    names = list(release.spec.metadata_types)
    columns = ["chunk_id", "document_id", "text", *names]
    parts = [np.empty((0, codec.input_dimensions), np.float32)]
    rows: dict[str, list[Any]] = {name: [] for name in columns}
    count = 0
    for batch in table.scan([*columns, VECTOR], version=release.version):
        count += batch.num_rows
        progress.update("report", count, release.rows, "rows")
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
            f"Laying out the map of {len(ids):,} points; 50,000 take half a minute, and next time "
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
    return cut(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)


def _day(value: date | datetime | None) -> float | None:
    """Days since 1970."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return round(value.timestamp() / 86_400, DIGITS)


def _clusters(
    numbers: NDArray[np.int32], keywords: Sequence[Sequence[str]], points: Points, xy: Vectors
) -> list[dict[str, Any]]:
    """Each cluster with its keywords, size, an example, and a place for its name on the map."""
    units, result = unit(points.vectors), []
    for number, words in enumerate(keywords):
        rows = np.flatnonzero(numbers == number)
        if not len(rows):
            continue
        middle = np.median(xy[rows], axis=0)  # which need not lie among its points
        place = rows[((xy[rows] - middle) ** 2).sum(axis=1).argmin()]
        central = rows[(units[rows] @ units[rows].mean(axis=0)).argmax()]
        x, y = _numbers(xy[[place]])
        result.append(
            {
                "number": number,
                "words": list(words),
                "rows": len(rows),
                "share": f"{len(rows) / len(numbers):.0%}",
                "example": points.document_ids[central],
                "x": x[0],
                "y": y[0],
            }
        )
    return result


def _queries(points: Points, queries: Sequence[Query], xy: Vectors) -> dict[str, list[Any]]:
    """The queries, beside the chunks that are nearest to them, each with the point that answers it:
    of its right document if that is on the map, else the nearest one."""
    result: dict[str, list[Any]] = {
        name: [] for name in ("x", "y", "texts", "answers", "right", "found")
    }
    if not queries or not len(xy):
        return result
    vectors = np.stack([query.vector for query in queries])
    result["x"], result["y"] = _numbers(place_beside(vectors, points.vectors, xy))
    rows = dict[str, list[int]]()
    for row, name in enumerate(points.document_ids):
        rows.setdefault(name, []).append(row)
    units = unit(points.vectors)
    for query, vector in zip(queries, unit(vectors), strict=True):
        right = next((rows[name] for name in query.answers if name in rows), None)
        cosines = units @ vector if right is None else units[right] @ vector
        at = int(cosines.argmax())
        result["texts"].append(cut(query.text))
        result["answers"].append(at if right is None else right[at])
        result["right"].append(right is not None)
        result["found"].append(query.figure is None or query.figure > 0)
    return result


def _numbers(xy: Vectors) -> list[list[float]]:
    """Columns x and y, with as many digits as a screen shows."""
    columns: list[list[float]] = np.round(xy.T.astype(np.float64), DIGITS).tolist()
    return columns
