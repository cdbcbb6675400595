"""documents: the changed files of the source become canonical rows in partitions, in one pass.

A file has changed if its size or times have, an object if its ETag has (`SourceFile.stamp`). Each
partition concerned is then rewritten from its rows of unchanged files and the rows of the changed
ones. Before the first partition is written, `files.json` forgets the changed files, and names them
again after the last: a run that dies in between is made up for by the next one, even if the files
are then put back as they were.

The segments of the log of pushed documents (`storage/pushed.py`) are files beside those of the
source. The log's last word on an id counts, whatever files say of it: a document that was put
stands in their place, one that was deleted is left out, and one that was withdrawn is as if nobody
had ever pushed it.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.errors import SourceError, SourceGoneError
from embedding_pipelines.files import delete, read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.quality.queries import read_pairs, read_qrels
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import (
    DIGEST,
    DOCUMENT_COLUMNS,
    DOCUMENT_DIGEST,
    IMAGE,
    REJECTED,
    digest,
    documents_schema,
    stored_documents_schema,
)
from embedding_pipelines.sources.base import (
    Input,
    ReadLog,
    Rejection,
    SourceFile,
    Stamp,
    fetched,
)
from embedding_pipelines.sources.push import Push
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint, partition_of
from embedding_pipelines.steps.base import Options, Reports, Step
from embedding_pipelines.steps.duplicates import WORDS, Groups, write_duplicates
from embedding_pipelines.steps.repair import repair
from embedding_pipelines.storage.forgotten import Forgotten, read_forgotten
from embedding_pipelines.storage.pushed import PushedLog, in_force, pushed_log
from embedding_pipelines.storage.warehouse import Shards, parse_state, replace_rows, write_table

LISTINGS = 3  # of a source of which something is gone when it is read
SHOWN_REJECTIONS = 3
SHOWN_WORDS = 5  # of those that are no value
REJECTIONS_HELD = 1_000  # in memory, before they go to disk
OPEN_FILES = 16  # of a pass over the source; more partitions than that take turns
READING = ".reading-"  # begins the name of a folder of a pass over the source
PLACE = ["document_id", "source_file", "source_row"]  # enough to tell where an id stands

Place = tuple[str, int]  # file and row
Double = tuple[Place, str, Place]  # a record that is left out, its id, the record that counts


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


class Pushed:
    """What the log of pushed documents says now."""

    def __init__(self, run: Run, last: int) -> None:
        """Up to the number `last`. Raises StoreError if the log is damaged."""
        self.words = PushedLog(run.warehouse.pushed / run.spec.name).words(last)
        self._run = run
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
            concerned |= _of_files(rows, own).to_numpy(zero_copy_only=False)
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


class _Kept:
    """The rows of one partition as it was written last that stay in it."""

    def __init__(
        self, run: Run, partition: str, unchanged: Collection[str], pushed: Pushed
    ) -> None:
        self.has_rows = bool(unchanged)
        self._shards, self._partition = run.folder.documents, partition
        self._unchanged, self._pushed = unchanged, pushed

    def mask(self, rows: pa.RecordBatch | pa.Table) -> pa.Array:
        """Which of the stored rows these are, bool[n]. `rows` has the columns PLACE."""
        return pc.and_(_of_files(rows, self._unchanged), self._pushed.keeps(rows))

    def count_overruled(self, files: dict[str, FileStatistics]) -> None:
        """Put on record which rows of unchanged files go, since something newer was pushed."""
        rows = self._shards.read_columns(self._partition, PLACE) if self.has_rows else None
        if rows is None or not self._pushed:
            return
        rows = rows.filter(_of_files(rows, self._unchanged))
        gone = rows.filter(pc.invert(self._pushed.keeps(rows)))
        for name, file in zip(*(gone[column].to_pylist() for column in PLACE[:2]), strict=True):
            entry = files[file]
            if name not in entry.overruled:  # a run that died may have counted it
                entry.overruled.append(name)
                entry.rows -= 1

    def read(self) -> Iterator[pa.RecordBatch]:
        for batch in self._shards.read(self._partition) if self.has_rows else ():
            yield batch.filter(self.mask(batch))

    def places(self) -> pa.Table | None:
        """Ids and places of these rows, None if there are none."""
        rows = self._shards.read_columns(self._partition, PLACE) if self.has_rows else None
        return None if rows is None else rows.filter(self.mask(rows))

    def is_all(self) -> bool:
        """Whether no row of the partition goes."""
        rows = self._shards.read_columns(self._partition, PLACE)
        return rows is not None and bool(pc.all(self.mask(rows), min_count=0).as_py())


class DocumentsStep(Step):
    name = "documents"
    description = (
        "Canonical rows of the source in partitions. Unchanged files are skipped; bad records go "
        "to a table of their own, with file, row and reason."
    )
    technologies = ("{spec.source.kind}", "parquet")
    sentence = "{documents} from {files}, {rejected:,} rejected"
    extras: ClassVar[Mapping[str, str]] = {
        "same_images": "{:,} with the pixels of another one",
        "alike_images": "{:,} nearly as another one",
        "pushed": "{:,} of them pushed",
        "overruled": "{:,} replaced or deleted by what was pushed",
        "forgotten": "{:,} forgotten left out",
        "forgotten_files": "{:,} forgotten files left out",
    }
    row_statistic = "documents"

    def shards(self, run: Run) -> Shards:
        return run.folder.documents

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.source, *filter(None, [spec.source.reader]))

    def columns(self, spec: PipelineSpec) -> pa.Schema:
        return stored_documents_schema(spec.source.metadata_types)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        return _compare(run).report

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        repair(run)
        yield write_documents(run)


@dataclass(frozen=True)
class _Comparison:
    """The source now, beside what is on record."""

    files: list[Input]
    unchanged: dict[str, FileStatistics]  # what is on record of those that have not changed
    joined: dict[str, Stamp]  # as `_joined`, from before the files were listed
    report: StepReport | None = None  # if the documents are up to date with all of it


def _compare(run: Run, to_read: bool = False) -> _Comparison:
    """`to_read`: the files are to be read."""
    joined, shards = _joined(run), run.folder.documents
    files = _all_files(run) if to_read else inputs_of(run)
    names, configuration = run.spec.partition_names, source_configuration(run)
    is_usable = all(shards.current(name, "", configuration) for name in names)
    record = read_files(run) if is_usable else {}
    stamps = {file.name: file.stamp for file in files}
    unchanged = {
        name: entry for name, entry in record.items() if tuple(entry.stamp) == stamps.get(name)
    }
    is_whole = (read_json(run.folder.files) or {}).get("whole")  # all partitions were written
    is_same = len(unchanged) == len(files) == len(record)
    if is_whole and is_same and not _has_changed(run, joined):
        report = StepReport(DocumentsStep.name, False, _statistics(run, record, 0))
        return _Comparison(files, unchanged, joined, report)
    return _Comparison(files, _undisputed(unchanged), joined)


def _undisputed(unchanged: dict[str, FileStatistics]) -> dict[str, FileStatistics]:
    """Those of the unchanged files whose records need not come back: a record that was left out
    for one of a file that is unchanged, too, still is."""
    return {
        name: entry
        for name, entry in unchanged.items()
        if unchanged.keys() >= set(entry.blocked_by)
    }


def write_documents(run: Run) -> StepReport:
    """Bring all partitions of documents up to date with the source, which is listed again if an
    input is gone by the time that it is read.

    Raises SourceError for files that cannot be read as the pipeline says, and for more
    rejected records than `source.max_rejected` allows; the previous documents stay in force. Raises
    ConfigError for files of `evaluation:` that cannot be read, before anything is paid for.
    """
    for _ in range(LISTINGS - 1):
        with contextlib.suppress(SourceGoneError):
            return _write_listed(run)
    return _write_listed(run)


def _write_listed(run: Run) -> StepReport:
    """As `write_documents`, of one listing. Raises SourceGoneError."""
    read_qrels(run)
    read_pairs(run)
    names, folder = run.spec.partition_names, run.folder
    folder.fix_partitions(run.spec.partitions)
    if not run.warehouse.is_copy:  # its other folders are links into the warehouse itself
        folder.delete_leftovers(READING)
        is_only_source = isinstance(run.spec.source, Push)
        log = pushed_log(run.warehouse, run.spec.name)
        log.delete_drafts()
        _erase_forgotten(run, log)
        log.merge(_settled(run), is_only_source)
    comparison = _compare(run, to_read=True)
    if comparison.report is not None:
        return comparison.report
    source_files, unchanged = comparison.files, comparison.unchanged
    for note in run.spec.source.omissions(run.warehouse.home):
        run.progress.note(note)
    pushed = Pushed(run, _last_pushed(run, [file.name for file in source_files]))
    unchanged = {name: entry for name, entry in unchanged.items() if pushed.overrules_all(entry)}
    changed = [file for file in source_files if file.name not in unchanged]
    parts = f"{run.spec.source.unit}s"
    files, forgotten = dict(unchanged), forgotten_by(run)
    folder.documents.folder.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=READING, dir=folder.documents.folder) as drafts,
        Spill(Path(drafts)) as spill,
    ):
        for file in changed:
            if forgotten.has("file", file.name):
                files[file.name] = FileStatistics(file.stamp, file.size_bytes, is_forgotten=True)
        needed = [file for file in changed if file.name not in files]
        own = [file for file in needed if not is_pushed(run, file.name)]
        segments = [file for file in needed if is_pushed(run, file.name)]
        source, number = run.spec.source, itertools.count()
        for reader, inputs in ((source, own), (Push.of(source), segments)):
            if not inputs:
                continue
            with fetched(inputs, spill.folder) as local, reader.reading(local) as reads:
                for file, read in reads:
                    run.progress.update("documents", next(number), len(needed), parts)
                    files[file.name] = _read_file(run, file, read, spill, forgotten, pushed)
        spill.close()
        _check_columns(run, files)
        kept = {name: _Kept(run, name, unchanged, pushed) for name in names}
        for rows in kept.values():
            rows.count_overruled(files)
        doubles = {name: _doubles(run, name, spill, kept[name]) for name in names}
        _leave_out(run, doubles, spill, files, kept)
        _check_rejections(run, files, spill)
        _write_record(run, unchanged, whole=False)
        left_out = {name: {place for place, *_ in rows} for name, rows in doubles.items()}
        written = sum(
            _write_partition(run, name, spill, kept[name], left_out[name]) for name in names
        )
        others = pc.field("file").isin(_names(unchanged))
        replace_rows(folder.rejected, REJECTED, others, spill.rejections())
    delete(folder.rejected_by_failure)  # of runs before this one
    run.progress.update("documents", len(changed), len(changed), parts)
    for note in _shared_notes([files[file.name] for file in changed]):
        run.progress.note(note)
    ordered = {file.name: files[file.name] for file in source_files}
    duplicates = write_duplicates(run) if run.spec.source.has_images else None
    if duplicates and duplicates.sentence:
        run.progress.note(f"{duplicates.sentence}; all are kept, and listed in {folder.duplicates}")
    folder.sync()  # the record says that these files need not be read again
    _write_record(run, ordered, True, duplicates, comparison.joined)
    statistics = _statistics(run, ordered, len(changed)) | {"written_partitions": written}
    return StepReport(DocumentsStep.name, True, statistics)


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


class Spill:
    """What a pass over the source read, by partition, on disk until the partitions are written:
    reading needs no more memory than a batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, tuple[pa.ipc.RecordBatchStreamWriter, IO[bytes]]] = {}
        self._names: set[str] = set()
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

    def close(self) -> None:
        """No more rows: all that was added can be read."""
        self._flush()
        self._close_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close_files()

    def has(self, partition: str) -> bool:
        return partition in self._names

    def places(self, partition: str) -> pa.Table | None:
        """Ids and places of what was added to a partition, None if nothing was."""
        if not self.has(partition):
            return None
        return pa.Table.from_batches([batch.select(PLACE) for batch in self.read(partition)])

    def read(self, partition: str) -> Iterator[pa.RecordBatch]:
        if self.has(partition):
            with pa.memory_map(str(self._path(partition))) as file:
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
            file = self._path(partition).open("ab")
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

    def _path(self, partition: str) -> Path:
        return self.folder / f"{partition}.arrows"


def read_files(run: Run) -> dict[str, FileStatistics]:
    """The source files as they were last read, by name; none if the source's options have changed
    since."""
    record = read_json(run.folder.files) or {}
    if record.get("configuration") != source_configuration(run):
        return {}
    files = {name: parse_state(FileStatistics, entry) for name, entry in record["files"].items()}
    return {name: entry for name, entry in files.items() if entry is not None}


def forget_files(run: Run, names: Collection[str] | None) -> None:
    """Have the next run read these files again, or all of them."""
    record = read_json(run.folder.files)
    if record is not None:
        files = {} if names is None else record["files"]
        files = {name: entry for name, entry in files.items() if name not in (names or ())}
        write_json(run.folder.files, {**record, "whole": False, "files": files})


def _write_record(
    run: Run,
    files: dict[str, FileStatistics],
    whole: bool,
    duplicates: Groups | None = None,
    joined: Mapping[str, Stamp] | None = None,
) -> None:
    entries = {name: vars(entry) for name, entry in files.items()}
    configuration = source_configuration(run)
    record = {"configuration": configuration, "whole": whole, "files": entries}
    if whole:
        record["pushed"] = _last_pushed(run, files)
    if joined:
        record["joined"] = joined
    if duplicates is not None:
        record["duplicates"] = {f"{kind}_images": duplicates.images(kind) for kind in WORDS}
    write_json(run.folder.files, record)


def _last_pushed(run: Run, files: Iterable[str]) -> int:
    """The newest number in the segments of the log that are among these files."""
    names = [name.rpartition("/")[2] for name in files if is_pushed(run, name)]
    return max((segment.last for segment in in_force(names)), default=0)


def absorbed(run: Run) -> int:
    """The number up to which the documents hold what was pushed."""
    record = read_json(run.folder.files) or {}
    return record.get("pushed", 0) if record.get("whole") else 0


def inputs_of(run: Run) -> list[Input]:
    """The parts of the source as they are now, and the segments of the log of what was pushed, to be
    compared with what is on record. Raises as `Source.files`."""
    if not run.spec.source.is_joined or joined_anew(run):
        return _all_files(run)
    record = {name: tuple(entry.stamp) for name, entry in read_files(run).items()}
    parts = run.spec.source.files_joined_as(run.warehouse.home, record)
    return [*parts, *segments_of(run)]


def _all_files(run: Run) -> list[Input]:
    """As `inputs_of`, to be read."""
    return [*run.spec.source.files(run.warehouse.home), *segments_of(run)]


def joined_anew(run: Run) -> bool:
    """Whether something has changed that stamps of the source's parts depend on, as a table of
    captions, since it was last read."""
    return _has_changed(run, _joined(run))


def _joined(run: Run) -> dict[str, Stamp]:
    return {each.name: each.stamp for each in run.spec.source.joined(run.warehouse.home)}


def _has_changed(run: Run, joined: Mapping[str, Stamp]) -> bool:
    if not joined:
        return False
    record = (read_json(run.folder.files) or {}).get("joined", {})
    return joined != {name: tuple(stamp) for name, stamp in record.items()}


def segments_of(run: Run) -> Iterator[SourceFile]:
    """The segments of the log of what was pushed."""
    log = pushed_log(run.warehouse, run.spec.name)
    log.fetch()
    log.require(max((each.pushed for each in read_releases(run.folder).releases), default=0))
    for segment in log.segments():
        size = log.size_bytes(segment)
        yield SourceFile(_pushed_name(run, segment.name), size, (size,), log.path(segment))


def _pushed_name(run: Run, name: str) -> str:
    """As documents name a segment of the log, or its folder's files: relative to the home."""
    folder = run.warehouse.pushed.relative_to(run.warehouse.home)
    return f"{folder.as_posix()}/{run.spec.name}/{name}"


def is_pushed(run: Run, name: str) -> bool:
    """Whether a part of this name is a segment of the log."""
    return name.startswith(_pushed_name(run, ""))


def count_waiting(run: Run, after: int) -> int:
    """How many documents were put, deleted or withdrawn behind a number. Raises StoreError if the
    log is damaged."""
    log = PushedLog(run.warehouse.pushed / run.spec.name)
    return len({change.id for _, change in log.changes(after)}) if log.last() > after else 0


def _settled(run: Run) -> int:
    """The number up to which every release holds what was pushed."""
    return min((entry.pushed for entry in read_releases(run.folder).releases), default=0)


def source_configuration(run: Run) -> str:
    return DocumentsStep().configuration(run.spec)


def _statistics(run: Run, files: dict[str, FileStatistics], changed_files: int) -> dict[str, Any]:
    entries = list(files.values())
    segments = {name: entry for name, entry in files.items() if is_pushed(run, name)}
    encodings = sorted({entry.encoding for entry in entries if entry.encoding} - {"utf-8"})
    notes = [note for entry in entries for note in entry.notes] + _shared_notes(entries)
    return {
        "documents": sum(entry.rows for entry in entries),
        "rejected": sum(entry.rejected for entry in entries),
        "files": len(entries) - len(segments),
        "unit": run.spec.source.unit,
        "changed_files": changed_files,
        "source_bytes": sum(entry.size_bytes for entry in entries),
        "forgotten": sum(entry.forgotten for entry in entries),
        "forgotten_files": sum(entry.is_forgotten for entry in entries),
        **(_pushed_statistics(files, segments) if segments else {}),
        **(read_json(run.folder.files) or {}).get("duplicates", {}),
        **({"other_encodings": ", ".join(encodings)} if encodings else {}),
        **({"notes": notes} if notes else {}),
    }


def _pushed_statistics(
    files: Mapping[str, FileStatistics], segments: Mapping[str, FileStatistics]
) -> dict[str, int]:
    overruled = [len(entry.overruled) for name, entry in files.items() if name not in segments]
    return {
        "pushed": sum(entry.rows for entry in segments.values()),
        "overruled": sum(overruled),
    }


def _erase_forgotten(run: Run, log: PushedLog) -> None:
    """Another machine may have pushed a document while this one forgot it."""
    if forgotten := forgotten_by(run):
        ids = [name for name in log.words() if forgotten.has("id", name)]
        if ids:
            log.erase(ids)


def forgotten_by(run: Run) -> Forgotten:
    """What the pipeline leaves out for good. Raises StoreError if that cannot be read."""
    return read_forgotten(run.warehouse.forgotten / f"{run.spec.name}.json")


def _read_file(
    run: Run,
    file: SourceFile,
    read_documents: Callable[[ReadLog], Iterator[pa.RecordBatch]],
    spill: Spill,
    forgotten: Forgotten,
    pushed: Pushed,
) -> FileStatistics:
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
    statistics.encoding, statistics.notes = log.encoding, log.notes
    statistics.lacking, statistics.columns = log.lacking, log.columns
    statistics.id_cell = log.id_cell
    statistics.absent = {name: dict(words) for name, words in log.absent.items() if words}
    for note in log.notes:
        run.progress.note(note)
    return statistics


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


def _shared_notes(entries: Sequence[FileStatistics]) -> list[str]:
    """Where columns have no value for another reason than an empty cell, and records are left out
    for their ids: once for all files."""
    duplicates = sum(entry.duplicates for entry in entries)
    words: dict[str, Counter[str]] = {}
    for entry in entries:
        for name, counts in entry.absent.items():
            words.setdefault(name, Counter()).update(counts)
    lacking = Counter(name for entry in entries for name in entry.lacking)
    return [
        *(
            f"column {name!r}: read as no value: "
            + ", ".join(f"{word!r} ({count:,})" for word, count in counts.most_common(SHOWN_WORDS))
            + (", …" if len(counts) > SHOWN_WORDS else "")
            for name, counts in words.items()
        ),
        *(
            f"column {name!r} is missing in {count:,} of {len(entries):,} files; their documents "
            "have no value there"
            for name, count in lacking.items()
        ),
        *(
            [f"left out, for another record has the same id (source.duplicates): {duplicates:,}"]
            if duplicates
            else []
        ),
    ]


def _check_columns(run: Run, files: dict[str, FileStatistics]) -> None:
    """SourceError for a column of the pipeline that no file has."""
    files = {name: entry for name, entry in files.items() if not is_pushed(run, name)}
    for column in run.spec.source.columns:
        without = [name for name, entry in files.items() if column in entry.lacking]
        if without and not any(
            column not in entry.lacking and entry.rows + entry.rejected for entry in files.values()
        ):
            others = f" and {len(without) - 1:,} more" if len(without) > 1 else ""
            names = dict.fromkeys(name for file in without for name in files[file].columns)
            raise run.spec.source.missing_column_error(without[0] + others, column, names)


def _of_files(rows: pa.Table | pa.RecordBatch, files: Collection[str]) -> pa.Array:
    """Which rows come from these files."""
    return pc.is_in(rows["source_file"], _names(files))


def _names(files: Collection[str]) -> pa.Array:
    return pa.array(sorted(files), pa.string())


def _write_partition(
    run: Run,
    partition: str,
    spill: Spill,
    kept: _Kept,
    left_out: Collection[Place],
) -> bool:
    """Write one partition if it lost or gained rows; whether it did."""
    shards, configuration = run.folder.documents, source_configuration(run)
    is_current = shards.current(partition, "", configuration) is not None
    if is_current and not spill.has(partition) and kept.is_all():
        return False
    schema = stored_documents_schema(run.spec.source.metadata_types)

    rows = itertools.chain(kept.read(), spill.read(partition))
    written = (batch.filter(pc.invert(_at(batch, left_out))) for batch in rows)
    shards.write(partition, schema, written, "", configuration, statistics={})
    return True


def _doubles(run: Run, partition: str, spill: Spill, kept: _Kept) -> list[Double]:
    """The records of a partition that are left out, for another one with their id counts; equal ids
    are always in the same partition. Raises SourceError if the source may hold none.

    Which one counts is a matter of file and row alone, so that a run over what has changed and one
    over everything choose the same.
    """
    table = spill.places(partition)
    if table is None:
        return []
    before = kept.places()
    if before is not None:
        table = pa.concat_tables([before, table])
    counts = pc.value_counts(table["document_id"].combine_chunks())
    ids = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(ids):
        return []
    places: dict[str, list[Place]] = {}
    rows = table.filter(pc.is_in(table["document_id"], ids))
    for name, file, row in zip(*(rows[column].to_pylist() for column in PLACE), strict=True):
        places.setdefault(name, []).append((file, row))
    policy = run.spec.source.duplicates
    if policy == "error":
        raise _duplicates_error(places)
    doubles = []
    for name, ordered in ((name, sorted(stands)) for name, stands in places.items()):
        winner = ordered.pop(-1 if policy == "last" else 0)
        doubles += [(place, name, winner) for place in ordered]
    return doubles


def _duplicates_error(places: dict[str, list[Place]]) -> SourceError:
    name, ordered = next((name, sorted(stands)) for name, stands in places.items())
    (first, first_row), (second, second_row), *_ = ordered
    others = len(places) - 1
    more = f" {others} more ids of this partition stand twice." if others else ""
    return SourceError(
        f"{second}:{second_row}: document id {name!r} stands at {first}:{first_row} too.{more} Ids "
        "must be unique over all files: fix the source, set source.id to a column that is, or "
        "source.duplicates to reject, first or last."
    )


def _leave_out(
    run: Run,
    doubles: dict[str, list[Double]],
    spill: Spill,
    files: dict[str, FileStatistics],
    kept: Mapping[str, _Kept],
) -> None:
    """Count the doubles, and reject them if that is what the source says."""
    rejects = run.spec.source.duplicates == "reject"
    for partition, rows in doubles.items():
        for (file, _), _, (winner, _) in rows:
            entry = files[file]
            entry.rows -= 1
            entry.rejected += rejects
            entry.duplicates += not rejects
            if winner != file and winner not in entry.blocked_by:
                entry.blocked_by = sorted([*entry.blocked_by, winner])
        for rejection in (
            _rejections(run, partition, rows, spill, kept[partition]) if rejects and rows else ()
        ):
            spill.reject(rejection)
    spill.close()


def _rejections(
    run: Run, partition: str, doubles: list[Double], spill: Spill, kept: _Kept
) -> Iterator[Rejection]:
    """`raw` is the document, for its record is not at hand any more."""
    reasons = {
        place: f"document id {name!r} stands at {file}:{row} too, which counts (source.duplicates)"
        for place, name, (file, row) in doubles
    }
    schema = documents_schema(run.spec.source.metadata_types)
    for batch in itertools.chain(kept.read(), spill.read(partition)):
        for document in batch.filter(_at(batch, reasons)).select(schema.names).to_pylist():
            place = (document["source_file"], document["source_row"])
            raw = json.dumps(document, ensure_ascii=False, default=str).encode()
            yield Rejection(*place, reasons[place], raw)


def _at(rows: pa.RecordBatch, places: Collection[Place]) -> pa.Array:
    """Which rows stand at one of these places."""
    if not places:
        return pa.array(np.zeros(rows.num_rows, dtype=bool))
    near = pc.is_in(rows["source_row"], pa.array({row for _, row in places}, pa.int64()))
    pairs = zip(rows["source_file"].to_pylist(), rows["source_row"].to_pylist(), strict=True)
    if not pc.any(near).as_py():
        return near
    return pa.array([pair in places for pair in pairs])


def _check_rejections(run: Run, files: dict[str, FileStatistics], spill: Spill) -> None:
    """SourceError if more records were rejected than `source.max_rejected` allows."""
    source = run.spec.source
    rejected = sum(entry.rejected for entry in files.values())
    total = rejected + sum(entry.rows for entry in files.values())
    if source.allows(rejected, total):
        return
    path, place = run.folder.rejected_by_failure, ""
    if not run.warehouse.is_copy:  # a plan keeps nothing
        write_table(path, REJECTED, spill.rejections())
        place = f"Those of this run are in {path}. "
    rows = next(spill.rejections(), REJECTED.empty_table()).slice(0, SHOWN_REJECTIONS).to_pylist()
    lines = "".join(f"  {row['file']}:{row['row']}: {row['reason']}\n" for row in rows)
    limit = source.max_rejected
    shown = f"{limit:,}" if isinstance(limit, int) else f"{limit * 100:.4g}%"
    stays = "; the previous documents stay in force" if read_files(run) else ""
    raise SourceError(
        f"{rejected} of {total} records were rejected, more than source.max_rejected "
        f"({shown}) allows. The first:\n{lines}{place}Fix the source or raise "
        f"source.max_rejected{stays}."
    )
