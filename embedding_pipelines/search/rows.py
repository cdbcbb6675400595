"""The rows that searches read: a release's table, an index of it in memory, and what was pushed
since."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.access import WIDER, Access, Permitted, Principals, Visible
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.overlay import UNRELEASED, Overlaid, Overlay, table_of
from embedding_pipelines.providers.base import EmbeddingModel
from embedding_pipelines.ranking import Query, find, rows_needed
from embedding_pipelines.releases import Release, live_release
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search.queries import Search
from embedding_pipelines.spec.pipeline import partition_of
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, to_matrix

if TYPE_CHECKING:
    from embedding_pipelines.memory import MemoryIndex, Near


@dataclass(frozen=True)
class Current:
    """What a search reads, all of it of one release."""

    release: Release
    table: Table
    access: Access
    overlay: Overlay
    memory: "MemoryIndex | None" = None


class ReleaseRows:
    """The rows of one release, and of the live one once that has left the disk."""

    def __init__(
        self,
        warehouse: Warehouse,
        folder: PipelineFolder,
        release: Release,
        codec: CodecChain,
        model: EmbeddingModel,
        access: Access | None = None,
    ) -> None:
        """`model` is the release's own, by which what was pushed since becomes rows. `access`: the
        permissions, of a caller that looks at them, too."""
        self._warehouse, self._folder, self._model = warehouse, folder, model
        self.codec = codec
        # Replaced as a whole, for searches of several threads read it; and by one of them at a time.
        self.current = self._open(release, table_of(warehouse, release, codec), access)
        self._lock = threading.Lock()

    def visible(self, principals: Principals) -> Visible | None:
        """What principals may see of the pipeline, as its permissions are now; None: all of it.
        Raises as `Access.visible`."""
        return self.current.access.visible(principals)

    @property
    def has_text_index(self) -> bool:
        release, table = self.current.release, self.current.table
        if release.number == UNRELEASED:  # its rows are in memory, with the index of their language
            return release.spec.search.text_index is not None
        return table.has_text_index(release.version)

    def load_memory(self, is_wanted: Callable[[], bool]) -> bool:
        """As `Searcher.load_memory`."""
        from embedding_pipelines.memory import MemoryIndex

        current = self.current
        if current.release.number == UNRELEASED:
            return False
        memory = MemoryIndex.build(
            current.table, self.codec, current.release.version, is_wanted=is_wanted
        )
        with self._lock:
            if self.current is current:
                self.current = replace(current, memory=memory)
        return self.current.memory is not None

    def find_all(self, queries: Sequence[Query], search: Search) -> "Iterator[pa.Table | Near]":
        """The best rows for each query, best first."""
        current = self._follow()
        every = self._near(current, queries, search)
        for number, query in enumerate(queries):
            now = self._follow() if number else current
            if now is not current:  # nor is anything shown of the old one in memory
                current, every = now, None
            near = every[number] if every else None
            try:
                yield self._find(current, query, search, near)
            except StoreError:
                before, current = current, self._follow()
                if current.release is before.release:
                    raise
                every = None  # it went just now
                yield self._find(current, query, search, None)

    def _near(
        self, current: Current, queries: Sequence[Query], search: Search
    ) -> "Sequence[Near | None] | None":
        """The nearest rows of each query in memory, all at once; None where the stored table is to
        tell."""
        memory, visible, most = current.memory, search.visible, rows_needed(search.k, search.mode)
        wide = most if visible is None else most * WIDER[0]
        if memory is None or search.mode == "text" or search.filter is not None or not queries:
            return None
        vectors = [query.vector for query in queries if query.vector is not None]
        every = memory.find_all(np.stack(vectors), wide)
        if every is None or visible is None:
            return every
        of_visible = [near.of(visible) for near in every]
        return [near if len(near) >= most else None for near in of_visible]

    def _find(
        self, current: Current, query: Query, search: Search, near: "Near | None"
    ) -> "pa.Table | Near":
        """The best rows, with those in memory that are nearest, if it has any to say."""
        table, most = current.overlay.over(current.table), rows_needed(search.k, search.mode)
        if near is not None and search.mode == "vector" and not isinstance(table, Overlaid):
            return near.first(most)  # of what is visible
        visible, release = search.visible, current.release
        nearest = None if near is None else near.to_table()
        if nearest is not None and isinstance(table, Overlaid):
            assert query.vector is not None
            nearest = table.nearest(nearest, self.codec, query.vector, most, visible)
        if nearest is not None:
            nearest = nearest.slice(0, most)
        rows = find(
            table if visible is None else Permitted(table, visible),
            self.codec,
            query,
            search.k,
            search.filter,
            release.version,
            search.mode,
            release.spec.source.table_names,
            nearest,
        )
        return rows if visible is None else visible.filter(rows)  # whatever gave them

    def vectors_of(self, documents: Sequence[str], visible: Visible | None) -> list[Vectors]:
        """float32[n, d] of each document's chunks, as the table keeps them; ConfigError for one that
        has none."""
        current = self._follow()
        codes: dict[str, list[Any]] = {name: [] for name in documents}
        for rows in _of_documents(current, documents, [VECTOR], visible):
            if rows.num_rows:
                owners, own = rows["document_id"].to_pylist(), to_matrix(rows[VECTOR])
                for owner, code in zip(owners, own, strict=True):
                    codes[owner].append(code)
        for name, each in codes.items():
            if not each:
                raise ConfigError(
                    f"{current.release.title} has no document {name!r}. A search shows the ids, in "
                    "front of each hit."
                )
        return [self.codec.decode(np.stack(each)) for each in codes.values()]

    def of_documents(
        self, documents: Sequence[str], columns: Sequence[str], visible: Visible | None
    ) -> Iterator[pa.RecordBatch | pa.Table]:
        """The rows of documents, each as it was pushed last, else as it is in the release. A partition
        is read once, however many of them are in it."""
        return _of_documents(self.current, documents, columns, visible)

    def _follow(self) -> Current:
        """Go on with the live release if the one that was opened has left the disk, since a document
        was forgotten, say. One of another space or other columns has to be opened."""
        current = self.current
        if not current.table.lacks(current.release.version):
            return current
        with self._lock:
            if self.current is current:  # else another thread was quicker
                self.current = self._after(current)
            return self.current

    def _after(self, before: Current) -> Current:
        """What is live now, if it can take the place of what was before."""
        live, gone = live_release(self._folder), replace(before, memory=None)
        spec = before.release.spec
        if live.space != before.release.space or live.spec.metadata_types != spec.metadata_types:
            return gone
        table = live.spec.store.table(self._warehouse.tables, live.table)
        return gone if table.lacks(live.version) else self._open(live, table)

    def _open(self, release: Release, table: Table, access: Access | None = None) -> Current:
        spec, home = release.spec, self._warehouse.home
        if access is None or access.released != spec.permissions:
            access = Access(home, spec.name, spec.permissions)
        overlay = Overlay(self._warehouse, release, self._model, self.codec)
        return Current(release, table, access, overlay)


def _of_documents(
    current: Current, documents: Sequence[str], columns: Sequence[str], visible: Visible | None
) -> Iterator[pa.RecordBatch | pa.Table]:
    """As `ReleaseRows.of_documents`."""
    spec, table = current.release.spec, current.overlay.over(current.table)
    columns, released = [*columns, "document_id"], defaultdict[str, list[str]](list)
    for name in documents:
        if visible is not None and name not in visible:
            continue
        if isinstance(table, Overlaid) and table.hides(name):
            yield from table.pushed(name, columns)
        else:
            released[spec.partition_names[partition_of(name, spec.partitions)]].append(name)
    for partition, own in released.items():
        ids = pa.array(own, pa.string())
        for batch in current.table.scan(columns, partition, current.release.version):
            yield batch.filter(pc.is_in(batch["document_id"], ids))


def as_table(rows: "pa.Table | Near") -> pa.Table:
    return rows if isinstance(rows, pa.Table) else rows.to_table()
