"""JSON files: an array of objects, read as a stream, each a document; or one object, one document.

Nothing after a syntax error can be read, so it ends the run; an element that is no object, or that
is nested too deep, is only rejected.
"""

from collections.abc import Generator, Iterator
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import field_validator

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, SourceFile
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.json_records import Number, Problem, Stream
from embedding_pipelines.sources.text import (
    MAX_RECORD_BYTES,
    TextSource,
    list_suffixes,
    open_text,
)

_SHOWN_NAMES = 20


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
        stream = Stream(text)
        first = stream.peek()
        if not first:  # a half-written file must not empty the store
            raise SourceError(
                f"{file.name}: the file is empty, which is no JSON. Write it whole and then rename "
                "it into place; for no records, write an empty array."
            )
        whole = self.records is None and first == "{"
        if whole and file.size_bytes > MAX_RECORD_BYTES:
            raise SourceError(
                f"{file.name}: is one object of {file.size_bytes >> 20} MiB, not an array. "
                "Set source.records to the path of the array in it, or source.kind to jsonl."
            )
        fields = Fields(self, file, log, stream.raw, whole_file=whole)
        hint = ""  # what one object may be meant as
        records = iter([stream.value()]) if whole else self._elements(stream)
        for number, (value, part) in enumerate(records, start=1):
            stream.records = number
            if whole and isinstance(value, dict):
                hint = self._shape(file, value)
            if not stream.is_decoded(part):
                yield from fields.reject(number, f"not valid {text.encoding}", part)
            else:
                yield from fields.add(number, _as_number(value, part), part, len(part))
        if stream.peek():
            is_jsonl = whole and stream.peek() == "{"
            words = " Is it JSON Lines? Then set source.kind to jsonl." if is_jsonl else ""
            raise stream.error("there is more after the end", hint=words)
        yield from fields.finish(hint)

    def _shape(self, file: SourceFile, value: dict[str, Any]) -> str:
        """What to do if an object is meant as many records. Raises SourceError if it holds
        columns, not records, of which the id is one."""
        if self.id is not None and isinstance(value.get(self.id), dict | list):
            raise SourceError(
                f"{file.name}: holds a value for each row in {self.id!r}, so columns and not "
                "records. Write it as an array of records; pandas does with orient='records'."
            )
        path = _records_in(value)
        if path:
            return f" The file is one object; are {path!r} its records? Then set source.records."
        if len(value) > 1 and all(isinstance(part, dict) for part in value.values()):
            return " The file is one object of objects; write these as an array of records."
        return ""

    def _elements(self, stream: Stream) -> Iterator[tuple[Any, str]]:
        """Those of the array that `records` names. Raises SourceError if there is none."""
        names: list[str] = []
        arrays = yield from _arrays(stream, self.records or "", names)
        if arrays == 1:
            return
        file, at = stream.text.file.name, self.records
        if arrays:
            raise SourceError(f"{file}: {at!r} stands {arrays} times in it. Leave one of them.")
        problem = "no array or object"
        if at:
            more = ", …" if len(names) > _SHOWN_NAMES else ""
            shown = ", ".join(map(repr, names[:_SHOWN_NAMES])) + more or "none"
            problem = f"no array at {at!r}; the top level has the fields {shown}"
        raise SourceError(f"{file}: {problem}. Set source.records to the path of an array.")


def _arrays(
    stream: Stream, path: str, names: list[str] | None = None
) -> Generator[tuple[Any, str], None, int]:
    """Take the next value of the stream and yield the elements of the arrays at `path` in it;
    return how many arrays there are. names: is given those of the value's fields."""
    first = stream.peek()
    if not path and first == "[":
        yield from stream.elements()
        return 1
    if not path or first != "{":
        stream.skip()
        return 0
    arrays = 0
    for name in stream.members():
        if names is not None:
            names.append(name)
        if name == path or path.startswith(f"{name}."):
            arrays += yield from _arrays(stream, path[len(name) + 1 :])
        else:
            stream.skip()
    return arrays


def _records_in(value: dict[str, Any], depth: int = 4) -> str:
    """The path of the first array of objects in an object; empty if there is none."""
    for name, part in value.items():
        if isinstance(part, list) and part and isinstance(part[0], dict):
            return name
        inner = _records_in(part, depth - 1) if isinstance(part, dict) and depth else ""
        if inner:
            return f"{name}.{inner}"
    return ""


def _as_number(value: Any, part: str) -> Any:
    """A number, which is read as its text, is told from a string."""
    is_number = type(value) is str and not part.startswith('"')
    return Number(value) if is_number and not isinstance(value, Problem) else value
