"""JSON files: an array of objects, read as a stream, each a document; or one object, one document.

Nothing after a syntax error can be read, so it ends the run; an element that is no object is only
rejected.
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
    MAX_RECORD_BYTES,
    Text,
    TextSource,
    list_suffixes,
    open_text,
)

_READ_BYTES = 64 * 2**10  # a message places a syntax error within this range
_BROKEN = "\ufdd0"  # stands for bytes that do not decode; Unicode keeps it out of interchanged text


class Json(TextSource):
    """One document per element of an array; `source_row` is the element's number, from 1.

    `records`: dotted path to the array, e.g. `data.items`. Without it the file itself is the array,
    or one object and so one document, whose id is the file's name if `id` is not set.
    """

    kind: Literal["json"] = "json"
    suffixes: ClassVar[tuple[str, ...]] = list_suffixes(".json")
    records: str | None = None

    @field_validator("records")
    @classmethod
    def _check_path(cls, value: str | None) -> str | None:
        if value is not None and not all(value.split(".")):
            raise ValueError(
                f"{value!r} is no path to an array; write field names with dots, e.g. data.items"
            )
        return value

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. Raises SourceError that names the place if the file is not JSON."""
        text = open_text(file, self.encoding, log)
        blocks = (block.lstrip() for block in text.blocks())
        first = next((block[:1] for block in blocks if block), b"")
        if not first:  # a half-written file must not empty the store
            raise SourceError(
                f"{file.name}: the file is empty, which is no JSON. Write it whole and then rename "
                "it into place; for no records, write an empty array."
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
        for number, element in self._elements(stream, whole):
            size, before = stream.position - before, stream.position
            if stream.has_bad_bytes and _BROKEN.encode() in _dump(element):
                fields.reject(number, f"not valid {text.encoding}", element)
            else:
                yield from fields.add(number, element, element, size)
        if not fields.records and not before and stream.position:
            self._require_array(text)
        yield from fields.finish()

    def _elements(self, stream: "_Stream", whole: bool) -> Iterator[tuple[int, Any]]:
        array = "item" if self.records is None else f"{self.records}.item"
        number = 0
        try:
            elements = ijson.items(stream, "" if whole else array, buf_size=_READ_BYTES)
            for number, element in enumerate(elements, start=1):
                yield number, element
        except (ijson.JSONError, UnicodeDecodeError) as error:  # the second: half a surrogate pair
            start = max(0, stream.position - _READ_BYTES)
            problem = str(error).splitlines()[0]
            is_jsonl = "trailing garbage" in problem
            hint = " Is it JSON Lines? Then set source.kind to jsonl." if is_jsonl else ""
            raise SourceError(
                f"{stream.file.name}: not valid JSON after record {number}, between bytes {start} "
                f"and {stream.position} ({problem}). Correct the file.{hint}"
            ) from error

    def _require_array(self, text: Text) -> None:
        """SourceError unless the file has the array that `records` names, which is then empty."""
        keys: list[str] = []
        start = self.records or ""
        for prefix, event, value in ijson.parse(_Stream(text), buf_size=_READ_BYTES):
            if prefix == start and event == "start_array":
                return
            if prefix == "" and event == "map_key":
                keys.append(value)
        problem = "no array or object"
        if start:
            names = ", ".join(map(repr, keys[:20])) or "none"
            problem = f"no array at {start!r}; the top level has the fields {names}"
        raise SourceError(
            f"{text.file.name}: {problem}. Set source.records to the path of an array."
        )


class _Stream:
    """The text as ijson reads it, all of it UTF-8: bytes that do not decode become _BROKEN."""

    def __init__(self, text: Text) -> None:
        self.file = text.file
        self.position = 0  # in bytes
        self.has_bad_bytes = False
        self._blocks = text.blocks()
        self._decoder = codecs.getincrementaldecoder("utf-8")(_MARK)
        self._block = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, none at the end of the file."""
        while not self._block and (block := next(self._blocks, None)) is not None:
            text = self._decoder.decode(block)
            self.has_bad_bytes = self.has_bad_bytes or _BROKEN in text
            self._block = memoryview(text.encode())
        part, self._block = self._block[:size], self._block[size:]
        self.position += len(part)
        return bytes(part)


def _dump(element: Any) -> bytes:
    return json.dumps(element, ensure_ascii=False, default=str).encode("utf-8", "replace")


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _BROKEN, error.end


_MARK = "embedding_pipelines.mark"
codecs.register_error(_MARK, _mark)
