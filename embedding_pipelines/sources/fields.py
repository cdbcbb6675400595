"""Gathers fields of JSON objects into columns, and makes documents of each full block."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from embedding_pipelines.sources.base import ReadLog, Rejection, Source, SourceFile
from embedding_pipelines.sources.columns import BATCH_ROWS, documents
from embedding_pipelines.sources.text import BLOCK_BYTES

_SAMPLE_RECORDS = 100  # the error about a missing field lists the fields of these


class Fields:
    """Takes the records of one file one by one and yields documents in batches.

    raw: makes the bytes of a rejected record from its `origin`, whatever the caller of `add` gave.
    """

    def __init__(
        self,
        source: Source,
        file: SourceFile,
        log: ReadLog,
        raw: Callable[[Any], bytes],
        whole_file: bool = False,
    ) -> None:
        self.source, self.file, self.log, self.whole_file = source, file, log, whole_file
        self.raw = raw
        self.paths = {path: path.split(".") for path in source.columns}
        self.lists = {path for path, kind in source.metadata.items() if kind == "list[string]"}
        self.missing = set(self.paths)
        self.names: dict[str, None] = {}
        self.records = 0
        self._start()

    def _start(self) -> None:
        self.values: dict[str, list[str | None]] = {path: [] for path in self.paths}
        self.rows: list[int] = []
        self.origins: list[Any] = []
        self.size = 0

    def add(self, row: int, record: Any, origin: Any, size: int) -> Iterator[pa.RecordBatch]:
        """Take record number `row`, of about `size` bytes; yield batches when a block is full."""
        if not isinstance(record, dict):
            self.reject(row, f"is {_name(record)}, not an object", origin)
            return
        self.records += 1
        if self.records <= _SAMPLE_RECORDS:
            self.names |= dict.fromkeys(record)
        leaves = []
        for path, parts in self.paths.items():
            if path in record:  # a key that holds the dots itself comes first
                is_there, value = True, record[path]
            else:
                is_there, value = _lookup(record, parts)
            if is_there and self.missing:
                self.missing.discard(path)
            try:
                leaves.append(_leaf(value, path in self.lists))
            except ValueError as error:
                self.reject(row, f"field {path!r} {error}", origin)
                return
        for column, leaf in zip(self.values.values(), leaves, strict=True):
            column.append(leaf)
        self.rows.append(row)
        self.origins.append(origin)
        self.size += size
        if len(self.rows) == BATCH_ROWS or self.size >= BLOCK_BYTES:
            yield from self.flush()

    def reject(self, row: int, reason: str, origin: Any) -> None:
        self.log.reject(Rejection(self.file.name, row, reason, self.raw(origin)))

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Yield the documents gathered so far."""
        values = {path: pa.array(column, pa.string()) for path, column in self.values.items()}
        rows, origins = pa.array(self.rows, pa.int64()), self.origins
        self._start()

        def raw(at: int) -> bytes:
            return self.raw(origins[at])

        yield from documents(
            self.source, self.file, values, rows, raw, self.log, whole_file=self.whole_file
        )

    def finish(self) -> Iterator[pa.RecordBatch]:
        """Yield the rest. Raises SourceError if no record of the file has a field."""
        yield from self.flush()
        for path in self.paths:
            if self.records and path in self.missing:
                raise self.source.missing_column_error(self.file.name, path, self.names)


def _lookup(record: dict[str, Any], parts: list[str]) -> tuple[bool, Any]:
    """Whether the nested field is there, and its value."""
    value: Any = record
    for part in parts:
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value


def _leaf(value: Any, as_list: bool) -> str | None:
    """A value as text: strings as they are, others as in JSON. Raises ValueError with a reason."""
    kind = type(value)
    if kind is str:
        if not value.isascii():
            _check_characters(value)
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


def _check_characters(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None


def _name(value: Any) -> str:
    names = {bool: "a boolean", dict: "an object", list: "a list", str: "a string"}
    return "null" if value is None else names.get(type(value), "a number")
