"""documents: the changed files of the source become canonical rows in partitions, in one pass.

A file has changed if its size or times have (`SourceFile.stamp`). Each partition concerned is then
rewritten from its rows of unchanged files and the rows of the changed ones. Before the first
partition is written, `files.json` forgets the changed files, and names them again after the last: a
run that dies in between is made up for by the next one, even if the files are then put back as they
were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_pipelines.errors import SourceError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.quality.queries import read_pairs, read_qrels
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import REJECTED, stored_documents_schema
from embedding_pipelines.sources.base import ReadLog, Rejection, SourceFile
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Step
from embedding_pipelines.steps.spill import Spill
from embedding_pipelines.storage.warehouse import parse_state, write_table

SHOWN_REJECTIONS = 3


@dataclass
class FileStatistics:
    """What is on record of one source file."""

    stamp: tuple[int, ...]
    size_bytes: int
    rows: int = 0
    rejected: int = 0
    encoding: str | None = None
    notes: list[str] = field(default_factory=list)


class Documents(Step):
    name = "documents"
    description = (
        "Canonical rows of the source in partitions. Unchanged files are skipped; bad records go "
        "to a table of their own, with file, row and reason."
    )
    sentence = "{documents} from {files}, {rejected:,} rejected"
    row_statistic = "documents"

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.source)

    def kinds(self, spec: PipelineSpec) -> set[str]:
        return {spec.source.kind, "parquet"}

    def columns(self, spec: PipelineSpec) -> pa.Schema:
        return stored_documents_schema(spec.source.metadata_types)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        return _Listing.of(run).report()

    def work(
        self, run: Run, partitions: Sequence[str], options: dict[str, Any] | None = None
    ) -> Iterator[StepReport]:
        yield write_documents(run)


@dataclass(frozen=True)
class _Listing:
    """The files of the source now, beside those that the documents were made from."""

    files: list[SourceFile]
    record: dict[str, FileStatistics]
    unchanged: set[str]  # names
    is_whole: bool  # the last run wrote all partitions

    @classmethod
    def of(cls, run: Run) -> "_Listing":
        files, shards = run.spec.source.files(run.warehouse.home), run.folder.documents
        configuration = source_configuration(run)
        manifests = [shards.manifest(partition) for partition in run.spec.partition_names]
        usable = all(entry and entry.configuration == configuration for entry in manifests)
        record = read_files(run) if usable else {}
        unchanged = {
            file.name
            for file in files
            if file.name in record and tuple(record[file.name].stamp) == file.stamp
        }
        is_whole = bool((read_json(run.folder.files) or {}).get("whole"))
        return cls(files, record, unchanged, is_whole)

    def report(self) -> StepReport | None:
        """What the step reports if the documents are up to date with the files, else None."""
        if self.is_whole and len(self.unchanged) == len(self.files) == len(self.record):
            return StepReport(Documents.name, False, _statistics(self.record, changed_files=0))
        return None


def write_documents(run: Run) -> StepReport:
    """Bring all partitions of documents up to date with the source.

    Raises SourceError for files that cannot be read as the pipeline says, duplicate ids, and more
    rejected records than `source.max_rejected` allows; the previous documents stay in force. Raises
    ConfigError for files of `evaluation:` that cannot be read, before anything is paid for.
    """
    read_qrels(run)
    read_pairs(run)
    spec, folder = run.spec, run.folder
    folder.fix_partitions(spec.partitions)
    listing = _Listing.of(run)
    report = listing.report()
    if report is not None:
        return report
    changed = [file for file in listing.files if file.name not in listing.unchanged]
    files = {name: listing.record[name] for name in sorted(listing.unchanged)}
    folder.documents.folder.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=".reading-", dir=folder.documents.folder) as drafts,
        Spill(Path(drafts)) as spill,
    ):
        unchanged = dict(files)
        for number, file in enumerate(changed):
            run.progress.update("documents", number, len(changed), "files")
            files[file.name] = _read_file(run, file, spill)
        spill.close()
        _check_rejections(run, files, spill)
        for partition in spec.partition_names:
            _check_duplicates(run, partition, spill, listing.unchanged)
        _write_record(run, unchanged, whole=False)
        written = sum(
            _write_partition(run, partition, spill, listing.unchanged)
            for partition in spec.partition_names
        )
        _write_rejected(run, spill, listing.unchanged)
    run.progress.update("documents", len(changed), len(changed), "files")
    ordered = {file.name: files[file.name] for file in listing.files}
    _write_record(run, ordered, whole=True)
    statistics = _statistics(ordered, len(changed)) | {"written_partitions": written}
    return StepReport(Documents.name, True, statistics)


def read_files(run: Run) -> dict[str, FileStatistics]:
    """The source files as they were last read, by name; none if the source's options have changed
    since."""
    record = read_json(run.folder.files) or {}
    if record.get("configuration") != source_configuration(run):
        return {}
    files = {name: parse_state(FileStatistics, entry) for name, entry in record["files"].items()}
    return {name: entry for name, entry in files.items() if entry is not None}


def _write_record(run: Run, files: dict[str, FileStatistics], whole: bool) -> None:
    entries = {name: vars(entry) for name, entry in files.items()}
    configuration = source_configuration(run)
    record = {"configuration": configuration, "whole": whole, "files": entries}
    write_json(run.folder.files, record)


def source_configuration(run: Run) -> str:
    return fingerprint(run.spec.source)


def _statistics(files: dict[str, FileStatistics], changed_files: int) -> dict[str, Any]:
    entries = list(files.values())
    encodings = sorted({entry.encoding for entry in entries if entry.encoding} - {"utf-8"})
    notes = [note for entry in entries for note in entry.notes]
    return {
        "documents": sum(entry.rows for entry in entries),
        "rejected": sum(entry.rejected for entry in entries),
        "files": len(entries),
        "changed_files": changed_files,
        "source_bytes": sum(entry.size_bytes for entry in entries),
        **({"other_encodings": ", ".join(encodings)} if encodings else {}),
        **({"notes": notes} if notes else {}),
    }


def _read_file(run: Run, file: SourceFile, spill: Spill) -> FileStatistics:
    statistics = FileStatistics(file.stamp, file.size_bytes)

    def reject(rejection: Rejection) -> None:
        statistics.rejected += 1
        spill.reject(rejection)

    log = ReadLog(reject=reject)
    for batch in run.spec.source.read(file, log):
        statistics.rows += batch.num_rows
        spill.add(batch, run.spec.partitions, run.spec.partition_names)
    statistics.encoding, statistics.notes = log.encoding, log.notes
    for note in log.notes:
        run.progress.note(note)
    return statistics


def _of_files(rows: pa.Table | pa.RecordBatch, column: str, files: set[str]) -> pa.Array:
    """Which rows come from these files."""
    return pc.is_in(rows[column], value_set=pa.array(sorted(files), pa.string()))


def _write_partition(run: Run, partition: str, spill: Spill, unchanged: set[str]) -> bool:
    """Write one partition if it lost or gained rows; whether it did."""
    shards, configuration = run.folder.documents, source_configuration(run)
    before, manifest = shards.read_columns(partition, ["source_file"]), shards.manifest(partition)
    if (
        before is not None
        and manifest is not None
        and manifest.configuration == configuration
        and not spill.has(partition)
        and pc.all(_of_files(before, "source_file", unchanged), min_count=0).as_py()
    ):
        return False
    schema = stored_documents_schema(run.spec.source.metadata_types)

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in shards.read(partition) if unchanged else ():
            yield batch.filter(_of_files(batch, "source_file", unchanged))
        yield from spill.read(partition)

    shards.write(partition, schema, rows(), inputs="", configuration=configuration, statistics={})
    return True


def _check_duplicates(run: Run, partition: str, spill: Spill, unchanged: set[str]) -> None:
    """SourceError if an id stands in two places; equal ids are always in the same partition."""
    new = spill.places(partition)
    if new is None:
        return
    before = run.folder.documents.read_columns(partition, new.column_names) if unchanged else None
    tables = [new]
    if before is not None:
        tables.insert(0, before.filter(_of_files(before, "source_file", unchanged)))
    table = pa.concat_tables(tables)
    counts = pc.value_counts(table["document_id"].combine_chunks())
    doubles = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(doubles):
        return
    name = doubles[0]["values"].as_py()
    places = table.filter(pc.equal(table["document_id"], name)).to_pylist()[:2]
    first, second = (f"{place['source_file']}:{place['source_row']}" for place in places)
    others = len(doubles) - 1
    more = f" {others} more ids of this partition stand twice." if others else ""
    raise SourceError(
        f"{second}: document id {name!r} stands at {first} too.{more} Ids must be unique over all "
        "files: fix the source, or set source.id to a column that is."
    )


def _write_rejected(run: Run, spill: Spill, unchanged: set[str]) -> None:
    """Replace the rows of changed files in the table of rejected records."""
    path = run.folder.rejected
    table = pq.read_table(path) if path.exists() else REJECTED.empty_table()
    others = table.filter(_of_files(table, "file", unchanged))
    write_table(path, REJECTED, chain(others.to_batches(), spill.rejections()))


def _check_rejections(run: Run, files: dict[str, FileStatistics], spill: Spill) -> None:
    """SourceError if more records were rejected than `source.max_rejected` allows."""
    source = run.spec.source
    rejected = sum(entry.rejected for entry in files.values())
    total = rejected + sum(entry.rows for entry in files.values())
    if source.allows(rejected, total):
        return
    path = run.folder.rejected_by_failure
    write_table(path, REJECTED, spill.rejections())
    rows = next(spill.rejections(), REJECTED.empty_table()).slice(0, SHOWN_REJECTIONS).to_pylist()
    lines = [f"  {row['file']}:{row['row']}: {row['reason']}" for row in rows]
    raise SourceError(
        "\n".join(
            [
                f"{rejected} of {total} records were rejected, more than source.max_rejected "
                f"({source.max_rejected}) allows. The first:",
                *lines,
                f"Those of this run are in {path}. Fix the source or raise source.max_rejected; "
                "the previous documents stay in force.",
            ]
        )
    )
