"""JSON Lines files: one JSON object per line, each a document; a line that is none is rejected.

An empty file has no documents. Unlike in CSV and JSON it is no error, for there is no other way to
write none.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import pyarrow as pa

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, SourceFile
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.json_records import Problem, parse
from embedding_pipelines.sources.parts import Border
from embedding_pipelines.sources.text import (
    MAX_RECORD_BYTES,
    Text,
    TextSource,
    divide_text,
    list_suffixes,
    open_text,
)


class Jsonl(TextSource):
    """One document per line; empty lines are none; `source_row` is the line."""

    kind: Literal["jsonl"] = "jsonl"
    suffixes: ClassVar[tuple[str, ...]] = list_suffixes(".jsonl", ".ndjson")

    def divide(self, file: SourceFile, part_bytes: int, log: ReadLog) -> list[SourceFile]:
        """See Source.divide. A part begins with a line."""
        return divide_text(file, self.encoding, part_bytes, log, _borders)

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. Raises SourceError at the end of the file if no line has a field."""
        text = open_text(file, self.encoding, log)
        fields = Fields(self, file, log, text.raw)
        is_first = file.part is None or file.part.is_first
        first = file.part.row if file.part else 1
        for number, line in enumerate(_lines(text, first), start=first):
            if not line.strip():
                continue
            try:
                record = parse(line.strip().decode().removeprefix("\ufeff"))  # of a file before
            except UnicodeDecodeError:
                yield from fields.reject(number, f"not valid {text.encoding}", line)
            else:
                if is_first and line.strip().endswith((b"[", b"]", b"{", b",", b":")):
                    record = _whole(record)
                yield from fields.add(number, record, line, len(line))
            is_first = False
        yield from fields.finish()


def _whole(record: Any) -> Any:
    """The first record; if it is none, though its line may begin JSON, with what the file may be."""
    if not isinstance(record, Problem | list):
        return record
    problem = record if isinstance(record, Problem) else "is a list, not an object"
    return Problem(f"{problem}; is the file one array or object? Then set source.kind to json")


def _borders(text: Text) -> Iterator[Border]:
    """Behind the last line of each block, from the first one on that has something in it."""
    end, row, is_empty = text.skip, 1, True
    yield Border(end, row, end)
    for block in text.blocks():
        last = block.rfind(b"\n") + 1
        is_empty = is_empty and not block[:last].strip()
        row += block.count(b"\n")
        if last and not is_empty:
            yield Border(end + last, row, end + last)
        is_empty = is_empty and not block[last:].strip()
        end += len(block)
    yield Border(text.file.size_bytes, row, text.file.size_bytes)


def _lines(text: Text, first: int) -> Iterator[bytes]:
    """Lines without their ends; `first` is the number of the first one. Raises SourceError for one
    longer than MAX_RECORD_BYTES."""
    rest, count = b"", first - 1
    for block in text.blocks():
        *lines, rest = (rest + block).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in lines)
        count += len(lines)
        if len(rest) > MAX_RECORD_BYTES:
            raise SourceError(
                f"{text.file.name}:{count + 1}: the line is longer than "
                f"{MAX_RECORD_BYTES >> 20} MiB. Is this JSON Lines? For one array or object set "
                "source.kind to json."
            )
    yield rest.removesuffix(b"\r")
