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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.engines.base import Advance, Shared, Worker
from embedding_pipelines.engines.inline import Inline
from embedding_pipelines.errors import EngineError, SourceError, SourceGoneError
from embedding_pipelines.files import delete, read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.quality.queries import read_pairs, read_qrels
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import REJECTED, documents_schema, stored_documents_schema
from embedding_pipelines.sources.base import Input, Rejection, SourceFile, Stamp
from embedding_pipelines.sources.push import Push
from embedding_pipelines.spec.fit import require_fit
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.base import Options, Reports, Step
from embedding_pipelines.steps.duplicates import OF_PIXELS, Groups, write_duplicates
from embedding_pipelines.steps.elsewhere import RunWork, engine_of, map_shards
from embedding_pipelines.steps.reading import (
    PART_BYTES,
    DocumentsKit,
    FileStatistics,
    Pushed,
    Reading,
    forgotten_by,
    is_pushed,
    names_array,
    of_files,
    pushed_name,
    reading_configuration,
    source_configuration,
)
from embedding_pipelines.steps.repair import repair
from embedding_pipelines.steps.spill import PLACE, Spill
from embedding_pipelines.storage.pushed import PushedLog, in_force, pushed_log
from embedding_pipelines.storage.warehouse import Shards, parse_state, replace_rows, write_table

LISTINGS = 3  # of a source of which something is gone when it is read
SHOWN_REJECTIONS = 3
SHOWN_WORDS = 5  # of those that are no value
READING = ".reading-"  # begins the name of a folder of a pass over the source

Place = tuple[str, int]  # file and row
Double = tuple[Place, str, Place]  # a record that is left out, its id, the record that counts


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
        return pc.and_(of_files(rows, self._unchanged), self._pushed.keeps(rows))

    def count_overruled(self, files: dict[str, FileStatistics]) -> None:
        """Put on record which rows of unchanged files go, since something newer was pushed."""
        rows = self._shards.read_columns(self._partition, PLACE) if self.has_rows else None
        if rows is None or not self._pushed:
            return
        rows = rows.filter(of_files(rows, self._unchanged))
        rows = rows.filter(pc.invert(self._pushed.keeps(rows)))
        for name, file in zip(*(rows[column].to_pylist() for column in PLACE[:2]), strict=True):
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
        return reading_configuration(spec)

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


def write_documents(run: Run, part_bytes: int | None = None) -> StepReport:
    """Bring all partitions of documents up to date with the source, which is listed again if an
    input is gone by the time that it is read. `part_bytes`: about how much a job reads, by default
    PART_BYTES where there are workers for it, else all.

    Raises SourceError for files that cannot be read as the pipeline says, and for more
    rejected records than `source.max_rejected` allows; the previous documents stay in force. Raises
    ConfigError for files of `evaluation:` that cannot be read, and for sections of the pipeline file
    that do not fit one another, before any work is done.
    """
    if part_bytes is None and not isinstance(engine_of(run), Inline):
        part_bytes = PART_BYTES
    for _ in range(LISTINGS - 1):
        with contextlib.suppress(SourceGoneError):
            return _write_listed(run, part_bytes)
    return _write_listed(run, part_bytes, divides=False)  # one of them is always written to


def _write_listed(run: Run, part_bytes: int | None, divides: bool = True) -> StepReport:
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
    require_fit(run.spec, run.warehouse.home)
    source_files, unchanged = comparison.files, comparison.unchanged
    for note in run.spec.source.omissions(run.warehouse.home):
        run.progress.note(note)
    pushed = Pushed(run, _last_pushed(run, [file.name for file in source_files]))
    unchanged = {name: entry for name, entry in unchanged.items() if pushed.overrules_all(entry)}
    changed = [file for file in source_files if file.name not in unchanged]
    files, forgotten = dict(unchanged), forgotten_by(run)
    folder.documents.folder.mkdir(parents=True, exist_ok=True)
    # Of files that a process elsewhere still has open a network's file system keeps the names.
    drafts = TemporaryDirectory(
        prefix=READING, dir=folder.documents.folder, ignore_cleanup_errors=True
    )
    with drafts, Spill(Path(drafts.name)) as spill:
        for file in changed:
            if forgotten.has("file", file.name):
                files[file.name] = FileStatistics(file.stamp, file.size_bytes, is_forgotten=True)
        needed = [file for file in changed if file.name not in files]
        own = [file for file in needed if not is_pushed(run, file.name)]
        segments = [file for file in needed if is_pushed(run, file.name)]
        reading = Reading(run, spill, pushed, forgotten, len(needed), part_bytes)
        reading.read(run.spec.source, own, divides)
        if segments:
            reading.read(Push.of(run.spec.source), segments, divides)
        files |= reading.files
        _check_columns(run, files)
        kept = {name: _Kept(run, name, unchanged, pushed) for name in names}
        for rows in kept.values():
            rows.count_overruled(files)
        doubles = _doubles(run, spill, kept, sum(entry.rows for entry in reading.files.values()))
        _leave_out(run, doubles, spill, files, kept)
        _check_rejections(run, files, spill)
        _write_record(run, unchanged, whole=False)
        left_out = {name: {place for place, *_ in rows} for name, rows in doubles.items()}
        work = _Writing(run, spill, frozenset(unchanged), pushed, left_out)
        count = sum(map_shards(run, work, names) if reading.has_workers else work.by_itself(names))
        others = pc.field("file").isin(names_array(unchanged))
        replace_rows(folder.rejected, REJECTED, others, spill.rejections())
    delete(folder.rejected_by_failure)  # of runs before this one
    for note in _shared_notes([files[file.name] for file in changed]):
        run.progress.note(note)
    ordered = {file.name: files[file.name] for file in source_files}
    duplicates = write_duplicates(run) if run.spec.source.has_images else None
    if duplicates and duplicates.sentence:
        run.progress.note(f"{duplicates.sentence}; all are kept, and listed in {folder.duplicates}")
    folder.sync()  # the record says that these files need not be read again
    _write_record(run, ordered, True, duplicates, comparison.joined)
    statistics = _statistics(run, ordered, len(changed)) | {"written_partitions": count}
    return StepReport(DocumentsStep.name, True, statistics)


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
        record["duplicates"] = {f"{kind}_images": duplicates.images(kind) for kind in OF_PIXELS}
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
        yield SourceFile(pushed_name(run, segment.name), size, (size,), log.path(segment))


def count_waiting(run: Run, after: int) -> int:
    """How many documents were put, deleted or withdrawn behind a number. Raises StoreError if the
    log is damaged."""
    log = PushedLog(run.warehouse.pushed / run.spec.name)
    return len({change.id for _, change in log.changes(after)}) if log.last() > after else 0


def _settled(run: Run) -> int:
    """The number up to which every release holds what was pushed."""
    return min((entry.pushed for entry in read_releases(run.folder).releases), default=0)


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


class _Writing(RunWork):
    """Writing partitions, as an engine is given it. Workers do it where they have read."""

    def __init__(
        self,
        run: Run,
        spill: Spill,
        unchanged: frozenset[str],
        pushed: Pushed,
        left_out: Mapping[str, Collection[Place]],
    ) -> None:
        super().__init__(run, lambda _: None)
        self._arguments = spill, unchanged, left_out
        self._pushed = pushed

    def here(self) -> "_Writer":
        return _Writer(self._run, *self._arguments, self._pushed)

    def by_itself(self, partitions: Sequence[str]) -> Iterator[bool]:
        return self.here().work(partitions, self.advance)

    def kit(self) -> "_Kit":
        configuration = source_configuration(self._run)
        return _Kit(*self.identity(), configuration, self._pushed.last, *self._arguments)


@dataclass(frozen=True)
class _Kit(DocumentsKit):
    """With what has been read, and what of it stays."""

    spill: Spill
    unchanged: frozenset[str]
    left_out: Mapping[str, Collection[Place]]

    def open(self, shared: Shared, cores: int | None) -> "_Writer":
        run, pushed = self.open_alike()
        return _Writer(run, self.spill, self.unchanged, self.left_out, pushed)


class _Writer(Worker):
    """Writes partitions, one after the other; whether each had to be."""

    def __init__(
        self,
        run: Run,
        spill: Spill,
        unchanged: frozenset[str],
        left_out: Mapping[str, Collection[Place]],
        pushed: Pushed,
    ) -> None:
        self._run, self._spill, self._unchanged = run, spill, unchanged
        self._left_out, self._pushed = left_out, pushed

    def work(self, partitions: Sequence[str], advance: Advance) -> Iterator[bool]:
        for name in partitions:
            kept = _Kept(self._run, name, self._unchanged, self._pushed)
            yield _write_partition(self._run, name, self._spill, kept, self._left_out[name])


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
    batches = (batch.filter(pc.invert(_at(batch, left_out))) for batch in rows)
    shards.write(partition, schema, batches, "", configuration, statistics={})
    return True


def _doubles(
    run: Run, spill: Spill, kept: Mapping[str, _Kept], expected: int
) -> dict[str, list[Double]]:
    """The records that are left out, by partition, for another one with their id counts; equal ids
    are always in the same partition. Raises SourceError if the source may hold none, EngineError if
    the spill has not as many rows as `expected`: on a disk that machines share some may be lost."""
    doubles, rows = dict[str, list[Double]](), 0
    for name in kept:
        table = spill.places(name)
        rows += 0 if table is None else table.num_rows
        doubles[name] = [] if table is None else _doubles_in(run, table, kept[name])
    if rows != expected:
        raise EngineError(
            f"Of {expected:,} rows that were read {rows:,} are in {spill.folder}, where workers put "
            "them. See that all machines have the same folder there, then run again."
        )
    return doubles


def _doubles_in(run: Run, table: pa.Table, kept: _Kept) -> list[Double]:
    """Which one counts is a matter of file and row alone, so that a run over what has changed and
    one over everything choose the same."""
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
    batches = (batch.slice(0, SHOWN_REJECTIONS).to_pylist() for batch in spill.rejections())
    rows = itertools.islice(itertools.chain.from_iterable(batches), SHOWN_REJECTIONS)
    lines = "".join(f"  {row['file']}:{row['row']}: {row['reason']}\n" for row in rows)
    limit = source.max_rejected
    shown = f"{limit:,}" if isinstance(limit, int) else f"{limit * 100:.4g}%"
    stays = "; the previous documents stay in force" if read_files(run) else ""
    raise SourceError(
        f"{rejected} of {total} records were rejected, more than source.max_rejected "
        f"({shown}) allows. The first:\n{lines}{place}Fix the source or raise "
        f"source.max_rejected{stays}."
    )
