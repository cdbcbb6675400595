"""Images that are the same, or look alike: groups, before any model is asked, and those whose vectors
are near, once it has been. Nothing is deleted.

The same are those whose pixels are; alike are those whose perceptual hashes differ in few bits. Of
two hashes of 64 bits that differ in 7 at most, one of the four quarters differs in one bit at most:
so only images that share such a quarter are compared, and none is missed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding_pipelines.errors import counted
from embedding_pipelines.metrics.groups import NearGroups
from embedding_pipelines.metrics.health import NEAR_DUPLICATE
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR, has_images
from embedding_pipelines.storage.warehouse import read_table, replace_rows, write_table
from embedding_pipelines.vectors import Vectors, to_matrix

# On 200 photographs: 99% of copies of half the width, 97% of thumbnails and all of JPEG's quality 30
# are within it; two different ones are 13 bits apart at least.
ALIKE_BITS = 7
PLAIN_BITS = 8  # a hash with fewer bits of 0 or of 1 is of an even picture, and says nothing
_QUARTER = 16
_PAIRS_AT_ONCE = 1 << 22

Kind = Literal["same", "alike", "near"]
WORDS: dict[Kind, str] = {
    "same": "the same pixels",
    "alike": "nearly the same picture",
    "near": f"nearly the same vector (cosine {NEAR_DUPLICATE} or more)",
}
OF_PIXELS: tuple[Kind, ...] = ("same", "alike")
SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string()),  # same, alike, near
        pa.field("group", pa.int64()),  # from 1, largest first
        pa.field("document_id", pa.string()),
        pa.field("uri", pa.string()),
    ]
)


_IMAGES = pa.schema([(name, pa.string()) for name in ("document_id", "uri", "image")])
Members = list[tuple[str, str]]  # the ids and files of a group


@dataclass(frozen=True)
class Groups:
    """The rows of SCHEMA, groups together."""

    table: pa.Table

    def images(self, kind: Kind) -> int:
        """How many images are in a group of this kind."""
        return sum(map(len, self.groups(kind)))

    def groups(self, kind: Kind) -> list[list[str]]:
        """The images' ids by group."""
        groups: dict[int, list[str]] = defaultdict(list)
        for row in self.table.to_pylist():
            if row["kind"] == kind:
                groups[row["group"]].append(row["document_id"])
        return list(groups.values())

    @property
    def sentence(self) -> str:
        """In words; empty if there are none."""
        words = []
        for kind, what in WORDS.items():
            if groups := self.groups(kind):
                count = sum(map(len, groups))
                words.append(f"{count:,} images in {counted(len(groups), 'group')} with {what}")
        return "; ".join(words)


def write_duplicates(run: Run) -> Groups:
    """Find the groups of pixels among all documents and put them on record. Of vectors those stay, as
    far as their documents do, until there are new ones."""
    columns = ["document_id", "uri", "image", "perceptual"]
    shards = run.folder.documents
    tables = [
        table
        for name in run.spec.partition_names
        if (schema := shards.schema(name)) is not None and has_images(schema)
        if (table := shards.read_columns(name, columns)) is not None
    ]
    rows = pa.concat_tables(tables) if tables else pa.table({name: [] for name in columns})
    rows = rows.filter(rows["image"].is_valid()).sort_by("document_id")
    groups = find(*(rows[name].to_pylist() for name in columns))
    near = read_duplicates(run.folder.duplicates).table.filter(pc.field("kind") == "near")
    near = near.filter(pc.is_in(near["document_id"], rows["document_id"].cast(pa.string())))
    batches = [*groups.table.to_batches(), *near.to_batches()]
    write_table(run.folder.duplicates, SCHEMA, batches)
    return groups


def write_near(run: Run) -> Groups:
    """Find the groups of vectors among all images and put them on record, beside those of pixels. A
    group whose images have the same pixels all is none of these."""
    manifests = run.folder.embeddings.manifests(run.spec.partition_names)
    number, tables = sum(manifest.rows for manifest in manifests), [_IMAGES.empty_table()]
    with NearGroups(number, NEAR_DUPLICATE) as near:
        for rows, vectors in _embedded(run):
            tables.append(rows)
            near.add(vectors)
        places = near.groups()
    images, groups = pa.concat_tables(tables).combine_chunks(), list[Members]()
    for group in places:
        rows = images.take(group).sort_by("document_id")
        if len(rows["image"].unique()) > 1:
            pairs = zip(rows["document_id"].to_pylist(), rows["uri"].to_pylist(), strict=True)
            groups.append(list(pairs))
    table = _table({"near": sorted(groups)})
    others = pc.field("kind").isin(OF_PIXELS)
    replace_rows(run.folder.duplicates, SCHEMA, others, table.to_batches())
    return Groups(table)


def _embedded(run: Run) -> Iterator[tuple[pa.Table, Vectors]]:
    """The rows of _IMAGES that have a vector, with float32[n, d] of them. Where chunks and embeddings
    are not of one another there are none, which a check says."""
    for partition in run.spec.partition_names:
        schema = run.folder.chunks.schema(partition)
        if schema is None or not {*_IMAGES.names} <= {*schema.names}:
            continue
        chunks = run.folder.chunks.read(partition, _IMAGES.names)
        embeddings = run.folder.embeddings.read(partition, [VECTOR])
        for rows, batch in zip(chunks, embeddings, strict=False):
            if len(rows) != len(batch):
                break
            mask = pc.and_(rows["image"].is_valid(), batch[VECTOR].is_valid())
            vectors = to_matrix(batch[VECTOR].filter(mask))
            finite = np.isfinite(vectors).all(axis=1)
            table = pa.Table.from_batches([rows.filter(mask).filter(pa.array(finite))])
            if len(table):
                yield table.select(_IMAGES.names).cast(_IMAGES), vectors[finite]


def read_duplicates(path: Path) -> Groups:
    """What is on record. Raises StoreError if it is damaged."""
    table = read_table(path)
    return Groups(SCHEMA.empty_table() if table is None else table)


def find(
    ids: Sequence[str], uris: Sequence[str], digests: Sequence[str], hashes: Sequence[str]
) -> Groups:
    """The groups of n images. An image can be in one of each kind; alike are only images whose
    pixels differ."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for at, name in enumerate(digests):
        by_digest[name].append(at)
    members = list(by_digest.values())
    firsts = [places[0] for places in members]
    bits = np.array([int(hashes[at], 16) for at in firsts], np.uint64)
    alike = [
        [at for one in component for at in members[one]]
        for component in _components(len(bits), _pairs(bits))
    ]
    same = [places for places in members if len(places) > 1]
    return Groups(
        _table(
            {
                kind: [[(ids[at], uris[at]) for at in group] for group in groups]
                for kind, groups in zip(OF_PIXELS, (same, alike), strict=True)
            }
        )
    )


def _table(groups: Mapping[Kind, list[Members]]) -> pa.Table:
    """Groups by kind as rows of SCHEMA, the largest first."""
    rows = [
        {"kind": kind, "group": number, "document_id": name, "uri": uri}
        for kind, own in groups.items()
        for number, members in enumerate(sorted(own, key=lambda group: -len(group)), 1)
        for name, uri in members
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def _pairs(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Places [n, 2] of two hashes that differ in ALIKE_BITS at most; a pair may come twice."""
    ones = np.bitwise_count(hashes)
    rich = np.flatnonzero((ones >= PLAIN_BITS) & (ones <= 64 - PLAIN_BITS))
    hashes = hashes[rich]
    flips = np.array([0, *(1 << bit for bit in range(_QUARTER))], np.uint64)
    for shift in range(0, 64, _QUARTER):
        quarter = (hashes >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(quarter, kind="stable")
        ordered = quarter[order]
        for flip in flips:
            partner = quarter ^ flip
            starts = np.searchsorted(ordered, partner, "left")
            counts = np.searchsorted(ordered, partner, "right") - starts
            for rows in _blocks(counts):
                left = np.repeat(rows, counts[rows])
                offsets = np.arange(len(left)) - np.repeat(
                    np.cumsum(counts[rows]) - counts[rows], counts[rows]
                )
                right = order[np.repeat(starts[rows], counts[rows]) + offsets]
                near = np.bitwise_count(hashes[left] ^ hashes[right]) <= ALIKE_BITS
                near &= left < right
                yield np.stack([rich[left[near]], rich[right[near]]], axis=1)


def _blocks(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows in order, as many at once as have about _PAIRS_AT_ONCE pairs."""
    numbers = np.cumsum(counts) // _PAIRS_AT_ONCE
    for rows in np.split(np.arange(len(counts)), np.flatnonzero(np.diff(numbers)) + 1):
        if len(rows):
            yield rows


def _components(number: int, pairs: Iterable[NDArray[np.int64]]) -> list[list[int]]:
    """The groups of what pairs connect, in order."""
    parents = list(range(number))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    for part in pairs:
        for left, right in part.tolist():
            first, second = sorted((root(left), root(right)))
            parents[second] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for at in range(number):
        groups[root(at)].append(at)
    return [group for group in groups.values() if len(group) > 1]
