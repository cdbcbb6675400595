"""A warehouse in a bucket: the local folder is the working copy, the bucket holds what was
published of it.

A run takes the pipeline's lease, fetches what is newer, works on the copy as ever, and publishes
all of it at once, as the next generation. Readers fetch what they need of the newest one.
"""

import contextlib
import errno
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeGuard

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.refill import file_vectors
from embedding_pipelines.errors import BucketError, BusyError, ConfigError, StoreError
from embedding_pipelines.files import delete, list_files, list_names, read_json, unseal, write_json
from embedding_pipelines.objects import RETRY_SECONDS, Bucket
from embedding_pipelines.progress import Progress, Silent
from embedding_pipelines.releases import Release
from embedding_pipelines.releases import rollback as go_back
from embedding_pipelines.storage.bucket import bucket_of, open_uri, require_commits
from embedding_pipelines.storage.forgotten import COPY, STAMP, read_forgotten
from embedding_pipelines.storage.generations import (
    TABLE,
    VERSIONS,
    Entry,
    File,
    Generation,
    Generations,
    OvertakenError,
    now,
)
from embedding_pipelines.storage.lease import Lease, this_process
from embedding_pipelines.storage.receipts import Receipts
from embedding_pipelines.storage.warehouse import (
    NEW_LINE,
    Warehouse,
    file_digest,
    parse_state,
)

log = logging.getLogger(__name__)

Part = Literal["all", "search", "records"]  # of a pipeline's files

INDEX = "bucket.json"  # in the pipeline's folder: what it has of the bucket
# Files of the pipeline's folder that belong to this machine, and folders that can be made again.
# Batch jobs and deployments are of the machine that made them, receipts of searches of the server
# that writes them, whoever else publishes meanwhile.
OWN_FILES = (
    *(INDEX, "activity.json", "last_run.json", "batch_jobs.json", "deployments.json"),
    "received.json",
)
OWN_FOLDERS = ("maps", "candidates", "receipts")
OWN_ENDINGS = (".lock", ".damaged", ".torn")
FORGOTTEN = "forgotten/"  # the start of the paths of what must not come back
POINTERS = ("releases.copy.json", "releases.json")  # fetched last, in this order
READER_SECONDS = 5.0  # that a reader gives a store which does not answer: there is the copy
WAIT_SECONDS = 1.0  # between two looks at a copy that another process fetches
CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Index:
    """What the local copy has of the bucket."""

    bucket: str  # its URI
    generation: int
    published_at: str
    part: Part
    is_published: bool  # all that runs have written here is in the bucket
    # By path below the warehouse: size, time of change in ns, and digest.
    files: Mapping[str, tuple[int, int, str]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return self.part == "all"


class Remote:
    """A pipeline's working copy and its generations in a bucket."""

    def __init__(
        self, warehouse: Warehouse, name: str, uri: str, opened: tuple[Bucket, str]
    ) -> None:
        self.warehouse, self.name, self.uri = warehouse, name, uri
        self.folder = warehouse.pipeline(name)
        self.bucket, self.prefix = opened
        self.generations = Generations(*opened, name)

    def index(self) -> Index | None:
        """None where nothing was ever fetched from or published to this bucket."""
        return _read_index(self._index_path, self.uri)

    def newest(self) -> int | None:
        """The number of the newest generation: one listing. Raises BucketError if those that the
        copy knows are gone."""
        index = self.index()
        last = index.generation if index else 0
        newest = self.generations.newest(last)
        if newest is None and last:
            raise BucketError(
                f"{self.uri} does not hold generation {last} of pipeline {self.name!r} any more, "
                f"which was published on {index.published_at if index else ''}. Put it back, or "
                f"delete {self._index_path} to publish what is on this machine."
            )
        return newest

    def is_current(self) -> bool:
        """Whether the bucket has nothing newer than this copy, nor the copy anything that the
        bucket lacks."""
        index = self.index()
        if index is None or not index.is_whole or not index.is_published:
            return False
        return self.newest() == index.generation

    @contextmanager
    def write(self, progress: Progress) -> Iterator["Writer"]:
        """Hold the pipeline's lease, with the copy brought up to date, and publish in the end what
        the body has changed. The pipeline's run lock is held.

        Raises BusyError if another machine holds the lease, or has taken it over meanwhile;
        BucketError if the store does not answer or cannot hold a warehouse.
        """
        with self.hold_lease(progress) as writer:
            writer.begin()
            yield writer
            writer.publish()
            writer.end()

    @contextmanager
    def hold_lease(self, progress: Progress) -> Iterator["Writer"]:
        """Hold the pipeline's lease; the writer has not begun. As `write`."""
        require_commits(self.bucket, self.prefix)
        holder = this_process(self.warehouse.home, self.warehouse.root)
        folder = f"{self.generations.folder}/lease"
        lease = Lease(self.bucket, folder, self.name, holder)
        with lease.hold():
            writer = Writer(self, lease, progress)
            writer.take_over()
            yield writer

    def fetch(self, generation: Generation, part: Part = "all") -> None:
        """Make the local copy what a generation names: all of it, or a part.

        Raises ConfigError if the copy holds releases that this bucket never had.
        """
        index = self.index()
        if (index is None or not index.generation) and not generation.files:
            return  # nobody has published anything yet
        if index is None or not index.generation:
            self._refuse_to_replace(generation)
        local = self._local_files(index)
        self._warn_of_tombstones(index, local, generation)
        entries = dict(generation.files)
        if part != "all":
            tests: list[Callable[[str], bool]] = [_is_record] if part == "records" else []
            if part == "search" or (index is not None and index.part != "records"):
                tests.append(_is_searched(self, generation))  # it can be searched, and stays so
                part = "search"
            entries = {
                path: entry for path, entry in entries.items() if any(test(path) for test in tests)
            }
        missing = {
            path: entry
            for path, entry in entries.items()
            if path not in local or local[path].digest != entry.digest
        }
        self._forget_echoes(index, generation)
        for rank in range(_rank(POINTERS[-1]) + 1):
            files = {
                self.warehouse.root / path: entry
                for path, entry in missing.items()
                if _rank(path) == rank
            }
            self.generations.download(files)
        for path in local.keys() - generation.files.keys():
            # Other pipelines may name the first; what was forgotten never comes back.
            if not path.startswith(("calibration/", FORGOTTEN)):
                delete(local[path].path)
        self._delete_empty_tables()
        if part == "all":
            # All that no fetch has ended with: what one that died has downloaded is not missing.
            before = index.files if index else {}
            self._fill_cache(
                path
                for path, entry in entries.items()
                if path not in before or before[path][2] != entry.digest
            )
        self.write_index(generation, True, self._local_files(index), part)

    def _delete_empty_tables(self) -> None:
        """Delete the folders of tables whose files are gone."""
        for name in filter(self.owns_table, list_names(self.warehouse.tables)):
            table = self.warehouse.tables / name
            if table.is_dir() and not any(names for _, _, names in os.walk(table)):
                shutil.rmtree(table)

    def write_index(
        self,
        generation: Generation,
        is_published: bool,
        files: Mapping[str, File],
        part: Part = "all",
    ) -> None:
        stamps = {}
        for path, file in files.items():
            with contextlib.suppress(FileNotFoundError):
                stamps[path] = (file.size_bytes, file.path.stat().st_mtime_ns, file.digest)
        index = Index(
            self.uri, generation.number, generation.published_at, part, is_published, stamps
        )
        write_json(self._index_path, asdict(index), durable=False)

    def local_files(self) -> dict[str, File]:
        """The files that a generation names, by path below the warehouse."""
        return self._local_files(self.index())

    def _local_files(self, index: Index | None) -> dict[str, File]:
        recorded = index.files if index else {}
        files = {}
        for path in self._paths():
            name = path.relative_to(self.warehouse.root).as_posix()
            status = path.stat()
            stamp = [status.st_size, status.st_mtime_ns]
            entry = recorded.get(name)
            digest = entry[2] if entry and list(entry[:2]) == stamp else file_digest(path)
            files[name] = File(path, status.st_size, digest)
        return files

    def _paths(self) -> Iterator[Path]:
        tables, root = self.warehouse.tables, self.folder.folder
        own = [tables / name for name in list_names(tables) if self.owns_table(name)]
        calibrations = _calibrations(self.warehouse, self.folder.releases)
        proofs = list_files(self.warehouse.forgotten / "receipts", f"{self.name}-{STAMP}.json")
        lists = (self._tombstones, self._tombstones.with_suffix(COPY), *proofs)
        for folder in (root, *own, *calibrations, *lists):
            for place, folders, names in os.walk(folder):
                folders[:] = [name for name in folders if not _is_own(name, OWN_FOLDERS)]
                yield from (Path(place, name) for name in names if not _is_own(name, OWN_FILES))
            if folder.is_file():
                yield folder

    def owns_table(self, name: str) -> bool:
        """Whether a name in the tables' folder belongs to this pipeline."""
        stem = name.partition(TABLE)[0].partition(".checksums")[0].partition("~")[0]
        return stem.rpartition("-")[0] == self.name

    def _refuse_to_replace(self, generation: Generation) -> None:
        record, path = self.folder.releases, self._path_of(POINTERS[-1])
        entry = generation.files.get(path)
        # A fetch that died before it wrote its index has left releases of a generation, which others
        # have followed since.
        if not record.exists() or self.generations.ever_named(path, file_digest(record)):
            return
        raise ConfigError(
            f"Pipeline {self.name!r} has releases in {self.folder.folder} that were never published, "
            f"and {self.uri} has {'others' if entry else 'none of them'} ({generation.day}). Keep one "
            "of them: delete that folder here, whose vectors stay in the embedding cache, or name "
            "another folder of the bucket."
        )

    def _warn_of_tombstones(
        self, index: Index | None, local: Mapping[str, File], generation: Generation
    ) -> None:
        """Say that a list of what is forgotten is replaced which was changed here and not
        published: `forget` publishes it before it erases anything, so that nothing is erased
        yet."""
        name = self._tombstones.relative_to(self.warehouse.root).as_posix()
        mine, entry = local.get(name), generation.files.get(name)
        if index is None or index.is_published or mine is None:
            return
        before = index.files.get(name)
        if (entry is None or entry.digest != mine.digest) and (
            before is None or before[2] != mine.digest
        ):
            log.warning(
                "Pipeline %r: a `forget` ended here before it could publish what it forgets, and "
                "has erased nothing. Say the same command again.",
                self.name,
            )

    def _forget_echoes(self, index: Index | None, generation: Generation) -> None:
        """Have what another machine has forgotten, or deleted, leave what this one keeps for itself,
        before the copy here loses it, too."""
        path, before = self._tombstones, index.files if index else {}
        if self._has_folder(before) and not self._has_folder(generation.files):
            Receipts(self.folder.folder).delete()
        names = [
            each.relative_to(self.warehouse.root).as_posix()
            for each in (path.with_suffix(COPY), path)
        ]
        entry = generation.files.get(names[-1])
        if entry is not None and (names[-1] not in before or before[names[-1]][2] != entry.digest):
            lists = {name: generation.files[name] for name in names if name in generation.files}
            self.generations.download(
                {self.warehouse.root / name: entry for name, entry in lists.items()}
            )
            # Here, since each search imports this module, and has none to forget without a bucket.
            from embedding_pipelines.echoes import forget_echoes

            forget_echoes(self.warehouse, self.name, read_forgotten(path))

    def _has_folder(self, paths: Iterable[str]) -> bool:
        return any(path.startswith(self._path_of("")) for path in paths)

    @property
    def _tombstones(self) -> Path:
        return self.warehouse.forgotten / f"{self.name}.json"

    def _fill_cache(self, fetched: Iterable[str]) -> None:
        """File the vectors of the shards among these files, so that a text is paid for once by all
        machines."""
        shards = [path for path in fetched if path.endswith(".parquet")]
        for line in ("", NEW_LINE):
            folder = self.warehouse.pipeline(self.name, line)
            start = f"{folder.embeddings.folder.relative_to(self.warehouse.root).as_posix()}/b"
            own = [path for path in shards if path.startswith(start)]
            partitions = [path.rpartition("/")[2].partition("-")[0] for path in own]
            if own:
                file_vectors(folder, EmbeddingCache(self.warehouse.cache), partitions)

    def compare_anew(self) -> None:
        """Have the next writer compare every file with its digest, whatever its size and time."""
        index = self.index()
        if index is not None:
            write_json(self._index_path, asdict(replace(index, files={})), durable=False)

    def lost_objects(self) -> dict[str, Entry]:
        """The files, by path below the warehouse, whose objects the newest generation names and
        that are gone from the bucket or of another size."""
        newest = self.newest()
        if newest is None:
            return {}
        return self.generations.lost(self.generations.read(newest), self.owns_table)

    def put_back(self, lost: Mapping[str, Entry]) -> tuple[list[str], list[str]]:
        """Create lost objects anew of the local copy's files: those, and those that it lacks. The
        pipeline's lease is held."""
        local = self.local_files()
        here = {path for path, entry in lost.items() if _is(local.get(path), entry)}
        for path in here:
            self.generations.put_back(lost[path], local[path].path)
        return sorted(here), sorted(lost.keys() - here)

    def _path_of(self, name: str) -> str:
        return f"{self.folder.folder.relative_to(self.warehouse.root).as_posix()}/{name}"

    @property
    def _index_path(self) -> Path:
        return self.folder.folder / INDEX


class Writer:
    """Whoever holds the lease of a pipeline."""

    def __init__(self, remote: Remote, lease: Lease, progress: Progress) -> None:
        self._remote, self._lease, self._progress = remote, lease, progress
        self._generation = Generation(0, "", "", lease.holder, "", {})  # before the first
        self._newest: int | None = None  # that the copy may have

    def take_over(self) -> None:
        """See that nobody else can publish what follows the newest generation."""
        self._newest = self._remote.newest()
        if self._newest is not None:
            self._generation = self._remote.generations.read(self._newest)
        if self._lease.is_takeover:
            self._newest = self._close_out()

    def begin(self) -> None:
        """Bring the copy to the newest generation."""
        remote, newest = self._remote, self._newest
        index = remote.index()
        # What a run here has not published goes on, unless the bucket has something newer. Whatever
        # else differs from the generation is lost or damaged, and fetched again.
        is_ahead = index is not None and index.is_whole and not index.is_published
        if newest is not None and not (is_ahead and index and index.generation == newest):
            if index is not None and not index.is_published:
                self._progress.note(
                    f"what the last run made here was never published, and {self._generation.day} "
                    "is newer: this copy is brought to it. No text is embedded again."
                )
            remote.fetch(self._generation)
        remote.write_index(self._generation, False, remote.local_files())

    def _close_out(self) -> int:
        """Publish the newest generation again under the next number, so that whoever held the lease
        before cannot publish what follows the old one, however late. Returns the old number."""
        while True:
            number = self._generation.number
            try:
                self._follow(self._generation.files)
                return number
            except OvertakenError:
                newest = self._remote.newest()
                assert newest is not None
                self._generation = self._remote.generations.read(newest)

    def require_lease(self) -> None:
        """Raises BusyError if another machine has taken the lease over."""
        if not self._lease.renew():
            raise self._overtaken("What it made is not published")

    def publish(self) -> None:
        """Publish what the copy holds, if that is not what the newest generation names. Raises
        BusyError if another holder of the lease was quicker."""
        remote, before = self._remote, self._generation
        local = remote.local_files()
        if {path: file.digest for path, file in local.items()} != {
            path: entry.digest for path, entry in before.files.items()
        }:
            self.require_lease()
            self._publish(remote.generations.upload(local, before.files))
            remote.generations.sweep(self._generation.number, remote.owns_table, self._lease.renew)
        if remote.folder.folder.exists():  # else it was deleted
            remote.write_index(self._generation, False, local)  # more may follow

    def end(self) -> None:
        """Note that all of the copy is published."""
        if self._remote.folder.folder.exists():
            self._remote.write_index(self._generation, True, self._remote.local_files())

    def delete(self) -> None:
        """Delete what was ever published of the pipeline, and publish that there is nothing but the
        list of what it has forgotten. Raises as `publish`."""
        files = self._generation.files
        rest = {path: entry for path, entry in files.items() if path.startswith(FORGOTTEN)}
        if rest != files:
            self._publish(rest)
        self._erase()

    def forget(self) -> None:
        """Publish what the copy holds, and delete all that was published before. Raises as
        `publish`."""
        self.publish()
        self._erase()

    def _erase(self) -> None:
        number = self._generation.number
        if number and not self._remote.generations.erase(
            number, self._remote.owns_table, self._lease.renew
        ):
            raise self._overtaken("What was published before is not erased: say the command again")

    def _publish(self, files: Mapping[str, Entry]) -> None:
        try:
            if not self._lease.renew():
                raise OvertakenError
            self._follow(files)
        except OvertakenError:
            raise self._overtaken("What it made is not published") from None

    def _follow(self, files: Mapping[str, Entry]) -> None:
        """Create the next generation. Raises OvertakenError."""
        before, mark = self._generation, uuid.uuid4().hex
        holder = self._lease.holder
        generation = Generation(before.number + 1, mark, before.mark, holder, now(), files)
        self._remote.generations.publish(generation)
        self._generation = generation

    def _overtaken(self, what: str) -> BusyError:
        return BusyError(
            f"Pipeline {self._remote.name!r}: its lease was taken over by "
            f"{self._lease.other_holder()}, since this process gave no sign for too long. {what}; "
            "the next run here begins from what the other one publishes, and embeds nothing twice."
        )


def open_remote(
    warehouse: Warehouse, name: str, patience_seconds: float = RETRY_SECONDS
) -> Remote | None:
    """A pipeline's part of the bucket, None for a warehouse that is on this machine alone. Raises
    ConfigError for a wrong `warehouse.yaml`, BucketError without credentials."""
    uri = None if warehouse.is_copy else bucket_of(warehouse.home)
    return Remote(warehouse, name, uri, open_uri(uri, patience_seconds)) if uri else None


def is_shared(warehouse: Warehouse) -> bool:
    """Whether the warehouse is published in a bucket."""
    return bucket_of(warehouse.home) is not None


@contextmanager
def writing(warehouse: Warehouse, name: str, progress: Progress) -> Iterator[Writer | None]:
    """As `Remote.write`; without a bucket it does nothing."""
    remote = open_remote(warehouse, name)
    if remote is None:
        yield None
        return
    with remote.write(progress) as writer:
        yield writer


def rollback(warehouse: Warehouse, name: str, to: int | None) -> tuple[Release, Release]:
    """As `releases.rollback`, for all machines that share the warehouse. Raises BusyError if it is
    shared and somebody runs the pipeline."""
    folder = warehouse.pipeline(name)
    with contextlib.ExitStack() as stack:
        if is_shared(warehouse):
            stack.enter_context(folder.lock("run", timeout_seconds=0))
            stack.enter_context(writing(warehouse, name, Silent()))
        return go_back(folder, to)


def is_current(warehouse: Warehouse, name: str) -> bool:
    """As `Remote.is_current`; without a bucket nothing can be newer."""
    remote = open_remote(warehouse, name)
    return remote is None or remote.is_current()


def is_whole(warehouse: Warehouse, name: str) -> bool:
    """Whether the local copy has all of a pipeline, as it has without a bucket."""
    uri = None if warehouse.is_copy else bucket_of(warehouse.home)
    index = _read_index(warehouse.pipeline(name).folder / INDEX, uri) if uri else None
    return index is None or index.is_whole


def fetch_state(warehouse: Warehouse, name: str) -> str | None:
    """Fetch the records of a pipeline, without its rows; how copy and bucket stand, in words. None
    without a bucket. Nothing is raised for a bucket that does not answer."""
    remote = open_remote(warehouse, name, READER_SECONDS)
    if remote is None:
        return None
    problem = refresh(warehouse, name, "records")
    index = remote.index()
    if problem or index is None or not index.generation:
        return problem or f"nothing is published in {remote.uri} yet"
    words = f"generation {index.generation} in {remote.uri}, published {index.published_at}"
    return words if index.is_published else f"{words}; this machine has what is not published yet"


def refresh(warehouse: Warehouse, name: str, part: Part = "all") -> str:
    """Fetch what is newer in the bucket: all of the pipeline, what a search of its live release
    needs, or its records alone. Returns what is wrong with the copy in words, empty if it is up to
    date; where all was to be fetched, the log has them, too.

    Raises BucketError if the bucket cannot be reached and there is no copy.
    """
    remote = open_remote(warehouse, name, READER_SECONDS)
    if remote is None:
        return ""
    index = remote.index()
    try:
        newest = remote.newest()
        while newest is not None and not (_has(index, part) and index.generation >= newest):
            wait = 0.0 if _has(index, part) else WAIT_SECONDS
            try:
                with remote.folder.lock("run", timeout_seconds=wait):
                    remote.fetch(remote.generations.read(newest), part)
                return ""
            except BusyError:  # another process fetches, or runs on the newest copy
                index = remote.index()
                if _has(index, part):
                    return ""
    except (BucketError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in CANNOT_WRITE:
            raise
        if index is None or not remote.folder.releases.exists():
            raise
        words = f"{error} What answers is the copy on this machine, of {index.published_at}."
        if part == "all":
            log.warning("%s", words)
        return words
    return ""


def _has(index: Index | None, part: Part) -> TypeGuard[Index]:
    """Whether a copy has a part, of whatever generation."""
    return index is not None and (index.is_whole or index.part == part)


def _read_index(path: Path, uri: str) -> Index | None:
    try:
        index = parse_state(Index, read_json(path))
    except StoreError:  # everything is compared again
        return None
    return index if index is not None and index.bucket == uri else None


def _is(file: File | None, entry: Entry) -> bool:
    return file is not None and file.digest == entry.digest


def _is_record(path: str) -> bool:
    return path.endswith((".json", ".jsonl")) and TABLE not in path


def _is_searched(remote: Remote, generation: Generation) -> Callable[[str], bool]:
    """Which files of a generation a search of its live release reads."""
    own = f"pipelines/{remote.name}/"
    entry = generation.files.get(own + POINTERS[-1])
    content = remote.bucket.read(remote.prefix + entry.key) if entry else None
    record = unseal(content) if content else {"releases": []}
    live = [entry for entry in record["releases"] if entry["number"] == record["live"]]
    records = (*POINTERS, "checks.json", "model/")  # and what the line of a migration has of these
    of_line = [f"{NEW_LINE}/{name}" for name in ("checks.json", "model/", "bridge.")]
    starts = [f"{own}{name}" for name in (*records, *of_line)]
    starts.append(f"{FORGOTTEN}{remote.name}.")  # which a push, and what a server keeps, must obey
    for release in live:
        table = f"tables/{release['table']}"
        starts += [f"{own}codec/{release['codec']}", f"{table}{TABLE}/", f"{table}.checksums.json"]
        starts += ["calibration/"] if release["spec"]["model"].get("calibration") else []
    return lambda path: path.startswith(tuple(starts))


def _calibrations(warehouse: Warehouse, releases: Path) -> list[Path]:
    """The copies of calibration texts that releases name."""
    try:
        record = read_json(releases) or {"releases": []}
    except StoreError:  # the next run puts it right
        return []
    names = {entry["spec"]["model"].get("calibration") for entry in record["releases"]} - {None}
    paths = (warehouse.home / str(name) for name in names)
    return [path for path in paths if path.parent == warehouse.root / "calibration"]


def _is_own(name: str, names: tuple[str, ...]) -> bool:
    """Whether a name is of this machine's alone: of these names, a draft, a lock, or damaged."""
    return name in names or name.startswith(".") or name.endswith(OWN_ENDINGS) or "#" in name


def _rank(path: str) -> int:
    """When a file is fetched: what others name goes first."""
    name = path.rpartition("/")[2]
    if name in POINTERS:
        return 3 + POINTERS.index(name)
    if name.endswith((".json", ".jsonl")):
        return 2
    return 1 if VERSIONS in path else 0
