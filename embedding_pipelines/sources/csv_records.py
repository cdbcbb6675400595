"""Cuts CSV into records, each with its line, its bytes and its cells.

A quote opens only at the start of a cell, a doubled one stands for itself, a line break is `\\n`,
`\\r\\n` or a lone `\\r`, and an empty line is no record.

A quoted cell of several lines must be closed where a cell ends. If it is not, somebody forgot a
quote: its first line is a record without cells and reading goes on with the next line, so that one
stray quote costs one record and not the rest of the file.
"""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.text import MAX_RECORD_BYTES, Text

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


class Splitter:
    """The records of texts whose cells `delimiter`, one ASCII character, separates."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter.encode()
        escaped = re.escape(self._delimiter)
        cell = b"(?:" + _CELL.replace(b"D", escaped) + b")"
        self._cell = re.compile(b"(?:^|" + escaped + b")(" + cell + b")")
        self._record = re.compile(b"(" + cell + b"(?:" + escaped + cell + b")*+)" + _LINE_END)
        # A quoted cell with something after its closing quote; a stray only over several lines.
        self._quoted = re.compile(
            b"(?:" + cell + escaped + b")*+(" + _QUOTED + b')(?=[^"\r\n' + escaped + b"])"
        )
        self._line = re.compile(rb"([^\r\n]*+)" + _LINE_END)

    def records(self, text: Text) -> Iterator[Record]:
        """Raises SourceError for a line longer than MAX_RECORD_BYTES."""
        line, rest = 1, b""
        for block in itertools.chain(text.blocks(), [None]):
            data, at = rest + (b"\n" if block is None else block), 0
            while at < len(data):
                match = self._record.match(data, at)
                is_closed = match is not None
                if match is None:
                    is_cut = block is not None and len(data) - at <= MAX_RECORD_BYTES
                    if is_cut and not self._is_stray(data, at):
                        break  # the rest of the record follows
                    match = self._line.match(data, at)
                    if match is None:
                        raise self._long_line_error(text, line)
                if match[1]:
                    yield Record(line, match[1], self._cells(match[1]) if is_closed else None)
                line += len(match[0].splitlines())
                at = match.end()
            rest = data[at:]

    def _cells(self, record: bytes) -> list[bytes]:
        if b'"' not in record:
            return record.split(self._delimiter)
        return [_unquote(cell) for cell in self._cell.findall(record)]

    def _is_stray(self, data: bytes, at: int) -> bool:
        match = self._quoted.match(data, at)
        return match is not None and len(match[1].splitlines()) > 1

    def _long_line_error(self, text: Text, line: int) -> SourceError:
        return SourceError(
            f"{text.file.name}:{line}: the line is longer than {MAX_RECORD_BYTES >> 20} MiB. "
            "Is this a CSV file? Choose the source.kind that reads it, or split the line."
        )


def _unquote(cell: bytes) -> bytes:
    quoted = _QUOTE.match(cell)
    if not quoted:
        return cell
    return quoted[0][1:-1].replace(b'""', b'"') + cell[quoted.end() :]
