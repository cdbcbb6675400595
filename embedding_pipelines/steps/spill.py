"""What a pass over the source read, by partition, on disk until the partitions are written."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.files import list_files
from embedding_pipelines.schemas import (
    DIGEST,
    DOCUMENT_COLUMNS,
    DOCUMENT_DIGEST,
    IMAGE,
    REJECTED,
    digest,
)
from embedding_pipelines.sources.base import Rejection
from embedding_pipelines.spec.pipeline import partition_of

REJECTIONS_HELD = 1_000  # in memory, before they go to disk
OPEN_FILES = 16  # of a pass over the source; more partitions than that take turns
PLACE = ["document_id", "source_file", "source_row"]  # enough to tell where an id stands


class Spill:
    """Rows by partition, and rejections, in the files of a folder: reading needs no more memory than
    a batch. Those of others can be included, whose rows come first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, tuple[pa.ipc.RecordBatchStreamWriter, IO[bytes]]] = {}
        self._names: set[str] = set()
        self._included: list[tuple[Path, frozenset[str]]] = []  # folders, and partitions in them
        self._held: list[Rejection] = []

    def add(self, batch: pa.RecordBatch, partitions: list[str]) -> None:
        """Digest the documents of a batch and put each into its partition."""
        ids, digests = batch["document_id"].to_pylist(), pa.array(document_digests(batch), DIGEST)
        batch = batch.append_column(pa.field(DOCUMENT_DIGEST, DIGEST), digests)
        numbers = pa.array([partition_of(name, len(partitions)) for name in ids], pa.int16())
        for number in pc.unique(numbers).to_pylist():
            self._write(partitions[number], batch.filter(pc.equal(numbers, number)))

    def reject(self, rejection: Rejection) -> None:
        self._held.append(rejection)
        if len(self._held) == REJECTIONS_HELD:
            self._flush()

    def include(self, folder: Path) -> None:
        """Read what another spill has left in its folder, behind what was included before."""
        names = frozenset(path.stem for path in list_files(folder, "*.arrows"))
        if self._included and self._included[-1][1] == names:  # kept once: thousands have the same
            names = self._included[-1][1]
        self._included.append((folder, names))

    def close(self) -> None:
        """No more rows: all that was added can be read."""
        self._flush()
        self._close_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close_files()

    def has(self, partition: str) -> bool:
        return bool(self._paths(partition))

    def places(self, partition: str) -> pa.Table | None:
        """Ids and places of what was added to a partition, None if nothing was."""
        if not self.has(partition):
            return None
        return pa.Table.from_batches([batch.select(PLACE) for batch in self.read(partition)])

    def read(self, partition: str) -> Iterator[pa.RecordBatch]:
        for path in self._paths(partition):
            with pa.memory_map(str(path)) as file:
                while file.tell() < file.size():  # a stream for each time it was opened
                    with pa.ipc.open_stream(file) as batches:
                        yield from batches

    def rejections(self) -> Iterator[pa.RecordBatch]:
        return self.read("rejected")

    def _flush(self) -> None:
        if self._held:
            rows = [vars(rejection) for rejection in self._held]
            self._write("rejected", pa.RecordBatch.from_pylist(rows, REJECTED))
            self._held.clear()

    def _write(self, partition: str, batch: pa.RecordBatch) -> None:
        if partition not in self._open:
            if len(self._open) == OPEN_FILES:
                self._close_file(next(iter(self._open)))
            file = (self.folder / f"{partition}.arrows").open("ab")
            self._open[partition] = pa.ipc.new_stream(file, batch.schema), file
            self._names.add(partition)
        self._open[partition][0].write_batch(batch)

    def _close_files(self) -> None:
        for partition in list(self._open):
            self._close_file(partition)

    def _close_file(self, partition: str) -> None:
        writer, file = self._open.pop(partition)
        with file, writer:
            pass

    def _paths(self, partition: str) -> list[Path]:
        every = [*self._included, (self.folder, self._names)]
        return [folder / f"{partition}.arrows" for folder, names in every if partition in names]


def document_digest(text: str, metadata: dict[str, Any]) -> bytes:
    """What makes a document itself: text and metadata, not the place it came from."""
    canonical = json.dumps(metadata, sort_keys=True, ensure_ascii=False, default=str)
    return digest(text.encode("utf-8", "surrogatepass"), canonical.encode("utf-8", "surrogatepass"))


def document_digests(rows: pa.RecordBatch) -> list[bytes]:
    """Of documents as a source yields them."""
    metadata = [name for name in rows.schema.names if name not in DOCUMENT_COLUMNS]
    pairs = zip(rows["text"].to_pylist(), rows.select(metadata).to_pylist(), strict=True)
    return [document_digest(text, values) for text, values in pairs]


def contents_of(has_images: bool, rows: pa.RecordBatch, digests: Sequence[bytes]) -> list[bytes]:
    """What tells documents that have no id of their own, wherever they stand: of an image its
    pixels, of all else its digest."""
    if not has_images:
        return list(digests)
    pairs = zip(rows[IMAGE].to_pylist(), digests, strict=True)
    return [bytes.fromhex(image) if image else digest for image, digest in pairs]
