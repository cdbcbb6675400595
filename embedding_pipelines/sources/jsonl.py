"""JSON Lines: one JSON object per line, each a document. A line that is none is refused alone.

An empty file has no documents and is no error, other than in CSV and JSON: here it is the only way
to say so.
"""

import json
from collections.abc import Iterator
from typing import ClassVar, Literal

import pyarrow as pa

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


class Jsonl(TextSource):
    """One document per line; empty lines are none; `source_row` is the line."""

    kind: Literal["jsonl"] = "jsonl"
    suffixes: ClassVar[tuple[str, ...]] = tuple(
        format + end for format in (".jsonl", ".ndjson") for end in ("", *COMPRESSED)
    )

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. A field that no line has is an error at the end of the file."""
        text = open_text(file, self.encoding, log)
        fields = Fields(self, file, log, text.raw)
        for number, line in enumerate(_lines(text), start=1):
            stripped = line.strip()
            if not stripped:
                continue
            try:
                record = json.loads(stripped.decode())
            except UnicodeDecodeError:
                fields.reject(number, f"not valid {text.encoding}", line)
            except (ValueError, RecursionError) as error:
                fields.reject(number, f"not valid JSON: {error}", line)
            else:
                yield from fields.add(number, record, line, len(line))
        yield from fields.finish()


def _lines(text: Text) -> Iterator[bytes]:
    """Lines without their ends. Raises SourceError for one that is longer than MAX_RECORD_BYTES."""
    rest, count = b"", 0
    for block in text.blocks():
        *lines, rest = (rest + block).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in lines)
        count += len(lines)
        if len(rest) > MAX_RECORD_BYTES:
            raise SourceError(
                f"{text.file.name}:{count + 1}: the line is longer than {MAX_RECORD_BYTES >> 20} MiB. "
                "Is this JSON Lines? For one array or object set source.kind to json."
            )
    yield rest.removesuffix(b"\r")
