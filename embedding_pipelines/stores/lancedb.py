"""`lancedb`: LanceDB tables on the local disk. Versions, tags and indices are Lance's own."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from embedding_pipelines.errors import StoreError
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.stores.base import Metric, Store, Table

if TYPE_CHECKING:
    from lancedb.table import Table as Lance

INTERNAL = ("bucket", "chunk_digest")  # serve the update, say nothing to a searcher
REMOVE_IDS = 1_000  # ids per delete statement
# Measured with lancedb 0.40 on 99,000 MiniLM vectors, k = 10: IvfSq with refine 2 has recall 0.9998 at
# 6 ms, brute force takes 131 ms. Ten thousand rows by brute force take about 13 ms.
REFINE = 2
PROBES = 20  # lancedb's default, stated so that a change of theirs is not a change of ours
NEVER = timedelta(days=36_500)  # old versions are removed by `clean_up` alone
RETRAIN_GROWTH = 2.0  # train the index again when the table has grown by this factor since


class Lancedb(Store):
    """A table per pipeline and space, exact search below `index_rows` rows."""

    kind: Literal["lancedb"] = "lancedb"
    index_rows: int = Field(10_000, ge=256)  # from this many rows on an index is kept

    def table(self, folder: Path, name: str) -> Table:
        return LanceTable(folder, name, self.index_rows)

    def names(self, folder: Path) -> list[str]:
        return list(_connect(folder).list_tables().tables) if folder.exists() else []

    def drop(self, folder: Path, name: str) -> None:
        _connect(folder).drop_table(name, ignore_missing=True)


class LanceTable(Table):
    def __init__(self, folder: Path, name: str, index_rows: int) -> None:
        self.folder, self.name, self.index_rows = folder, name, index_rows
        self._checked_out: dict[int, Lance] = {}  # a version never changes, so its handle serves every search

    @property
    def version(self) -> int | None:
        return int(self._open().version) if self._exists() else None

    def apply(self, schema: pa.Schema, remove: Sequence[str], add: Iterable[pa.RecordBatch]) -> None:
        if not self._exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _connect(self.folder).create_table(self.name, schema=schema)
        table = self._open()
        for start in range(0, len(remove), REMOVE_IDS):
            table.delete(f"chunk_id IN ({', '.join(map(_quoted, remove[start : start + REMOVE_IDS]))})")
        batches = _Watched(add)
        first = next(batches, None)
        if first is None:
            return
        try:
            table.add(pa.RecordBatchReader.from_batches(schema, itertools.chain([first], batches)))
        except (RuntimeError, ValueError, OSError) as error:
            if batches.failure is not None:
                raise batches.failure from error
            raise StoreError(f"Table {self.name!r} in {self.folder} cannot be written: {_short(error)}") from error

    def index(self, metric: Metric, trained_rows: int) -> int:
        from lancedb.index import IvfFlat, IvfSq

        table = self._open()
        rows = table.count_rows()
        if not any(index.columns == [VECTOR] for index in table.list_indices()):
            trained_rows = 0
        if rows >= self.index_rows and (not trained_rows or rows > trained_rows * RETRAIN_GROWTH):
            config = IvfFlat(distance_type="hamming") if metric == "hamming" else IvfSq(distance_type=metric)
            table.create_index(VECTOR, config=config, replace=True)
            trained_rows = rows
        # Folds new rows into the index and small files into large ones. Here, before the version is checked
        # and released: `clean_up` does it too, and must then find nothing left that would make a new version.
        table.optimize(cleanup_older_than=NEVER)
        return trained_rows

    def rows(self, version: int | None = None) -> int:
        return int(self._open(version).count_rows())

    def schema(self, version: int | None = None) -> pa.Schema:
        return self._open(version).schema

    def scan(
        self, columns: Sequence[str], bucket: str | None = None, version: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        query = self._open(version).search().select(list(columns))
        if bucket is not None:
            query = query.where(f"bucket = {_quoted(bucket)}")
        yield from query.to_batches()

    def search(self, vector: NDArray[np.generic], k: int, metric: Metric, filter: str | None, version: int) -> pa.Table:
        table = self._open(version)
        columns = [name for name in table.schema.names if name not in (VECTOR, *INTERNAL)]
        if filter and ";" in re.sub(r"'[^']*'", "", filter):
            raise StoreError(f"The filter {filter!r} holds a ';'. Write one SQL condition.")
        nearest: Any = table.search(vector, vector_column_name=VECTOR)  # its static type depends on `vector`
        query = (
            nearest.distance_type(metric).nprobes(PROBES).refine_factor(REFINE).select([*columns, "_distance"]).limit(k)
        )
        if filter:
            query = query.where(filter, prefilter=True)
        try:
            return query.to_arrow()
        except (RuntimeError, ValueError, OSError) as error:
            if filter:
                raise StoreError(
                    f"The filter {filter!r} cannot be used: {_short(error)} "
                    f"Write a SQL condition on {', '.join(map(_named, columns))}, e.g. \"{_named(columns[-1])} = 'x'\"."
                ) from error
            raise StoreError(f"Table {self.name!r} version {version} cannot be searched: {_short(error)}") from error

    def keep(self, versions: Mapping[str, int]) -> None:
        tags = self._open().tags
        found = {name: tag["version"] for name, tag in tags.list().items()}
        for name in found.keys() - versions.keys():
            tags.delete(name)
        for name, version in versions.items():
            if name not in found:
                tags.create(name, version)
            elif found[name] != version:  # of a release that was begun and never made
                tags.update(name, version)

    def clean_up(self) -> None:
        # Lance refuses to remove anything while a tagged version is older than the limit, so the limit
        # is the oldest kept version. Unverified files are ours: the pipeline is locked.
        table = self._open()
        kept = [tag["version"] for tag in table.tags.list().values()] or [table.version]
        times = {entry["version"]: entry["timestamp"] for entry in table.list_versions()}
        oldest = times.get(min(kept), min(times.values()))
        age = datetime.now(oldest.tzinfo) - oldest + timedelta(seconds=1)
        table.optimize(cleanup_older_than=age, delete_unverified=True)

    def size_bytes(self) -> int:
        files = (self.folder / f"{self.name}.lance").rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def _exists(self) -> bool:
        # The first commit makes the table; before it there may be a folder, if a process died there.
        return any((self.folder / f"{self.name}.lance" / "_versions").glob("*.manifest"))

    def _open(self, version: int | None = None) -> Lance:
        """A handle on the newest version, or the one handle on an older one."""
        if version in self._checked_out:
            return self._checked_out[version]
        try:
            table: Lance = _connect(self.folder).open_table(self.name)
            if version is not None:
                table.checkout(version)
                self._checked_out[version] = table
        except (ValueError, OSError, RuntimeError) as error:
            remedy = (
                f"Delete its folder {self.name}.lance and run the pipeline: it is made anew, nothing is embedded twice."
                if version is None
                else "Open the live release again, go to another one by `rollback --to`, or run the pipeline."
            )
            raise StoreError(
                f"Table {self.name!r}{f' version {version}' if version else ''} in {self.folder} cannot be opened: "
                f"{_short(error)} {remedy}"
            ) from error
        return table


@functools.lru_cache(maxsize=16)
def _connect(folder: Path) -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")  # read at import; its warnings are about index internals
    import lancedb

    # Consistency 0: a handle that was opened earlier still sees what other processes commit.
    return lancedb.connect(folder, read_consistency_interval=timedelta(0))


def _named(column: str) -> str:
    """A column as SQL wants it."""
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else f"`{column}`"


def _quoted(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


class _Watched(Iterator[pa.RecordBatch]):
    """Batches, and what went wrong in making them: Lance turns every error of an iterator into its own."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = iter(batches)
        self.failure: BaseException | None = None

    def __next__(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except BaseException as error:
            self.failure = error
            raise


def _short(error: Exception) -> str:
    """A Lance error without its source places and backtrace."""
    text = re.sub(r",? ?(at )?[^\s,]*\.rs:\d+(:\d+)?", "", str(error).splitlines()[0]) if str(error) else ""
    return (text.strip() or type(error).__name__).rstrip(".?, ") + "."
