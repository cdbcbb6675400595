"""Parquet files: reads the columns that the pipeline names, some thousand rows at a time."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import FileSource, ReadLog, SourceFile
from embedding_pipelines.sources.columns import BATCH_BYTES, BATCH_ROWS, documents
from embedding_pipelines.sources.inputs import explain_errors
from embedding_pipelines.sources.parts import Border, parts_between
from embedding_pipelines.sources.text import POINTER, POINTER_REMEDY
from embedding_pipelines.sources.values import Column, Reasons

_BUFFER_BYTES = 2**20  # column chunks are read through a buffer of this size, not as a whole
_WHOLE_BYTES = (
    16 * 2**20
)  # of a file up to which they are: a damaged page may claim 2 GB of a buffer


class Parquet(FileSource):
    """One document per row; `source_row` is the row's number in the file, from 1."""

    kind: Literal["parquet"] = "parquet"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    def divide(self, file: SourceFile, part_bytes: int, log: ReadLog) -> list[SourceFile]:
        """See Source.divide. A part begins with a row group."""
        if file.size_bytes <= part_bytes:
            return [file]
        with _explained(file), _open(file) as table:
            parts = list(parts_between(_borders(table.metadata), part_bytes))
        return [replace(file, part=part) for part in parts] if len(parts) > 1 else [file]

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. Raises SourceError for a damaged file or a column that is no text."""
        with _explained(file), _open(file) as table:
            empty = table.schema_arrow.empty_table()
            paths = [path for path in self.columns if self._has(empty, path, file)]
            lacking = set(self.columns) - set(paths)
            self.check_columns(file.name, lacking, empty.column_names, log)
            first = file.part.row if file.part else 1
            for batch, fine in self._batches(file, table, paths):
                rows = pa.array(range(first, first + batch.num_rows), pa.int64())
                first += batch.num_rows
                values = {path: column_at(batch, path) for path in paths}
                values |= {path: pa.nulls(batch.num_rows) for path in lacking}

                def raw(at: int, batch: pa.RecordBatch = batch) -> bytes:
                    names, row = batch.schema.names, batch.slice(at, 1)
                    cells = [shown(row.column(number)[0]) for number in range(len(names))]
                    return json.dumps(dict(zip(names, cells, strict=True)), default=repr).encode()

                yield from documents(self, file, values, rows, raw, log, reasons=fine)

    def _has(self, empty: pa.Table, path: str, file: SourceFile) -> bool:
        """Whether there is a column at this path. Raises SourceError if it is twice there, or holds
        no text."""
        names = empty.column_names
        root = path if path in names else path.split(".")[0]
        if names.count(root) > 1:
            raise SourceError(
                f"{file.name}: {names.count(root)} columns are named {root!r}. Rename all but one."
            )
        try:
            kind = column_at(empty, path).type
        except KeyError:
            return False
        except pa.ArrowException as error:
            if "Multiple matches" not in str(error):
                return False
            raise SourceError(
                f"{file.name}: more than one field is named {path!r}. Rename all but one."
            ) from error
        declared = self.metadata.get(path)
        is_list = pa.types.is_list(kind) and not pa.types.is_nested(kind.value_type)
        fits = not pa.types.is_nested(kind) or (
            is_list and path != self.id and declared in (None, "list[string]")
        )
        if not fits:
            raise SourceError(
                f"{file.name}: column {path!r} is {kind}, not text or a number. Name a field "
                "of it, e.g. a.b, or declare a list in source.metadata as list[string]."
            )
        return True

    def _batches(
        self, file: SourceFile, table: pq.ParquetFile, paths: list[str]
    ) -> Iterator[tuple[pa.RecordBatch, Reasons]]:
        """The rows of the columns at these paths; of each batch also which rows are rejected for
        nanoseconds that the old type of times (INT96) has and a timestamp does not hold."""
        options: dict[str, Any] = {
            "batch_size": _batch_rows(table),
            "use_threads": False,
            "row_groups": range(file.part.start, file.part.end) if file.part else None,
        }
        batches = table.iter_batches(columns=paths, **options)
        is_old = {
            column.path for column in table.schema if column.physical_type == "INT96"
        }.intersection(paths)
        if not is_old or self.nanoseconds == "cut":
            yield from ((batch, {}) for batch in batches)
            return
        with _open(file, "ns") as exact:
            others = exact.iter_batches(columns=sorted(is_old), **options)
            for batch, other in zip(batches, others, strict=True):
                reasons: Reasons = {}
                for path in sorted(is_old):
                    reasons |= _nanoseconds(path, column_at(batch, path), column_at(other, path))
                yield batch, reasons


def _open(file: SourceFile, unit: str = "us") -> pq.ParquetFile:
    """unit: of INT96. Nanoseconds would make other times of those before 1678 and after 2262."""
    return pq.ParquetFile(
        file.path,
        buffer_size=_BUFFER_BYTES if file.size_bytes > _WHOLE_BYTES else 0,
        pre_buffer=False,
        coerce_int96_timestamp_unit=unit,
        page_checksum_verification=True,
    )


@contextlib.contextmanager
def _explained(file: SourceFile) -> Iterator[None]:
    """SourceError for whatever the bytes of a damaged file make Arrow raise."""
    damage = "not a whole Parquet file"
    with explain_errors(file, damage):
        try:
            yield
        except (
            pa.ArrowException,
            UnicodeDecodeError,
            MemoryError,
            OverflowError,
            OSError,
        ) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            if _is_pointer(file):
                raise SourceError(f"{file.name}: the file {POINTER_REMEDY}.") from error
            problem = " ".join(str(error).split())
            raise SourceError(
                f"{file.name}: {damage} ({problem}). Put a whole copy in its place."
            ) from error


def _nanoseconds(path: str, micros: pa.Array, nanos: pa.Array) -> Reasons:
    """The rows whose time in nanoseconds is right and not a whole number of microseconds."""
    coarse, exact = (
        pc.fill_null(pc.cast(times, pa.int64()), 0).to_numpy(zero_copy_only=False)
        for times in (micros, nanos)
    )
    whole, rest = np.divmod(exact, 1000)
    column = Column(path)
    texts = pc.cast(nanos, pa.string())
    rows = np.flatnonzero((whole == coarse) & (rest != 0)).tolist()
    return {at: column.too_fine(texts[at].as_py()) for at in rows}


def _is_pointer(file: SourceFile) -> bool:
    with contextlib.suppress(OSError), file.path.open("rb") as stream:
        return stream.read(len(POINTER)) == POINTER
    return False


def column_at(rows: pa.RecordBatch | pa.Table, path: str) -> pa.Array | pa.ChunkedArray:
    """The field at a path, or the column whose name holds the dots."""
    if path in rows.schema.names:
        return rows.column(path)
    name, *rest = path.split(".")
    return pc.struct_field(rows.column(name), rest)


def shown(value: pa.Scalar) -> Any:
    """A value as JSON has it, or as text."""
    with contextlib.suppress(ValueError, OverflowError, KeyError):  # KeyError: no such time zone
        if pa.types.is_temporal(value.type):
            return str(getattr(value, "value", None))
        return value.as_py()
    with contextlib.suppress(AttributeError):
        return value.as_buffer().to_pybytes().decode("utf-8", "replace")
    return f"{value.type}, which cannot be shown"


def _borders(metadata: pq.FileMetaData) -> Iterator[Border]:
    """Behind each row group, and before the first."""
    row, size_bytes = 1, 0
    yield Border(0, row, size_bytes)
    for at in range(metadata.num_row_groups):
        group = metadata.row_group(at)
        row, size_bytes = row + group.num_rows, size_bytes + group.total_byte_size
        yield Border(at + 1, row, size_bytes)


def _batch_rows(file: pq.ParquetFile) -> int:
    """Rows that hold at most about BATCH_BYTES in the row group with the longest rows.

    All columns count, for pyarrow 26 ends the process when it is asked for the size of one whose
    statistics are damaged.
    """
    groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
    longest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1, longest))))
