"""Reads inputs of the source, by jobs: some files, one after the other, or a part of a large one.

A job leaves its rows in a folder of its own among the drafts of the documents (`Spill`), and reports
the counts of each file. Inline one job reads everything. With another engine there are as many as
there are PART_BYTES, and its workers do them; what they cannot see is read here. In the order of
jobs rows stand as one job leaves them, so that nobody has to know who read them.
"""

import pickle
from abc import ABC
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.engines.base import Advance, Shared, Worker
from embedding_pipelines.errors import EngineError, SourceGoneError
from embedding_pipelines.run import Run
from embedding_pipelines.sources.base import (
    Input,
    ReadLog,
    Rejection,
    Source,
    SourceFile,
    Stamp,
    fetched,
)
from embedding_pipelines.sources.parts import join_logs
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.elsewhere import Nothing, RunKit, RunWork, map_shards
from embedding_pipelines.steps.spill import PLACE, Spill, contents_of, document_digests
from embedding_pipelines.storage.forgotten import Forgotten, read_forgotten
from embedding_pipelines.storage.pushed import PushedLog

PART_BYTES = 128 * 2**20  # that one job reads: some ten seconds
JOB_FILES = 10_000  # at most, since small ones cost more than their bytes


@dataclass
class FileStatistics:
    """What is on record of one source file."""

    stamp: Stamp
    size_bytes: int
    rows: int = 0
    rejected: int = 0
    duplicates: int = 0  # left out without being rejected
    forgotten: int = 0  # left out, for they are to be forgotten
    is_forgotten: bool = False  # the whole file is, and was not read
    blocked_by: list[str] = field(default_factory=list)  # files whose records left out some of it
    overruled: list[str] = field(default_factory=list)  # ids that the log has the last word on
    encoding: str | None = None
    notes: list[str] = field(default_factory=list)
    absent: dict[str, dict[str, int]] = field(default_factory=dict)  # as in ReadLog
    lacking: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    id_cell: tuple[str, int] | None = None  # as in ReadLog

    def add(self, part: "FileStatistics") -> None:
        """Count in another part of the file."""
        self.rows += part.rows
        self.rejected += part.rejected
        self.forgotten += part.forgotten
        self.overruled += part.overruled

    def take(self, log: ReadLog) -> None:
        """Put on record what is known now that the file has been read."""
        self.encoding, self.notes, self.id_cell = log.encoding, log.notes, log.id_cell
        self.lacking, self.columns = log.lacking, log.columns
        self.absent = {name: dict(words) for name, words in log.absent.items() if words}


class Pushed:
    """What the log of pushed documents says now."""

    def __init__(self, run: Run, last: int) -> None:
        """Up to the number `last`. Raises StoreError if the log is damaged."""
        self.words = PushedLog(run.warehouse.pushed / run.spec.name).words(last)
        self.last, self._run = last, run
        self._ids = pa.array(self.words.keys(), pa.string())

    def overrules_all(self, entry: FileStatistics) -> bool:
        """Whether the log still has the last word on all ids that it once had it on in a file; else
        the file is read again."""
        words = (self.words.get(name) for name in entry.overruled)
        return all(word is not None and word.kind != "withdraw" for word in words)

    def keeps(self, rows: pa.RecordBatch | pa.Table) -> pa.Array:
        """Which rows stay: bool[n]. `rows` has the columns PLACE."""
        everything = np.ones(rows.num_rows, dtype=bool)
        files = pc.unique(rows["source_file"]).to_pylist()
        own = {name for name in files if is_pushed(self._run, name)}
        concerned = pc.is_in(rows["document_id"], self._ids).to_numpy(zero_copy_only=False)
        if own:
            concerned |= of_files(rows, own).to_numpy(zero_copy_only=False)
        places = rows.filter(pa.array(concerned)).select(PLACE).to_pylist()
        for at, row in zip(np.flatnonzero(concerned).tolist(), places, strict=True):
            word, file = self.words.get(row["document_id"]), row["source_file"]
            if file not in own:
                everything[at] = word is None or word.kind == "withdraw"
            else:
                place = (file.rpartition("/")[2], row["source_row"])
                everything[at] = (
                    word is not None and word.kind == "put" and place == (word.segment, word.line)
                )
        return pa.array(everything)

    def __bool__(self) -> bool:
        return bool(self.words)


def pushed_name(run: Run, name: str) -> str:
    """As documents name a segment of the log, or its folder's files: relative to the home."""
    folder = run.warehouse.pushed.relative_to(run.warehouse.home)
    return f"{folder.as_posix()}/{run.spec.name}/{name}"


def source_configuration(run: Run) -> str:
    return reading_configuration(run.spec)


def reading_configuration(spec: PipelineSpec) -> str:
    """Fingerprint of what decides the documents of a file."""
    return fingerprint(spec.source, *filter(None, [spec.source.reader]))


def is_pushed(run: Run, name: str) -> bool:
    """Whether a part of this name is a segment of the log."""
    return name.startswith(pushed_name(run, ""))


def forgotten_by(run: Run) -> Forgotten:
    """What the pipeline leaves out for good. Raises StoreError if that cannot be read."""
    return read_forgotten(run.warehouse.forgotten / f"{run.spec.name}.json")


def _without_forgotten(
    run: Run, rows: pa.RecordBatch, forgotten: Forgotten, is_log: bool
) -> pa.RecordBatch:
    """Without source.id the content tells a document of a file, since a row's number says nothing
    of it, nor an image's name; what is pushed has an id in any case."""
    gone = [False] * rows.num_rows
    if run.spec.source.id is not None or is_log:
        gone = [forgotten.has("id", name) for name in rows["document_id"].to_pylist()]
    if run.spec.source.id is None:
        contents = contents_of(run.spec.source.has_images, rows, document_digests(rows))
        pairs = zip(gone, contents, strict=True)
        gone = [is_gone or forgotten.has("content", content) for is_gone, content in pairs]
    return rows.filter(pc.invert(pa.array(gone, pa.bool_())))


def of_files(rows: pa.Table | pa.RecordBatch, files: Collection[str]) -> pa.Array:
    """Which rows come from these files."""
    return pc.is_in(rows["source_file"], names_array(files))


def names_array(files: Collection[str]) -> pa.Array:
    return pa.array(sorted(files), pa.string())


@dataclass(frozen=True)
class Report:
    """What a job has read."""

    job: int
    folder: str  # where the rows are; empty if the worker does not see the inputs as they are
    files: list[tuple[str, FileStatistics, ReadLog | None]]  # name, and of a part also its log
    is_told: bool  # the notes are


class Reading:
    """Reads inputs. Their rows, in order, go to a spill, and what is to be on record of them is in
    `files`, by name."""

    def __init__(
        self,
        run: Run,
        spill: Spill,
        pushed: Pushed,
        forgotten: Forgotten,
        inputs: int,
        part_bytes: int | None,
    ) -> None:
        """`spill`: in a folder that all workers see; `inputs`: how many there are in all;
        `part_bytes`: about how much a job reads, None for one job."""
        self.files: dict[str, FileStatistics] = {}
        self.has_workers = False  # that have read some of it
        self._run, self._spill, self._pushed, self._forgotten = run, spill, pushed, forgotten
        self._part_bytes, self._done, self._total = part_bytes, 0, inputs
        self._advance(0)

    def read(self, source: Source, inputs: Sequence[Input], divides: bool) -> None:
        """`divides`: in parts, where workers read them. Raises as `Source.read`, and
        SourceGoneError for a file that changes while its parts are read."""
        logs: dict[str, ReadLog] = {}  # of files that are divided
        jobs: list[Sequence[Input]] = [inputs] if inputs else []
        if self._part_bytes is not None and source.is_portable:
            if divides:
                parts = [part for each in inputs for part in self._divide(source, each, logs)]
                self._total += len(parts) - len(inputs)
                inputs = parts
            jobs = [*_jobs(inputs, self._part_bytes)]
        work = _Work(
            *(self._run, self._advance, source, jobs),
            *(self._spill.folder, self._pushed, self._forgotten),
        )
        results = work.here().work(work.names, self._advance)
        if len(jobs) > 1:
            self.has_workers, results = True, map_shards(self._run, work, work.names)
        with closing(results):  # type: ignore[type-var]
            reports = {report.job: report for report in results}
        unseen = [name for at, name in enumerate(work.names) if not reports[at].folder]
        if unseen:
            self._run.progress.note(
                f"{len(unseen):,} of {len(jobs):,} jobs are read by this machine, since workers do "
                f"not see their files as it does, as {unseen[0].partition(': ')[2]}. Mount them at "
                "the same place everywhere."
            )
            here = work.here().work(unseen, self._advance)
            reports |= {report.job: report for report in here}
        self._take(source, [reports[at] for at in range(len(jobs))], logs)

    def _advance(self, amount: int) -> None:
        self._done += amount
        unit = self._run.spec.source.unit
        self._run.progress.update("documents", self._done, self._total, f"{unit}s")

    def _divide(self, source: Source, each: Input, logs: dict[str, ReadLog]) -> Sequence[Input]:
        log = ReadLog(reject=_no_rejection)
        parts: Sequence[Input] = [each]
        if isinstance(each, SourceFile) and self._part_bytes is not None:
            parts = source.divide(each, self._part_bytes, log)
        if len(parts) > 1:
            logs[each.name] = log
            for note in log.notes:
                self._run.progress.note(note)
        return parts

    def _take(self, source: Source, reports: Sequence[Report], logs: dict[str, ReadLog]) -> None:
        """Put together what jobs report, in their order."""
        parts: dict[str, list[ReadLog]] = {}
        for report in reports:
            self._spill.include(self._spill.folder / report.folder)
            for name, statistics, log in report.files:
                for note in () if report.is_told else statistics.notes:
                    self._run.progress.note(note)
                if name in parts:
                    self.files[name].add(statistics)
                else:
                    self.files[name] = statistics
                if log is not None:
                    parts.setdefault(name, []).append(log)
        for name, own in parts.items():
            join_logs(source, name, logs[name], own)
            self.files[name].take(logs[name])


class _Work(RunWork):
    """The jobs, as an engine is given them by their names: a number, and what they begin with."""

    def __init__(
        self,
        run: Run,
        advance: Callable[[int], None],
        source: Source,
        jobs: Sequence[Sequence[Input]],
        drafts: Path,
        pushed: Pushed,
        forgotten: Forgotten,
    ) -> None:
        super().__init__(run, advance)
        self.names = [f"{at}: {_name(job[0])}" for at, job in enumerate(jobs)]
        self._source, self._jobs, self._drafts = source, jobs, drafts
        self._pushed, self._forgotten = pushed, forgotten

    def here(self) -> "_Reader":
        run = self._run
        return _Reader(
            run,
            self._source,
            self._jobs.__getitem__,
            self._drafts,
            self._pushed,
            self._forgotten,
            True,
        )

    def kit(self) -> "_Kit":
        for at, job in enumerate(self._jobs):
            _path(self._drafts, at).write_bytes(pickle.dumps(job))
        configuration = source_configuration(self._run)
        return _Kit(*self.identity(), configuration, self._pushed.last, self._drafts)


@dataclass(frozen=True)
class DocumentsKit(RunKit, ABC):
    """With how everybody reads."""

    configuration: str
    last_pushed: int

    def open_shared(self) -> Nothing:
        return Nothing()

    def open_alike(self) -> tuple[Run, Pushed]:
        """Raises EngineError for a machine that has another version or folder, or makes other texts
        of files."""
        run = self.open_run()
        if source_configuration(run) != self.configuration:
            raise EngineError("the packages that read its files have other versions")
        return run, Pushed(run, self.last_pushed)


@dataclass(frozen=True)
class _Kit(DocumentsKit):
    """With where the jobs are written down."""

    drafts: Path

    def open(self, shared: Shared, cores: int | None) -> "_Reader":
        run, pushed = self.open_alike()

        def inputs(job: int) -> Sequence[Input]:
            return cast(Sequence[Input], pickle.loads(_path(self.drafts, job).read_bytes()))  # noqa: S301

        return _Reader(run, run.spec.source, inputs, self.drafts, pushed, forgotten_by(run), False)


class _Reader(Worker):
    """Does jobs, one after the other."""

    def __init__(
        self,
        run: Run,
        source: Source,
        inputs: Callable[[int], Sequence[Input]],
        drafts: Path,
        pushed: Pushed,
        forgotten: Forgotten,
        is_here: bool,
    ) -> None:
        """`inputs`: those of a job, by its number; `is_here`: in the process of the run."""
        self._run, self._source, self._inputs, self._drafts = run, source, inputs, drafts
        self._pushed, self._forgotten, self._is_here = pushed, forgotten, is_here

    def work(self, shards: Sequence[str], advance: Advance) -> Iterator[Report]:
        for shard in shards:
            job = int(shard.partition(":")[0])
            inputs = self._inputs(job)
            files = [each for each in inputs if isinstance(each, SourceFile)]
            if not self._is_here and not all(map(_is_as_listed, files)):
                yield Report(job, "", [], False)
                continue
            folder = Path(mkdtemp(prefix=f"{job}-", dir=self._drafts))
            results = list(self._read(inputs, folder, advance))
            yield Report(job, folder.name, results, self._is_here)

    def _read(
        self, inputs: Sequence[Input], folder: Path, advance: Advance
    ) -> Iterator[tuple[str, FileStatistics, ReadLog | None]]:
        with (
            Spill(folder) as spill,
            fetched(inputs, folder) as local,
            self._source.reading(local) as reads,
        ):
            for file, read in reads:
                try:
                    statistics, log = self._read_file(file, read, spill)
                finally:  # what else went wrong then says nothing
                    if file.part is not None and not _is_as_listed(file):
                        raise SourceGoneError(
                            f"{file.name}: was written to while it was read. Run again."
                        )
                yield file.name, statistics, None if file.part is None else log
                advance(1)
            spill.close()

    def _read_file(
        self,
        file: SourceFile,
        read_documents: Callable[[ReadLog], Iterator[pa.RecordBatch]],
        spill: Spill,
    ) -> tuple[FileStatistics, ReadLog]:
        run, forgotten, pushed = self._run, self._forgotten, self._pushed
        statistics = FileStatistics(file.stamp, file.size_bytes)
        is_log = is_pushed(run, file.name)

        def reject(rejection: Rejection) -> None:
            if forgotten and forgotten.has("record", rejection.raw):
                statistics.forgotten += 1
                return
            statistics.rejected += 1
            spill.reject(rejection)

        log = ReadLog(reject=reject)
        for read in read_documents(log):
            batch = _without_forgotten(run, read, forgotten, is_log) if forgotten else read
            statistics.forgotten += read.num_rows - batch.num_rows
            if pushed:
                kept = pushed.keeps(batch)
                if not is_log:
                    statistics.overruled += batch["document_id"].filter(pc.invert(kept)).to_pylist()
                batch = batch.filter(kept)
            statistics.rows += batch.num_rows
            spill.add(batch, run.spec.partition_names)
        statistics.take(log)
        for note in log.notes if self._is_here else ():
            run.progress.note(note)
        return statistics, replace(log, reject=_no_rejection)


def _jobs(inputs: Sequence[Input], part_bytes: int) -> Iterator[list[Input]]:
    """Files that together have about so many bytes, JOB_FILES at most, and each part of a file."""
    job: list[Input] = []
    size_bytes = 0
    for each in inputs:
        own_bytes = part_bytes if _is_part(each) else each.size_bytes
        if job and (size_bytes + own_bytes > part_bytes or len(job) == JOB_FILES):
            yield job
            job, size_bytes = [], 0
        job.append(each)
        size_bytes += own_bytes
    if job:
        yield job


def _is_part(each: Input) -> bool:
    return isinstance(each, SourceFile) and each.part is not None


def _name(each: Input) -> str:
    """What a job begins with, for people."""
    part = each.part if isinstance(each, SourceFile) else None
    return f"{each.name}:{part.row}" if part else each.name


def _path(drafts: Path, job: int) -> Path:
    return drafts / f"{job}.job"


def _is_as_listed(file: SourceFile) -> bool:
    """Whether this machine has at the file's path what the one that listed it had there. To the
    microsecond: not all file systems have what is below."""
    try:
        status = file.path.stat()
    except OSError:
        return False
    size_bytes, modified_at = map(int, file.stamp[:2])
    return (status.st_size, status.st_mtime_ns // 1000) == (size_bytes, modified_at // 1000)


def _no_rejection(rejection: Rejection) -> None:
    """Of a log that nothing is read with any more."""
