"""documents: the changed files of the source become canonical rows in buckets, in one pass.

Which files changed is told by size and times (`SourceFile.stamp`). Each touched bucket is then written anew
from what it held of the unchanged files and what the changed ones gave. Before the first bucket is
written `files.json` forgets the changed files, and names them again after the last: a run that dies
in between is made up for by the next one, even if the files are then put back as they were.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_pipelines.errors import SourceError
from embedding_pipelines.progress import StepReport
from embedding_pipelines.quality.queries import judged_queries, scored_pairs
from embedding_pipelines.schemas import REJECTED, stored_documents_schema
from embedding_pipelines.sources.base import ReadLog, Rejection, SourceFile
from embedding_pipelines.spec.pipeline import fingerprint
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.steps.spill import Spill
from embedding_pipelines.storage.warehouse import parsed, read_json, write_json, write_table

SHOWN_REJECTIONS = 3


@dataclass
class FileFacts:
    """What is remembered of one source file."""

    stamp: tuple[int, ...]
    size_bytes: int
    rows: int = 0
    rejected: int = 0
    encoding: str | None = None
    notes: list[str] = field(default_factory=list)


def write_documents(context: StepContext) -> StepReport:
    """Bring all buckets of documents up to date with the source.

    Raises SourceError for files that cannot be read as the pipeline says, duplicate ids, and more
    rejected records than `source.max_rejected` allows; the previous documents stay in force. Raises ConfigError for
    files of `evaluation:` that cannot be read, before anything is paid for.
    """
    judged_queries(context)
    scored_pairs(context)
    spec, folder = context.spec, context.folder
    folder.fix_buckets(spec.buckets)
    settings = source_settings(context)
    listing, known, unchanged = _compared(context)
    current = _current(context, listing, known, unchanged)
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
            context.progress.update("documents", number, len(changed), "files")
            files[file.name] = _read_file(context, file, spill)
        spill.close()
        _refuse_too_many_rejections(context, files, spill)
        for bucket in spec.bucket_names:
            _refuse_duplicates(context, bucket, spill, unchanged)
        _remember(context, {name: known[name] for name in sorted(unchanged)}, whole=False)
        written = 0
        for bucket in spec.bucket_names:
            written += _write_bucket(context, bucket, spill, unchanged, settings)
        _write_rejected(context, spill, unchanged)
    context.progress.update("documents", len(changed), len(changed), "files")
    ordered = {file.name: files[file.name] for file in listing}
    _remember(context, ordered, whole=True)
    return StepReport(
        "documents",
        True,
        _facts(ordered, len(changed)) | {"written_buckets": written},
    )


def current_documents(context: StepContext) -> StepReport | None:
    """The report of documents that are up to date with the source, None if there is something to do."""
    return _current(context, *_compared(context))


def _compared(context: StepContext) -> tuple[list[SourceFile], dict[str, FileFacts], set[str]]:
    """The files that are there, those that were read, and the names of those that are still the same."""
    listing = context.spec.source.files(context.warehouse.home)
    known = known_files(context) if _has_all_buckets(context, source_settings(context)) else {}
    return listing, known, {file.name for file in listing if _same(file, known.get(file.name))}


def _current(
    context: StepContext,
    listing: list[SourceFile],
    known: dict[str, FileFacts],
    unchanged: set[str],
) -> StepReport | None:
    if _is_whole(context) and len(unchanged) == len(listing) == len(known):
        return StepReport("documents", False, _facts(known, changed_files=0))
    return None


def known_files(context: StepContext) -> dict[str, FileFacts]:
    """The files as they were last read, by name; none if the source's options have changed since."""
    state = read_json(context.folder.files) or {}
    if state.get("settings") != source_settings(context):
        return {}
    files = {name: parsed(FileFacts, facts) for name, facts in state["files"].items()}
    return {name: facts for name, facts in files.items() if facts is not None}


def _has_all_buckets(context: StepContext, settings: str) -> bool:
    made = [context.folder.documents.manifest(bucket) for bucket in context.spec.bucket_names]
    return all(entry is not None and entry.settings == settings for entry in made)


def _is_whole(context: StepContext) -> bool:
    """Whether the last run wrote all buckets, so that they hold just the known files."""
    return bool((read_json(context.folder.files) or {}).get("whole"))


def _remember(context: StepContext, files: dict[str, FileFacts], whole: bool) -> None:
    facts = {name: vars(entry) for name, entry in files.items()}
    write_json(
        context.folder.files, {"settings": source_settings(context), "whole": whole, "files": facts}
    )


def source_settings(context: StepContext) -> str:
    return fingerprint(context.spec.source)


def _same(file: SourceFile, known: FileFacts | None) -> bool:
    return known is not None and tuple(known.stamp) == file.stamp


def _facts(files: dict[str, FileFacts], changed_files: int) -> dict[str, Any]:
    facts = list(files.values())
    others = sorted({entry.encoding for entry in facts if entry.encoding} - {"utf-8"})
    return {
        "documents": sum(entry.rows for entry in facts),
        "rejected": sum(entry.rejected for entry in facts),
        "files": len(facts),
        "changed_files": changed_files,
        "source_bytes": sum(entry.size_bytes for entry in facts),
        **({"other_encodings": ", ".join(others)} if others else {}),
        **(
            {"notes": [note for entry in facts for note in entry.notes]}
            if any(e.notes for e in facts)
            else {}
        ),
    }


def _read_file(context: StepContext, file: SourceFile, spill: Spill) -> FileFacts:
    facts = FileFacts(file.stamp, file.size_bytes)

    def reject(rejection: Rejection) -> None:
        facts.rejected += 1
        spill.reject(rejection)

    log = ReadLog(reject=reject)
    for batch in context.spec.source.read(file, log):
        facts.rows += batch.num_rows
        spill.add(batch, context.spec.buckets, context.spec.bucket_names)
    facts.encoding, facts.notes = log.encoding, log.notes
    for note in log.notes:
        context.progress.note(note)
    return facts


def _write_bucket(
    context: StepContext, bucket: str, spill: Spill, unchanged: set[str], settings: str
) -> bool:
    """Write one bucket if it lost or gained rows; whether it did."""
    shards = context.folder.documents
    names = pa.array(sorted(unchanged), pa.string())
    before = shards.read_columns(bucket, ["source_file"])
    made = shards.manifest(bucket)
    if (
        before is not None
        and made is not None
        and made.settings == settings
        and not spill.has(bucket)
    ):
        kept = pc.is_in(before["source_file"], value_set=names)
        if pc.all(kept, min_count=0).as_py():
            return False
    schema = stored_documents_schema(context.spec.source.metadata_types)

    def rows() -> Iterator[pa.RecordBatch]:
        if unchanged:
            for batch in shards.read(bucket):
                yield batch.filter(pc.is_in(batch["source_file"], value_set=names))
        yield from spill.read(bucket)

    shards.write(bucket, schema, rows(), inputs="", settings=settings, facts={})
    return True


def _refuse_duplicates(
    context: StepContext, bucket: str, spill: Spill, unchanged: set[str]
) -> None:
    """SourceError if an id stands in two places; equal ids are always in the same bucket."""
    new = spill.places(bucket)
    if new is None:
        return
    tables = [new]
    before = context.folder.documents.read_columns(bucket, new.column_names) if unchanged else None
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
    more = f" {len(twice) - 1} more ids of this bucket stand twice." if len(twice) > 1 else ""
    raise SourceError(
        f"{second}: document id {name!r} stands at {first} too.{more} Ids must be unique over all files: "
        "mend the source, or set source.id to a column that is."
    )


def _write_rejected(context: StepContext, spill: Spill, unchanged: set[str]) -> None:
    """The rejected table: what is known of unchanged files, and what reading the others refused."""
    path = context.folder.rejected
    known = pq.read_table(path) if path.exists() else REJECTED.empty_table()
    kept = known.filter(pc.is_in(known["file"], value_set=pa.array(sorted(unchanged), pa.string())))
    write_table(path, REJECTED, _chained(kept.to_batches(), spill.rejections()))


def _chained(*parts: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        yield from part


def _refuse_too_many_rejections(
    context: StepContext, files: dict[str, FileFacts], spill: Spill
) -> None:
    rejected = sum(facts.rejected for facts in files.values())
    total = rejected + sum(facts.rows for facts in files.values())
    if context.spec.source.allows(rejected, total):
        return
    path = context.folder.rejected_by_failure
    write_table(path, REJECTED, spill.rejections())
    first = next(spill.rejections(), REJECTED.empty_table())
    shown = [
        f"  {row['file']}:{row['row']}: {row['reason']}"
        for row in first.slice(0, SHOWN_REJECTIONS).to_pylist()
    ]
    raise SourceError(
        f"{rejected} of {total} records were rejected, more than source.max_rejected "
        f"({context.spec.source.max_rejected}) allows. The first:\n"
        + "\n".join(shown)
        + f"\nThose of this run are in {path}. "
        "Mend the source or raise source.max_rejected; the previous documents stay in force."
    )
