"""CSV files, with comma, tab or another delimiter.

A quote opens only at the start of a cell, a doubled one stands for itself, a line break is `\\n`,
`\\r\\n` or a lone `\\r`, and an empty line is no record. A record with too few or too many cells is
rejected.

A quoted cell of several lines must be closed where a cell ends. If it is not, somebody forgot a
quote: its first line is rejected and reading goes on with the next line, so that one stray quote
costs one record and not the rest of the file.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import pyarrow as pa
from pydantic import field_validator

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, SourceFile
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.text import (
    MAX_RECORD_BYTES,
    Text,
    TextSource,
    list_suffixes,
    open_text,
)

_LIKELY_DELIMITERS = ";\t|,"
_LINE_END = rb"(?:\r\n|\n|\r(?=[^\n]))"  # at the end of a block, `\r` may be half of `\r\n`
_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
# Well quoted, even over several lines; quoted on one line with something after it; not quoted.
_CELL = _QUOTED + rb'(?=[D\r\n]|\Z)|"[^"\r\n]*+(?:""[^"\r\n]*+)*+"[^D\r\n]*+|(?!")[^D\r\n]*+'
_QUOTE = re.compile(_QUOTED)


class Record(NamedTuple):
    """`line` from 1; `data` without the line end; `cells` None if a quote is not closed."""

    line: int
    data: bytes
    cells: list[bytes] | None


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
        fields = Fields(self, file, log, text.raw, text.encoding)
        names: list[str] = []
        for record in Splitter(delimiter).records(text):
            line, data, cells = record
            if not names:
                names = self._header(record, text)
                positions = [names.index(column) for column in self.columns]
            elif cells is None:
                reason = "a quote opens on this line and is not closed where a cell ends"
                fields.reject(line, reason, data)
            elif len(cells) != len(names):
                fields.reject(line, f"expected {len(names)} columns, got {len(cells)}", data)
            else:
                yield from fields.append(line, [cells[at] for at in positions], data, len(data))
        if not names:  # a half-written file must not empty the store
            raise SourceError(
                f"{file.name}: the file is empty, it has no header. Write it whole and then rename "
                "it into place; for no records, leave the header in it."
            )
        yield from fields.flush()

    def _header(self, record: Record, text: Text) -> list[str]:
        """The column names. Raises SourceError if they are not to be read, or not those needed."""
        where = f"{text.file.name}:{record.line}"
        if record.cells is None:
            raise SourceError(f"{where}: a quote in the header is not closed. Close it.")
        try:
            names = [cell.decode() for cell in record.cells]
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{where}: the header is not valid {text.encoding}. Set source.encoding."
            ) from error
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
        return names


class Splitter:
    """The records of texts whose cells `delimiter`, one ASCII character, separates."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter.encode()
        escaped = re.escape(self._delimiter)
        cell = b"(?:" + _CELL.replace(b"D", escaped) + b")"
        self._cell = re.compile(b"(?:^|" + escaped + b")(" + cell + b")")
        self._record = re.compile(b"(" + cell + b"(?:" + escaped + cell + b")*+)" + _LINE_END)
        # A quoted cell with something after its closing quote; a stray only over several lines.
        self._stray = re.compile(
            b"(?:" + cell + escaped + b")*+(" + _QUOTED + b')(?=[^"\r\n' + escaped + b"])"
        )
        self._line = re.compile(rb"([^\r\n]*+)" + _LINE_END)

    def records(self, text: Text) -> Iterator[Record]:
        """Raises SourceError for a line longer than MAX_RECORD_BYTES."""
        line, rest = 1, b""
        for block in itertools.chain(text.blocks(), [None]):
            data, at = rest + (b"\n" if block is None else block), 0
            while at < len(data):
                record = self._record.match(data, at)
                if record is None and block is not None and self._may_go_on(data, at):
                    break
                match = record or self._line.match(data, at)
                if match is None:
                    raise SourceError(
                        f"{text.file.name}:{line}: the line is longer than "
                        f"{MAX_RECORD_BYTES >> 20} MiB. Is this a CSV file? Choose the source.kind "
                        "that reads it, or split the line."
                    )
                if match[1]:
                    yield Record(line, match[1], self._cells(match[1]) if record else None)
                line += len(match[0].splitlines())
                at = match.end()
            rest = data[at:]

    def _cells(self, record: bytes) -> list[bytes]:
        if b'"' not in record:
            return record.split(self._delimiter)
        return [_unquote(cell) for cell in self._cell.findall(record)]

    def _may_go_on(self, data: bytes, at: int) -> bool:
        """Whether the record that begins at `at` may end in the next block."""
        stray = self._stray.match(data, at)
        is_short = len(data) - at <= MAX_RECORD_BYTES
        return is_short and (stray is None or len(stray[1].splitlines()) == 1)


def _unquote(cell: bytes) -> bytes:
    quoted = _QUOTE.match(cell)
    if not quoted:
        return cell
    return quoted[0][1:-1].replace(b'""', b'"') + cell[quoted.end() :]
