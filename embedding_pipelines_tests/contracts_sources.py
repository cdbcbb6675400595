"""What every source must do, whatever it reads; each format's tests go through `check_source`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedding_pipelines.plugins import parse
from embedding_pipelines.schemas import documents_schema
from embedding_pipelines.sources.base import ReadLog, Rejection, Source
from embedding_pipelines.sources.columns import BATCH_BYTES, BATCH_ROWS

Document = dict[str, Any]


def make(kind: str, path: str | Sequence[str] = (), **options: Any) -> Source:
    """A source from options as they stand in a pipeline file."""
    paths = {} if path == () else {"path": path}
    source = parse("sources", Source, {"kind": kind, **paths, **options})
    assert isinstance(source, Source)
    return source


def read(source: Source, home: Path) -> tuple[list[Document], list[Rejection], list[ReadLog]]:
    """All documents, rejections and logs of all files."""
    documents: list[Document] = []
    rejections: list[Rejection] = []
    logs: list[ReadLog] = []
    for file in source.files(home):
        log = ReadLog(rejections.append)
        logs.append(log)
        for batch in source.read(file, log):
            assert batch.schema.equals(documents_schema(source.metadata_types))
            assert 0 < batch.num_rows <= BATCH_ROWS
            assert batch.nbytes <= BATCH_BYTES or batch.num_rows == 1
            batch.validate(full=True)
            documents += batch.to_pylist()
    return documents, rejections, logs


def check_source(
    source: Source, home: Path, expected_rows: int, rejected_rows: int = 0
) -> tuple[list[Document], list[Rejection]]:
    """Schema, bounds, ids and places of all documents; a second reading gives the same."""
    documents, rejections, logs = read(source, home)
    assert len(documents) == expected_rows
    assert len(rejections) == rejected_rows
    assert (documents, rejections) == read(source, home)[:2]
    names = {file.name for file in source.files(home)}
    places = [(row["source_file"], row["source_row"]) for row in documents]
    rejected = [(rejection.file, rejection.row) for rejection in rejections]
    assert len({*places, *rejected}) == len(documents) + len(rejections)
    assert {name for name, _ in (*places, *rejected)} <= names
    assert all(row > 0 for _, row in (*places, *rejected))
    assert all(document["document_id"] and document["text"] is not None for document in documents)
    assert all(rejection.reason and isinstance(rejection.raw, bytes) for rejection in rejections)
    assert type(source).model_validate(source.model_dump()) == source
    assert type(source).model_validate_json(source.model_dump_json()) == source
    if source.id is None:
        ids = {f"{name}:{row}" for name, row in places}
        own = {document["document_id"] for document in documents}
        assert own == ids or own <= names
    assert all(log.encoding is None or log.encoding == log.encoding.lower() for log in logs)
    return documents, rejections
