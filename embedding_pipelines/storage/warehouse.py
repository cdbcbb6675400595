"""The warehouse: what steps hand to one another, as Parquet shards that manifests name.

A shard is written under a temporary name, renamed to a name that contains its digest, and only then
named by its partition's manifest, which is replaced in one rename. So a reader that follows a
manifest never sees half a shard, and a crash at any point leaves the previous one in force.
"""

import contextlib
import hashlib
import mmap
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, Literal, Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from embedding_pipelines.errors import BusyError, ConfigError, StoreError
from embedding_pipelines.files import (
    delete,
    delete_drafts,
    draft_beside,
    file_checksum,
    hold_to_read,
    is_absent,
    list_files,
    move,
    read_json,
    replacing,
    sync_since,
    write_json,
)
from embedding_pipelines.home import warehouse_folder
from embedding_pipelines.schemas import DIGEST_BYTES

State = TypeVar("State")

WAIT = "Wait for it to end, then try again."
DAMAGED = ".damaged"  # the end of a shard's name that was set aside, until it is made anew
ROW_GROUP_ROWS = 4_096  # also the batch in which texts are deduplicated and sorted by length
LEVEL = 5  # of zstd: texts take 0.88 of the bytes of level 1, 7 MB of them 0.05 s more
DIGESTED_BYTES = 16 << 20  # that are in memory while a file is digested, whole pages of any system
ROW_GROUP_BYTES = 32 << 20  # long texts make smaller groups, so that memory stays bounded


@dataclass(frozen=True)
class Manifest:
    """What one partition of one step holds, and what it was computed from."""

    shard: str
    rows: int
    size_bytes: int
    digest: str  # of the shard's bytes; the next step compares it
    inputs: str  # digest of the input
    configuration: str  # fingerprint of the configuration that computed it
    shard_checksum: int  # CRC-32 of the shard's bytes, which is compared before they are read
    statistics: dict[str, Any] = field(default_factory=dict)  # counts for metadata and checks

    @property
    def rejected(self) -> int:
        """Rows without a vector, of embeddings."""
        return int(self.statistics.get("rejected", 0))


class Shards:
    """The partitions of one step of one pipeline."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._intact: set[str] = set()  # shards whose bytes were compared; their names never return
        # By partition, with the inode, size and time of the file that they were read from: a run asks
        # for each some twenty times, and a file is never changed in place.
        self._read: dict[str, tuple[tuple[int, int, int], Manifest | None]] = {}

    def manifest(self, partition: str) -> Manifest | None:
        """The partition's manifest; None if it was never written, is lost or cut short."""
        manifest = self.recorded(partition)
        try:
            # After a power cut a renamed file may be shorter.
            size = manifest and (self.folder / manifest.shard).stat().st_size
        except FileNotFoundError:
            return None
        return manifest if manifest and size == manifest.size_bytes else None

    def recorded(self, partition: str) -> Manifest | None:
        """As `manifest`, whether its shard is on this machine or not."""
        path = self.folder / f"{partition}.json"
        try:
            status = path.stat()
            stamp = status.st_ino, status.st_size, status.st_mtime_ns
            before, manifest = self._read.get(partition, (None, None))
            if before != stamp:
                manifest = parse_state(Manifest, read_json(path))
                self._read[partition] = stamp, manifest
        except (StoreError, FileNotFoundError):
            return None
        return manifest

    def manifests(self, partitions: Iterable[str]) -> list[Manifest]:
        """Of those partitions that have one."""
        every = (self.manifest(partition) for partition in partitions)
        return [manifest for manifest in every if manifest is not None]

    def required(self, partition: str) -> Manifest:
        """The partition's manifest. Raises StoreError without one."""
        manifest = self.manifest(partition)
        if manifest is None:
            step, pipeline = self.folder.name, self.folder.parent.name
            raise StoreError(
                f"Partition {partition!r} of {pipeline!r} has no {step}: materialize {step!r} "
                "first."
            )
        return manifest

    def current(self, partition: str, inputs: str, configuration: str) -> Manifest | None:
        """The partition's manifest if it has just these inputs and this configuration."""
        manifest = self.manifest(partition)
        if manifest and (manifest.inputs, manifest.configuration) == (inputs, configuration):
            return manifest
        return None

    def forget(self, partition: str) -> None:
        """Have the next run write the partition again; until then it stays as it is."""
        manifest = replace(self.required(partition), configuration="")
        write_json(self.folder / f"{partition}.json", asdict(manifest))

    def is_intact(self, partition: str) -> bool:
        """Whether the partition's shard holds the bytes that were written; a shard that holds
        others is set aside, so that the partition counts as never written."""
        manifest = self.manifest(partition)
        if manifest is None:
            return False
        path = self.folder / manifest.shard
        if path.name in self._intact:
            return True
        # Twice: a bit that flips on its way into memory is no damage.
        if any(file_checksum(path) == manifest.shard_checksum for _ in range(2)):
            self._intact.add(path.name)
            return True
        with contextlib.suppress(OSError):  # of a home that is for reading only
            move(path, path.with_name(f"{path.name}{DAMAGED}"))
        return False

    def read(self, partition: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The partition's rows in order, ROW_GROUP_ROWS at a time; nothing if it was never
        written. Raises StoreError if its shard is damaged."""
        path = self._shard(partition)
        if path is None:
            return
        # Else pyarrow holds what was read until the file is closed: the whole shard, in the end.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield from file.iter_batches(ROW_GROUP_ROWS, columns=columns, use_threads=False)

    def schema(self, partition: str) -> pa.Schema | None:
        """The Arrow schema of the partition's shard, with its metadata; None if never written."""
        path = self._shard(partition)
        return pq.read_schema(path) if path else None

    def read_columns(self, partition: str, columns: list[str]) -> pa.Table | None:
        """A few narrow columns of a partition at once; None if it was never written."""
        path = self._shard(partition)
        return _read_parquet(path, columns) if path else None

    def _shard(self, partition: str) -> Path | None:
        """The partition's shard, None if it was never written. Raises StoreError if it is
        damaged."""
        manifest = self.manifest(partition)
        if manifest is None:
            return None
        if not self.is_intact(partition):
            step, pipeline = self.folder.name, self.folder.parent.name
            raise StoreError(
                f"{self.folder / manifest.shard} is damaged: it holds the {step} of partition "
                f"{partition!r}. Run `embedding-pipelines run {pipeline}`, which makes them anew."
            )
        return self.folder / manifest.shard

    def write(
        self,
        partition: str,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        inputs: str,
        configuration: str,
        statistics: dict[str, Any],
    ) -> Manifest:
        """Replace the partition. A generator of `batches` may fill `statistics` on the way."""
        with draft_beside(self.folder / partition) as draft:
            rows = _write_parquet(draft, schema, batches)
            content, checksum = file_digest(draft), file_checksum(draft)
            shard = self.folder / f"{partition}-{content[:16]}.parquet"
            size = draft.stat().st_size
            move(draft, shard)
        manifest = Manifest(
            shard.name, rows, size, content, inputs, configuration, checksum, statistics
        )
        self._intact.add(shard.name)
        # Synced with all others before something relies on it; torn, it counts as never written.
        write_json(self.folder / f"{partition}.json", asdict(manifest), durable=False)
        for other in list_files(self.folder, f"{partition}-*.parquet*"):
            if other != shard:
                delete(other)
        return manifest

    def unnamed(self) -> list[Path]:
        """The shards that no manifest names; not those of a partition without a manifest, which is
        about to be written."""
        paths = []
        for shard in list_files(self.folder, "*-*.parquet*"):
            manifest = self.manifest(shard.name.partition("-")[0])
            if manifest is not None and shard.name != manifest.shard:
                paths.append(shard)
        return paths

    def delete_unnamed(self) -> None:
        """Delete the shards that a process left which was killed before it deleted them itself."""
        for shard in self.unnamed():
            delete(shard)


class ShardWriters:
    """Writes partitions in threads of their own, in the order in which they begin, while the next
    rows are made. Whoever leaves it early leaves the partitions that have not ended as they were."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        # One is filled while the last one's bytes are digested.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="shard-writer")
        self._open: list[ShardDraft] = []

    def begin(
        self,
        partition: str,
        schema: pa.Schema,
        inputs: str,
        configuration: str,
        statistics: dict[str, Any],
    ) -> "ShardDraft":
        """As `Shards.write`; `statistics` may be filled until the draft ends."""
        draft = ShardDraft()
        draft.manifest = self._pool.submit(
            self._shards.write, partition, schema, draft.rows(), inputs, configuration, statistics
        )
        self._open.append(draft)
        return draft

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for draft in self._open:
            draft.abandon()
        self._pool.shutdown()


class ShardDraft:
    """A partition while its rows come."""

    manifest: "Future[Manifest]"

    def __init__(self) -> None:
        self._batches: Queue[pa.RecordBatch | None] = Queue(2)  # so that memory stays bounded
        self._is_abandoned = False

    def add(self, batch: pa.RecordBatch | None) -> None:
        """More rows; None: there are no more. Raises what writing has failed with."""
        while True:
            if self.manifest.done():
                self.manifest.result()
            with contextlib.suppress(Full):
                return self._batches.put(batch, timeout=0.1)

    def abandon(self) -> None:
        """Write nothing, unless the rows have ended."""
        self._is_abandoned = True

    def rows(self) -> Iterator[pa.RecordBatch]:
        """What was added, as it comes. Raises StoreError once the draft is abandoned."""
        while True:
            with contextlib.suppress(Empty):
                batch = self._batches.get(timeout=0.1)
                if batch is None:
                    return
                yield batch
                continue
            if self._is_abandoned:
                raise StoreError("The partition's rows never ended; it stays as it was.")


NEW_LINE = "new_line"  # the folder, in that of a pipeline, of the line that it migrates to


class PipelineFolder:
    """The files and folders of one pipeline in the warehouse, and its locks.

    What its steps write belongs to a line, of which a pipeline that migrates to another model has
    two; releases, codecs, history and locks are the pipeline's.
    """

    def __init__(self, folder: Path, tables: Path, line: str = "") -> None:
        self.folder = folder
        self.tables = tables  # of all pipelines
        self.line = own = folder / line
        self.new_line = folder / NEW_LINE
        self.cutover = self.new_line / "cutover.json"  # when searches went over to it
        self.bridge = self.new_line / "bridge.npz"
        self.documents = Shards(own / "documents")
        self.chunks = Shards(own / "chunks")
        self.embeddings = Shards(own / "embeddings")
        self.files = own / "documents" / "files.json"
        self.rejected = own / "documents" / "rejected.parquet"
        self.duplicates = own / "documents" / "duplicates.parquet"  # of images
        self.batch_jobs = own / "embeddings" / "batch_jobs.json"  # those with texts of it
        self.rejected_texts = own / "embeddings" / "rejected.parquet"
        self.usage = folder / "embeddings" / "usage.json"  # tokens, seconds and USD of all runs
        self.embed_anew = own / "embeddings" / "re_embed.json"  # partitions still to be embedded
        self.cluster = own / "embeddings" / "cluster.json"  # by which workers know the folder
        self.quarantine = own / "embeddings" / "quarantine.json"  # partitions, and why
        self.model = self.models(line) / "trained.json"
        self.codecs = folder / "codec"
        self.codecs_in_force = own / "codec" / "current.json"
        self.codec_fit = own / "codec" / "fit.json"
        self.table_state = own / "vector_store.json"
        self.checks = own / "checks.json"
        self.quality = folder / "quality"
        self.history = self.quality / "history.jsonl"  # the metrics of each release, a line each
        self.queries = own / "quality" / "queries.json"  # of these metrics
        self.optimization = self.quality / "optimization.json"  # what `optimize` measured
        self.releases = folder / "releases.json"
        self.releases_copy = folder / "releases.copy.json"  # for when the first is damaged
        self.deployments = folder / "deployments.json"
        self.received = folder / "received.json"  # what deployments have created here
        self.last_run = folder / "last_run.json"
        self.output = folder / "output.json"  # what was last written to the pipeline's `output`
        self.activity = folder / "activity.json"  # the step at work, or how the last one ended
        self.rejected_by_failure = own / "documents" / "rejected_by_failed_run.parquet"

    def models(self, line: str) -> Path:
        """The folder of the models that a line has trained, each in a folder of its own."""
        return self.folder / line / "model"

    def of_line(self, line: str) -> Self:
        """The same pipeline's folder, of this line."""
        return type(self)(self.folder, self.tables, line)

    def lock(
        self, name: Literal["step", "run"] = "step", timeout_seconds: float = -1
    ) -> AbstractContextManager[None]:
        """Hold the pipeline across processes: "step" while a step writes, "run" while a process
        brings it up to date from end to end. A process that dies lets go of it.

        Waits for ever by default; with a timeout raises BusyError.
        """
        return _hold(self.folder / f"{name}.lock", timeout_seconds, self._busy)

    @contextmanager
    def lock_to_read(self) -> Iterator[None]:
        """Hold both locks, as far as anybody has ever held them, writing nothing. Raises BusyError
        if another process is at work."""
        names: tuple[Literal["run", "step"], ...] = ("run", "step")
        with contextlib.ExitStack() as stack:
            for name in names:
                if self.has_lock(name):
                    path = self.folder / f"{name}.lock"
                    stack.enter_context(hold_to_read(path, f"{self._busy} {WAIT}"))
            yield

    def is_locked(self) -> bool:
        """Whether a step, or whatever else writes the pipeline, is at work. A lock that this user may
        not look at counts as held."""
        try:
            with hold_to_read(self.folder / "step.lock", self._busy):
                return False
        except FileNotFoundError:
            return False
        except (BusyError, PermissionError):
            return True

    @property
    def _busy(self) -> str:
        return f"Pipeline {self.folder.name!r} is being run by another process."

    def sync(self, others: Iterable[Path] = ()) -> None:
        """Wait until all that was written in this folder, and in others, since the pointer to the
        live release was last written is on the disk. It is not written before that."""
        try:
            since = self.releases.stat().st_ctime
        except FileNotFoundError:
            since = 0.0
        sync_since([self.folder, *others], since)

    def delete_leftovers(self, prefix: str) -> None:
        """Delete what killed processes left: drafts, shards that no manifest names, and folders of
        the documents whose names begin with `prefix`. To be called by whoever holds the step's
        lock."""
        for folder in {self.folder, *self.folder.glob("*/"), *self.line.glob("*/")}:
            delete_drafts(folder)
        for shards in (self.documents, self.chunks, self.embeddings):
            shards.delete_unnamed()
        for folder in self.documents.folder.glob(f"{prefix}*/"):
            shutil.rmtree(folder, ignore_errors=True)

    def delete_line(self) -> None:
        """Delete what the steps of this line wrote. Its tables, releases and codecs stay, and so do
        the pipeline's sums of usage. To be called by whoever holds the step's lock."""
        own = (self.documents, self.chunks, self.embeddings)
        paths = [path for shards in own for path in list_files(shards.folder, "*")]
        paths += [self.table_state, self.checks, self.queries, self.bridge]
        paths += [self.bridge.with_suffix(".json")]
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self.usage:
                delete(path)

    def has_lock(self, name: Literal["step", "run"]) -> bool:
        """Whether anybody has ever held this lock."""
        return (self.folder / f"{name}.lock").exists()

    def fix_partitions(self, partitions: int) -> None:
        """Remember the number of partitions at the first run; ConfigError if it changes later."""
        path = self.folder / "pipeline.json"
        before = (read_json(path) or {}).get("partitions")
        if before is None:  # of a first run, or one whose file was lost
            before = len(list_files(self.documents.folder, "b*.json")) or partitions
            write_json(path, {"partitions": before})
        if before != partitions:
            raise ConfigError(
                f"Pipeline {self.folder.name!r} was made with {before} partitions, "
                f"its file now says {partitions}. The number is fixed for a pipeline's life: set "
                "it back, or give the file a new name."
            )


class Warehouse:
    """The folder that holds everything the pipelines of a home produce."""

    def __init__(self, home: Path | str, pipelines: Path | None = None) -> None:
        """`pipelines`: a copy of the pipelines' folders, to read from in place of the usual one."""
        self.home = Path(home).expanduser().absolute()
        self.root = warehouse_folder(self.home)
        self.is_copy = pipelines is not None
        self.pipelines = pipelines or self.root / "pipelines"
        self.cache = self.root / "cache.sqlite"
        self.tables = self.root / "tables"
        self.batch_jobs = self.root / "batch_jobs"
        self.forgotten = self.root / "forgotten"  # what never comes back, a file per pipeline
        self.pushed = self.root / "pushed"  # what programs have pushed, a folder per pipeline
        self.runs = self.root / "runs"  # how a server's long work ended, and what it printed
        self.reports = self.root / "reports"  # NAME.html, a page per pipeline

    def comparison(self, name: str) -> Path:
        """What `compare` measured last, for the pipeline's report."""
        return self.reports / f"{name}.comparison.json"

    def batch_jobs_lock(self, timeout_seconds: float = -1) -> AbstractContextManager[None]:
        """Hold the batch jobs, which pipelines of one model share, to submit or collect them.

        Waits for ever by default; with a timeout raises BusyError.
        """
        problem = "Another process is submitting or collecting batch jobs."
        return _hold(self.batch_jobs / ".lock", timeout_seconds, problem)

    def pipeline(self, name: str, line: str = "") -> PipelineFolder:
        """`line`: NEW_LINE for that which a pipeline migrates to."""
        return PipelineFolder(self.pipelines / name, self.tables, line)

    def copy_for_reading(self, folder: Path, name: str) -> "Warehouse":
        """A warehouse in which one pipeline's documents and chunks can be written without changing
        this one: its files are links, which a write replaces."""
        _link(self.pipelines / name, folder / name)
        return Warehouse(self.home, folder)


def _link(source: Path, target: Path) -> None:
    """A copy of a line's folder, and of the new line's in it: links, but for what is written."""
    target.mkdir(parents=True)
    for entry in source.iterdir() if source.is_dir() else ():
        if entry.name == NEW_LINE:
            _link(entry, target / entry.name)
        elif entry.name in ("documents", "chunks"):
            (target / entry.name).mkdir()
            for file in entry.iterdir():
                (target / entry.name / file.name).symlink_to(file)
        else:
            (target / entry.name).symlink_to(entry)


def parse_state(kind: type[State], values: dict[str, Any] | None) -> State | None:
    """A state as its dataclass; None without one, or if another version of this package wrote it.

    The caller then treats it as never written and computes it again.
    """
    try:
        return kind(**values) if values is not None else None
    except TypeError:
        return None


@contextmanager
def _hold(path: Path, timeout_seconds: float, problem: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=timeout_seconds):
            yield
    except Timeout as error:
        raise BusyError(f"{problem} {WAIT}") from error


def write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Replace one Parquet file in one rename; returns its rows."""
    with replacing(path) as draft:
        return _write_parquet(draft, schema, batches, write_page_checksum=True)


def read_table(path: Path) -> pa.Table | None:
    """What `write_table` wrote, None without the file. Raises StoreError if it is damaged."""
    try:
        return None if is_absent(path) else _read_parquet(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the content
        raise StoreError(
            f"{path} is damaged: {error}. Run the pipeline, which makes it anew."
        ) from error


def replace_rows(
    path: Path, schema: pa.Schema, others: pc.Expression, rows: Iterable[pa.RecordBatch]
) -> None:
    """Replace the rows of one Parquet file but for those that pass `others`; create it if need
    be."""
    before = read_table(path)
    before = schema.empty_table() if before is None else before
    write_table(path, schema, chain(before.filter(others).to_batches(), rows))


def file_digest(path: Path) -> str:
    """128-bit BLAKE2b of a file's bytes, hex."""
    content, size = hashlib.blake2b(digest_size=DIGEST_BYTES), path.stat().st_size
    # So much at once: after each block it waits for other threads of Python.
    with path.open("rb") as file:
        for start in range(0, size, DIGESTED_BYTES):
            length = min(DIGESTED_BYTES, size - start)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start) as part:
                content.update(part)
    return content.hexdigest()


def _read_parquet(path: Path, columns: list[str] | None = None, **options: bool) -> pa.Table:
    """Not by `pq.read_table`, which imports pyarrow.dataset, and that pandas where it is installed:
    0.4 s of processor time."""
    with pq.ParquetFile(path, **options) as file:
        return file.read(columns)


def _write_parquet(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], **options: bool
) -> int:
    """Write in row groups of ROW_GROUP_ROWS, whatever the batches' sizes; returns the rows.

    Equal rows make equal bytes: a shard's digest must not depend on the sizes of its batches.
    """
    rows = 0
    # Not of vectors: no number comes twice, and looking for that took most of the time.
    others = [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
        if not pa.types.is_fixed_size_list(field.type)
    ]
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=LEVEL,
        use_dictionary=others,
        write_statistics=others,
        **options,
    ) as writer:
        for group in _regroup(schema, batches):
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            rows += group.num_rows
    return rows


def _regroup(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        rest = batch
        while rest.num_rows:
            part = rest.slice(0, ROW_GROUP_ROWS - rows)
            rest = rest.slice(part.num_rows)
            waiting.append(part)
            rows += part.num_rows
            size += part.nbytes
            if rows == ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
                yield pa.Table.from_batches(waiting, schema).combine_chunks()
                waiting, rows, size = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema).combine_chunks()
