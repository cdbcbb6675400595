"""Finds where CSV records begin and end, and on which line; Arrow parses their cells.

Arrow's reader reports neither the line nor the bytes of a record, and loses the whole block if a
quote is never closed. So blocks are cut here, between records, by the rules of Arrow's lexer: a
quote opens only at the start of a cell, a doubled one stands for itself, and so does whatever
follows an escape; a line break is `\\n`, `\\r\\n` or a lone `\\r`, and an empty line is no record.

A quoted cell must be closed where a cell ends. If it is not, somebody forgot a quote, escapes quotes
in another way or means nothing by them. What is not closed costs the line that it stands on, and
reading goes on with the next line. A quote may also swallow lines, up to one that happens to end in
a quote: `swallowing` tells such a cell from a text of several lines.
"""

import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding_pipelines.sources.text import MAX_RECORD_BYTES

Codes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

NOT_CLOSED = "a quote opens on this line and is not closed where a cell ends"
NOT_THE_END = "a quoted cell goes on after the quote that closes it"
SWALLOWED = "a quote swallows lines that look like rows"

_LF, _CR = b"\n\r"
_MASKED = 0  # no delimiter, quote or line end
_MARK = b"\xef\xbb\xbf"  # a byte order mark, where files were put together
_LINE_END = rb"(?:\r\n|\n|\r(?=[^\n]))"  # at the end of a block, `\r` may be half of `\r\n`

_SAMPLE_ROWS = 200  # of a block, to learn what a row of this file looks like
_TYPICAL = 0.9  # of them have a cell of this shape
_MANY_LINES = 4  # which could all be rows are no chance
_RARE_IN_TEXT = "\t|\x01\x1f"  # delimiters
_SHAPES = ((rb"[0-9]+(\.[0-9]+)?", b"9"), (rb"[A-Za-z\x80-\xff]+", b"a"), (rb"(?:9a|a9)+", b"9"))


@dataclass(frozen=True)
class Dialect:
    """Each is one ASCII character; `quote` and `escape` are None where there is none, and records
    that begin with `comment` are none."""

    delimiter: str
    quote: str | None = '"'
    escape: str | None = None
    comment: str | None = None


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

    def without(self, places: Iterable[int]) -> "Records":
        """All but the records at these places."""
        rest = np.delete(np.arange(len(self.starts)), list(places))
        if len(rest) == len(self.starts):
            return self
        data = b"".join(self.record(at) + b"\n" for at in rest.tolist())
        lengths = self.ends[rest] - self.starts[rest]
        ends = np.cumsum(lengths + 1) - 1
        return Records(data, ends - lengths, ends, self.lines[rest])


@dataclass(frozen=True)
class Misquoted:
    """A record, or one line of it, that quotes spoil; it is not among the records."""

    data: bytes
    line: int
    reason: str


class LongLineError(Exception):
    """A line is longer than MAX_RECORD_BYTES."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line} is longer than {MAX_RECORD_BYTES} bytes")
        self.line = line


def split(
    blocks: Iterable[bytes], dialect: Dialect, skip_lines: int = 0, line: int = 1
) -> Iterator[Records | Misquoted]:
    """The records of a file in groups of about one block, after the first `skip_lines` lines; the
    first line has the number `line`. Raises LongLineError."""
    cutter = _Cutter(dialect, skip_lines, line)
    rest = b""
    for block in blocks:
        rest = yield from cutter.cut(rest + block, final=False)
    if rest:
        yield from cutter.cut(rest if rest.endswith(b"\n") else rest + b"\n", final=True)


def borders(
    blocks: Iterable[bytes], dialect: Dialect, skip_lines: int = 0
) -> Iterator[tuple[list[Records | Misquoted], int, int]]:
    """Of each block the groups of `split`, and a place behind them where it may end, and begin anew,
    without changing a group: how many bytes stand before it, 0 if there is none, and the line behind
    it. There is one if every quote of the block stands where it should. Raises LongLineError.
    """
    cutter, rest, size = _Cutter(dialect, skip_lines), b"", 0

    def cut(data: bytes) -> Iterator[Records | Misquoted]:
        nonlocal rest
        rest = yield from cutter.cut(data, final=False)

    for block in blocks:
        groups = list(cut(rest + block))
        size += len(block)
        last = len(block) - len(rest)
        # Of a mark that was left out the rest says nothing; a `\r` may be half of a line's end.
        is_fine = cutter.is_regular and last > 0 and block[last - 1] == _LF and _MARK not in block
        yield groups, (size - len(rest)) * is_fine, cutter.line


def swallowing(records: Records, dialect: Dialect, width: int) -> list[int]:
    """The places of records of which one quoted cell holds lines that look like rows of `width`
    cells: each has as many delimiters, and its cells have the shape of their columns."""
    if dialect.quote is None or dialect.quote.encode() not in records.data or width < 2:
        return []
    if _count_breaks(records.data, 0, len(records.data)) == len(records.starts):
        return []
    codes = np.frombuffer(records.data, dtype=np.uint8)
    breaks = _breaks(codes, records.data)
    first, last = np.searchsorted(breaks, records.starts), np.searchsorted(breaks, records.ends)
    several = np.flatnonzero(last > first)
    if not len(several):
        return []
    first, last = first[several], last[several]
    delimiters = np.flatnonzero(codes == ord(dialect.delimiter))
    before_break, before_start, before_end = (
        np.searchsorted(delimiters, places)
        for places in (breaks, records.starts[several], records.ends[several])
    )
    others = np.concatenate([[0], np.cumsum(np.diff(before_break) != width - 1)])
    could_be_rows = (
        (before_break[first] - before_start == width - 1)
        & (before_end - before_break[last - 1] == width - 1)
        & (others[first] == others[last - 1])
    )
    suspects = several[could_be_rows].tolist()
    if not suspects:
        return []
    shapes = _Shapes(records, dialect, width)
    return [at for at in suspects if shapes.are_rows(records.record(at))]


class _Shapes:
    """What rows of a file look like, by those of its records that hold no quote."""

    def __init__(self, records: Records, dialect: Dialect, width: int) -> None:
        self.delimiter = dialect.delimiter.encode()
        self.quote = (dialect.quote or "").encode()
        self.is_rare = dialect.delimiter in _RARE_IN_TEXT
        rows: list[list[bytes]] = []
        for at in range(len(records.starts)):
            cells = records.record(at).split(self.delimiter)
            if len(cells) == width and not any(self.quote in cell for cell in cells):
                rows.append(cells)
            if len(rows) == _SAMPLE_ROWS:
                break
        columns = list(zip(*rows, strict=True)) or [()] * width
        self.typical = [self._typical(column) for column in columns]
        self.spaced = [any(cell.startswith(b" ") for cell in column) for column in columns]

    def are_rows(self, record: bytes) -> bool:
        """Whether the lines of `record` after the first, each of the right width, are rows."""
        lines = re.split(rb"\r\n|\n|\r", record)
        if self.is_rare:
            return True
        rows = [line.split(self.delimiter) for line in lines[1:]]
        if any(
            cell.startswith(b" ") and not spaced
            for row in rows
            for cell, spaced in zip(row[1:], self.spaced[1:], strict=True)
        ):
            return False  # as after a comma in a sentence
        if len(lines) >= _MANY_LINES:
            return True
        telling = [at for at, shape in enumerate(self.typical) if shape]
        return bool(telling) and all(
            _shape(row[at].strip(self.quote)) == self.typical[at] for row in rows for at in telling
        )

    def _typical(self, column: tuple[bytes, ...]) -> bytes:
        """The shape of nearly all cells of a column if digits are in it; else empty."""
        for shape, count in Counter(map(_shape, column)).most_common(1):
            if b"9" in shape and count >= _TYPICAL * len(column):
                return shape
        return b""


def _shape(cell: bytes) -> bytes:
    """The same for "17" and "4", for "A-17" and "BX-4"; of long texts the beginning."""
    cell = cell[:64]
    for pattern, stands_for in _SHAPES:
        cell = re.sub(pattern, stands_for, cell)
    return cell


class _Cutter:
    def __init__(self, dialect: Dialect, skip_lines: int, line: int = 1) -> None:
        self.dialect = dialect
        self.delimiter = ord(dialect.delimiter)
        self.quote = ord(dialect.quote) if dialect.quote else None
        self.escape = ord(dialect.escape) if dialect.escape else None
        self.comment = (dialect.comment or "").encode()
        strict, loose, stray = _patterns(dialect)
        self.strict, self.loose, self.stray = map(re.compile, (strict, loose, stray))
        self.line_end = re.compile(_LINE_END)
        self.quoted_comment = re.compile(
            b"(?:^|[\r\n])%s[^\r\n]*%s"
            % (re.escape(self.comment), re.escape((dialect.quote or "").encode()))
        )
        self.skip = skip_lines
        self.line = line  # of the next record
        self.is_regular = False  # no quote of what was cut last stands where it should not

    def cut(self, data: bytes, final: bool) -> Generator[Records | Misquoted, None, bytes]:
        """Yield the whole records of `data`, which begins with one; return the rest."""
        if _MARK in data:
            data = re.sub(b"(^|[\r\n])" + _MARK, rb"\1", data)
        at, self.is_regular = 0, False
        while self.skip:
            match = self.line_end.search(data, at)
            if match is None:
                if len(data) - at > MAX_RECORD_BYTES:
                    raise LongLineError(self.line)
                return data[at:]
            at, self.skip, self.line = match.end(), self.skip - 1, self.line + 1
        data = data[at:]
        records, stop = self._by_parity(data)
        if records is not None:
            yield self._without_comments(records)
            if not final and len(data) - stop <= MAX_RECORD_BYTES:
                self.is_regular = True
                return data[stop:]
        return (yield from self._by_cells(data, stop, final))

    def _without_comments(self, records: Records) -> Records:
        if not self.comment or self.comment not in records.data or not len(records.starts):
            return records
        codes = np.frombuffer(records.data, dtype=np.uint8)
        return records.without(np.flatnonzero(codes[records.starts] == ord(self.comment)))

    def _by_parity(self, data: bytes) -> tuple[Records | None, int]:
        """The records, fast, if every quote opens at a cell's start and closes at its end.

        Then a line end ends a record if an even number of quotes stand before it. None if a quote
        stands elsewhere. The second value is where the records end.
        """
        if self.comment and self.quote and self.quoted_comment.search(data):
            return None, 0
        bare = np.frombuffer(data, dtype=np.uint8)
        codes = self._without_escaped(bare)
        quotes = np.flatnonzero(codes == self.quote) if self.quote else np.zeros(0, np.int64)
        if len(quotes) and not self._are_regular(codes, quotes):
            return None, 0
        breaks = _breaks(codes, data)
        which = np.flatnonzero(np.searchsorted(quotes, breaks) % 2 == 0)
        stops = breaks[which]
        starts = np.concatenate([[0], stops[:-1] + 1])[: len(stops)]
        if not len(stops):
            return Records(b"", starts, stops, starts), 0
        # An escaped line break ends a line, too.
        ended = which + 1 if codes is bare else np.searchsorted(_breaks(bare, data), stops) + 1
        lines = self.line + np.concatenate([[0], ended[:-1]])
        ends = stops - ((codes[stops] == _LF) & (codes[stops - 1] == _CR) & (stops > starts))
        is_record = ends > starts
        self.line += int(ended[-1])
        stop = int(stops[-1]) + 1
        return Records(data[:stop], starts[is_record], ends[is_record], lines[is_record]), stop

    def _without_escaped(self, codes: Codes) -> Codes:
        """The bytes with escapes, and what they escape, masked; the same array if there are none.

        Of several escapes in a row, every second one is itself escaped.
        """
        places = np.flatnonzero(codes == self.escape) if self.escape else np.zeros(0, np.int64)
        if not len(places):
            return codes
        numbers = np.arange(len(places))
        first_of_run = np.concatenate([[True], np.diff(places) != 1])
        in_run = numbers - np.maximum.accumulate(np.where(first_of_run, numbers, 0))
        active = places[in_run % 2 == 0]
        masked = codes.copy()
        masked[active] = _MASKED
        masked[active[active + 1 < len(codes)] + 1] = _MASKED
        return masked

    def _are_regular(self, codes: Codes, quotes: Offsets) -> bool:
        limits = np.zeros(256, dtype=bool)
        limits[[_LF, _CR, self.delimiter]] = True
        limits[self.quote or _LF] = True
        opening, closing = quotes[0::2], quotes[1::2]
        before = limits[codes[opening - 1]] | (opening == 0)
        after = limits[codes[(closing + 1) % len(codes)]] | (closing + 1 == len(codes))
        return bool(before.all() and after.all())

    def _by_cells(
        self, data: bytes, at: int, final: bool
    ) -> Generator[Records | Misquoted, None, bytes]:
        """Slower, for stray quotes: go cell by cell, and past a quote that is not closed."""
        first = at  # of the bytes since the last record that is left out
        parts: list[bytes] = []  # of `data`, without those
        shift = -at  # from a place in `data` to one in the joined parts
        records: list[tuple[int, int, int]] = []
        misquoted: list[Misquoted] = []
        while at < len(data):
            is_comment = bool(self.comment) and data.startswith(self.comment, at)
            if not is_comment and (match := self.strict.match(data, at)):
                if match.end(1) > at:
                    records.append((at + shift, match.end(1) + shift, self.line))
                self.line += _count_breaks(data, at, match.end())
                at = match.end()
                continue
            if is_comment:
                match, reason = self.line_end.search(data, at), ""
            else:
                match, reason = self._spoilt(data, at, final)
            if match is None:
                if final or len(data) - at > MAX_RECORD_BYTES:
                    raise LongLineError(self.line)
                break
            parts.append(data[first:at])
            if not is_comment:
                end = match.end(1) if reason == NOT_THE_END else match.start()
                misquoted.append(Misquoted(data[at:end], self.line, reason))
                if not records:  # yield the header first, whole or not
                    yield misquoted.pop()
            self.line += _count_breaks(data, at, match.end())
            shift -= match.end() - at
            at = first = match.end()
        parts.append(data[first:at])
        starts, ends, lines = np.array(records, dtype=np.int64).reshape(-1, 3).T
        yield Records(b"".join(parts), starts, ends, lines)
        yield from misquoted
        return data[at:]

    def _spoilt(self, data: bytes, at: int, final: bool) -> tuple[re.Match[bytes] | None, str]:
        """What ends the record or line at `at`, which quotes spoil, and how they do; no match if
        more data may complete it, or if the line does not end."""
        if match := self.loose.match(data, at):
            return match, NOT_THE_END
        if final or len(data) - at > MAX_RECORD_BYTES or self._is_stray(data, at):
            return self.line_end.search(data, at), NOT_CLOSED
        return None, ""

    def _is_stray(self, data: bytes, at: int) -> bool:
        match = self.stray.match(data, at)
        return match is not None and _count_breaks(data, match.start(1), match.end(1)) > 0


def _patterns(dialect: Dialect) -> tuple[bytes, bytes, bytes]:
    """Of a record whose cells are quoted well, even over several lines, or not quoted; of one with
    a cell that is quoted on one line with something after it, too; and of cells with one behind
    them that is quoted, over several lines perhaps, with something after it."""
    delimiter, quote, escape = (
        re.escape((character or "").encode())
        for character in (dialect.delimiter, dialect.quote, dialect.escape)
    )

    def repeated(but: bytes, escaped: bytes, doubled: bytes = b"") -> bytes:
        one = b"[^" + but + escape + b"]*+"
        either = b"|".join(filter(None, [doubled, escape and escape + escaped]))
        return one + (b"(?:(?:" + either + b")" + one + b")*+" if either else b"")

    end = b"[" + delimiter + rb"\r\n]"
    plain = repeated(delimiter + rb"\r\n", b"(?s:.)")
    strict = loose = plain
    stray = rb"(?!)()"
    if quote:
        quoted = quote + repeated(quote, b"(?s:.)", quote + quote) + quote
        on_one_line = quote + repeated(quote + rb"\r\n", rb"[^\r\n]", quote + quote) + quote
        strict = quoted + b"(?=" + end + b")|(?!" + quote + b")" + plain
        loose = strict + b"|" + on_one_line + plain
        not_the_end = b"(?=[^" + quote + rb"\r\n" + delimiter + b"])"
        stray = b"(?:(?:" + loose + b")" + delimiter + b")*+(" + quoted + b")" + not_the_end
    return _record(strict, delimiter), _record(loose, delimiter), stray


def _record(cell: bytes, delimiter: bytes) -> bytes:
    cell = b"(?:" + cell + b")"
    return b"(" + cell + b"(?:" + delimiter + cell + b")*+)" + _LINE_END


def _breaks(codes: Codes, data: bytes) -> Offsets:
    """Where lines end: at each `\\n`, and at each `\\r` before something else; `codes` are those
    of `data`, or some of them."""
    breaks = np.flatnonzero(codes == _LF)
    if b"\r" in data:
        returns = np.flatnonzero(codes[:-1] == _CR)
        breaks = np.union1d(breaks, returns[codes[returns + 1] != _LF])
    return breaks


def _count_breaks(data: bytes, start: int, end: int) -> int:
    returns = data.count(b"\r", start, end)
    crlf = data.count(b"\r\n", start, end) if returns else 0
    return data.count(b"\n", start, end) + returns - crlf
