"""JSON: an array of objects, read as a stream, each object a document; or one object as one
document.

What is not JSON cannot be read past, so it ends the run; an element that is no object is refused.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import ijson
import pyarrow as pa
from pydantic import field_validator

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, SourceFile
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.text import (
    COMPRESSED,
    MAX_RECORD_BYTES,
    Text,
    TextSource,
    open_text,
)

_READ_BYTES = 64 * 2**10  # an error in the JSON is located within this much
_BROKEN = "\ufdd0"  # stands for bytes that do not decode; Unicode keeps it out of interchanged text


class Json(TextSource):
    """One document per element of an array; `source_row` is the element's number, from 1.

    `records`: dotted path to the array, e.g. `data.items`. Without it the file itself is the array,
    or it is one object and that is the one document, whose id is the file's name if `id` is not
    set.
    """

    kind: Literal["json"] = "json"
    suffixes: ClassVar[tuple[str, ...]] = tuple(".json" + end for end in ("", *COMPRESSED))
    records: str | None = None

    @field_validator("records")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        if value is not None and not all(value.split(".")):
            raise ValueError(
                f"{value!r} is no path to an array; write field names with dots, e.g. data.items"
            )
        return value

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. Raises SourceError for what is not JSON, naming the place."""
        text = open_text(file, self.encoding, log)
        first = _first_character(text)
        if not first:  # a writer that was caught in between must not empty the store
            raise SourceError(
                f"{file.name}: the file is empty, which is no JSON. Write it whole and then rename it into place; "
                "for no records, write an empty array."
            )
        whole = self.records is None and first == b"{"
        if whole and file.size_bytes > MAX_RECORD_BYTES:
            raise SourceError(
                f"{file.name}: is one object of {file.size_bytes >> 20} MiB, not an array. "
                "Set source.records to the path of the array in it, or source.kind to jsonl."
            )
        fields = Fields(self, file, log, _dump, whole_file=whole)
        stream = _Stream(text)
        before = 0
        for number, element in enumerate(self._elements(stream, whole), start=1):
            size, before = stream.position - before, stream.position
            if stream.broken and _BROKEN.encode() in _dump(element):
                fields.reject(number, f"not valid {text.encoding}", element)
            else:
                yield from fields.add(number, element, element, size)
        if not fields.records and not before and stream.position:
            self._check_path(text)
        yield from fields.finish()

    def _elements(self, stream: "_Stream", whole: bool) -> Iterator[Any]:
        prefix = "" if whole else "item" if self.records is None else f"{self.records}.item"
        number = 0
        try:
            for element in ijson.items(stream, prefix, buf_size=_READ_BYTES):
                number += 1
                yield element
        except ijson.JSONError as error:
            start = max(0, stream.position - _READ_BYTES)
            what = str(error).splitlines()[0]
            hint = (
                " Is it JSON Lines? Then set source.kind to jsonl."
                if "trailing garbage" in what
                else ""
            )
            raise SourceError(
                f"{stream.file.name}: not valid JSON after record {number}, between bytes {start} and "
                f"{stream.position} ({what}). Mend the file.{hint}"
            ) from error

    def _check_path(self, text: Text) -> None:
        """No element was found: the array is empty, or `records` does not lead to one."""
        keys: list[str] = []
        start = self.records or ""
        for prefix, event, value in ijson.parse(_Stream(text), buf_size=_READ_BYTES):
            if prefix == start and event == "start_array":
                return
            if prefix == "" and event == "map_key":
                keys.append(value)
        found = ", ".join(map(repr, keys[:20])) or "none"
        wanted = (
            f"no array at {start!r}; the top level has the fields {found}"
            if start
            else "no array or object"
        )
        raise SourceError(
            f"{text.file.name}: {wanted}. Set source.records to the path of an array."
        )


class _Stream:
    """The text as ijson reads it, all of it UTF-8: what does not decode becomes _BROKEN."""

    def __init__(self, text: Text) -> None:
        self.file = text.file
        self.position = 0  # bytes that were read
        self.broken = False
        self._blocks = text.blocks()
        self._decoder = codecs.getincrementaldecoder("utf-8")(_MARK)
        self._block = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, none at the end of the file."""
        while not self._block and (block := next(self._blocks, None)) is not None:
            decoded = self._decoder.decode(block)
            self.broken = self.broken or _BROKEN in decoded
            self._block = memoryview(decoded.encode())
        taken, self._block = self._block[:size], self._block[size:]
        self.position += len(taken)
        return bytes(taken)


def _first_character(text: Text) -> bytes:
    return next((block.lstrip()[:1] for block in text.blocks() if block.strip()), b"")


def _dump(element: Any) -> bytes:
    return json.dumps(element, ensure_ascii=False, default=str).encode("utf-8", "replace")


def _mark(error: UnicodeError) -> tuple[str, int]:
    if isinstance(error, UnicodeDecodeError):
        return _BROKEN, error.end
    raise error


_MARK = "embedding_pipelines.mark"
codecs.register_error(_MARK, _mark)
