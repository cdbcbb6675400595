"""Gathers the fields of records into columns, and makes documents of each full block."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from embedding_pipelines.sources.base import ReadLog, Rejection, Source, SourceFile
from embedding_pipelines.sources.columns import BATCH_ROWS, documents
from embedding_pipelines.sources.text import BLOCK_BYTES

_SAMPLE_RECORDS = 100  # the error about a missing field lists the fields of these


@dataclass
class Fields:
    """Takes the records of one file one by one and yields documents in batches.

    raw: makes the bytes of a rejected record from its `origin`, whatever the caller of `add` gave;
    whole_file: as `documents` takes it.
    """

    source: Source
    file: SourceFile
    log: ReadLog
    raw: Callable[[Any], bytes]
    whole_file: bool = False

    def __post_init__(self) -> None:
        self.columns = self.source.columns
        self.missing = set(self.columns)
        kinds = self.source.metadata
        self.lists = {path for path in kinds if kinds[path] == "list[string]"}
        self.names: dict[str, None] = {}
        self.records = 0
        self._start()

    def _start(self) -> None:
        self.rows: list[int] = []
        self.values: list[list[Any]] = [[] for _ in self.columns]
        self.origins: list[Any] = []
        self.size = 0

    def add(self, row: int, record: Any, origin: Any, size: int) -> Iterable[pa.RecordBatch]:
        """Take record number `row`, a JSON value of about `size` bytes, or reject it; return the
        batches of a full block, to be read at once."""
        if not isinstance(record, dict):
            self.reject(row, f"is {_name(record)}, not an object", origin)
            return ()
        self.records += 1
        if self.records <= _SAMPLE_RECORDS:
            self.names |= dict.fromkeys(record)
        values = []
        for path in self.columns:
            try:  # a key that holds the dots itself comes first
                value = record[path] if path in record else _lookup(record, path)
                self.missing.discard(path)
                values.append(_leaf(value, path in self.lists))
            except KeyError:
                values.append(None)
            except ValueError as error:
                self.reject(row, f"field {path!r} {error}", origin)
                return ()
        self.rows.append(row)
        self.origins.append(origin)
        for column, value in zip(self.values, values, strict=True):
            column.append(value)
        self.size += size
        is_full = len(self.rows) == BATCH_ROWS or self.size >= BLOCK_BYTES
        return self.flush() if is_full else ()

    def reject(self, row: int, reason: str, origin: Any) -> None:
        self.log.reject(Rejection(self.file.name, row, reason, self.raw(origin)))

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Yield the documents gathered so far."""
        if not self.rows:
            return
        rows, values, origins = self.rows, self.values, self.origins
        self._start()
        yield from documents(
            self.source,
            self.file,
            dict(zip(self.columns, map(pa.array, values), strict=True)),
            pa.array(rows),
            lambda at: self.raw(origins[at]),
            self.log,
            whole_file=self.whole_file,
        )

    def finish(self) -> Iterator[pa.RecordBatch]:
        """Yield the rest. Raises SourceError if no record of the file has a field."""
        yield from self.flush()
        for path in self.columns:
            if self.records and path in self.missing:
                raise self.source.missing_column_error(self.file.name, path, self.names)


def _lookup(record: dict[str, Any], path: str) -> Any:
    """The nested field `a.b`; KeyError if there is none."""
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, dict):
            raise KeyError(path)
        value = value[part]
    return value


def _leaf(value: Any, as_list: bool) -> str | None:
    """A value as text: strings as they are, others as in JSON. Raises ValueError with a reason."""
    kind = type(value)
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a surrogate pair, which is no character") from None
        return str(value)
    if value is None or value != value:  # NaN, as pandas writes a gap
        return None
    if kind is bool:
        return "true" if value else "false"
    if kind is list and as_list:
        return json.dumps([_leaf(item, as_list=False) for item in value])
    if kind is list or kind is dict:
        raise ValueError(f"is {_name(value)}, not text or a number")
    return str(value)


def _name(value: Any) -> str:
    names = {bool: "a boolean", dict: "an object", list: "a list", str: "a string"}
    return "null" if value is None else names.get(type(value), "a number")
