"""Finds the documents in which two releases differ: new, gone, with another text, other metadata or
another vector.

It compares partition by partition, so that memory holds one partition of each release.
"""

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.releases import Release
from embedding_pipelines.schemas import VECTOR, digest
from embedding_pipelines.space import Space
from embedding_pipelines.storage.warehouse import ROW_GROUP_ROWS, Warehouse
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, cosine, to_matrix

Rows = NDArray[np.int64]  # places in a table

SAME_DIRECTION = 0.999  # cosine; batch shapes cost 1e-5, the precisions of `auto` less than 1e-3
TURNED_BITS = 1 / 40  # of a binary code, whose numbers may lie so near to zero that bits turn
MAX_EXAMPLES = 20  # of changed metadata
MAX_IDS = 1_000  # of each kind, the first by name; counts include all
SAMPLE_DOCUMENTS = 200  # whose neighbourhoods represent all


@dataclass(frozen=True)
class ReleaseTable:
    """A release with its table and its codec."""

    release: Release
    table: Table
    codec: CodecChain
    warehouse: Warehouse

    @property
    def space(self) -> Space:
        """The space of its vectors before compression."""
        return self.release.space.with_codec(None)


@dataclass
class IdList:
    """A number of documents, and the first MAX_IDS of their ids."""

    count: int = 0
    ids: list[str] = field(default_factory=list)

    def add(self, ids: Collection[str]) -> None:
        self.count += len(ids)
        self.ids = heapq.nsmallest(MAX_IDS, [*self.ids, *ids])


@dataclass(frozen=True)
class SampleDocument:
    """A document with the same text in both releases."""

    document_id: str
    before: str  # its first chunk's text in each
    after: str


@dataclass(frozen=True)
class MetadataChange:
    """A value of a document's metadata that differs."""

    document_id: str
    column: str
    before: Any
    after: Any


@dataclass
class DocumentChanges:
    """Documents by what changed. Their text is that of all their chunks, white space apart."""

    before: int = 0
    after: int = 0
    new: IdList = field(default_factory=IdList)
    gone: IdList = field(default_factory=IdList)
    changed: IdList = field(default_factory=IdList)  # with another text
    metadata: IdList = field(default_factory=IdList)  # same text, another value of a column of both
    metadata_columns: dict[str, int] = field(default_factory=dict)  # documents, by column
    metadata_examples: list[MetadataChange] = field(default_factory=list)  # MAX_EXAMPLES at most
    # Same text, another direction, beyond what the codecs' rounding can turn; None if the spaces
    # differ, or the compression was refitted and so keeps other directions of all.
    moved: IdList | None = None
    compared_chunks: int = 0  # with the same id and text in both releases
    mean_cosine: float | None = None  # of these chunks' vectors in both releases
    # Only if `moved` is None; by hash of the id, and so the same for any two releases.
    sample: list[SampleDocument] = field(default_factory=list)


@dataclass(frozen=True)
class _Partition:
    """A partition of both releases, whose rows `old_at[i]` and `new_at[i]` have one chunk id."""

    old: pa.Table
    new: pa.Table
    old_at: Rows
    new_at: Rows

    def equal_pairs(self, column: str) -> tuple[Rows, Rows]:
        """The pairs of chunks with equal values in a column."""
        old, new = self.old[column].take(self.old_at), self.new[column].take(self.new_at)
        is_equal = pc.equal(old, new).to_numpy()
        return self.old_at[is_equal], self.new_at[is_equal]


def open_release(warehouse: Warehouse, release: Release) -> ReleaseTable:
    """A release's table and codec. Raises CompressionError if the codec is gone or damaged."""
    table = release.spec.store.table(warehouse.tables, release.table)
    path = warehouse.pipeline(release.spec.name).codecs / release.codec
    return ReleaseTable(release, table, CodecChain.load(path), warehouse)


def compare_documents(before: ReleaseTable, after: ReleaseTable) -> DocumentChanges:
    """All documents of two releases of one pipeline. Raises StoreError for an unreadable table."""
    changes, total = DocumentChanges(), 0.0
    types = [side.release.spec.metadata_types for side in (before, after)]
    metadata = [name for name, kind in types[1].items() if types[0].get(name) == kind]
    columns = ["chunk_id", "document_id", "start", "text", "chunk_digest", *metadata]
    if before.space == after.space and not _was_refitted(before, after):
        changes.moved = IdList()
        columns.append(VECTOR)
    least = min(_same_direction(side.codec) for side in (before, after))
    for name in after.release.spec.partition_names:
        partition = _read(before, after, name, columns)
        same = _compare_texts(changes, partition, metadata)
        if changes.moved is None:
            changes.sample = _extend_sample(changes.sample, partition, same)
            continue
        moved = set[str]()
        for names, cosines in _cosines(before, after, partition):
            total += float(cosines.sum())
            changes.compared_chunks += len(cosines)
            moved.update(names[row] for row in np.flatnonzero(cosines < least))
        changes.moved.add(moved & same)
    if changes.compared_chunks:
        changes.mean_cosine = total / changes.compared_chunks
    return changes


def _was_refitted(before: ReleaseTable, after: ReleaseTable) -> bool:
    """Whether the same compression was fitted to other vectors."""
    same = before.release.spec.compression == after.release.spec.compression
    return same and before.codec.id != after.codec.id


def _same_direction(codec: CodecChain) -> float:
    """The least cosine of what a codec makes of two vectors that are the same up to rounding."""
    if codec.dtype != "binary":
        return SAME_DIRECTION
    turned = max(1, int(codec.dimensions * TURNED_BITS))
    return 1 - 2 * turned / codec.dimensions - 1e-6


def _read(
    before: ReleaseTable, after: ReleaseTable, partition: str, columns: Sequence[str]
) -> _Partition:
    old, new = _rows(before, partition, columns), _rows(after, partition, columns)
    places = pc.index_in(new["chunk_id"], value_set=old["chunk_id"])
    new_at = np.flatnonzero(pc.is_valid(places).to_numpy())
    return _Partition(old, new, places.take(new_at).to_numpy().astype(np.int64), new_at)


def _rows(table: ReleaseTable, partition: str, columns: Sequence[str]) -> pa.Table:
    version = table.release.version
    schema = table.table.schema(version)
    return pa.Table.from_batches(
        table.table.scan(columns, partition, version),
        pa.schema([schema.field(name) for name in columns]),
    )


def _compare_texts(
    changes: DocumentChanges, partition: _Partition, metadata: Sequence[str]
) -> set[str]:
    """Add a partition's documents; returns the ids of those with the same text in both."""
    old = set(pc.unique(partition.old["document_id"]).to_pylist())
    new = set(pc.unique(partition.new["document_id"]).to_pylist())
    changes.before += len(old)
    changes.after += len(new)
    changes.new.add(new - old)
    changes.gone.add(old - new)
    both, others = old & new, set[str]()  # with a chunk whose text, place or metadata differs
    tables = (partition.old, partition.new)
    for table, equal in zip(tables, partition.equal_pairs("chunk_digest"), strict=True):
        others.update(np.delete(table["document_id"].to_numpy(), equal))
    suspects = both & others
    old_texts, new_texts = _texts(partition.old, suspects), _texts(partition.new, suspects)
    changed = {name for name in suspects if old_texts[name] != new_texts[name]}
    changes.changed.add(changed)
    if metadata:
        _compare_metadata(changes, partition, metadata, suspects - changed)
    return both - changed


def _compare_metadata(
    changes: DocumentChanges, partition: _Partition, columns: Sequence[str], names: set[str]
) -> None:
    """Add the documents of `names` whose metadata differ."""
    old, new = (_values(rows, columns, names) for rows in (partition.old, partition.new))
    different = set[str]()
    for name in sorted(names):
        for column, left, right in zip(columns, old[name], new[name], strict=True):
            if left == right:
                continue
            different.add(name)
            changes.metadata_columns[column] = changes.metadata_columns.get(column, 0) + 1
            if len(changes.metadata_examples) < MAX_EXAMPLES:
                changes.metadata_examples.append(MetadataChange(name, column, left, right))
    changes.metadata.add(different)


def _values(rows: pa.Table, columns: Sequence[str], names: set[str]) -> dict[str, list[Any]]:
    """The metadata of some documents, which all chunks of a document share."""
    own = rows.filter(pc.is_in(rows["document_id"], value_set=pa.array(names, pa.string())))
    parts = (own[name].to_pylist() for name in ("document_id", *columns))
    return {name: values for name, *values in zip(*parts, strict=True)}


def _texts(rows: pa.Table, names: set[str]) -> dict[str, bytes]:
    """The digest of each document's text, however it is cut into chunks."""
    texts = {}
    for name, chunks in _chunks(rows, names).items():
        parts, end = [], 0
        for start, text in sorted(chunks):
            parts.append(text[max(0, end - start) :])
            end = max(end, start + len(text))
        texts[name] = digest("".join("".join(parts).split()).encode())
    return texts


def _chunks(rows: pa.Table, names: set[str]) -> dict[str, list[tuple[int, str]]]:
    """Start and text of the chunks of some documents."""
    own = rows.filter(pc.is_in(rows["document_id"], value_set=pa.array(names, pa.string())))
    chunks: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    columns = (own[name].to_pylist() for name in ("document_id", "start", "text"))
    for name, start, text in zip(*columns, strict=True):
        chunks[name].append((start, text))
    return chunks


def _extend_sample(
    sample: Sequence[SampleDocument], partition: _Partition, same: set[str]
) -> list[SampleDocument]:
    """The SAMPLE_DOCUMENTS with the smallest hashes, of a sample and of a partition."""
    names = set(heapq.nsmallest(SAMPLE_DOCUMENTS, same, key=lambda name: digest(name.encode())))
    old, new = _chunks(partition.old, names), _chunks(partition.new, names)
    more = [SampleDocument(name, min(old[name])[1], min(new[name])[1]) for name in names]
    every = sorted([*sample, *more], key=lambda entry: digest(entry.document_id.encode()))
    return every[:SAMPLE_DOCUMENTS]


def _cosines(
    before: ReleaseTable, after: ReleaseTable, partition: _Partition
) -> Iterator[tuple[list[str], Vectors]]:
    """Of chunks with one id and text in both: the documents' ids, and their vectors' cosines."""
    old_rows, new_rows = partition.equal_pairs("text")
    for start in range(0, len(new_rows), ROW_GROUP_ROWS):
        part = slice(start, start + ROW_GROUP_ROWS)
        old = to_matrix(partition.old[VECTOR].take(old_rows[part]))
        new = to_matrix(partition.new[VECTOR].take(new_rows[part]))
        left, right = before.codec.decode(old), after.codec.decode(new)
        cosines = cosine(left, right, both_zero=1)  # no direction, so no change of it
        yield partition.new["document_id"].take(new_rows[part]).to_pylist(), cosines
