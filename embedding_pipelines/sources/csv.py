"""CSV files (comma, tab or other delimiter), which Arrow parses block by block.

`csv_records.py` finds the records, so that each document has its line and each rejection its bytes.
A record with too few or too many cells is rejected.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
from pydantic import field_validator

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, Rejection, SourceFile
from embedding_pipelines.sources.columns import documents
from embedding_pipelines.sources.csv_records import LongLineError, Records, Unclosed, split
from embedding_pipelines.sources.text import (
    MAX_RECORD_BYTES,
    Text,
    TextSource,
    list_suffixes,
    open_text,
)

_LIKELY_DELIMITERS = ";\t|,"


class Csv(TextSource):
    """One document per record; the first line names the columns; `source_row` is the line.

    `delimiter`: one ASCII character; by default a tab in a `.tsv` file and else a comma.
    """

    kind: Literal["csv"] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = list_suffixes(".csv", ".tsv")
    delimiter: str | None = None

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or not value.isascii() or value in '"\r\n'):
            raise ValueError(
                f"{value!r} cannot separate cells; use one ASCII character such as ';' or a tab"
            )
        return value

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. A quote that is not closed costs the line that it stands on."""
        text = open_text(file, self.encoding, log)
        delimiter = self.delimiter or ("\t" if ".tsv" in file.path.suffixes[-2:] else ",")
        names: list[str] | None = None
        try:
            for records in split(text.blocks(), delimiter):
                if names is None:
                    names, records = self._header(records, text, delimiter)
                if isinstance(records, Unclosed):
                    reason = "a quote opens on this line and is not closed where a cell ends"
                    raw = text.raw(records.data)
                    log.reject(Rejection(file.name, records.line, reason, raw))
                elif names is not None and len(records.starts):
                    yield from self._documents(records, names, text, delimiter, log)
        except LongLineError as error:
            raise SourceError(
                f"{file.name}:{error.line}: the line is longer than {MAX_RECORD_BYTES >> 20} MiB. "
                "Is this a CSV file? Choose the source.kind that reads it, or split the line."
            ) from error
        if names is None:  # a half-written file must not empty the store
            raise SourceError(
                f"{file.name}: the file is empty, it has no header. Write it whole and then rename "
                "it into place; for no records, leave the header in it."
            )

    def _header(
        self, records: Records | Unclosed, text: Text, delimiter: str
    ) -> tuple[list[str] | None, Records | Unclosed]:
        """Column names and the records after them; None while all lines are empty."""
        if isinstance(records, Unclosed):
            raise SourceError(
                f"{text.file.name}:{records.line}: a quote in the header is not closed. Close it."
            )
        if not len(records.starts):
            return None, records
        where = f"{text.file.name}:{records.lines[0]}"
        try:
            header = records.record(0).decode()
            names = next(csv.reader([header], delimiter=delimiter))
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{where}: the header is not valid {text.encoding}. Set source.encoding."
            ) from error
        except csv.Error as error:
            raise SourceError(f"{where}: the header is not CSV ({error}). Correct it.") from error
        self._check(names, where, delimiter)
        return names, records.without_first()

    def _check(self, names: list[str], where: str, delimiter: str) -> None:
        count = Counter(names)
        for column in self.columns:
            if count[column] > 1:
                raise SourceError(
                    f"{where}: {count[column]} columns are named {column!r}. Rename all but one."
                )
            if not count[column]:
                whole = names[0] if len(names) == 1 else ""
                likely = next((other for other in _LIKELY_DELIMITERS if other in whole), None)
                hint = f" Is the delimiter {likely!r}? Then set source.delimiter." if likely else ""
                raise self.missing_column_error(where, column, names, hint)

    def _documents(
        self, records: Records, names: list[str], text: Text, delimiter: str, log: ReadLog
    ) -> Iterator[pa.RecordBatch]:
        def raw(at: int) -> bytes:
            return text.raw(records.record(at))

        ragged: dict[int, str] = {}

        def reject(row: pa.csv.InvalidRow) -> str:
            counts = f"expected {row.expected_columns} columns, got {row.actual_columns}"
            ragged[row.number - 1] = counts
            return "skip"

        total = len(records.starts)
        positions = [names.index(column) for column in self.columns]
        if _is_utf8(records.data):
            table = _parse(records.data, delimiter, len(names), positions, reject)
        else:
            # Arrow hands over a ragged row as a string and fails where it is not UTF-8. As Latin-1
            # every row is one, which tells the ragged rows; the others are then parsed as they are.
            latin = records.data.decode("latin-1").encode()
            _parse(latin, delimiter, len(names), positions, reject)
            lines = [records.record(at) + b"\n" for at in range(total) if at not in ragged]
            table = _parse(b"".join(lines), delimiter, len(names), positions, reject)
        for at, reason in ragged.items():
            log.reject(Rejection(text.file.name, int(records.lines[at]), reason, raw(at)))
        regular = np.delete(np.arange(total), list(ragged))
        if table.num_rows != len(regular):  # Arrow and `split` must agree on what a record is
            raise SourceError(
                f"{text.file.name}: lines {records.lines[0]} to {records.lines[-1]} hold "
                f"{len(regular)} records, but Arrow parsed {table.num_rows}. "
                "Please report this file as a bug."
            )
        if len(regular):
            cells = {
                name: pa.concat_arrays(table.column(str(at)).chunks)
                for name, at in zip(self.columns, positions, strict=True)
            }
            rows = pa.array(records.lines[regular])
            yield from documents(
                self, text.file, cells, rows, lambda at: raw(regular[at]), log, text.encoding
            )


def _parse(
    data: bytes,
    delimiter: str,
    width: int,
    positions: list[int],
    reject: Callable[[pa.csv.InvalidRow], str],
) -> pa.Table:
    """Some of `width` columns as binary; a column is named by its position."""
    columns = [str(at) for at in positions]
    if not data:
        return pa.table({column: pa.array([], pa.binary()) for column in columns})
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(
            use_threads=False,  # with threads Arrow does not number the rows that it rejects
            block_size=len(data) + 1,
            column_names=[str(at) for at in range(width)],
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=reject
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.binary()),
            check_utf8=False,
            strings_can_be_null=False,
        ),
    )


def _is_utf8(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False
