"""Parquet files: reads the columns that the pipeline names, some thousand rows at a time."""

import json
from collections.abc import Iterator
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, Source, SourceFile
from embedding_pipelines.sources.columns import BATCH_BYTES, BATCH_ROWS, documents
from embedding_pipelines.sources.paths import explain_errors

_BUFFER_BYTES = 2**20  # column chunks are read through a buffer of this size, not as a whole


class Parquet(Source):
    """One document per row; `source_row` is the row's number in the file, from 1."""

    kind: Literal["parquet"] = "parquet"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. Raises SourceError for a damaged file or a column that is no text."""
        with (
            explain_errors(file, "not a whole Parquet file"),
            pq.ParquetFile(file.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table,
        ):
            self._check(table.schema_arrow.empty_table(), file)
            first = 1
            size, columns = _batch_rows(table, self.columns), list(self.columns)
            for batch in table.iter_batches(batch_size=size, columns=columns, use_threads=False):
                rows = pa.array(range(first, first + batch.num_rows), pa.int64())
                first += batch.num_rows
                values = {path: _column(batch, path) for path in self.columns}

                def raw(at: int, batch: pa.RecordBatch = batch) -> bytes:
                    return json.dumps(batch.slice(at, 1).to_pylist()[0], default=repr).encode()

                yield from documents(self, file, values, rows, raw, log)

    def _check(self, empty: pa.Table, file: SourceFile) -> None:
        for path in self.columns:
            try:
                kind = _column(empty, path).type
            except (KeyError, pa.ArrowException) as error:
                raise self.missing_column_error(file.name, path, empty.column_names) from error
            if pa.types.is_nested(kind) and self.metadata.get(path) != "list[string]":
                raise SourceError(
                    f"{file.name}: column {path!r} is {kind}, not text or a number. Name a field "
                    "of it, e.g. a.b, or declare a list in source.metadata as list[string]."
                )


def _column(rows: pa.RecordBatch | pa.Table, path: str) -> pa.Array | pa.ChunkedArray:
    """The field at a path, or the column whose name holds the dots."""
    if path in rows.column_names:
        return rows.column(path)
    name, *rest = path.split(".")
    return pc.struct_field(rows.column(name), rest)


def _batch_rows(file: pq.ParquetFile, columns: tuple[str, ...]) -> int:
    """Rows that hold about BATCH_BYTES in the row group with the longest rows."""
    prefixes = tuple(column + "." for column in columns)
    longest = 1.0
    for at in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(at)
        chunks = [group.column(number) for number in range(group.num_columns)]
        column_chunks = [
            chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(prefixes)
        ]
        size = sum(chunk.total_uncompressed_size for chunk in column_chunks)
        longest = max(longest, size / max(1, group.num_rows))
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / longest)))
