"""Mends what is stored, as far as no text has to be embedded for it: from copies, from the bucket,
from shards and tables that are whole. What is left is what the next run makes anew.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.refill import file_vectors, put
from embedding_pipelines.errors import EmbeddingPipelinesError, StoreError, counted
from embedding_pipelines.progress import Silent
from embedding_pipelines.releases import read_releases
from embedding_pipelines.remote import open_remote
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.garbage import delete_garbage
from embedding_pipelines.steps.repair import damaged_shards, repair
from embedding_pipelines.storage.warehouse import DAMAGED, Warehouse
from embedding_pipelines.vectors import checksums

CHECKSUM = "vector_checksum"  # the column of the model's own vector's


class _Notes(Silent):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def note(self, text: str) -> None:
        self.sentences.append(text)


def mend(spec: PipelineSpec, warehouse: Warehouse) -> Iterator[str]:
    """Mend one pipeline; a sentence for all that was done. Raises BusyError while it is at work,
    and what keeps it from being mended: BucketError, OSError."""
    notes = _Notes()
    with Run(spec, warehouse, notes) as run:
        if not run.folder.folder.exists():
            return
        remote = open_remote(warehouse, spec.name)
        with run.folder.lock("run", timeout_seconds=0), run.folder.lock(timeout_seconds=0):
            if list(damaged_shards(run)) and (count := _file_vectors(run)):
                yield (
                    f"{counted(count, 'vector')} that the cache lacked are put into it from what is "
                    "whole of shards and table, so that their texts are not embedded again."
                )
            repair(run)
            yield from notes.sentences
            if remote is None:
                garbage = delete_garbage(run)
            else:
                remote.compare_anew()
                with remote.hold_lease(notes) as writer:
                    # First, for what is lost on both sides ends all else.
                    here, missing = remote.put_back(remote.lost_objects())
                    if here:
                        yield f"put back {counted(len(here), 'object')} of the bucket from here."
                    if missing:
                        yield (
                            f"the bucket lacks {counted(len(missing), 'object')} more, and this "
                            f"machine has no copy ({missing[0]} …). Say the same on one that has."
                        )
                    writer.begin()  # fetches what the copy lost
                    garbage = delete_garbage(run)
                    writer.publish()
                    writer.end()
            if garbage:
                size = sum(entry.size_bytes for entry in garbage) / 1e6
                yield f"deleted what nothing needs: {counted(len(garbage), 'file')}, {size:,.1f} MB."


def mend_cache(warehouse: Warehouse, specs: Iterable[PipelineSpec]) -> Iterator[str]:
    """Remove damaged values from the embedding cache, and put back those that shards or tables
    have; a sentence for all that was done. A file that cannot be read at all is moved away."""
    path = warehouse.cache
    if not path.exists():
        return
    cache = EmbeddingCache(path)
    try:
        damaged = cache.damage()
    except StoreError:
        aside = path.with_name(f"{path.name}{DAMAGED}")
        path.replace(aside)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        yield f"{path} cannot be read; it is moved to {aside}. Restart what still has it open."
    else:
        if not damaged:
            return
        cache.remove_many(damaged)
        yield f"{counted(len(damaged), 'damaged vector')} are removed from {path}."
    count = 0
    for spec in specs:
        with Run(spec, warehouse) as run:
            count += _file_vectors(run)
    yield f"{counted(count, 'vector')} are put back into it from shards and tables."


def _file_vectors(run: Run) -> int:
    """Put into the cache what it lacks of the vectors of whole shards and of the live table; how
    many."""
    count = file_vectors(run.folder, run.cache, run.spec.partition_names, only_missing=True)
    try:
        return count + _of_table(run)
    except EmbeddingPipelinesError:  # it is damaged, which others say
        return count


def _of_table(run: Run) -> int:
    """Those of the live table that are bit by bit the model's own: without compression."""
    releases = read_releases(run.folder)
    live = releases.get(releases.live)
    if live is None:
        return 0
    table = live.spec.store.table(run.warehouse.tables, live.table)
    if table.damage(live.version) is not None:
        return 0
    schema = table.schema(live.version)
    number = getattr(schema.field(VECTOR).type, "value_type", None)
    if CHECKSUM not in schema.names or number != pa.float32():
        return 0

    contents = live.spec.source.content_columns

    def rows() -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
        for batch in table.scan([*contents, VECTOR, CHECKSUM], version=live.version):
            pairs = zip(checksums(batch[VECTOR]), batch[CHECKSUM].to_pylist(), strict=True)
            own = batch.filter(pa.array([one == other for one, other in pairs]))
            yield own.select(contents), own[VECTOR]

    return put(run.cache, live.space.with_codec(None).id, rows(), only_missing=True)
