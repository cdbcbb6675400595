"""Finds where CSV records begin and end, and on which line; Arrow parses their cells.

Arrow's reader reports neither the line nor the bytes of a record, and loses the whole block if a
quote is never closed. So blocks are cut here, between records, by the rules of Arrow's lexer: a
quote opens only at the start of a cell, a doubled one stands for itself, a line break is `\\n`,
`\\r\\n` or a lone `\\r`, and an empty line is no record.

A quoted cell of several lines must be closed where a cell ends. If it is not, somebody forgot a
quote: its first line is rejected and reading goes on with the next line, so that one stray quote
costs one record and not the rest of the file.
"""

import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding_pipelines.sources.text import MAX_RECORD_BYTES

Offsets = npt.NDArray[np.int64]

_LF, _CR, _QUOTE = b'\n\r"'
_LINE_END = rb"(?:\r\n|\n|\r(?=[^\n]))"  # at the end of a block, `\r` may be half of `\r\n`
_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
# Well quoted, even over several lines; quoted on one line with something after it; not quoted.
_CELL = _QUOTED + rb'(?=[D\r\n])|"[^"\r\n]*+(?:""[^"\r\n]*+)*+"[^D\r\n]*+|(?!")[^D\r\n]*+'


@dataclass(frozen=True)
class Records:
    """n whole records: record i is data[starts[i]:ends[i]], on line lines[i] (from 1).

    Only line ends and empty lines lie between them, so `data` can be parsed as a whole.
    """

    data: bytes
    starts: Offsets
    ends: Offsets
    lines: Offsets

    def record(self, at: int) -> bytes:
        return self.data[self.starts[at] : self.ends[at]]

    def without_first(self) -> "Records":
        cut = int(self.starts[1]) if len(self.starts) > 1 else len(self.data)
        starts, ends = self.starts[1:] - cut, self.ends[1:] - cut
        return Records(self.data[cut:], starts, ends, self.lines[1:])


@dataclass(frozen=True)
class Unclosed:
    """A line with a quote that is not closed where a cell ends; it is not among the records."""

    data: bytes
    line: int


class LongLineError(Exception):
    """A line is longer than MAX_RECORD_BYTES."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line} is longer than {MAX_RECORD_BYTES} bytes")
        self.line = line


def split(blocks: Iterable[bytes], delimiter: str) -> Iterator[Records | Unclosed]:
    """The records of a file in groups of about one block. Raises LongLineError."""
    cutter = _Cutter(delimiter)
    rest = b""
    for block in blocks:
        rest = yield from cutter.cut(rest + block, final=False)
    if rest:
        yield from cutter.cut(rest if rest.endswith(b"\n") else rest + b"\n", final=True)


class _Cutter:
    def __init__(self, delimiter: str) -> None:
        escaped = re.escape(delimiter.encode())
        cell = b"(?:" + _CELL.replace(b"D", escaped) + b")"
        self.delimiter = ord(delimiter)
        self.record = re.compile(b"(" + cell + b"(?:" + escaped + cell + b")*+)" + _LINE_END)
        # A quoted cell with something after its closing quote; a stray only over several lines.
        self.stray = re.compile(
            b"(?:" + cell + escaped + b")*+(" + _QUOTED + b')(?=[^"\r\n' + escaped + b"])"
        )
        self.line_end = re.compile(_LINE_END)
        self.line = 1  # of the next record

    def cut(self, data: bytes, final: bool) -> Generator[Records | Unclosed, None, bytes]:
        """Yield the whole records of `data`, which begins with one; return the rest."""
        records, stop = self._by_parity(data)
        if records is not None:
            yield records
            if not final and len(data) - stop <= MAX_RECORD_BYTES:
                return data[stop:]
        return (yield from self._by_cells(data, stop, final))

    def _by_parity(self, data: bytes) -> tuple[Records | None, int]:
        """The records, fast, if every quote opens at a cell's start and closes at its end.

        Then a line end ends a record if an even number of quotes stand before it. None if a quote
        stands elsewhere. The second value is where the records end.
        """
        codes = np.frombuffer(data, dtype=np.uint8)
        quotes = np.flatnonzero(codes == _QUOTE)
        if len(quotes) and not self._are_regular(codes, quotes):
            return None, 0
        breaks = np.flatnonzero(codes == _LF)
        if b"\r" in data:
            returns = np.flatnonzero(codes[:-1] == _CR)
            breaks = np.union1d(breaks, returns[codes[returns + 1] != _LF])
        which = np.flatnonzero(np.searchsorted(quotes, breaks) % 2 == 0)
        stops = breaks[which]
        starts = np.concatenate([[0], stops[:-1] + 1])[: len(stops)]
        lines = self.line + np.concatenate([[0], which[:-1] + 1])[: len(stops)]
        ends = stops - ((codes[stops] == _LF) & (codes[stops - 1] == _CR) & (stops > starts))
        is_record = ends > starts
        if not len(stops):
            return Records(b"", starts, ends, lines), 0
        self.line += int(which[-1]) + 1
        stop = int(stops[-1]) + 1
        return Records(data[:stop], starts[is_record], ends[is_record], lines[is_record]), stop

    def _are_regular(self, codes: npt.NDArray[np.uint8], quotes: Offsets) -> bool:
        limits = np.zeros(256, dtype=bool)
        limits[[_LF, _CR, _QUOTE, self.delimiter]] = True
        opening, closing = quotes[0::2], quotes[1::2]
        before = limits[codes[opening - 1]] | (opening == 0)
        after = limits[codes[(closing + 1) % len(codes)]] | (closing + 1 == len(codes))
        return bool(before.all() and after.all())

    def _by_cells(
        self, data: bytes, at: int, final: bool
    ) -> Generator[Records | Unclosed, None, bytes]:
        """Slower, for stray quotes: go cell by cell, and past a quote that is not closed."""
        first = at  # of the bytes since the last stray quote
        parts: list[bytes] = []  # of `data`, without the lines of stray quotes
        shift = -at  # from a place in `data` to one in the joined parts
        records: list[tuple[int, int, int]] = []
        unclosed: list[Unclosed] = []
        while at < len(data):
            if match := self.record.match(data, at):
                if match.end(1) > at:
                    records.append((at + shift, match.end(1) + shift, self.line))
                self.line += self._count_lines(data, at, match.end())
                at = match.end()
            elif final or len(data) - at > MAX_RECORD_BYTES or self._is_stray(data, at):
                line_end = self.line_end.search(data, at)
                if line_end is None:
                    raise LongLineError(self.line)
                parts.append(data[first:at])
                unclosed.append(Unclosed(data[at : line_end.start()], self.line))
                if not records:  # yield the header first, whole or not
                    yield unclosed.pop()
                self.line += 1
                shift -= line_end.end() - at
                at = first = line_end.end()
            else:
                break
        parts.append(data[first:at])
        starts, ends, lines = np.array(records, dtype=np.int64).reshape(-1, 3).T
        yield Records(b"".join(parts), starts, ends, lines)
        yield from unclosed
        return data[at:]

    def _is_stray(self, data: bytes, at: int) -> bool:
        match = self.stray.match(data, at)
        return match is not None and self._count_lines(data, match.start(1), match.end(1)) > 0

    def _count_lines(self, data: bytes, start: int, end: int) -> int:
        returns = data.count(b"\r", start, end)
        crlf = data.count(b"\r\n", start, end) if returns else 0
        return data.count(b"\n", start, end) + returns - crlf
