"""documents: the changed files of the source become canonical rows in partitions, in one pass.

Which files changed is told by size and times (`SourceFile.stamp`). Each touched partition is then
written anew from what it held of the unchanged files and what the changed ones gave. Before the
first partition is written `files.json` forgets the changed files, and names them again after the
last: a run that dies in between is made up for by the next one, even if the files are then put back
as they were.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
from embedding_pipelines.storage.warehouse import parsed, write_table

SHOWN_REJECTIONS = 3


@dataclass
class FileStatistics:
    """What is remembered of one source file."""

    stamp: tuple[int, ...]
    size_bytes: int
    rows: int = 0
    rejected: int = 0
    encoding: str | None = None
    notes: list[str] = field(default_factory=list)


class Documents(Step):
    name = "documents"
    description = (
        "Canonical rows of the source in partitions. Unchanged files are skipped; bad records go to "
        "a table of their own, with file, row and reason."
    )
    sentence = "{documents} from {files}, {rejected:,} rejected"
    row_statistic = "documents"

    def kinds(self, spec: PipelineSpec) -> set[str]:
        return {spec.source.kind, "parquet"}

    def columns(self, spec: PipelineSpec) -> pa.Schema:
        return stored_documents_schema(spec.source.metadata_types)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        return _current(run, *_compared(run))

    def work(
        self, run: Run, partitions: Sequence[str], options: dict[str, Any] | None = None
    ) -> Iterator[StepReport]:
        yield write_documents(run)


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
    configuration = source_configuration(run)
    listing, known, unchanged = _compared(run)
    current = _current(run, listing, known, unchanged)
    if current is not None:
        return current

    changed = [file for file in listing if file.name not in unchanged]
    folder.documents.folder.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(prefix=".reading-", dir=folder.documents.folder) as drafts,
        Spill(Path(drafts)) as spill,
    ):
        files = {name: known[name] for name in unchanged}
        for number, file in enumerate(changed):
            run.progress.update("documents", number, len(changed), "files")
            files[file.name] = _read_file(run, file, spill)
        spill.close()
        _refuse_too_many_rejections(run, files, spill)
        for partition in spec.partition_names:
            _refuse_duplicates(run, partition, spill, unchanged)
        _remember(run, {name: known[name] for name in sorted(unchanged)}, whole=False)
        written = 0
        for partition in spec.partition_names:
            written += _write_partition(run, partition, spill, unchanged, configuration)
        _write_rejected(run, spill, unchanged)
    run.progress.update("documents", len(changed), len(changed), "files")
    ordered = {file.name: files[file.name] for file in listing}
    _remember(run, ordered, whole=True)
    return StepReport(
        "documents",
        True,
        _statistics(ordered, len(changed)) | {"written_partitions": written},
    )


def _compared(run: Run) -> tuple[list[SourceFile], dict[str, FileStatistics], set[str]]:
    """The files that are there, those that were read, and the names of those that are still the
    same."""
    listing = run.spec.source.files(run.warehouse.home)
    known = known_files(run) if _has_all_partitions(run, source_configuration(run)) else {}
    return listing, known, {file.name for file in listing if _same(file, known.get(file.name))}


def _current(
    run: Run,
    listing: list[SourceFile],
    known: dict[str, FileStatistics],
    unchanged: set[str],
) -> StepReport | None:
    if _is_whole(run) and len(unchanged) == len(listing) == len(known):
        return StepReport("documents", False, _statistics(known, changed_files=0))
    return None


def known_files(run: Run) -> dict[str, FileStatistics]:
    """The files as they were last read, by name; none if the source's options have changed
    since."""
    state = read_json(run.folder.files) or {}
    if state.get("configuration") != source_configuration(run):
        return {}
    files = {
        name: parsed(FileStatistics, statistics) for name, statistics in state["files"].items()
    }
    return {name: statistics for name, statistics in files.items() if statistics is not None}


def _has_all_partitions(run: Run, configuration: str) -> bool:
    made = [run.folder.documents.manifest(partition) for partition in run.spec.partition_names]
    return all(entry is not None and entry.configuration == configuration for entry in made)


def _is_whole(run: Run) -> bool:
    """Whether the last run wrote all partitions, so that they hold just the known files."""
    return bool((read_json(run.folder.files) or {}).get("whole"))


def _remember(run: Run, files: dict[str, FileStatistics], whole: bool) -> None:
    statistics = {name: vars(entry) for name, entry in files.items()}
    write_json(
        run.folder.files,
        {"configuration": source_configuration(run), "whole": whole, "files": statistics},
    )


def source_configuration(run: Run) -> str:
    return fingerprint(run.spec.source)


def _same(file: SourceFile, known: FileStatistics | None) -> bool:
    return known is not None and tuple(known.stamp) == file.stamp


def _statistics(files: dict[str, FileStatistics], changed_files: int) -> dict[str, Any]:
    statistics = list(files.values())
    others = sorted({entry.encoding for entry in statistics if entry.encoding} - {"utf-8"})
    return {
        "documents": sum(entry.rows for entry in statistics),
        "rejected": sum(entry.rejected for entry in statistics),
        "files": len(statistics),
        "changed_files": changed_files,
        "source_bytes": sum(entry.size_bytes for entry in statistics),
        **({"other_encodings": ", ".join(others)} if others else {}),
        **(
            {"notes": [note for entry in statistics for note in entry.notes]}
            if any(e.notes for e in statistics)
            else {}
        ),
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


def _write_partition(
    run: Run, partition: str, spill: Spill, unchanged: set[str], configuration: str
) -> bool:
    """Write one partition if it lost or gained rows; whether it did."""
    shards = run.folder.documents
    names = pa.array(sorted(unchanged), pa.string())
    before = shards.read_columns(partition, ["source_file"])
    made = shards.manifest(partition)
    if (
        before is not None
        and made is not None
        and made.configuration == configuration
        and not spill.has(partition)
    ):
        kept = pc.is_in(before["source_file"], value_set=names)
        if pc.all(kept, min_count=0).as_py():
            return False
    schema = stored_documents_schema(run.spec.source.metadata_types)

    def rows() -> Iterator[pa.RecordBatch]:
        if unchanged:
            for batch in shards.read(partition):
                yield batch.filter(pc.is_in(batch["source_file"], value_set=names))
        yield from spill.read(partition)

    shards.write(partition, schema, rows(), inputs="", configuration=configuration, statistics={})
    return True


def _refuse_duplicates(run: Run, partition: str, spill: Spill, unchanged: set[str]) -> None:
    """SourceError if an id stands in two places; equal ids are always in the same partition."""
    new = spill.places(partition)
    if new is None:
        return
    tables = [new]
    before = run.folder.documents.read_columns(partition, new.column_names) if unchanged else None
    if before is not None:
        names = pa.array(sorted(unchanged), pa.string())
        tables.insert(0, before.filter(pc.is_in(before["source_file"], value_set=names)))
    table = pa.concat_tables(tables)
    counts = pc.value_counts(table["document_id"].combine_chunks())
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if not len(twice):
        return
    name = twice[0]["values"].as_py()
    places = table.filter(pc.equal(table["document_id"], name)).to_pylist()[:2]
    first, second = (f"{place['source_file']}:{place['source_row']}" for place in places)
    more = f" {len(twice) - 1} more ids of this partition stand twice." if len(twice) > 1 else ""
    raise SourceError(
        f"{second}: document id {name!r} stands at {first} too.{more} Ids must be unique over all files: "
        "mend the source, or set source.id to a column that is."
    )


def _write_rejected(run: Run, spill: Spill, unchanged: set[str]) -> None:
    """The rejected table: what is known of unchanged files, and what reading the others refused."""
    path = run.folder.rejected
    known = pq.read_table(path) if path.exists() else REJECTED.empty_table()
    kept = known.filter(pc.is_in(known["file"], value_set=pa.array(sorted(unchanged), pa.string())))
    write_table(path, REJECTED, _chained(kept.to_batches(), spill.rejections()))


def _chained(*parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        yield from part


def _refuse_too_many_rejections(run: Run, files: dict[str, FileStatistics], spill: Spill) -> None:
    rejected = sum(statistics.rejected for statistics in files.values())
    total = rejected + sum(statistics.rows for statistics in files.values())
    if run.spec.source.allows(rejected, total):
        return
    path = run.folder.rejected_by_failure
    write_table(path, REJECTED, spill.rejections())
    first = next(spill.rejections(), REJECTED.empty_table())
    shown = [
        f"  {row['file']}:{row['row']}: {row['reason']}"
        for row in first.slice(0, SHOWN_REJECTIONS).to_pylist()
    ]
    raise SourceError(
        f"{rejected} of {total} records were rejected, more than source.max_rejected "
        f"({run.spec.source.max_rejected}) allows. The first:\n"
        + "\n".join(shown)
        + f"\nThose of this run are in {path}. "
        "Mend the source or raise source.max_rejected; the previous documents stay in force."
    )
