"""`lancedb`: LanceDB tables on the local disk. Versions, tags and indices are Lance's own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.schemas import RESCORING_VECTOR
from embedding_pipelines.stores._lance import Watched, connect, opening, quoted, short, wait
from embedding_pipelines.stores._lance_index import INDICES, IndexKind, bring_up_to_date, tidy
from embedding_pipelines.stores._lance_search import (
    Searched,
    checked_filter,
    filter_error,
    searched,
)
from embedding_pipelines.stores.base import NUMBER_TYPES, Metric, Store, Table

if TYPE_CHECKING:
    from lancedb.table import Table as Lance

REMOVE_IDS = 1_000  # ids per delete statement
# Lance's table format, "Manifest Naming Schemes", V2: the name is u64::MAX - version in 20 digits.
VERSION_ZERO = 2**64 - 1
MANIFEST_END = b"LANC"  # of a manifest that was written whole


class Lancedb(Store):
    """A table per pipeline and space, exact search below `index_rows` rows.

    `index` is over the vectors: `sq` one byte a number, `rq` one bit, `pq` one byte for 8 numbers
    (or 4), `hnsw` a graph over `sq`, each searched and then compared again by the column's own
    numbers; `none` for exact search. Packed bits have one kind of their own. int8 codes take one
    byte a number on disk with `none` alone: LanceDB cannot index such a column, so with an index
    they stand in float16, which holds them exactly.
    """

    kind: Literal["lancedb"] = "lancedb"
    index: IndexKind = "sq"
    index_rows: int = Field(10_000, ge=256)  # from this many rows on an index is kept
    # How many times as many candidates as are wanted are compared again; None: what suits the
    # index.
    refine: int | None = Field(None, ge=1)
    nprobes: int = Field(20, ge=1)  # parts of an index that are searched; lancedb's default

    def check(self, dtype: str, dimensions: int) -> None:
        if self.index == "none":
            return
        if dtype == "binary":
            if self.index != "sq":
                raise ConfigError(
                    f"store.index: {self.index!r} is for numbers, and binary codes are bits, which have an index of "
                    "their own. Leave store.index out, or write 'none' for exact search."
                )
            return
        divisor = INDICES[self.index].divisor
        if dimensions % divisor:
            raise ConfigError(
                f"store.index: {self.index!r} needs dimensions that {divisor} divides, and the vectors have "
                f"{dimensions}. Use 'sq', or reduce them to {dimensions - dimensions % divisor} by compression."
            )

    def column_type(self, dtype: str) -> pa.DataType:
        return pa.float16() if dtype == "int8" and self.index != "none" else NUMBER_TYPES[dtype]

    @property
    def layout(self) -> str:
        return self.model_dump_json(exclude={"refine", "nprobes"})

    def table(self, folder: Path, name: str) -> Table:
        return LanceTable(folder, name, self)

    def names(self, folder: Path) -> list[str]:
        return list(connect(folder).list_tables().tables) if folder.exists() else []

    def drop(self, folder: Path, name: str) -> None:
        connect(folder).drop_table(name, ignore_missing=True)


class LanceTable(Table):
    def __init__(self, folder: Path, name: str, options: Lancedb) -> None:
        self.folder, self.name, self.options = folder, name, options
        self._checked_out: dict[
            int, Lance
        ] = {}  # a version never changes, so its handle serves for ever
        self._searched: dict[int, Searched] = {}

    @property
    def version(self) -> int | None:
        # From the names of the manifests, which the format fixes: a run that changes nothing then
        # need not import lancedb, which takes 1.6 s. Whatever looks unusual is left to lancedb, its
        # refusal included.
        manifests = self._manifests()
        if not manifests:
            return None
        if all(re.fullmatch(r"\d{20}", file.stem) for file in manifests):
            newest = min(
                manifests
            )  # names count down from the largest number, so the newest comes first
            if newest.read_bytes()[-4:] == MANIFEST_END:
                return VERSION_ZERO - int(newest.stem)
        return int(self._open().version)

    def apply(
        self, schema: pa.Schema, remove: Sequence[str], add: Iterable[pa.RecordBatch]
    ) -> None:
        if not self._manifests():
            self.folder.mkdir(parents=True, exist_ok=True)
            connect(self.folder).create_table(self.name, schema=schema)
        table = self._open()
        for start in range(0, len(remove), REMOVE_IDS):
            table.delete(
                f"chunk_id IN ({', '.join(map(quoted, remove[start : start + REMOVE_IDS]))})"
            )
        batches = Watched(add)
        first = next(batches, None)
        if first is None:
            return
        try:
            table.add(pa.RecordBatchReader.from_batches(schema, itertools.chain([first], batches)))
        except (RuntimeError, ValueError, OSError) as error:
            if batches.failure is not None:
                raise batches.failure from error
            raise StoreError(
                f"Table {self.name!r} in {self.folder} cannot be written: {short(error)}"
            ) from error

    def index(self, metric: Metric, trained_rows: int) -> int:
        table, options = self._open(), self.options
        trained = bring_up_to_date(table, options.index, metric, options.index_rows, trained_rows)
        tidy(table)
        return trained

    def rows(self, version: int | None = None) -> int:
        return int(self._open(version).count_rows())

    def schema(self, version: int | None = None) -> pa.Schema:
        return self._open(version).schema

    def scan(
        self, columns: Sequence[str], partition: str | None = None, version: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        query = self._open(version).search().select(list(columns))
        if partition is not None:
            query = query.where(f"partition = {quoted(partition)}")
        yield from query.to_batches()

    def search(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Metric,
        filter: str | None,
        version: int,
        rescoring: bool = False,
    ) -> pa.Table:
        opened = self._open_for_search(version)
        checked_filter(filter)
        columns = [*opened.columns, RESCORING_VECTOR] if rescoring else opened.columns
        try:
            if opened.scanned:
                return opened.by_scan(vector, k, filter, columns)
            return opened.through_index(
                vector, k, metric, filter, columns, self._refine(metric), self.options.nprobes
            )
        except (RuntimeError, ValueError, OSError) as error:
            if filter:
                raise filter_error(filter, opened.columns, error) from error
            raise StoreError(
                f"Table {self.name!r} version {version} cannot be searched: {short(error)}"
            ) from error

    def tag(self, versions: Mapping[str, int]) -> None:
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
        """One file per version. The first commit makes the table; a folder without any is of a
        process that died."""
        return list((self.folder / f"{self.name}.lance" / "_versions").glob("*.manifest"))

    def _open(self, version: int | None = None) -> Lance:
        """A handle on the newest version, or the one handle on an older one."""
        if version in self._checked_out:
            return self._checked_out[version]
        with opening(self.folder, self.name, version):
            table: Lance = connect(self.folder).open_table(self.name)
            if version is not None:
                table.checkout(version)
                self._checked_out[version] = table
        return table

    def _open_for_search(self, version: int) -> Searched:
        if version not in self._searched:
            with opening(self.folder, self.name, version):
                self._searched[version] = wait(searched(self.folder, self.name, version))
        return self._searched[version]

    def _refine(self, metric: Metric) -> int | None:
        """None where there is nothing finer to compare again by: bits are indexed as they are."""
        if self.options.index == "none" or metric == "hamming":
            return None
        return self.options.refine or INDICES[self.options.index].refine
