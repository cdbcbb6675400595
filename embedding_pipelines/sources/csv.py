"""CSV files (comma, tab or other delimiter), which Arrow parses block by block.

`csv_records.py` finds the records, so that each document has its line and each rejection its bytes.
A record with too few or too many cells is rejected, and so is one that quotes spoil, and the header
where it stands once more.
"""

import contextlib
import csv
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from pydantic import Field, ValidationInfo, field_validator, model_validator

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, Rejection, SourceFile
from embedding_pipelines.sources.columns import documents
from embedding_pipelines.sources.csv_records import (
    NOT_THE_END,
    SWALLOWED,
    Dialect,
    LongLineError,
    Misquoted,
    Records,
    borders,
    split,
    swallowing,
)
from embedding_pipelines.sources.parts import Border, Part
from embedding_pipelines.sources.text import (
    MAX_RECORD_BYTES,
    Text,
    TextSource,
    divide_text,
    list_suffixes,
    open_text,
)

_LIKELY_DELIMITERS = ";\t|,"
# The first line of a file for spreadsheets may name the delimiter.
_DELIMITER_LINE = re.compile(rb'"?sep=([\x01-\x7f])"?[ \t,;]*(?:\r\n|\n|\r|$)', re.IGNORECASE)
_DELIMITER_LINE_BYTES = 32
_NULL = rb"\N"  # how databases write that there is no value
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_CONTROLS = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class Csv(TextSource):
    """One document per record; the first line names the columns; `source_row` is the line.

    All are single ASCII characters. `delimiter`: by default what a first line `sep=;` says, else a
    tab in a `.tsv` file and else a comma; `quote`: null if quotes mean nothing; `escape`: what
    makes the next character stand for itself; behind a backslash, n, r and t are line ends and a
    tab, as databases write them. Records that begin with `comment` are none. `skip_rows`: lines
    before the header.
    """

    kind: Literal["csv"] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = list_suffixes(".csv", ".tsv")
    delimiter: str | None = None
    quote: str | None = '"'
    escape: str | None = None
    comment: str | None = None
    skip_rows: int = Field(0, ge=0)

    @field_validator("delimiter", "quote", "escape", "comment")
    @classmethod
    def _check_character(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and (len(value) != 1 or not value.isascii() or value in "\0\r\n"):
            verbs = {
                "delimiter": "separate cells",
                "quote": "quote cells",
                "comment": "begin a comment",
            }
            raise ValueError(
                f"{value!r} cannot {verbs.get(str(info.field_name), 'escape')}; use one ASCII "
                "character such as ';' or a tab"
            )
        return value

    @model_validator(mode="after")
    def _check_dialect(self) -> Self:
        characters = [self.delimiter, self.quote, self.escape, self.comment]
        for character, count in Counter(filter(None, characters)).items():
            if count > 1:
                raise ValueError(
                    f"{character!r} cannot separate cells, quote, escape and begin comments at "
                    "once; give delimiter, quote, escape and comment a character each"
                )
        return self

    def divide(self, file: SourceFile, part_bytes: int, log: ReadLog) -> list[SourceFile]:
        """See Source.divide. A part begins with a record behind the header; a file in which quotes
        stand where they should not, however far one reads, stays whole."""
        with _explained(file):
            return divide_text(file, self.encoding, part_bytes, log, self._borders)

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. A quote that is not closed costs the line that it stands on."""
        with _explained(file):
            yield from self._read(file, log)

    def _read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        text = open_text(file, self.encoding, log)
        table: _Table | None = None
        if file.part is None or file.part.is_first:
            dialect, skip_lines, blocks = self._dialect(text)
            groups = split(blocks, dialect, skip_lines)
        else:
            table = self._table_before(text, file.part, log)
            dialect = table.dialect
            groups = split(text.blocks(), dialect, line=file.part.row)
        for records in groups:
            if table is None:
                table, records = self._header(records, text, dialect, log)
            if isinstance(records, Misquoted):
                raw = text.raw(records.data)
                reason = records.reason + self._hint(records)
                log.reject(Rejection(file.name, records.line, reason, raw))
            elif table is not None and len(records.starts):
                yield from self._documents(records, table, log)
        if table is None:  # a half-written file must not empty the store
            raise SourceError(
                f"{file.name}: the file is empty, it has no header. Write it whole and then rename "
                "it into place; for no records, leave the header in it."
            )

    def _table_before(self, text: Text, part: Part, log: ReadLog) -> "_Table":
        """The table whose header stands before a part of a file. Raises SourceError if it is gone."""
        head = replace(part, start=part.text_start, end=part.start, row=1)
        before = replace(text, file=replace(text.file, part=head))
        dialect, skip_lines, blocks = self._dialect(before)
        for records in split(blocks, dialect, skip_lines):
            table, _ = self._header(records, text, dialect, log)
            if table is not None:
                return table
        raise SourceError(
            f"{text.file.name}: the header is gone. Write the file whole, then run again."
        )

    def _borders(self, text: Text) -> Iterator[Border]:
        dialect, skip_lines, blocks = self._dialect(text)
        at, line, has_header = text.skip, 1, False
        yield Border(at, line, at)
        for groups, size, line in borders(blocks, dialect, skip_lines):
            has_header = has_header or not all(map(_is_blank, groups))
            if size and has_header:
                at = text.skip + size
                yield Border(at, line, at)
        yield Border(text.file.size_bytes, line, text.file.size_bytes)

    def _dialect(self, text: Text) -> tuple[Dialect, int, Iterator[bytes]]:
        """How `text` is written, how many lines stand before its header, and its blocks."""
        blocks, head = text.blocks(), b""
        for block in blocks:
            head += block
            if len(head) > _DELIMITER_LINE_BYTES:
                break
        blocks = itertools.chain([head], blocks)
        suffixes = Path(text.file.name.lower()).suffixes[-2:]
        delimiter = "\t" if ".tsv" in suffixes else ","
        skip_lines = self.skip_rows
        if match := _DELIMITER_LINE.match(head):
            delimiter, skip_lines = match[1].decode(), max(1, skip_lines)
        delimiter = self.delimiter or delimiter
        return Dialect(delimiter, self.quote, self.escape, self.comment), skip_lines, blocks

    def _header(
        self, records: Records | Misquoted, text: Text, dialect: Dialect, log: ReadLog
    ) -> tuple["_Table | None", Records | Misquoted]:
        """The table and the records after its header; None while all lines are empty."""
        if isinstance(records, Misquoted):
            what = records.reason
            if what != NOT_THE_END:
                what = "a quote in the header is not closed"
            raise SourceError(
                f"{text.file.name}:{records.line}: {what}. Close it, or set source.quote."
            )
        if _is_blank(records):
            return None, records
        where = f"{text.file.name}:{records.lines[0]}"
        header = records.record(0)
        try:
            names = next(
                csv.reader(
                    [header.decode()],
                    delimiter=dialect.delimiter,
                    quotechar=dialect.quote,
                    quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
                    escapechar=dialect.escape,
                )
            )
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{where}: the header is not valid {text.encoding}. Set source.encoding."
            ) from error
        except csv.Error as error:
            raise SourceError(f"{where}: the header is not CSV ({error}). Correct it.") from error
        quote = dialect.quote or ""
        forms = {header}
        for side in ("", quote):  # other programs quote it in another way
            forms.add(dialect.delimiter.join(f"{side}{name}{side}" for name in names).encode())
        names = [name if name in self.columns else name.strip() for name in names]
        self._check(names, where, log)
        if self.id is not None:
            log.id_cell = dialect.delimiter, names.index(self.id)
        return _Table(text, dialect, frozenset(forms), names), records.without_first()

    def _hint(self, misquoted: Misquoted) -> str:
        if self.escape is None and b'\\"' in misquoted.data:
            return "; if a backslash escapes quotes in this file, set source.escape to it"
        return "; if quotes mean nothing in this file, set source.quote to null"

    def _check(self, names: list[str], where: str, log: ReadLog) -> None:
        count = Counter(names)
        for column in self.columns:
            if count[column] > 1:
                raise SourceError(
                    f"{where}: {count[column]} columns are named {column!r}. Rename all but one."
                )
        whole = names[0] if len(names) == 1 else ""
        likely = next((other for other in _LIKELY_DELIMITERS if other in whole), None)
        hint = f" Is the delimiter {likely!r}? Then set source.delimiter." if likely else ""
        if self.comment is None and "".join(names[:1]).startswith("#"):
            hint = " Is this line a comment? Then set source.comment to '#', or source.skip_rows."
        missing = {column for column in self.columns if not count[column]}
        self.check_columns(where, missing, names, log, hint)

    def _documents(
        self, records: Records, table: "_Table", log: ReadLog
    ) -> Iterator[pa.RecordBatch]:
        text, dialect, names = table.text, table.dialect, table.names

        def reject(line: int, reason: str, data: bytes) -> None:
            log.reject(Rejection(text.file.name, line, reason, text.raw(data)))

        headers, swallowed = table.headers(records), swallowing(records, dialect, len(names))
        for at in headers:
            reject(int(records.lines[at]), "repeats the header", records.record(at))
        for at in swallowed:
            first = int(records.lines[at])
            lines = re.split(rb"\r\n|\n|\r", records.record(at))
            reason = f"{SWALLOWED}, lines {first} to {first + len(lines) - 1}; if quotes mean "
            for line, data in enumerate(lines, start=first):
                reject(line, reason + "nothing in this file, set source.quote to null", data)
        records = records.without([*headers, *swallowed])
        present = [column for column in self.columns if column in names]
        positions = [names.index(column) for column in present]
        cells, ragged = table.parse(records, positions)
        for at, reason in ragged.items():
            reject(int(records.lines[at]), reason, records.record(at))
        regular = np.delete(np.arange(len(records.starts)), list(ragged))
        if cells.num_rows != len(regular):  # Arrow and `split` must agree on what a record is
            raise SourceError(
                f"{text.file.name}: lines {records.lines[0]} to {records.lines[-1]} hold "
                f"{len(regular)} records, but Arrow parsed {cells.num_rows}. "
                "Please report this file as a bug."
            )
        if len(regular):
            columns = dict.fromkeys(self.columns, pa.nulls(len(regular)))
            columns |= {
                name: _without_nulls(pa.concat_arrays(cells.column(str(at)).chunks))
                for name, at in zip(present, positions, strict=True)
            }
            yield from documents(
                self,
                text.file,
                columns,
                pa.array(records.lines[regular]),
                lambda at: text.raw(records.record(regular[at])),
                log,
                text.encoding,
            )


@dataclass(frozen=True)
class _Table:
    """A file whose header has been read."""

    text: Text
    dialect: Dialect
    forms: frozenset[bytes]  # of the header
    names: list[str]

    def headers(self, records: Records) -> list[int]:
        """The places of records that are the header once more, as where files were put together."""
        lengths = [len(form) for form in self.forms]
        places = np.flatnonzero(np.isin(records.ends - records.starts, lengths)).tolist()
        return [at for at in places if records.record(at) in self.forms]

    def parse(self, records: Records, positions: list[int]) -> tuple[pa.Table, dict[int, str]]:
        """The columns at `positions` of the regular records, as binary and named by their position,
        and why the others are ragged, by their place."""
        ragged: dict[int, str] = {}

        def reject(row: pa.csv.InvalidRow) -> str:
            counts = f"expected {row.expected_columns} columns, got {row.actual_columns}"
            ragged[row.number - 1] = counts
            return "skip"

        if _is_utf8(records.data):
            return self._arrow(records.data, positions, reject), ragged
        # Arrow hands over a ragged row as a string and fails where it is not UTF-8. As Latin-1
        # every row is one, which tells the ragged rows; the others are then parsed as they are.
        self._arrow(records.data.decode("latin-1").encode(), positions, reject)
        return self._arrow(records.without(ragged).data, positions, reject), ragged

    def _arrow(
        self, data: bytes, positions: list[int], reject: Callable[[pa.csv.InvalidRow], str]
    ) -> pa.Table:
        columns = [str(at) for at in positions]
        if not data:
            return pa.table({column: pa.array([], pa.binary()) for column in columns})
        if self.dialect.escape == "\\" and b"\\" in data:
            data = self._unescape(data)
        return pa.csv.read_csv(
            pa.BufferReader(data),
            read_options=pa.csv.ReadOptions(
                use_threads=False,  # with threads Arrow does not number the rows that it rejects
                block_size=len(data) + 1,
                column_names=[str(at) for at in range(len(self.names))],
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=self.dialect.delimiter,
                quote_char=self.dialect.quote or False,
                escape_char=self.dialect.escape or False,
                newlines_in_values=True,
                invalid_row_handler=reject,
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.binary()),
                check_utf8=False,
                strings_can_be_null=False,
            ),
        )

    def _unescape(self, data: bytes) -> bytes:
        """What databases write with a backslash, in a form that Arrow reads: of `\\n` and `\\N`
        it would make a letter."""
        delimiter = re.escape(self.dialect.delimiter.encode())
        null = rb"(^|[\r\n]|%s)\\N(?=%s|[\r\n]|$)" % (delimiter, delimiter)
        data = re.sub(null, rb"\1\\\\N", data)
        return _ESCAPE.sub(lambda match: b"\\" + _CONTROLS.get(match[1], match[1]), data)


def _is_blank(records: Records | Misquoted) -> bool:
    if isinstance(records, Misquoted):
        return False
    return not len(records.starts) or (len(records.starts) == 1 and not records.record(0).strip())


@contextlib.contextmanager
def _explained(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except LongLineError as error:
        raise SourceError(
            f"{file.name}:{error.line}: the line is longer than {MAX_RECORD_BYTES >> 20} MiB. "
            "Is this a CSV file? Choose the source.kind that reads it, or split the line."
        ) from error


def _without_nulls(cells: pa.Array) -> pa.Array:
    is_null = pc.equal(cells, pa.scalar(_NULL, pa.binary()))
    if not pc.any(is_null).as_py():
        return cells
    return pc.if_else(is_null, pa.scalar(None, pa.binary()), cells)


def _is_utf8(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False
