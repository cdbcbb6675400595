"""Images that are the same, or look alike: groups, before any model is asked. Nothing is deleted.

The same are those whose pixels are; alike are those whose perceptual hashes differ in few bits. Of
two hashes of 64 bits that differ in 7 at most, one of the four quarters differs in one bit at most:
so only images that share such a quarter are compared, and none is missed.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.errors import counted
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import has_images
from embedding_pipelines.storage.warehouse import read_table, write_table

# On 200 photographs: 99% of copies of half the width, 97% of thumbnails and all of JPEG's quality 30
# are within it; two different ones are 13 bits apart at least.
ALIKE_BITS = 7
PLAIN_BITS = 8  # a hash with fewer bits of 0 or of 1 is of an even picture, and says nothing
_QUARTER = 16
_PAIRS_AT_ONCE = 1 << 22

Kind = Literal["same", "alike"]
WORDS: dict[Kind, str] = {"same": "the same pixels", "alike": "nearly the same picture"}
SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string()),  # same, alike
        pa.field("group", pa.int64()),  # from 1, largest first
        pa.field("document_id", pa.string()),
        pa.field("uri", pa.string()),
    ]
)


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
    """Find the groups among all documents and put them on record."""
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
    write_table(run.folder.duplicates, SCHEMA, groups.table.to_batches())
    return groups


def read_duplicates(path: Path) -> Groups:
    """What is on record. Raises StoreError if it is damaged."""
    table = read_table(path)
    return Groups(SCHEMA.empty_table() if table is None else table)


def find(
    ids: Sequence[str], uris: Sequence[str], digests: Sequence[str], hashes: Sequence[str]
) -> Groups:
    """The groups of n images. An image can be in one of each kind; alike are only images whose
    pixels differ."""
    same: dict[str, list[int]] = defaultdict(list)
    for at, name in enumerate(digests):
        same[name].append(at)
    firsts = [places[0] for places in same.values()]
    members = list(same.values())
    bits = np.array([int(hashes[at], 16) for at in firsts], np.uint64)
    alike = [
        [at for one in component for at in members[one]]
        for component in _components(len(bits), _pairs(bits))
    ]
    rows = [
        {"kind": kind, "group": number, "document_id": ids[at], "uri": uris[at]}
        for kind, groups in (
            ("same", [places for places in members if len(places) > 1]),
            ("alike", alike),
        )
        for number, places in enumerate(sorted(groups, key=lambda group: -len(group)), 1)
        for at in places
    ]
    return Groups(pa.Table.from_pylist(rows, SCHEMA))


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
