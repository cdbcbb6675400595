"""One version of a LanceDB table as searches use it: through its index, or by an exact scan of int8
codes.

LanceDB 0.40 neither searches nor indexes int8 columns (it makes each query float32, and Lance
refuses to compare the two), and it compresses no vectors. One byte a number on disk is therefore
had by a column that is read and compared here. Measured by turns on 100,000 vectors of captions, k
= 10, two busy cores: 384 int8 codes p50 98 ms (least 57), 128 of them 56 (30); LanceDB's own scan
of 384 float32 195 (102), of float16 262 (140); its `sq` index 24 (12).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.errors import StoreError
from embedding_pipelines.schemas import RESCORING_VECTOR, VECTOR
from embedding_pipelines.stores._lance import lancedb, named, short, wait
from embedding_pipelines.stores.base import Metric
from embedding_pipelines.vectors import to_matrix, unit

if TYPE_CHECKING:
    from lancedb.query import AsyncQueryBase
    from lancedb.table import AsyncTable

INTERNAL = ("partition", "chunk_digest")  # serve the update, say nothing to a searcher
BATCH_ROWS = (
    16_384  # that are read at a time: 100,000 x 128 codes take 21 ms so, 65 by lancedb's 1,024
)
SCAN_ROWS = 512  # that are compared at a time: 512 x 384 float32 stay in a processor's cache


@dataclass(frozen=True)
class Searched:
    """Of lancedb's async side: its sync side waits for its own loop five times a search, twice of
    it for the schema."""

    table: AsyncTable
    columns: list[str]  # that a searcher is given
    scanned: bool  # whether the vectors are int8 codes, which lancedb does not search

    def through_index(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Metric,
        filter: str | None,
        columns: list[str],
        refine: int | None,
        nprobes: int,
    ) -> pa.Table:
        """The `k` nearest rows with `_distance`; exact where the table has no index."""
        query = (
            self.table.query()
            .nearest_to(vector)
            .column(VECTOR)
            .distance_type(metric)
            .nprobes(nprobes)
        )
        if refine is not None:
            query = query.refine_factor(refine)
        if filter:
            # What passes may lie in any partition: with some of them alone, rows would be missing.
            query = query.where(filter).maximum_nprobes(0)
        return wait(query.select([*columns, "_distance"]).limit(k).to_arrow())

    def by_scan(
        self, vector: NDArray[np.generic], k: int, filter: str | None, columns: list[str]
    ) -> pa.Table:
        """The same for int8 codes and a vector float[d] that they are compared with by the cosine;
        always exact.

        Codes of zeros match nothing. In memory are the rows that are compared and a distance and a
        number of each row.
        """
        asked = np.asarray(vector, np.float32)
        query = self.table.query().select([VECTOR]).with_row_id()
        distances, rows = wait(
            _compared(query.where(filter) if filter else query, unit(asked[None])[0])
        )
        if len(rows) > k:
            nearest = np.argpartition(distances, k - 1)[:k]
            distances, rows = distances[nearest], rows[nearest]
        order = np.lexsort((rows, distances))
        distances, rows = distances[order], rows[order]
        taken = wait(
            self.table.take_row_ids(rows.tolist()).select(columns).with_row_id().to_arrow()
        )
        place = np.argsort(taken["_rowid"].to_numpy())[np.argsort(np.argsort(rows))]
        return (
            taken.take(place).drop_columns("_rowid").append_column("_distance", pa.array(distances))
        )


async def searched(folder: Path, name: str, version: int) -> Searched:
    table = await (await lancedb().connect_async(folder)).open_table(name)
    await table.checkout(version)
    schema = await table.schema()
    columns = [
        column for column in schema.names if column not in (VECTOR, RESCORING_VECTOR, *INTERNAL)
    ]
    return Searched(table, columns, schema.field(VECTOR).type.value_type == pa.int8())


def checked_filter(filter: str | None) -> None:
    if filter and ";" in re.sub(r"'[^']*'", "", filter):
        raise StoreError(f"The filter {filter!r} holds a ';'. Write one SQL condition.")


def filter_error(filter: str, columns: list[str], error: Exception) -> StoreError:
    return StoreError(
        f"The filter {filter!r} cannot be used: {short(error)} "
        f"Write a SQL condition on {', '.join(map(named, columns))}, e.g. \"{named(columns[-1])} = 'x'\"."
    )


async def _compared(
    query: AsyncQueryBase, asked: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cosine distance float32[n] and row number uint64[n] of all rows but those of zeros."""
    distances, rows = [np.empty(0, np.float32)], [np.empty(0, np.uint64)]
    async for batch in await query.to_batches(max_batch_length=BATCH_ROWS):
        codes = to_matrix(batch[VECTOR])
        for first, near in _cosines(codes, asked):
            matched = np.flatnonzero(np.isfinite(near))
            distances.append(1 - near[matched])
            rows.append(batch["_rowid"].to_numpy()[first + matched])
    return np.concatenate(distances), np.concatenate(rows)


def _cosines(
    codes: NDArray[np.int8], asked: NDArray[np.float32]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Cosines of int8[n, d] with a unit vector float32[d], block by block with the first row; NaN
    for zeros."""
    for first in range(0, len(codes), SCAN_ROWS):
        numbers = codes[first : first + SCAN_ROWS].astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", numbers, numbers))
        near = np.full_like(lengths, np.nan)
        yield first, np.divide(numbers @ asked, lengths, out=near, where=lengths > 0)
