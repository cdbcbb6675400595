"""push: documents that programs put, one by one, in place of files.

It also reads what is pushed to pipelines of files: their records have the names that the columns
of the files have, and become documents as a line of JSON does.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

import pyarrow as pa

from embedding_pipelines.errors import SourceError
from embedding_pipelines.files import unseal
from embedding_pipelines.sources.base import Input, ReadLog, Source, SourceFile
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.json_records import parse

ID = "id"  # the field of a document's id, where a pipeline's file names none


class Push(Source):
    """A document for each id that is in the pipeline's log; it has no files of its own."""

    kind: Literal["push"] = "push"
    unit: ClassVar[str] = "segment"

    id: str = ID

    @classmethod
    def of(cls, source: Source) -> Self:
        """What reads the documents that are pushed to a pipeline with this source."""
        names = ("text", "metadata", "missing", "nanoseconds", "max_rejected")
        return cls(id=source.id or ID, **{name: getattr(source, name) for name in names})

    @property
    def place(self) -> str:
        return "documents that programs push"

    def files(self, home: Path) -> list[Input]:
        """None: the segments of the log are parts beside those of any source."""
        return []

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """The documents of one segment of a log; `source_row` is the line. Raises SourceError for
        a damaged line: nothing else has what it says."""
        return self.documents(_puts(file), file, log)

    def documents(
        self, records: Iterable[tuple[int, bytes]], file: SourceFile, log: ReadLog
    ) -> Iterator[pa.RecordBatch]:
        """The documents of records, each a row's number and JSON in UTF-8, as `read` yields
        them."""
        fields = Fields(self, file, log, lambda data: data)
        for row, data in records:
            yield from fields.add(row, parse(data.decode()), data, len(data))
        yield from fields.flush()


def _puts(file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """The records of a segment that were put, each with its line. Raises SourceError."""
    for row, line in enumerate(file.path.read_bytes().splitlines(), 1):
        try:
            value = unseal(line)
        except ValueError:
            raise SourceError(
                f"{file.name}:{row} is damaged. It holds documents that were pushed, which nothing "
                "else has: put back a copy of the file."
            ) from None
        if "put" in value:
            yield row, json.dumps(value["put"], ensure_ascii=False).encode()
