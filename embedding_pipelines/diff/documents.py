"""Which documents two releases differ in: new, gone, of another text, or with vectors of another
direction.

Partition by partition, so that memory holds one partition of each release, whatever the size of the
table.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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

SAME_DIRECTION = (
    0.999  # cosine; batch shapes alone cost 1e-5, the precisions of `auto` less than 1e-3
)
LISTED = 1_000  # ids that are kept of each kind, the first by name; all are counted
SAMPLED = 200  # documents whose neighbourhoods stand for all


@dataclass(frozen=True)
class Opened:
    """A release with its table and its codec."""

    release: Release
    table: Table
    codec: CodecChain
    home: Path

    @property
    def space(self) -> Space:
        """The space of its vectors before compression."""
        return self.release.space.with_codec(None)


@dataclass
class Listed:
    """How many, and the first LISTED of them by name."""

    count: int = 0
    ids: list[str] = field(default_factory=list)

    def add(self, ids: Iterable[str]) -> None:
        names = list(ids)
        self.count += len(names)
        self.ids = heapq.nsmallest(LISTED, [*self.ids, *names])


@dataclass(frozen=True)
class Sampled:
    """A document of both releases, of the same text."""

    document_id: str
    before: str  # its first chunk's text in each
    after: str


@dataclass
class Documents:
    """What became of the documents. A text is what the chunks of a document say together, white
    space apart."""

    before: int = 0
    after: int = 0
    new: Listed = field(default_factory=Listed)
    gone: Listed = field(default_factory=Listed)
    changed: Listed = field(default_factory=Listed)  # of another text
    moved: Listed | None = None  # of the same text, elsewhere in the space; None: of two spaces
    compared_chunks: int = 0  # of both releases, with the same id and text
    mean_cosine: float | None = None  # between the two vectors of these chunks
    sample: list[Sampled] = field(default_factory=list)  # by hash of the id; only of two spaces


@dataclass(frozen=True)
class _Partition:
    """A partition of both releases: row `old_at[i]` of one and row `new_at[i]` of the other are of
    the same chunk id."""

    old: pa.Table
    new: pa.Table
    old_at: Rows
    new_at: Rows

    def pairs(self, equal: str) -> tuple[Rows, Rows]:
        """The pairs of chunks that are also equal in a column."""
        alike = pc.equal(
            self.old[equal].take(self.old_at), self.new[equal].take(self.new_at)
        ).to_numpy()
        return self.old_at[alike], self.new_at[alike]


def open_release(warehouse: Warehouse, release: Release) -> Opened:
    """Raises CompressionError if its codec is gone or damaged."""
    table = release.spec.store.table(warehouse.tables, release.table)
    path = warehouse.pipeline(release.spec.name).codecs / release.codec
    return Opened(release, table, CodecChain.load(path), warehouse.home)


def compare_documents(before: Opened, after: Opened) -> Documents:
    """Every document of two releases of one pipeline. Raises StoreError if a table cannot be
    read."""
    one_space, total = before.space == after.space, 0.0
    documents = Documents(moved=Listed() if one_space else None)
    columns = ["chunk_id", "document_id", "start", "text", "chunk_digest"]
    columns += [VECTOR] if one_space else []
    for partition in after.release.spec.partition_names:
        total += _compare_partition(
            documents, before, after, _read(before, after, partition, columns)
        )
    if documents.compared_chunks:
        documents.mean_cosine = total / documents.compared_chunks
    return documents


def _compare_partition(
    documents: Documents, before: Opened, after: Opened, partition: _Partition
) -> float:
    """Enter a partition; the sum of the cosines of what could be compared."""
    same = _count(documents, partition)
    if documents.moved is None:
        documents.sample = _sampled(documents.sample, partition, same)
        return 0.0
    moved, total = set[str](), 0.0
    for names, cosines in _cosines(before, after, partition):
        total += float(cosines.sum())
        documents.compared_chunks += len(cosines)
        moved.update(names[row] for row in np.flatnonzero(cosines < SAME_DIRECTION))
    documents.moved.add(moved & same)
    return total


def _read(before: Opened, after: Opened, partition: str, columns: Sequence[str]) -> _Partition:
    old, new = _rows(before, partition, columns), _rows(after, partition, columns)
    places = pc.index_in(new["chunk_id"], value_set=old["chunk_id"])
    new_at = np.flatnonzero(pc.is_valid(places).to_numpy())
    return _Partition(old, new, places.take(new_at).to_numpy().astype(np.int64), new_at)


def _rows(opened: Opened, partition: str, columns: Sequence[str]) -> pa.Table:
    version = opened.release.version
    batches = list(opened.table.scan(columns, partition, version))
    if batches:
        return pa.Table.from_batches(batches)
    schema = opened.table.schema(version)
    return pa.schema([schema.field(name) for name in columns]).empty_table()


def _count(documents: Documents, partition: _Partition) -> set[str]:
    """Enter a partition's documents; the ids of those whose text is the same in both."""
    old, new = (
        set(pc.unique(rows["document_id"]).to_pylist()) for rows in (partition.old, partition.new)
    )
    documents.before += len(old)
    documents.after += len(new)
    documents.new.add(new - old)
    documents.gone.add(old - new)
    both = old & new
    suspects = both & _touched(partition)
    old_texts, new_texts = _texts(partition.old, suspects), _texts(partition.new, suspects)
    changed = {name for name in suspects if old_texts[name] != new_texts[name]}
    documents.changed.add(changed)
    return both - changed


def _touched(partition: _Partition) -> set[str]:
    """Documents with a chunk that is not the same in both releases, text, place and metadata."""
    touched: set[str] = set()
    for rows, same in zip(
        (partition.old, partition.new), partition.pairs("chunk_digest"), strict=True
    ):
        other = np.ones(len(rows), bool)
        other[same] = False
        touched.update(rows["document_id"].filter(pa.array(other)).to_pylist())
    return touched


def _texts(rows: pa.Table, names: set[str]) -> dict[str, bytes]:
    """Digest of the text of each document: its chunks put together by their places, so that it does
    not matter how they were cut."""
    texts = {}
    for name, chunks in _chunks(rows, names).items():
        parts, reached = [], 0
        for start, text in sorted(chunks):
            parts.append(text[max(0, reached - start) :])
            reached = max(reached, start + len(text))
        texts[name] = digest("".join("".join(parts).split()).encode())
    return texts


def _chunks(rows: pa.Table, names: set[str]) -> dict[str, list[tuple[int, str]]]:
    """Start and text of the chunks of some documents."""
    chosen = rows.filter(pc.is_in(rows["document_id"], value_set=pa.array(names, pa.string())))
    chunks: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    columns = (chosen[name].to_pylist() for name in ("document_id", "start", "text"))
    for name, start, text in zip(*columns, strict=True):
        chunks[name].append((start, text))
    return chunks


def _sampled(sample: Sequence[Sampled], partition: _Partition, same: set[str]) -> list[Sampled]:
    """The SAMPLED documents with the smallest hashes, of a sample and a partition."""
    names = set(heapq.nsmallest(SAMPLED, same, key=_place))
    old, new = _chunks(partition.old, names), _chunks(partition.new, names)
    more = [Sampled(name, min(old[name])[1], min(new[name])[1]) for name in names]
    return heapq.nsmallest(SAMPLED, [*sample, *more], key=lambda entry: _place(entry.document_id))


def _place(document_id: str) -> bytes:
    return digest(document_id.encode())


def _cosines(
    before: Opened, after: Opened, partition: _Partition
) -> Iterator[tuple[list[str], Vectors]]:
    """Of chunks with the same id and text in both: the documents' ids, and the cosines float32[n]
    of their vectors."""
    old_rows, new_rows = partition.pairs("text")
    for start in range(0, len(new_rows), ROW_GROUP_ROWS):
        old_part, new_part = (rows[start : start + ROW_GROUP_ROWS] for rows in (old_rows, new_rows))
        left = _vectors(before, partition.old, old_part)
        right = _vectors(after, partition.new, new_part)
        cosines = cosine(left, right, both_zero=1)  # which have no direction to change
        yield partition.new["document_id"].take(new_part).to_pylist(), cosines


def _vectors(opened: Opened, table: pa.Table, rows: Rows) -> Vectors:
    """What a release's codes stand for, float32[len(rows), d]."""
    kind = "uint8" if opened.codec.dtype == "binary" else opened.codec.dtype
    return opened.codec.decode(to_matrix(table[VECTOR].take(rows)).astype(kind))
