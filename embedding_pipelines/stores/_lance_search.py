"""Searches one version of a LanceDB table: through its indices, or by an exact scan of int8 codes.

LanceDB 0.40 neither searches nor indexes int8 columns (it makes each query float32, and Lance
refuses to compare the two), and it compresses no vectors. To store one byte a number, this module
reads such a column and compares it itself. Measured by turns on 100,000 vectors of captions, k =
10, two busy cores: 384 int8 codes p50 98 ms (least 57), 128 of them 56 (30); LanceDB's own scan of
384 float32 195 (102), of float16 262 (140); its `sq` index 24 (12).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.schemas import RESCORING_VECTOR, TABLE_KEY, TEXT, VECTOR
from embedding_pipelines.stores._lance import address, call, connect, rows_of
from embedding_pipelines.stores._lance_index import create_index, text_config
from embedding_pipelines.vectors import Distance, from_numbers, to_matrix, to_numbers, unit

if TYPE_CHECKING:
    from lancedb._lancedb import Session, Table

DOCUMENT = "document_id"
Documents = frozenset[str]  # by their ids
Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)
INTERNAL = ("partition", "chunk_digest", "vector_checksum")  # for updates, not for searchers
BATCH_ROWS = 16_384  # rows to read at once: 100,000 x 128 codes in 21 ms, in lancedb's 1,024 in 65
SCAN_ROWS = 512  # rows to compare at once: 512 x 384 float32 stay in a processor's cache


@dataclass(frozen=True)
class Snapshot:
    """One version of a table."""

    table: Table
    schema: pa.Schema
    columns: list[str]  # for a searcher
    is_int8: bool  # codes that lancedb does not search
    has_text_index: bool

    def through_index(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Distance,
        filter: str | None,
        columns: list[str],
        refine: int | None,
        nprobes: int,
    ) -> pa.Table:
        """The `k` nearest rows with `_distance`; exact where the table has no index."""
        query = self._nearest(vector, k, metric, columns, refine, nprobes)
        if filter:
            # Rows that pass may lie in any part of the index; without this some would be missing.
            query.where(filter)
            query.maximum_nprobes(0)
        return call(rows_of, query)

    def through_index_at_once(
        self,
        vectors: NDArray[np.generic],
        k: int,
        metric: Distance,
        columns: list[str],
        refine: int | None,
        nprobes: int,
    ) -> list[pa.Table]:
        """The same for each of vectors [n, d], n > 0, in one call: 128 of them take a tenth of the
        processor time of 128 calls where 5,000 rows have no index."""
        query = self._nearest(vectors[0], k, metric, columns, refine, nprobes)
        for vector in vectors[1:]:
            query.add_query_vector(to_numbers(vector))
        rows = call(rows_of, query)
        if len(vectors) == 1:
            return [rows]
        numbers = from_numbers(rows["query_index"])
        order = np.lexsort((from_numbers(rows["_distance"]), numbers))
        rows = rows.drop_columns("query_index").take(to_numbers(order))
        ends = np.searchsorted(numbers[order], np.arange(len(vectors)), side="right").tolist()
        return [rows.slice(start, end - start) for start, end in itertools.pairwise([0, *ends])]

    def _nearest(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Distance,
        columns: list[str],
        refine: int | None,
        nprobes: int,
    ) -> Any:
        query: Any = self.table.query().nearest_to(to_numbers(vector))
        query.column(VECTOR)
        query.distance_type(metric)
        query.nprobes(nprobes)
        if refine is not None:
            query.refine_factor(refine)
        query.select_columns([*columns, "_distance"])
        query.limit(k)
        return query

    def by_text(self, text: str, k: int, filter: str | None, columns: list[str]) -> pa.Table:
        """The `k` rows that have words of `text`, by BM25 with `_score`; of equals by their id. A
        table without the index is read as a whole."""
        query = self._with_words(text, k, columns, filter)
        rows = call(rows_of, query)
        return rows.sort_by([("_score", "descending"), (TABLE_KEY, "ascending")])

    def _with_words(self, text: str, k: int, columns: list[str], filter: str | None) -> Any:
        # No query language: of a text with quotes, brackets or signs the words count.
        query: Any = self.table.query().nearest_to_text({"query": text, "columns": [TEXT]})
        if filter:
            query.where(filter)
        query.select_columns([*columns, "_score"])
        query.limit(k)
        return query

    def of_many(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Distance,
        filter: str | None,
        columns: list[str],
        only: Documents,
    ) -> pa.Table:
        """As `by_scan`, for bits."""
        query = self._nearest(vector, self._rows, metric, [DOCUMENT], None, 1)
        query.bypass_vector_index()
        if filter:
            query.where(filter)
        return self._first_of(query, k, columns, only, "_distance")

    def by_text_of_many(
        self, text: str, k: int, filter: str | None, columns: list[str], only: Documents
    ) -> pa.Table:
        """As `by_text`, of some documents."""
        query = self._with_words(text, self._rows, [DOCUMENT, TABLE_KEY], filter)
        return self._first_of(query, k, columns, only, "_score")

    @property
    def _rows(self) -> int:
        return max(1, call(self.table.count_rows, None))

    def _first_of(
        self, query: Any, k: int, columns: list[str], only: Documents, score: str
    ) -> pa.Table:
        query.with_row_id()
        rows = call(rows_of, query)
        rows = _of(rows, only)
        if score == "_score":
            rows = rows.sort_by([(score, "descending"), (TABLE_KEY, "ascending")])
        rows = rows.slice(0, k)
        return self._take(rows["_rowid"].to_numpy(), columns, score, rows[score].to_numpy())

    def _take(
        self, rows: NDArray[Any], columns: list[str], score: str, values: NDArray[Any]
    ) -> pa.Table:
        """The rows of these row ids, in this order, with a value for each."""
        take: Any = self.table.take_row_ids(rows.tolist())
        take.select_columns(columns)
        take.with_row_id()
        result = call(rows_of, take)  # in the order of the row ids
        place = np.argsort(result["_rowid"].to_numpy())[np.argsort(np.argsort(rows))]
        result = result.take(place).drop_columns("_rowid")
        return result.append_column(score, to_numbers(values))

    def by_scan(
        self,
        vector: NDArray[np.generic],
        k: int,
        filter: str | None,
        columns: list[str],
        only: Documents | None = None,
    ) -> pa.Table:
        """The same for codes of bytes or floats and a vector float[d], by the cosine; always exact.
        `only`: the rows of these documents.

        Codes of zeros match nothing. It holds in memory the rows it compares, and a distance and a
        number of each row.
        """
        query: Any = self.table.query()
        query.select_columns([VECTOR] if only is None else [VECTOR, DOCUMENT])
        query.with_row_id()
        if filter:
            query.where(filter)
        unit_vector = unit(np.asarray(vector, np.float32)[None])[0]
        distances, rows = call(_compare, query, unit_vector, only)
        if len(rows) > k:
            nearest = np.argpartition(distances, k - 1)[:k]
            distances, rows = distances[nearest], rows[nearest]
        order = np.lexsort((rows, distances))
        return self._take(rows[order], columns, "_distance", distances[order])


async def open_snapshot(
    folder: Path, name: str, version: int, session: Session | None = None
) -> Snapshot:
    table = await (await connect(address(folder), session=session)).open_table(name)
    await table.checkout(version)
    return await _snapshot_of(table)


async def open_in_memory(rows: pa.Table, language: str | None) -> Snapshot:
    """As a table with these rows; with a full-text index if the texts' language is given."""
    database = await connect("memory://")
    table = await database.create_table("rows", "create", rows.to_reader())
    if language is not None and rows.num_rows:
        await create_index(table, TEXT, text_config(language))
    return await _snapshot_of(table)


async def _snapshot_of(table: Table) -> Snapshot:
    schema = await table.schema()
    hidden = (VECTOR, RESCORING_VECTOR, *INTERNAL)
    columns = [column for column in schema.names if column not in hidden]
    is_int8 = VECTOR in schema.names and schema.field(VECTOR).type.value_type == pa.int8()
    has_text_index = any(index.columns == [TEXT] for index in await table.list_indices())
    return Snapshot(table, schema, columns, is_int8, has_text_index)


async def _compare(
    query: Any, vector: NDArray[np.float32], only: Documents | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cosine distance float32[n] and row number uint64[n] of all rows but those of zeros."""
    distances, rows = [np.empty(0, np.float32)], [np.empty(0, np.uint64)]
    async for batch in await query.execute(BATCH_ROWS, None):
        if only is not None:
            batch = _of(batch, only)
        codes = to_matrix(batch[VECTOR])
        for first, cosines in _cosines(codes, vector):
            matches = np.flatnonzero(np.isfinite(cosines))
            distances.append(1 - cosines[matches])
            rows.append(batch["_rowid"].to_numpy()[first + matches])
    return np.concatenate(distances), np.concatenate(rows)


def _of(rows: Rows, only: Documents) -> Rows:
    """The rows of some documents. Arrow would hash all of them again for each batch."""
    mask = [name in only for name in rows[DOCUMENT].to_pylist()]
    return rows.filter(pa.array(mask, pa.bool_()))


def _cosines(
    codes: NDArray[np.number[Any]], vector: NDArray[np.float32]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Cosines of codes [n, d] with a unit vector float32[d], each block with its first row.

    NaN for codes of zeros.
    """
    for first in range(0, len(codes), SCAN_ROWS):
        numbers = codes[first : first + SCAN_ROWS].astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", numbers, numbers))
        cosines = np.full_like(lengths, np.nan)
        yield first, np.divide(numbers @ vector, lengths, out=cosines, where=lengths > 0)
