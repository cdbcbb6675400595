"""`lancedb`: LanceDB tables on the local disk. Versions, tags and indices are Lance's own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from embedding_pipelines.errors import StoreError
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.stores.base import Metric, Store, Table

if TYPE_CHECKING:
    from lancedb.table import AsyncTable
    from lancedb.table import Table as Lance

Result = TypeVar("Result")
INTERNAL = ("bucket", "chunk_digest")  # serve the update, say nothing to a searcher
REMOVE_IDS = 1_000  # ids per delete statement
# Measured with lancedb 0.40 on 99,000 MiniLM vectors, k = 10: IvfSq with refine 2 has recall 0.9998 at
# 6 ms, brute force takes 131 ms. Ten thousand rows by brute force take about 13 ms.
REFINE = 2
PROBES = 20  # lancedb's default, stated so that a change of theirs is not a change of ours
# Lance's table format, "Manifest Naming Schemes", V2: the name is u64::MAX - version in 20 digits.
VERSION_ZERO = 2**64 - 1
MANIFEST_END = b"LANC"  # of a manifest that was written whole
RETRAIN_GROWTH = 2.0  # train the index again when the table has grown by this factor since
# Each update adds a segment to the index, and a file that is merged with none of another segment. Measured on
# 30,000 rows: a search takes 8.6 ms of processor time with 1 segment, 15 with 11, 24 with 41; training 1.3 s.
MAX_SEGMENTS = 8
# Compaction writes the whole table anew, and each kept release keeps its own copy: a change of 78 rows of 5,000 then
# costs 12 MB. So it waits until searches would feel that it is due.
MAX_SMALL_FILES = 8  # of less than 100,000 rows; each update adds one
MAX_UNINDEXED_ROWS = 4_000  # searched by brute force: 5 ms
MAX_DEAD_SHARE = 0.2  # of the rows on disk


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
        self._checked_out: dict[int, Lance] = {}  # a version never changes, so its handle serves for ever
        self._searched: dict[int, _Searched] = {}

    @property
    def version(self) -> int | None:
        # From the names of the manifests, which the format fixes: a run that changes nothing then need not
        # import lancedb, which takes 1.6 s. Whatever looks unusual is left to lancedb, its refusal included.
        manifests = self._manifests()
        if not manifests:
            return None
        if all(re.fullmatch(r"\d{20}", file.stem) for file in manifests):
            newest = min(manifests)  # names count down from the largest number, so the newest comes first
            if newest.read_bytes()[-4:] == MANIFEST_END:
                return VERSION_ZERO - int(newest.stem)
        return int(self._open().version)

    def apply(self, schema: pa.Schema, remove: Sequence[str], add: Iterable[pa.RecordBatch]) -> None:
        if not self._manifests():
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
        indices = [index for index in table.list_indices() if index.columns == [VECTOR]]
        segments = sum(index.num_segments or 1 for index in indices)
        stale = not segments or segments >= MAX_SEGMENTS or rows > trained_rows * RETRAIN_GROWTH
        if rows >= self.index_rows and stale:
            config = IvfFlat(distance_type="hamming") if metric == "hamming" else IvfSq(distance_type=metric)
            table.create_index(VECTOR, config=config, replace=True)
            trained_rows, segments = rows, 1
        elif segments and rows < self.index_rows / 2:  # few are left, and are searched exactly; half, lest it come back
            table.drop_index(indices[0].name)
            segments = 0
        if _is_scattered(table):
            # Small files into one, new rows into the index, and versions away that no release needs. Lance refuses
            # to remove anything while a tagged version is older than the limit, so the limit is the oldest kept
            # version. Unverified files are ours: the pipeline is locked.
            table.optimize(cleanup_older_than=_age_of_oldest_kept(table), delete_unverified=True)
        return trained_rows if segments else 0

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
        opened = self._open_for_search(version)
        if filter and ";" in re.sub(r"'[^']*'", "", filter):
            raise StoreError(f"The filter {filter!r} holds a ';'. Write one SQL condition.")
        query = opened.table.query().nearest_to(vector).column(VECTOR).distance_type(metric)
        query = query.nprobes(PROBES).refine_factor(REFINE).select([*opened.columns, "_distance"]).limit(k)
        if filter:
            # What passes may lie in any partition: with some of them alone, rows would be missing.
            query = query.where(filter).maximum_nprobes(0)
        try:
            return _wait(query.to_arrow())
        except (RuntimeError, ValueError, OSError) as error:
            if filter:
                columns = opened.columns
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

    def size_bytes(self) -> int:
        files = (self.folder / f"{self.name}.lance").rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def _manifests(self) -> list[Path]:
        """One file per version. The first commit makes the table; a folder without any is of a process that died."""
        return list((self.folder / f"{self.name}.lance" / "_versions").glob("*.manifest"))

    def _open(self, version: int | None = None) -> Lance:
        """A handle on the newest version, or the one handle on an older one."""
        if version in self._checked_out:
            return self._checked_out[version]
        with self._opening(version):
            table: Lance = _connect(self.folder).open_table(self.name)
            if version is not None:
                table.checkout(version)
                self._checked_out[version] = table
        return table

    def _open_for_search(self, version: int) -> _Searched:
        if version not in self._searched:
            with self._opening(version):
                self._searched[version] = _wait(_searched(self.folder, self.name, version))
        return self._searched[version]

    @contextlib.contextmanager
    def _opening(self, version: int | None) -> Iterator[None]:
        """Says what to do when lancedb cannot open the table."""
        try:
            yield
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


@dataclass(frozen=True)
class _Searched:
    """A version of a table as searches use it, with the columns that they return.

    Of lancedb's async side: its sync side waits for its own loop five times a search, twice of it for the schema.
    """

    table: AsyncTable
    columns: list[str]


async def _searched(folder: Path, name: str, version: int) -> _Searched:
    table = await (await _lancedb().connect_async(folder)).open_table(name)
    await table.checkout(version)
    names = (await table.schema()).names
    return _Searched(table, [name for name in names if name not in (VECTOR, *INTERNAL)])


def _wait(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs `work` in lancedb's own background loop, as its sync side does: callers may have a loop of theirs."""
    done: Result = _lancedb().background_loop.LOOP.run(work)
    return done


@functools.lru_cache(maxsize=16)
def _connect(folder: Path) -> Any:
    # Consistency 0: a handle that was opened earlier still sees what other processes commit.
    return _lancedb().connect(folder, read_consistency_interval=timedelta(0))


def _lancedb() -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")  # read at import; its warnings are about index internals
    import lancedb

    return lancedb


def _is_scattered(table: Lance) -> bool:
    """Whether a table has become so many small files, or so many rows outside its index, that searches feel it."""
    rows: Any = table.stats()  # a dict, whatever its annotation says
    files = rows["fragment_stats"]
    dead = 1 - rows["num_rows"] / max(1, files["num_fragments"] * files["lengths"]["mean"])
    unindexed = max((index.num_unindexed_rows or 0 for index in table.list_indices()), default=0)
    return files["num_small_fragments"] > MAX_SMALL_FILES or unindexed > MAX_UNINDEXED_ROWS or dead > MAX_DEAD_SHARE


def _age_of_oldest_kept(table: Lance) -> timedelta:
    kept = [tag["version"] for tag in table.tags.list().values()] or [table.version]
    times = {entry["version"]: entry["timestamp"] for entry in table.list_versions()}
    oldest: datetime = times.get(min(kept), min(times.values()))
    return datetime.now(oldest.tzinfo) - oldest + timedelta(seconds=1)


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
