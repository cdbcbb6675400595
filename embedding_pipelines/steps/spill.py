"""The spill: what a pass over the source read, on disk by partition, until the partitions are
written.

Reading needs no more memory than a batch this way. Nothing here outlives the pass.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.schemas import DIGEST, DOCUMENT_COLUMNS, DOCUMENT_DIGEST, REJECTED, digest
from embedding_pipelines.sources.base import Rejection
from embedding_pipelines.spec.pipeline import partition_of

REJECTIONS_HELD = 1_000  # in memory, before they go to disk
PLACE = ["document_id", "source_file", "source_row"]  # enough to tell where an id stands


def document_digest(text: str, metadata: dict[str, Any]) -> bytes:
    """What makes a document itself: text and metadata, not the place it came from."""
    canonical = json.dumps(metadata, sort_keys=True, ensure_ascii=False, default=str)
    return digest(text.encode("utf-8", "surrogatepass"), canonical.encode("utf-8", "surrogatepass"))


class Spill:
    """Documents by partition, and rejections."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self._writers: dict[str, pa.ipc.RecordBatchStreamWriter] = {}
        self._held: list[Rejection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, batch: pa.RecordBatch, partitions: int, names: list[str]) -> None:
        """Digest the documents of a batch and put each into its partition."""
        metadata_names = [name for name in batch.schema.names if name not in DOCUMENT_COLUMNS]
        metadata = batch.select(metadata_names).to_pylist()
        texts = batch["text"].to_pylist()
        digests = [document_digest(text, row) for text, row in zip(texts, metadata, strict=True)]
        schema = batch.schema.append(pa.field(DOCUMENT_DIGEST, DIGEST))
        batch = pa.RecordBatch.from_arrays(
            [*batch.columns, pa.array(digests, DIGEST)], schema=schema
        )
        numbers = pa.array(
            [partition_of(name, partitions) for name in batch["document_id"].to_pylist()],
            pa.int16(),
        )
        for number in pc.unique(numbers).to_pylist():
            self._write(names[number], batch.filter(pc.equal(numbers, number)))

    def reject(self, rejection: Rejection) -> None:
        self._held.append(rejection)
        if len(self._held) == REJECTIONS_HELD:
            self._flush()

    def close(self) -> None:
        """No more rows: all that was added can be read."""
        self._flush()
        self._stack.close()

    def has(self, partition: str) -> bool:
        return partition in self._writers

    def places(self, partition: str) -> pa.Table | None:
        """Ids and places of what was added to a partition, None if nothing was."""
        if not self.has(partition):
            return None
        return pa.Table.from_batches([batch.select(PLACE) for batch in self.read(partition)])

    def read(self, partition: str) -> Iterator[pa.RecordBatch]:
        if self.has(partition):
            with (
                pa.memory_map(str(self._path(partition))) as file,
                pa.ipc.open_stream(file) as batches,
            ):
                yield from batches

    def rejections(self) -> Iterator[pa.RecordBatch]:
        return self.read("rejected")

    def _flush(self) -> None:
        if self._held:
            rows = [vars(rejection) for rejection in self._held]
            self._write("rejected", pa.RecordBatch.from_pylist(rows, REJECTED))
            self._held.clear()

    def _write(self, partition: str, batch: pa.RecordBatch) -> None:
        if partition not in self._writers:
            writer = pa.ipc.new_stream(str(self._path(partition)), batch.schema)
            self._writers[partition] = self._stack.enter_context(writer)
        self._writers[partition].write_batch(batch)

    def _path(self, partition: str) -> Path:
        return self.folder / f"{partition}.arrows"
