"""Parses JSON as it is written: numbers keep their text, and what is too much is refused.

A record is at most MAX_RECORD_BYTES characters long and nested at most MAX_DEPTH levels deep. While
it is read it takes at most 40 times its size in memory: 6 times where it is texts, 16 if one of them
is beyond U+FFFF, 33 where it is millions of small objects.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.text import MAX_RECORD_BYTES, Text

MAX_DEPTH = 100

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|"|[\[{]++|[\]}]++', re.DOTALL)
_DELIMITERS = ",:]} \t\n\r"
_CUT_CHARACTERS = 32  # an error this near to the end of what has been read may be a value cut there
TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"


class Number(str):
    """A number that is no part of anything; within objects and arrays it is a plain str."""

    __slots__ = ()


class NotFinite(str):
    """NaN, Infinity or -Infinity, which are no JSON but what many programs write."""

    __slots__ = ()


class Doubled(dict[str, Any]):
    """An object with some names twice; their last values count."""

    names: frozenset[str]


class Problem(str):
    """Stands for a value that cannot be used and says why, after "record … "."""

    __slots__ = ()


def parse(text: str) -> Any:
    """The value of a whole JSON text; a Problem if there is none."""
    if is_deep(text):
        return Problem(TOO_DEEP)
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return Problem(f"is not valid JSON: {error}")
    return Number(value) if type(value) is str and text.lstrip()[0] != '"' else value


def is_deep(text: str) -> bool:
    """Whether brackets are nested deeper than MAX_DEPTH; text in strings does not count."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for match in _TOKEN.finditer(text):
        run = match[0]
        if run[0] in "[{":
            depth += len(run)
            if depth > MAX_DEPTH:
                return True
        elif run[0] != '"':
            depth -= len(run)
    return False


class Stream:
    """The values of a JSON text, one after the other; a window of the text is in memory.

    `records` counts what `elements` has yielded, for errors. Raises SourceError for what is no JSON
    and for a value that is too long.
    """

    def __init__(self, text: Text) -> None:
        self.text = text
        self.records = 0
        self.has_bad_bytes = False
        self._blocks = text.blocks()
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._window = ""
        self._at = 0  # in the window
        self._lines = 1  # line of the window's first character, from 1
        self._column = 0  # characters of this line before the window
        self._ended = False

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            match = _WHITESPACE.match(self._window, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._read_on():
                return ""

    def value(self) -> tuple[Any, str]:
        """The next value and its text."""
        self.peek()
        while True:
            end, problem, place = None, "Expecting value", 0  # from where the value begins
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
            except RecursionError:
                value, end = Problem(TOO_DEEP), _end_of(self._window, self._at)
                problem, place = "a bracket is not closed", len(self._window) - self._at
            except json.JSONDecodeError as error:
                problem, place = error.msg, error.pos - self._at
                is_cut = error.msg.startswith("Unterminated string")
                if not is_cut and error.pos < len(self._window) - _CUT_CHARACTERS:
                    raise self.error(problem, error.pos) from error
            if end is not None and self._is_complete(end):
                break
            if len(self._window) - self._at > MAX_RECORD_BYTES:
                raise self._long_error()
            if not self._read_on(len(self._window) - self._at) and end is None:
                raise self.error(problem, self._at + place)
        start, self._at = self._at, end
        text = self._window[start:end]
        if len(text) > MAX_RECORD_BYTES:
            raise self._long_error()
        return (Problem(TOO_DEEP) if is_deep(text) else value), text

    def elements(self) -> Iterator[tuple[Any, str]]:
        """The values of the array that begins here, each with its text."""
        self._at += 1
        if self._take("]"):
            return
        while True:
            yield self.value()
            if self._take("]"):
                return
            self._expect(",", "Expecting ',' delimiter")
            if self.peek() == "]":
                raise self.error("a comma before the end of the array", self._at)

    def members(self) -> Iterator[str]:
        """The names of the object that begins here, each before its value, which must be taken."""
        self._at += 1
        if self._take("}"):
            return
        while True:
            if self.peek() != '"':
                raise self.error("Expecting property name enclosed in double quotes", self._at)
            name, _ = self.value()
            self._expect(":", "Expecting ':' delimiter")
            yield name
            if self._take("}"):
                return
            self._expect(",", "Expecting ',' delimiter")

    def skip(self) -> None:
        """Pass the next value, however long it is, if no part of it is."""
        first = self.peek()
        if first == "[":
            for _ in self.elements():
                pass
        elif first == "{":
            for _ in self.members():
                self.value()
        else:
            self.value()

    def error(self, problem: str, at: int | None = None, hint: str = "") -> SourceError:
        """What is wrong at this place of the window, by default the next one."""
        at = self._at if at is None else at
        line = self._lines + self._window.count("\n", 0, at)
        start = self._window.rfind("\n", 0, at) + 1
        column = at - start + 1 + (self._column if not start else 0)
        return SourceError(
            f"{self.text.file.name}:{line}: not valid JSON after record {self.records} ({problem}, "
            f"at character {column} of the line). Correct the file.{hint}"
        )

    def raw(self, part: str) -> bytes:
        """The bytes in the file of a part of the text."""
        return self.text.raw(part.encode("utf-8", "surrogateescape"))

    def is_decoded(self, part: str) -> bool:
        """Whether a part of the text holds no bytes that are not of its encoding."""
        if not self.has_bad_bytes or part.isascii():
            return True
        try:
            return bool(part.encode())
        except UnicodeEncodeError:
            return False

    def _is_complete(self, end: int) -> bool:
        """Whether a value that ends here would not go on after the window, as 1 does in 1.5e3."""
        if self._ended or end < len(self._window) - _CUT_CHARACTERS:
            return True
        return end < len(self._window) and self._window[end] in _DELIMITERS

    def _take(self, character: str) -> bool:
        is_next = self.peek() == character
        self._at += is_next
        return is_next

    def _expect(self, character: str, problem: str) -> None:
        if not self._take(character):
            raise self.error(problem)

    def _long_error(self) -> SourceError:
        line = self._lines + self._window.count("\n", 0, self._at)
        return SourceError(
            f"{self.text.file.name}:{line}: record {self.records + 1} is longer than "
            f"{MAX_RECORD_BYTES >> 20} MiB. Split it, or set source.records to the path of the "
            "array whose elements are the records."
        )

    def _read_on(self, characters: int = 0) -> bool:
        """Read at least so many more characters, one block at least; False at the end."""
        if self._ended:
            return False
        parts = [self._window[self._at :]]
        read = 0
        while not self._ended and read <= characters:
            block = next(self._blocks, None)
            self._ended = block is None
            part = self._decoder.decode(block or b"", final=self._ended)
            if not part.isascii() and not self.has_bad_bytes:
                self.has_bad_bytes = not _is_whole(part)
            parts.append(part)
            read += len(part)
        self._lines += self._window.count("\n", 0, self._at)
        start = self._window.rfind("\n", 0, self._at) + 1
        self._column = self._at - start + (0 if start else self._column)
        self._window, self._at = "".join(parts), 0
        return read > 0


def _end_of(text: str, start: int) -> int | None:
    """Where the array or object ends that begins at `start`; None if the text ends before."""
    depth = 0
    for match in _TOKEN.finditer(text, start):
        run = match[0]
        if run == '"':
            return None
        if run[0] in "[{":
            depth += len(run)
        elif run[0] != '"':
            if depth <= len(run):
                return match.start() + depth
            depth -= len(run)
    return None


def _is_whole(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    doubled = Doubled(record)
    counts = Counter(name for name, _ in pairs)
    doubled.names = frozenset(name for name in record if counts[name] > 1)
    return doubled


_DECODER = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=NotFinite, object_pairs_hook=_object
)
