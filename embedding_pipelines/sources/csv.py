"""Comma (or tab, or other) separated files, parsed by Arrow block by block.

Which bytes are a record is settled in `csv_records.py`, so that each document has its line and each
refused record its bytes. A record with too few or too many cells is refused.
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
    COMPRESSED,
    MAX_RECORD_BYTES,
    Text,
    TextSource,
    open_text,
)

_LIKELY_DELIMITERS = ";\t|,"


class Csv(TextSource):
    """One document per record; the first line names the columns; `source_row` is the line.

    `delimiter`: one ASCII character; by default a tab in a `.tsv` file and else a comma.
    """

    kind: Literal["csv"] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = tuple(
        format + end for format in (".csv", ".tsv") for end in ("", *COMPRESSED)
    )
    delimiter: str | None = None

    @field_validator("delimiter")
    @classmethod
    def _is_one_character(cls, value: str | None) -> str | None:
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
            for found in split(text.blocks(), delimiter):
                if names is None:
                    names, found = self._header(found, text, delimiter)
                if isinstance(found, Unclosed):
                    reason = "a quote opens on this line and is not closed where a cell ends"
                    log.reject(Rejection(file.name, found.line, reason, text.raw(found.data)))
                elif names is not None and len(found.starts):
                    yield from self._documents(found, names, text, delimiter, log)
        except LongLineError as error:
            raise SourceError(
                f"{file.name}:{error.line}: the line is longer than {MAX_RECORD_BYTES >> 20} MiB. "
                "Is this a CSV file? Choose the source.kind that reads it, or split the line."
            ) from error
        if names is None:  # a writer that was caught in between must not empty the store
            raise SourceError(
                f"{file.name}: the file is empty, it has no header. Write it whole and then rename it into place; "
                "for no records, leave the header in it."
            )

    def _header(
        self, found: Records | Unclosed, text: Text, delimiter: str
    ) -> tuple[list[str] | None, Records | Unclosed]:
        """Column names and what follows them; None while there were only empty lines."""
        if isinstance(found, Unclosed):
            raise SourceError(
                f"{text.file.name}:{found.line}: a quote in the header is not closed. Close it."
            )
        if not len(found.starts):
            return None, found
        line = int(found.lines[0])
        header = found.data[found.starts[0] : found.ends[0]]
        try:
            names = next(csv.reader([header.decode()], delimiter=delimiter))
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{text.file.name}:{line}: the header is not valid {text.encoding}. Set source.encoding."
            ) from error
        except csv.Error as error:
            raise SourceError(
                f"{text.file.name}:{line}: the header is not CSV ({error}). Mend it."
            ) from error
        self._check(names, f"{text.file.name}:{line}", delimiter)
        cut = int(found.starts[1]) if len(found.starts) > 1 else len(found.data)
        return names, Records(
            found.data[cut:], found.starts[1:] - cut, found.ends[1:] - cut, found.lines[1:]
        )

    def _check(self, names: list[str], where: str, delimiter: str) -> None:
        count = Counter(names)
        for column in self.columns:
            if not count[column]:
                likely = [
                    other for other in _LIKELY_DELIMITERS if len(names) == 1 and other in names[0]
                ]
                hint = (
                    f" Is the delimiter {likely[0]!r}? Then set source.delimiter." if likely else ""
                )
                raise self.missing(where, column, names, hint)
            if count[column] > 1:
                raise SourceError(
                    f"{where}: {count[column]} columns are named {column!r}. Rename all but one."
                )

    def _documents(
        self, found: Records, names: list[str], text: Text, delimiter: str, log: ReadLog
    ) -> Iterator[pa.RecordBatch]:
        def raw(at: int) -> bytes:
            return text.raw(found.data[found.starts[at] : found.ends[at]])

        ragged: dict[int, str] = {}

        def refuse(row: pa.csv.InvalidRow) -> str:
            ragged[row.number - 1] = (
                f"expected {row.expected_columns} columns, got {row.actual_columns}"
            )
            return "skip"

        wanted = [names.index(column) for column in self.columns]
        if _is_utf8(found.data):
            table = _parse(found.data, delimiter, len(names), wanted, refuse)
        else:
            # Arrow hands over a ragged row as a string and fails where it is not UTF-8. As Latin-1
            # every row is one, which tells the ragged rows; the others are then parsed as they are.
            _parse(found.data.decode("latin-1").encode(), delimiter, len(names), wanted, refuse)
            regular = b"".join(line for at, line in enumerate(_lines(found)) if at not in ragged)
            table = _parse(regular, delimiter, len(names), wanted, refuse) if regular else None
        for at, reason in ragged.items():
            log.reject(Rejection(text.file.name, int(found.lines[at]), reason, raw(at)))
        kept = np.delete(np.arange(len(found.starts)), list(ragged))
        if (table.num_rows if table else 0) != len(
            kept
        ):  # Arrow and `split` must agree on what a record is
            raise SourceError(
                f"{text.file.name}: lines {found.lines[0]} to {found.lines[-1]} hold {len(kept)} records, "
                f"but not as many were parsed. Please report this file as a bug."
            )
        if table and len(kept):
            values = {
                name: _array(table.column(str(at)))
                for name, at in zip(self.columns, wanted, strict=True)
            }
            rows = pa.array(found.lines[kept])
            yield from documents(
                self, text.file, values, rows, lambda at: raw(kept[at]), log, text.encoding
            )


def _parse(
    data: bytes,
    delimiter: str,
    width: int,
    wanted: list[int],
    refuse: Callable[[pa.csv.InvalidRow], str],
) -> pa.Table:
    """The wanted of `width` columns as binary; a column is named by its position."""
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(
            use_threads=False,  # otherwise Arrow does not number the rows that it refuses
            block_size=len(data) + 1,
            column_names=[str(at) for at in range(width)],
        ),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=[str(at) for at in wanted],
            column_types={str(at): pa.binary() for at in wanted},
            check_utf8=False,
            strings_can_be_null=False,
        ),
    )


def _lines(found: Records) -> Iterator[bytes]:
    """Each record with a line end."""
    for start, end in zip(found.starts, found.ends, strict=True):
        yield found.data[start:end] + b"\n"


def _is_utf8(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks)
