"""The rows that searches read: a release's table, an index of it in memory, and what was pushed
since."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
from embedding_pipelines.vectors import Vectors, to_matrix

if TYPE_CHECKING:
    from embedding_pipelines.memory import MemoryIndex, Near


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
        self.release, self.codec = release, codec
        self.table = table_of(warehouse, release, codec)
        self.memory: MemoryIndex | None = None
        self.overlay = Overlay(warehouse, release, model, codec)
        spec = release.spec
        if access is None or access.released != spec.permissions:
            access = Access(warehouse.home, spec.name, spec.permissions)
        self._access = access

    def visible(self, principals: Principals) -> Visible | None:
        """What principals may see of the pipeline, as its permissions are now; None: all of it.
        Raises as `Access.visible`."""
        return self._access.visible(principals)

    @property
    def has_text_index(self) -> bool:
        release = self.release
        if release.number == UNRELEASED:  # its rows are in memory, with the index of their language
            return release.spec.search.text_index is not None
        return self.table.has_text_index(release.version)

    def load_memory(self, is_wanted: Callable[[], bool]) -> bool:
        """As `Searcher.load_memory`."""
        from embedding_pipelines.memory import MemoryIndex

        table, version = self.table, self.release.version
        if self.release.number == UNRELEASED:
            return False
        memory = MemoryIndex.build(table, self.codec, version, is_wanted=is_wanted)
        if table is self.table:
            self.memory = memory
        return self.memory is not None

    def find_all(self, queries: Sequence[Query], search: Search) -> "Iterator[pa.Table | Near]":
        """The best rows for each query, best first."""
        self._follow()
        every = self._near(queries, search)
        for number, query in enumerate(queries):
            near = every[number] if every else None
            try:
                yield self._find(query, search, near)
            except StoreError:
                if not self._follow():  # it went just now
                    raise
                yield self._find(query, search, None)

    def _near(self, queries: Sequence[Query], search: Search) -> "Sequence[Near | None] | None":
        """The nearest rows of each query in memory, all at once; None where the stored table is to
        tell."""
        memory, visible, most = self.memory, search.visible, rows_needed(search.k, search.mode)
        wide = most if visible is None else most * WIDER[0]
        if memory is None or search.mode == "text" or search.filter is not None or not queries:
            return None
        vectors = [query.vector for query in queries if query.vector is not None]
        every = memory.find_all(np.stack(vectors), wide)
        if every is None or visible is None:
            return every
        of_visible = [near.of(visible) for near in every]
        return [near if len(near) >= most else None for near in of_visible]

    def _find(self, query: Query, search: Search, near: "Near | None") -> "pa.Table | Near":
        """The best rows, with those in memory that are nearest, if it has any to say."""
        table, most = self.overlay.over(self.table), rows_needed(search.k, search.mode)
        if near is not None and search.mode == "vector" and not isinstance(table, Overlaid):
            return near.first(most)  # of what is visible
        visible, release = search.visible, self.release
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
        self._follow()
        codes: dict[str, list[Any]] = {name: [] for name in documents}
        for rows in self.of_documents(documents, [VECTOR], visible):
            if rows.num_rows:
                owners, own = rows["document_id"].to_pylist(), to_matrix(rows[VECTOR])
                for owner, code in zip(owners, own, strict=True):
                    codes[owner].append(code)
        for name, each in codes.items():
            if not each:
                raise ConfigError(
                    f"{self.release.title} has no document {name!r}. A search shows the ids, in "
                    "front of each hit."
                )
        return [self.codec.decode(np.stack(each)) for each in codes.values()]

    def of_documents(
        self, documents: Sequence[str], columns: Sequence[str], visible: Visible | None
    ) -> Iterator[pa.RecordBatch | pa.Table]:
        """The rows of documents, each as it was pushed last, else as it is in the release. A partition
        is read once, however many of them are in it."""
        spec, table = self.release.spec, self.overlay.over(self.table)
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
            for batch in self.table.scan(columns, partition, self.release.version):
                yield batch.filter(pc.is_in(batch["document_id"], ids))

    def _follow(self) -> bool:
        """Go on with the live release if the one that was opened has left the disk, since a document
        was forgotten, say; whether it did. One of another space or other columns has to be
        opened."""
        before = self.release
        if not self.table.lacks(before.version):
            return False
        self.memory = None
        live = live_release(self._folder)
        if live.space != before.space or live.spec.metadata_types != before.spec.metadata_types:
            return False
        table = live.spec.store.table(self._warehouse.tables, live.table)
        if table.lacks(live.version):
            return False
        self.release, self.table = live, table
        self._access = Access(self._warehouse.home, live.spec.name, live.spec.permissions)
        self.overlay = Overlay(self._warehouse, live, self._model, self.codec)
        return True


def as_table(rows: "pa.Table | Near") -> pa.Table:
    return rows if isinstance(rows, pa.Table) else rows.to_table()
