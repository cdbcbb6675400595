"""Gathers the fields of records into columns, and makes documents of each full block."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from embedding_pipelines.sources.base import ReadLog, Rejection, Source, SourceFile
from embedding_pipelines.sources.columns import BATCH_ROWS, documents
from embedding_pipelines.sources.json_records import Doubled, NotFinite, Problem
from embedding_pipelines.sources.parts import SAMPLE_RECORDS
from embedding_pipelines.sources.parts import Fields as PartFields
from embedding_pipelines.sources.text import BLOCK_BYTES
from embedding_pipelines.sources.values import parse_list

_LISTS = pa.list_(pa.string())


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
        self.joined = {*self.source.text} - {self.source.id, *kinds}  # lists are parts of a text
        self.names: dict[str, int] = {}
        self.records = 0
        self._start()

    def _start(self) -> None:
        self.rows: list[int] = []
        self.values: list[list[Any]] = [[] for _ in self.columns]
        self.origins: list[Any] = []
        self.rejections: list[Rejection] = []  # so that all are told in the order of the file
        self.size = 0

    def add(self, row: int, record: Any, origin: Any, size: int) -> Iterable[pa.RecordBatch]:
        """Take record number `row`, a JSON value of about `size` bytes, or reject it; return the
        batches of a full block, to be read at once."""
        if not isinstance(record, dict):
            is_problem = isinstance(record, Problem)
            problem = str(record) if is_problem else f"is {_name(record)}, not an object"
            return self.reject(row, problem, origin)
        if self.records < SAMPLE_RECORDS:
            for name in record:
                self.names.setdefault(name, self.records)
        self.records += 1
        values: list[str | list[str | None] | None] = []
        problem = ""
        is_plain = type(record) is dict
        for path in self.columns:
            value = record.get(path)
            if type(value) is str and is_plain and path not in self.lists and value.isascii():
                self.missing.discard(path)  # most values are such, and need no more
                values.append(value)
                continue
            try:
                value = lookup(record, path)
                self.missing.discard(path)
                values.append(None if problem else self._leaf(value, path))
            except KeyError:
                values.append(None)
            except ValueError as error:
                self.missing.discard(path)
                problem = problem or f"field {path!r} {error}"
        if problem:
            return self.reject(row, problem, origin)
        self.rows.append(row)
        self.origins.append(origin)
        for column, value in zip(self.values, values, strict=True):
            column.append(value)
        return self._gathered(size)

    def reject(self, row: int, reason: str, origin: Any) -> Iterable[pa.RecordBatch]:
        """As `add`, for a record that cannot be a document."""
        raw = self.raw(origin)
        self.rejections.append(Rejection(self.file.name, row, reason, raw))
        return self._gathered(len(raw))

    def _gathered(self, size: int) -> Iterable[pa.RecordBatch]:
        self.size += size
        is_full = len(self.rows) + len(self.rejections) >= BATCH_ROWS or self.size >= BLOCK_BYTES
        return self.flush() if is_full else ()

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Yield the documents gathered so far."""
        rows, values, origins, rejections = self.rows, self.values, self.origins, self.rejections
        self._start()
        if rows:
            yield from self._documents(rows, values, origins, rejections)
        for rejection in sorted(rejections, key=lambda each: each.row):
            self.log.reject(rejection)

    def _documents(
        self,
        rows: list[int],
        values: list[list[Any]],
        origins: list[Any],
        rejections: list[Rejection],
    ) -> Iterator[pa.RecordBatch]:
        yield from documents(
            self.source,
            self.file,
            {
                path: pa.array(column, _LISTS if path in self.lists else pa.string())
                for path, column in zip(self.columns, values, strict=True)
            },
            pa.array(rows),
            lambda at: self.raw(origins[at]),
            replace(self.log, reject=rejections.append),
            whole_file=self.whole_file,
        )

    def finish(self, hint: str = "") -> Iterator[pa.RecordBatch]:
        """Yield the rest. Raises SourceError if no record of the file has the id, or any text;
        `hint` is the end of what it says. Of a part of a file its log says what it has."""
        if self.file.part is not None:
            names = self.names if self.missing else {}
            self.log.fields = PartFields(self.records, frozenset(self.missing), names)
        elif self.records:
            self.source.check_columns(self.file.name, self.missing, self.names, self.log, hint)
        yield from self.flush()

    def _leaf(self, value: Any, path: str) -> str | list[str | None] | None:
        """The value of a field. Raises ValueError with a reason."""
        if path in self.lists:
            parts = parse_list(value) if type(value) is str else value
            if isinstance(parts, list):
                return [self._text(part, path) for part in parts]
            if parts is not None:
                raise ValueError(f"is {_name(parts)}, not a list")
        if type(value) is list and path in self.joined:
            return self.log.join([text for part in value if (text := self._text(part, path))])
        return self._text(value, path)

    def _text(self, value: Any, path: str) -> str | None:
        """A value as text, numbers as they are written. Raises ValueError with a reason."""
        kind = type(value)
        if kind is str:
            if not value.isascii() and not _is_whole(value):
                raise ValueError("holds half of a surrogate pair, which is no character")
            return str(value)
        if value is None:
            return None
        if kind is bool:
            return "true" if value else "false"
        if kind is NotFinite:
            self.log.absent.setdefault(path, Counter())[str(value)] += 1
            return None
        remedy = ""
        if kind is list and path in self.source.metadata:
            remedy = "; declare it as list[string]"
        if kind is not list:
            remedy = f"; name a field of it, e.g. {path}.{next(iter(value), 'a')}"
        raise ValueError(f"is {_name(value)}, not text or a number{remedy}")


def lookup(record: dict[str, Any], path: str) -> Any:
    """The field whose name is the path, or the nested field `a.b`. Raises KeyError if there is
    none, ValueError if an object on the way has it twice, or something on the way is no object."""
    if path in record:
        return _only(record, path)
    value: Any = record
    parts = path.split(".")
    for at, part in enumerate(parts):
        if value is None:
            raise KeyError(path)
        if not isinstance(value, dict):
            before = ".".join(parts[:at])
            raise ValueError(f"cannot be looked up: {before!r} is {_name(value)}, not an object")
        value = _only(value, part)
    return value


def _only(record: dict[str, Any], name: str) -> Any:
    value = record[name]
    if type(record) is Doubled and name in record.names:
        raise ValueError("stands twice in the record")
    return value


def _is_whole(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _name(value: Any) -> str:
    names = {bool: "a boolean", dict: "an object", Doubled: "an object", list: "a list",
             str: "a string"}  # fmt: skip
    return "null" if value is None else names.get(type(value), "a number")
