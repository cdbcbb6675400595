"""The live release of a pipeline as rows that other tools take: ids, text, metadata and vectors."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.access import Access, Principals
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.cache import EmbeddingCache, content_keys
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import replacing
from embedding_pipelines.releases import find_released, live_release
from embedding_pipelines.remote import refresh
from embedding_pipelines.schemas import CHUNK_COLUMNS, SPACE_ID_KEY, TABLE_TYPES, VECTOR
from embedding_pipelines.search.results import as_frame
from embedding_pipelines.storage.warehouse import Warehouse, write_table
from embedding_pipelines.vectors import Vectors, to_column, to_matrix

if TYPE_CHECKING:
    import pandas as pd

# exact: as the model gave them, from the embedding cache; stored: decoded from the table's codes.
Kind = Literal["exact", "stored"]

OWN_COLUMNS = ("chunk_id", "document_id", "start", "end", "text")


def load_table(
    home: Path | str,
    name: str,
    vectors: Kind | None = "exact",
    principals: Principals = None,
) -> "pd.DataFrame":
    """The live release of a pipeline: ids, offsets, text, metadata and `vector`, float32[d] each.

    `vectors`: "exact" as the model gave them, "stored" as far as the compression has kept them,
    None for none. `np.stack(frame["vector"])` is the matrix. `principals`: for whom, where the
    pipeline has permissions, as in `Searcher.search`. Raises ReleaseError without a release,
    StoreError if a vector is not in the embedding cache, PermissionsError as a search does,
    ConfigError without pandas.
    """
    table = LiveTable(home, name, principals)
    return as_frame(pa.Table.from_batches(table.read(vectors), table.schema(vectors)))


def load_vectors(
    home: Path | str, name: str, vectors: Kind = "exact", principals: Principals = None
) -> Vectors:
    """The vectors of `load_table` alone, float32[n, d], in the order of its rows. Raises as it."""
    table = LiveTable(home, name, principals)
    batches = [to_matrix(batch[VECTOR]) for batch in table.read(vectors, ["chunk_id"])]
    return np.concatenate([np.empty((0, table.space.dimensions), np.float32), *batches])


class LiveTable:
    """The live release of a pipeline, read batch by batch, in the same order each time: what of it
    `principals` may see, as its permissions are when this is made. Raises ReleaseError if nothing was
    released yet, ConfigError if there is no such pipeline, PermissionsError as a search does."""

    def __init__(self, home: Path | str, name: str, principals: Principals = None) -> None:
        self.warehouse = Warehouse(home)
        self.folder = self.warehouse.pipeline(find_released(self.warehouse, name))
        refresh(self.warehouse, self.folder.folder.name)
        self.release = live_release(self.folder)
        self.codec = CodecChain.load(self.folder.codecs / self.release.codec)
        self.space = self.release.space.with_codec(None)  # of the vectors that are read
        self.table = self.release.spec.store.table(self.warehouse.tables, self.release.table)
        access = Access(self.warehouse.home, self.release.spec.name, self.release.spec.permissions)
        self.visible = access.visible(principals)

    @functools.cached_property
    def rows(self) -> int:
        """How many rows `read` yields."""
        if self.visible is None:
            return self.release.rows
        return sum(batch.num_rows for batch in self.read(None, ["chunk_id"]))

    def schema(self, vectors: Kind | None, columns: Sequence[str] | None = None) -> pa.Schema:
        """What `read` yields; the space id is in its metadata."""
        types = {name: CHUNK_COLUMNS[name] for name in OWN_COLUMNS}
        for name, kind in self.release.spec.metadata_types.items():
            types[name] = TABLE_TYPES[kind]
        fields = {name: types[name] for name in columns or types}
        if vectors:
            fields[VECTOR] = pa.list_(pa.float32(), self.space.dimensions)
        return pa.schema(fields, metadata={SPACE_ID_KEY: self.space.id.encode()})

    def read(
        self, vectors: Kind | None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of all rows, by default all, and `vector` if `vectors` names a kind of it.
        Raises StoreError if an exact vector is not in the embedding cache."""
        schema = self.schema(vectors, columns)
        names = [name for name in schema.names if name != VECTOR]
        # Else the table holds them; without compression at unit length.
        exact = vectors == "exact" and (bool(self.codec.codecs) or not self.space.normalized)
        contents = self.release.spec.source.content_columns
        source = ["chunk_id", *contents] if exact else [VECTOR] if vectors else []
        visible = self.visible
        ids = [] if visible is None else ["document_id"]
        table_columns = list(dict.fromkeys([*names, *source, *ids]))
        cache = EmbeddingCache(self.warehouse.cache)
        with cache if exact else contextlib.nullcontext():
            for batch in self.table.scan(table_columns, version=self.release.version):
                if visible is not None:
                    batch = visible.filter(batch)
                if not batch.num_rows:
                    continue
                arrays = [batch[name] for name in names]
                if vectors:
                    matrix = (
                        self._exact(batch["chunk_id"], batch.select(contents), cache)
                        if exact
                        else self.codec.decode(to_matrix(batch[VECTOR]))
                    )
                    arrays.append(to_column(matrix, schema.field(VECTOR).type))
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def sample(
        self, rows: int, vectors: Kind, columns: Sequence[str]
    ) -> tuple[NDArray[np.int64], pa.Table]:
        """At most `rows` rows by chance, the same each time: their numbers, which rise, and what
        `read` yields of them."""
        total = self.rows
        random = np.random.default_rng(self.release.spec.seed)
        numbers = np.sort(random.choice(total, min(rows, total), replace=False))
        parts, first = [], 0
        for batch in self.read(vectors, columns):
            start, end = np.searchsorted(numbers, [first, first + batch.num_rows])
            parts.append(batch.take(pa.array(numbers[start:end] - first)))
            first += batch.num_rows
        return numbers, pa.Table.from_batches(parts, self.schema(vectors, columns))

    def _exact(self, names: pa.Array, contents: pa.RecordBatch, cache: EmbeddingCache) -> Vectors:
        """float32[n, d] that texts or images were embedded to."""
        keys = content_keys(self.space.id, "document", contents)
        vectors = cache.get_many(list(dict.fromkeys(keys)), self.space.dimensions)
        for name, key in zip(names.to_pylist(), keys, strict=True):
            if key not in vectors:
                raise StoreError(
                    f"The vector of chunk {name!r} is not in the embedding cache "
                    f"{self.warehouse.cache}. Put the cache back, or take the vectors that are "
                    "stored in the table: vectors='stored', on the command line --vectors stored."
                )
        return np.stack([vectors[key] for key in keys])


def check_file(path: Path) -> None:
    """ConfigError unless rows can be written to a file of this name."""
    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"Name a file that ends in .csv or .parquet, not {path}.")


def write_rows(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a CSV or Parquet file as rows come, in place of the one before once all are there."""
    if path.suffix == ".parquet":
        write_table(path, schema, batches)
        return
    from pyarrow.csv import CSVWriter

    with replacing(path) as draft, CSVWriter(draft, schema) as file:
        for batch in batches:
            file.write_batch(batch)
