"""A LanceDB table as it lies in its folder, whoever made it: rows, files, indices, old versions.

Nothing is written, and the version stays the same while it is looked at.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.stores import _lance
from embedding_pipelines.stores._lance import batches_of, call
from embedding_pipelines.stores._manifest import named_by, rows_of_fragments

if TYPE_CHECKING:
    from lancedb._lancedb import Table as Lance

MANIFEST = ".manifest"
SMALL_FILE_ROWS = 100_000  # as LanceDB's own statistics count
IDS = ("chunk_id", "id", "_id", "uuid", "key", "pk", "doc_id", "document_id")  # in this order
TEXTS = ("text", "content", "page_content", "chunk", "body", "document", "passage", "title")
NUMBERS = (pa.types.is_floating, pa.types.is_integer)
VECTOR_INDEX = re.compile(r"ivf|hnsw", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are, by their names and types."""

    vectors: tuple[str, ...]
    id: str | None
    text: str | None

    @classmethod
    def of(cls, schema: pa.Schema) -> "Columns":
        vectors = tuple(field.name for field in schema if _is_vector(field.type))
        names = {field.name.lower(): field.name for field in schema}
        texts = [field.name for field in schema if _is_text(field.type)]
        id = next((names[name] for name in IDS if name in names), None)
        text = next((names[name] for name in TEXTS if names.get(name) in texts), None)
        others = [name for name in texts if name != id]
        return cls(vectors, id, text or next(iter(others), None))


def _is_vector(type: pa.DataType) -> bool:
    is_list = pa.types.is_fixed_size_list(type) or pa.types.is_list(type)
    if not is_list or not any(test(type.value_type) for test in NUMBERS):
        return False
    return bool(pa.types.is_fixed_size_list(type) or pa.types.is_floating(type.value_type))


def _is_text(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


@dataclass(frozen=True)
class Index:
    """One index, and the rows that it covers and does not."""

    name: str
    kind: str
    columns: list[str]
    indexed: int
    unindexed: int


class Survey:
    """The newest version of a table, open to read."""

    def __init__(self, folder: Path, table: "Lance") -> None:
        self.folder, self._table = folder, table
        self.schema: pa.Schema = call(table.schema)
        self.version, self.rows = call(table.version), call(table.count_rows, None)

    def pages(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """All rows, so many at a time."""
        with self._explained("read"):
            for first in range(0, self.rows, rows):
                query = self._table.query()
                query.select_columns(list(columns))
                query.offset(first)
                query.limit(rows)
                yield from batches_of(query)

    @cached_property
    def indices(self) -> list[Index]:
        entries = []
        with self._explained("read"):
            table: Any = self._table
            for entry in call(table.list_indices):
                statistics = call(table.index_stats, entry.name)
                covered = statistics["num_indexed_rows"] if statistics else 0
                rest = statistics["num_unindexed_rows"] if statistics else self.rows
                kind = str(entry.index_type)
                entries.append(Index(entry.name, kind, list(entry.columns), covered, rest))
        return entries

    @property
    def has_vector_index(self) -> bool:
        return any(VECTOR_INDEX.search(index.kind) for index in self.indices)

    @cached_property
    def _fragments(self) -> list[int]:
        """The rows of each file of rows, deleted ones included."""
        return rows_of_fragments(self._newest)

    @property
    def physical_rows(self) -> int:
        return max(self.rows, sum(self._fragments))

    @property
    def files(self) -> int:
        return len(self._fragments)

    @property
    def small_files(self) -> int:
        return sum(rows < SMALL_FILE_ROWS for rows in self._fragments)

    @cached_property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def old_versions(self) -> int:
        return len(self._manifests) - 1

    @cached_property
    def old_bytes(self) -> int:
        """Of the files of rows that this version does not name."""
        content = named_by(self._newest)
        paths = (self.folder / "data").glob("*")
        return sum(path.stat().st_size for path in paths if path.name.encode() not in content)

    @cached_property
    def _manifests(self) -> list[Path]:
        return list((self.folder / "_versions").glob(f"*{MANIFEST}"))

    @property
    def _newest(self) -> Path:
        return min(self._manifests, key=self._version_key)

    def _version_key(self, path: Path) -> tuple[int, int]:
        """Names count down from the greatest number, or up, as older tables' do."""
        number = int(path.stem) if path.stem.isdecimal() else 0
        return (0, number) if len(path.stem) == 20 else (1, -number)

    def _explained(self, use: str) -> contextlib.AbstractContextManager[None]:
        return _lance.explain_errors(self.folder.parent, self.folder.stem, use)


@contextlib.contextmanager
def open_table(folder: Path) -> Iterator[Survey]:
    """The table in a folder `NAME.lance`. Raises ConfigError if there is none, StoreError if it cannot
    be opened."""
    folder = folder.absolute()
    if not (folder / "_versions").is_dir():
        tables = sorted(entry.name for entry in folder.glob("*.lance")) if folder.is_dir() else []
        others = f" There are {', '.join(tables[:10])} in it: name one." if tables else ""
        raise ConfigError(f"{folder} is no LanceDB table, which is a folder NAME.lance.{others}")
    name = folder.name.removesuffix(".lance")
    with _lance.explain_open_errors(folder.parent, name, None):
        table = call(call(_lance.connect, _lance.address(folder.parent)).open_table, name)
        # One look: what is written meanwhile is of a later version.
        call(table.checkout, call(table.version))
        opened = Survey(folder, table)
    yield opened
