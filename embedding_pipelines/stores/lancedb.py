"""`lancedb`: LanceDB tables on the local disk, with Lance's own versions, tags and indices."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import delete, delete_drafts, list_names
from embedding_pipelines.schemas import RESCORING_VECTOR, TABLE_KEY, TEXT, VECTOR
from embedding_pipelines.stores import _lance
from embedding_pipelines.stores._checksums import (
    damaged_file,
    forget_lost_files,
    read_checksums,
    updates_of,
    write_checksums,
)
from embedding_pipelines.stores._lance import (
    Source,
    address,
    batches_of,
    call,
    connect,
    quote_text,
    record_failure,
    short,
)
from embedding_pipelines.stores._lance_index import (
    INDICES,
    MAX_UPDATES,
    IndexKind,
    compact,
    update_index,
    update_text_index,
)
from embedding_pipelines.stores._lance_search import (
    Documents,
    Snapshot,
    open_in_memory,
    open_snapshot,
)
from embedding_pipelines.stores._manifest import leads_elsewhere, named_by, varint
from embedding_pipelines.stores.base import NUMBER_TYPES, Filter, IndexChoice, Store, Table
from embedding_pipelines.stores.filters import filter_error, store_filter
from embedding_pipelines.vectors import Distance

if TYPE_CHECKING:
    from lancedb._lancedb import Connection, Session
    from lancedb._lancedb import Table as Lance

Opened = TypeVar("Opened")

# Ids per delete statement, each of which reads all ids of the table and is a version: 10 us for an id.
REMOVE_IDS = 10_000
# That are read at once: of all rows, Lance holds up to 2 GB ready for a reader that is slower.
SCANNED_ROWS = 4_096
# Documents in a condition, at 12 µs each; of more all rows are compared. 200,000 rows of int8[64]: 0.10 s
# of the processor with 20,000 documents, 0.18 with 200,000.
MOST_NAMED = 10_000
SEARCHES_AT_ONCE = 128  # in one call
# Each loads parts of an index that does not stay in memory, 60 MB for 20 parts of `sq` at 384
# dimensions. 128 searches of 1,000,000 rows: 1,208 MB and 3.6 s all at once, 661 and 4.6 s by four.
SEARCHES_OF_LARGE_INDEX = 4
HITS_AT_ONCE = 12_800  # of one call, which are in memory together, with their texts
# The indices that `optimize` measures, and their bits a number. Not pq, which takes the bytes of rq,
# has a lower recall (0.979 of 0.999 on 99,000 captions) and trains for minutes instead of a second;
# nor hnsw, which is sq and a graph.
OPTIMIZE_KINDS: dict[IndexKind, int] = {"rq": 1, "sq": 8}
FINER = (2, 5)  # times the index's own refining
# Lance's table format, "Manifest Naming Schemes", V2: the name is u64::MAX - version in 20 digits.
VERSION_ZERO = 2**64 - 1
MANIFEST_END = b"LANC"  # of a whole manifest
ENDING = ".lance"  # of a table's folder
MANIFEST = ".manifest"
CHECKSUMS = ".checksums.json"  # the end of the name of their file, beside the table's folder
# That a reader compares before it trusts a version: 20 ms. A larger one is compared in part.
COMPARED_BYTES = 64 << 20
FIXED = ("data", "_versions", "_indices", "_deletions")  # folders whose files never change
UNNAMED = ("data", "_transactions", "_indices", "_deletions")  # in which a dead writer leaves files
DRAFTS = ("*/.tmp*", "_versions/*.manifest#*")  # as Lance and its object store name them
TORN = ".torn"  # what is appended to a manifest's name when it is set aside: cut short, or damaged


class Lancedb(Store):
    """A table per pipeline and space, with exact search below `index_rows` rows.

    `index` over the vectors: `sq` one byte a number, `rq` one bit, `pq` one byte for 8 numbers (or
    4), `hnsw` a graph over `sq`; a search compares the candidates again by the column's own
    numbers. `none` is exact search. Packed bits have one kind of their own. int8 codes take one
    byte a number on disk only with `none`: LanceDB cannot index such a column, so with an index
    they are float16, which holds them exactly.
    """

    kind: Literal["lancedb"] = "lancedb"
    index: IndexKind = "sq"
    index_rows: int = Field(10_000, ge=256)  # build the index from this many rows on
    # How many times k candidates to compare again; None: what suits the index.
    refine: int | None = Field(None, ge=1)
    nprobes: int = Field(20, ge=1)  # parts of an index to search; lancedb's default

    def check(self, dtype: str, dimensions: int) -> None:
        if self.index == "none":
            return
        divisor = INDICES[self.index].divisor
        if dtype == "binary":
            if self.index != "sq":
                raise ConfigError(
                    f"store.index: {self.index!r} is for numbers, and binary codes are bits, which "
                    "have an index of their own. Leave store.index out, or write 'none' for exact "
                    "search."
                )
        elif dimensions % divisor:
            raise ConfigError(
                f"store.index: {self.index!r} needs dimensions that {divisor} divides, and the "
                f"vectors have {dimensions}. Use 'sq', or reduce them to "
                f"{dimensions - dimensions % divisor} by compression."
            )

    def index_choices(self, rows: int) -> list[IndexChoice]:
        plain = self.model_copy(update={"index": "none", "refine": None})
        if rows < self.index_rows:
            return [IndexChoice(self, self.index), IndexChoice(plain)]
        choices = [IndexChoice(plain)]
        for kind, bits in OPTIMIZE_KINDS.items():
            store = plain.model_copy(update={"index": kind})
            refines = [INDICES[kind].refine * factor for factor in FINER]
            finer = {refine: store.model_copy(update={"refine": refine}) for refine in refines}
            choices.append(IndexChoice(store, kind, bits, finer))
        return choices

    def column_type(self, dtype: str) -> pa.DataType:
        return pa.float16() if dtype == "int8" and self.index != "none" else NUMBER_TYPES[dtype]

    @property
    def layout(self) -> str:
        return self.model_dump_json(exclude={"refine", "nprobes"})

    def table(self, folder: Path, name: str, index_memory: int | None = None) -> Table:
        return LanceTable(folder, name, self, index_memory)

    def in_memory(self, rows: pa.Table, language: str | None = None) -> Table:
        return MemoryTable(call(open_in_memory, rows, language), self)

    def score_texts(
        self, query: str, texts: Mapping[str, str], language: str | None
    ) -> dict[str, float]:
        columns = {TABLE_KEY: [*texts], TEXT: [*texts.values()]}
        vectors = pa.array([[0.0]] * len(texts), pa.list_(pa.float32(), 1))
        rows = pa.table({**columns, VECTOR: vectors})
        snapshot = call(open_in_memory, rows, language)
        ranking = snapshot.by_text(query, len(texts), None, [TABLE_KEY])
        return dict(zip(ranking[TABLE_KEY].to_pylist(), ranking["_score"].to_pylist(), strict=True))

    def names(self, folder: Path) -> list[str]:
        names = list_names(folder)
        return sorted(name.removesuffix(ENDING) for name in names if name.endswith(ENDING))

    def drop(self, folder: Path, name: str) -> None:
        for manifest in LanceTable(folder, name, self)._manifests():
            delete(manifest)  # first: who searches it meanwhile sees that it is gone
        with (
            _lance.explain_errors(folder, name, "deleted"),
            contextlib.suppress(FileNotFoundError),
        ):
            shutil.rmtree(folder / f"{name}{ENDING}")
        delete(folder / f"{name}{CHECKSUMS}")
        delete_drafts(folder, f"{name}{CHECKSUMS}")


class LanceTable(Table):
    def __init__(
        self, folder: Path, name: str, options: Lancedb, index_memory: int | None = None
    ) -> None:
        self.folder, self.name, self.options = folder, name, options
        self._index_memory = index_memory  # LanceDB's own default is 6 GB
        self._versions: dict[int, Lance] = {}  # a version never changes, so its handle stays valid
        self._snapshots: dict[int, Snapshot] = {}

    @functools.cached_property
    def _connection(self) -> Connection:
        # Its tables see what other processes commit, however old a handle is.
        return call(connect, address(self.folder), 0.0, self._session)

    @functools.cached_property
    def _session(self) -> Session | None:
        return None if self._index_memory is None else _lance.session(self._index_memory)

    @property
    def version(self) -> int | None:
        # Read from the manifests' names, which the format fixes: a run that changes nothing then
        # does not load lancedb. Anything unusual is left to lancedb, which may
        # raise.
        manifests = self._manifests()
        if not manifests:
            return None
        if all(re.fullmatch(r"\d{20}", file.stem) for file in manifests):
            newest = min(manifests)  # names count down from the largest number
            if not _is_torn(newest):
                return VERSION_ZERO - int(newest.stem)
        return call(self._open().version)

    @functools.cached_property  # each search asks
    def folder_of_files(self) -> Path:
        return self.folder / f"{self.name}{ENDING}"

    def lacks(self, version: int) -> bool:
        if self._manifest(version).exists():  # each search asks: one look, no list
            return False
        if any(not re.fullmatch(r"\d{20}", file.stem) for file in self._manifests()):
            return False
        return self._manifest(version) not in self._manifests()

    def damage(self, version: int, most_bytes: int | None = None) -> str | None:
        state = read_checksums(self._checksums)
        if not state["files"]:
            return f"{self._checksums} is lost or damaged"
        return self._damage(state, version, most_bytes)

    def _damage(self, state: dict[str, Any], version: int, most_bytes: int | None) -> str | None:
        """Which file is damaged of those that a version reads, by what is on record."""
        folder, is_read = self.folder_of_files, self._reader(version)
        name = damaged_file(state, self._checksums, folder, is_read, most_bytes)
        return name and f"{folder / name} is lost or damaged"

    def leads_elsewhere(self) -> bool:
        return any(map(leads_elsewhere, self.folder_of_files.rglob(f"*{MANIFEST}")))

    def withdraw(self, version: int | None) -> None:
        manifests = self._manifests()
        if version is None:
            for manifest in manifests:
                delete(manifest)
            shutil.rmtree(self.folder_of_files, ignore_errors=True)
            delete(self._checksums)
            return
        for manifest in manifests:
            # Names count down.
            if re.fullmatch(r"\d{20}", manifest.stem) and manifest < self._manifest(version):
                delete(manifest)
        delete(self._versions_folder / "latest_version_hint.json")
        forget_lost_files(self._checksums, self.folder_of_files)
        self._delete_unnamed()

    def apply(
        self, schema: pa.Schema, remove: Iterable[str], add: Iterable[pa.RecordBatch]
    ) -> None:
        with self._explained("written"):
            if not self._manifests():
                self.folder.mkdir(parents=True, exist_ok=True)
                self.withdraw(None)  # the rest of a lost table of this name, or of a dead writer
                # A schema that was read from another table says of its columns which one is the key.
                plain = pa.schema([field.remove_metadata() for field in schema], schema.metadata)
                new = call(self._connection.create_empty_table, self.name, "create", plain)
                if TABLE_KEY in schema.names:  # candidates of `optimize` have vectors alone
                    call(new.set_unenforced_primary_key, [TABLE_KEY])
            table = self._open()
            self._delete_unnamed()
            names = iter(remove)
            while part := list(itertools.islice(names, REMOVE_IDS)):
                ids = ", ".join(map(quote_text, part))
                call(table.delete, f"chunk_id IN ({ids})")
        failures: list[BaseException] = []
        batches = record_failure(add, failures)
        first = next(batches, None)
        if first is None:
            return
        try:
            rows = pa.RecordBatchReader.from_batches(schema, itertools.chain([first], batches))
            call(table.add, Source(schema, lambda: rows), "append")
        except (RuntimeError, ValueError, OSError) as error:
            if failures:
                raise failures[0] from error
            raise StoreError(
                f"Table {self.name!r} in {self.folder} cannot be written: {short(error)}"
            ) from error

    def index(self, metric: Distance, trained_rows: int, language: str | None = None) -> int:
        table, options = self._open(), self.options
        updates = updates_of(self._checksums) + 1
        is_due = updates > MAX_UPDATES and self._has_dead_rows()
        with self._explained("indexed"):
            trained_rows = update_index(
                table, options.index, metric, options.index_rows, trained_rows, is_due
            )
            if compact(table, is_due):
                updates = 0
            update_text_index(table, language)
            tagged = {tag["version"] for tag in call(table.tags.list).values()}
        self._delete_drafts()  # Lance passes over one that it could not delete itself
        folder = self.folder_of_files
        paths = (path for part in FIXED for path in (folder / part).rglob("*") if path.is_file())
        names = (path.relative_to(folder).as_posix() for path in paths if path.suffix != ".json")
        write_checksums(self._checksums, folder, names, updates)
        self.delete_garbage(tagged)
        return trained_rows

    def has_only(self, version: int) -> bool:
        if self._manifests() != [self._manifest(version)] or self._has_dead_rows():
            return False
        is_read = self._reader(version)
        return all(is_read(f"data/{name}") for name in list_names(self.folder_of_files / "data"))

    def _has_dead_rows(self) -> bool:
        """Whether a file of the newest version holds rows that were deleted."""
        if (version := self.version) is None:
            return False
        is_read, names = self._reader(version), list_names(self.folder_of_files / "_deletions")
        return any(is_read(f"_deletions/{name}") for name in names)

    def garbage(self, versions: Collection[int]) -> list[Path]:
        # Lance's own clean-up stops at the oldest version with a tag.
        torn = self._versions_folder.glob(f"*{TORN}")
        newest = sorted(self._manifests())[:1]  # names count down
        return [*torn, *self._unneeded({*newest, *map(self._manifest, versions)})]

    def delete_garbage(self, versions: Collection[int]) -> None:
        super().delete_garbage(versions)
        delete_drafts(self.folder, self._checksums.name)
        forget_lost_files(self._checksums, self.folder_of_files)

    def rows(self, version: int | None = None) -> int:
        table = self._open(version)
        with self._explained("read"):
            return call(table.count_rows, None)

    def schema(self, version: int | None = None) -> pa.Schema:
        return call(self._open(version).schema)

    def scan(
        self, columns: Sequence[str], partition: str | None = None, version: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        table = self._open(version)
        with self._explained("read"):
            if partition is not None:
                query = table.query()
                query.select_columns(list(columns))
                query.where(f"partition = {quote_text(partition)}")
                yield from batches_of(query)
                return
            if version is None:
                call(table.checkout, call(table.version))
            for first in range(0, call(table.count_rows, None), SCANNED_ROWS):
                query = table.query()
                query.select_columns(list(columns))
                query.offset(first)
                query.limit(SCANNED_ROWS)
                yield from batches_of(query)

    def columns(self, version: int) -> list[str]:
        return list(self._snapshot(version).columns)

    def search(
        self,
        vector: NDArray[np.generic],
        k: int,
        metric: Distance,
        filter: Filter | None,
        version: int,
        rescoring: bool = False,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table:
        snapshot = self._snapshot(version)
        only, many = _many(only)
        where = _condition(snapshot, filter, names, only)
        columns = [*snapshot.columns, RESCORING_VECTOR] if rescoring else snapshot.columns
        try:
            if snapshot.is_int8 or (many is not None and metric == "cosine"):
                return snapshot.by_scan(vector, k, where, columns, many)
            if many is not None:
                return snapshot.of_many(vector, k, metric, where, columns, many)
            refine, nprobes = self._refine(metric), self.options.nprobes
            return snapshot.through_index(vector, k, metric, where, columns, refine, nprobes)
        except (RuntimeError, ValueError, OSError) as error:
            raise self._search_error(error, filter, version) from error

    def search_many(
        self,
        vectors: NDArray[np.generic],
        k: int,
        metric: Distance,
        version: int,
        rescoring: bool = False,
    ) -> Iterator[pa.Table]:
        snapshot = self._snapshot(version)
        if snapshot.is_int8:
            yield from super().search_many(vectors, k, metric, version, rescoring)
            return
        columns = [*snapshot.columns, RESCORING_VECTOR] if rescoring else snapshot.columns
        refine, nprobes = self._refine(metric), self.options.nprobes
        searches = self._searches_at_once(snapshot, vectors.shape[1])
        at_once = min(searches, max(1, HITS_AT_ONCE // k))
        for first in range(0, len(vectors), at_once):
            part = vectors[first : first + at_once]
            try:
                rows = snapshot.through_index_at_once(part, k, metric, columns, refine, nprobes)
            except (RuntimeError, ValueError, OSError) as error:
                raise self._search_error(error, None, version) from error
            yield from rows

    def _searches_at_once(self, snapshot: Snapshot, dimensions: int) -> int:
        if self._index_memory is None:
            return SEARCHES_AT_ONCE
        size = call(snapshot.table.count_rows, None) * dimensions
        return SEARCHES_AT_ONCE if size <= self._index_memory else SEARCHES_OF_LARGE_INDEX

    def _refine(self, metric: Distance) -> int | None:
        # Of bits there is nothing finer to compare again: an index holds them as they are.
        if self.options.index == "none" or metric == "hamming":
            return None
        return self.options.refine or INDICES[self.options.index].refine

    def search_text(
        self,
        text: str,
        k: int,
        filter: Filter | None,
        version: int,
        names: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> pa.Table:
        snapshot = self._snapshot(version)
        only, many = _many(only)
        where = _condition(snapshot, filter, names, only)
        try:
            if many is not None:
                return snapshot.by_text_of_many(text, k, where, snapshot.columns, many)
            return snapshot.by_text(text, k, where, snapshot.columns)
        except (RuntimeError, ValueError, OSError) as error:
            raise self._search_error(error, filter, version) from error

    def has_text_index(self, version: int) -> bool:
        return self._snapshot(version).has_text_index

    def _search_error(self, error: Exception, filter: Filter | None, version: int) -> StoreError:
        if filter is not None:
            snapshot = self._snapshot(version)
            return filter_error(filter, snapshot.schema, snapshot.columns, short(error))
        return StoreError(
            f"Table {self.name!r} version {version} cannot be searched: {short(error)}"
        )

    def tag(self, versions: Mapping[str, int]) -> None:
        self._remove_damaged_tags()
        table = self._open()
        with self._explained("tagged"):
            tags = table.tags
            old = {name: tag["version"] for name, tag in call(tags.list).items()}
            versions = {
                name: version for name, version in versions.items() if not self.lacks(version)
            }
            for name in old.keys() - versions.keys():
                call(tags.delete, name)
            for name, version in versions.items():
                if name not in old:
                    call(tags.create, name, version)
                elif old[name] != version:  # of a release that somebody began and never finished
                    call(tags.update, name, version)

    def _delete_unnamed(self) -> None:
        """Delete the files that no version names: writers that were killed left them."""
        for path in self._unneeded(set(self._manifests())):
            delete(path)
        forget_lost_files(self._checksums, self.folder_of_files)

    def _unneeded(self, manifests_to_keep: Collection[Path]) -> list[Path]:
        """The files that only other manifests than these name, or none, those manifests first.
        There is no other writer, since the pipeline is locked; and none but drafts while a manifest
        that stays, which might name it, is not as it was written, or of a scheme that is not known
        here."""
        folder, manifests = self.folder_of_files, self._manifests()
        drafts = [path for pattern in DRAFTS for path in folder.glob(pattern)]
        if not all(re.fullmatch(r"\d{20}", manifest.stem) for manifest in manifests):
            return drafts
        own, state = set(manifests_to_keep) & set(manifests), read_checksums(self._checksums)
        if not state["files"] or damaged_file(
            state, self._checksums, folder, lambda name: folder / name in own, None
        ):
            return drafts
        readers = [self._reader(VERSION_ZERO - int(manifest.stem)) for manifest in own]
        names = {
            path.relative_to(folder).as_posix(): path
            for part in UNNAMED
            for path in (folder / part).rglob("*")
            if path.is_file() and path not in drafts
        }
        unnamed = [
            path for name, path in names.items() if not any(is_read(name) for is_read in readers)
        ]
        return [*drafts, *(manifest for manifest in manifests if manifest not in own), *unnamed]

    def _delete_drafts(self) -> None:
        for pattern in DRAFTS:
            for draft in self.folder_of_files.glob(pattern):
                delete(draft)

    def _remove_damaged_tags(self) -> None:
        """Those whose file has been read and holds no JSON, for Lance then lists none of them; and
        the drafts of killed writers."""
        for path in (self.folder_of_files / "_refs" / "tags").glob("*.json.tmp.*"):
            delete(path)
        for path in (self.folder_of_files / "_refs" / "tags").glob("*.json"):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                delete(path)

    def size_bytes(self) -> int:
        files = self.folder_of_files.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def _explained(self, use: str) -> contextlib.AbstractContextManager[None]:
        return _lance.explain_errors(self.folder, self.name, use)

    def _manifests(self) -> list[Path]:
        """One file per version; a folder without any is the rest of a process that died."""
        names = list_names(self._versions_folder)
        return [self._versions_folder / name for name in names if name.endswith(MANIFEST)]

    @functools.cached_property
    def _versions_folder(self) -> Path:
        return self.folder_of_files / "_versions"

    def _manifest(self, version: int) -> Path:
        return self._versions_folder / f"{VERSION_ZERO - version:020}{MANIFEST}"

    @property
    def _checksums(self) -> Path:
        return self.folder / f"{self.name}{CHECKSUMS}"

    def _reader(self, version: int) -> Callable[[str], bool]:
        """Whether this version reads a file. Its manifest names data files, holds the UUIDs of
        indices and, as protobuf's varints, the numbers of files of deletions."""
        manifest = self._manifest(version)
        content = named_by(manifest)

        def is_read(name: str) -> bool:
            folder, *_, file = parts = name.split("/")
            if folder == "_versions":
                return file == manifest.name
            if folder == "_indices":
                with contextlib.suppress(ValueError):
                    return uuid.UUID(parts[1]).bytes in content
            if folder in ("data", "_transactions"):
                return file.encode() in content
            number = file.partition(".")[0].rpartition("-")[2]
            return not number.isdecimal() or varint(int(number)) in content

        return is_read

    def _compare(self, version: int) -> None:
        """Raises StoreError if files that this version reads are damaged."""
        state = read_checksums(self._checksums)
        if state["files"] and (words := self._damage(state, version, COMPARED_BYTES)):
            name = self.name.rpartition("-")[0]
            raise StoreError(
                f"Table {self.name!r} version {version} cannot be used: {words}. Run "
                f"`embedding-pipelines run {name}`, which builds the table anew and embeds nothing "
                "twice."
            )

    def _set_torn_aside(self) -> None:
        """Rename the newest manifests if a power cut left them without their content: Lance opens
        no version of a table whose newest manifest it cannot read. Lance writes a manifest under
        another name first, so none that is being written looks like that."""
        for manifest in sorted(self._manifests()):
            if not _is_torn(manifest):
                return
            _set_aside(manifest)

    def _open_past_damage(self, open_table: Callable[[], Opened]) -> Opened:
        """What `open_table` returns, tried again without the newest manifest if that is damaged:
        Lance reads it to open any version."""
        try:
            return open_table()
        except (RuntimeError, ValueError, OSError):
            newest = min(self._manifests(), default=None)
            if newest is None:
                raise
            state, is_newest = read_checksums(self._checksums), f"_versions/{newest.name}".__eq__
            if not damaged_file(state, self._checksums, self.folder_of_files, is_newest, None):
                raise
            _set_aside(newest)
            return open_table()

    def _open(self, version: int | None = None) -> Lance:
        """A new handle on the newest version, or the one handle on an older one."""
        if version in self._versions:
            return self._versions[version]
        self._set_torn_aside()
        if version is not None:
            self._compare(version)
        with _lance.explain_open_errors(self.folder, self.name, version):
            table = self._open_past_damage(lambda: call(self._connection.open_table, self.name))
            if version is not None:
                call(table.checkout, version)
                self._versions[version] = table
        return table

    def _snapshot(self, version: int) -> Snapshot:
        if version not in self._snapshots:
            self._set_torn_aside()
            self._compare(version)
            with _lance.explain_open_errors(self.folder, self.name, version):
                self._snapshots[version] = self._open_past_damage(
                    lambda: call(open_snapshot, self.folder, self.name, version, self._session)
                )
        return self._snapshots[version]


class MemoryTable(LanceTable):
    """See `Store.in_memory`."""

    def __init__(self, snapshot: Snapshot, options: Lancedb) -> None:
        super().__init__(Path(os.devnull), "in memory", options)
        self._memory = snapshot

    @property
    def version(self) -> int:
        return 1

    def lacks(self, version: int) -> bool:
        return False

    def _snapshot(self, version: int) -> Snapshot:
        return self._memory


def _many(only: Sequence[str] | None) -> tuple[Sequence[str] | None, Documents | None]:
    """Documents to name in a condition, or those that are too many to be named."""
    if only is None or len(only) <= MOST_NAMED:
        return only, None
    return None, frozenset(only)


def _condition(
    snapshot: Snapshot,
    filter: Filter | None,
    names: Mapping[str, str] | None,
    only: Sequence[str] | None,
) -> str | None:
    """A filter in the store's SQL, which holds of no document but some. It is read as a whole before
    anything is put beside it."""
    parts = []
    if filter is not None:
        parts.append(f"({store_filter(filter, snapshot.schema, snapshot.columns, names)})")
    if only is not None:
        ids = ", ".join(map(quote_text, only))
        parts.append(f"document_id IN ({ids})" if only else "false")
    return " AND ".join(parts) or None


def _set_aside(manifest: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process was quicker
        manifest.rename(manifest.with_name(manifest.name + TORN))


def _is_torn(manifest: Path) -> bool:
    """Whether a manifest has been read and lacks its end, as those do that never reached the
    disk."""
    try:
        with manifest.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(MANIFEST_END)))
            return file.read() != MANIFEST_END
    except FileNotFoundError:  # removed by a clean-up
        return False
