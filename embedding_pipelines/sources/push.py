"""push: documents that programs put, one by one, in place of files.

It also reads what is pushed to pipelines of files: their records have the names that the columns
of the files have, and become documents as a line of JSON does.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

import pyarrow as pa
from pydantic import PrivateAttr

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
    _left_out: frozenset[str] = PrivateAttr(frozenset())  # fields that count as missing

    @classmethod
    def of(cls, source: Source) -> Self:
        """What reads the documents that are pushed to a pipeline with this source. What the source
        alone can say of its own documents, such as where an image is, nobody says of these."""
        names = ("text", "metadata", "missing", "nanoseconds", "max_rejected")
        push = cls(id=source.id or ID, **{name: getattr(source, name) for name in names})
        push._left_out = source.own_columns
        return push

    @property
    def fields(self) -> frozenset[str]:
        """The names of what is read of a document."""
        names = (name for path in self.columns for name in (path, path.partition(".")[0]))
        return frozenset(names) - self._left_out

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
            record = parse(data.decode())
            if isinstance(record, dict):
                for name in self._left_out:
                    record.pop(name, None)
            yield from fields.add(row, record, data, len(data))
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
