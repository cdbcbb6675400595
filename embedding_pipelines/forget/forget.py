"""Erases documents for good: rows, old releases, vectors, and whatever else holds their texts.

The order makes a kill harmless. First a tombstone: no run brings them back, not even one that comes
before the end, nor one of another machine that shares the warehouse. Then what is filed by its text
(cache, batch jobs, history), while the texts can still be read. Then the table: a new one is built
beside the old one from the rows that stay, and becomes live in one rename. Then what the old one
was made of. The same command goes on from wherever it was killed, for each part is done anew.
"""

import contextlib
import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.deployments import read_deployments
from embedding_pipelines.embedding.batch_jobs import forget_keys
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import delete, list_files, read_json, write_json
from embedding_pipelines.forget.proof import look_for
from embedding_pipelines.forget.traces import (
    Traces,
    all_lines,
    cache_keys,
    partitions,
    rows_of,
    tables_of,
    trace,
)
from embedding_pipelines.ranking import nearest
from embedding_pipelines.releases import (
    Release,
    Releases,
    append_history,
    is_readable,
    newest_number,
    read_releases,
    write_releases,
)
from embedding_pipelines.remote import writing
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import REJECTED, REJECTED_TEXTS, VECTOR
from embedding_pipelines.sources.base import Source
from embedding_pipelines.sources.fields import lookup
from embedding_pipelines.sources.json_records import parse
from embedding_pipelines.steps.documents import READING, forget_files, read_files
from embedding_pipelines.steps.duplicates import write_duplicates, write_near
from embedding_pipelines.steps.garbage import CANDIDATES
from embedding_pipelines.steps.output import forget_rows
from embedding_pipelines.steps.reading import FileStatistics, forgotten_by, is_pushed
from embedding_pipelines.steps.vector_store import TableState, layout, unused_table
from embedding_pipelines.storage.forgotten import Kind, write_forgotten
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.quotes import Needles, json_texts
from embedding_pipelines.storage.receipts import Receipts as SearchReceipts
from embedding_pipelines.storage.receipts import forget_quotes
from embedding_pipelines.storage.warehouse import (
    DAMAGED,
    PipelineFolder,
    Shards,
    read_table,
    write_table,
)

Holds = Callable[[str], bool]  # whether a text of an event quotes what is forgotten
Place = tuple[str, int]  # of a rejected record: its file and row
DOUBLE = '{"document_id": '  # begins a rejected record that is a whole document
NEAREST = 10  # rows that each search looks at
FIGURES = "*-*-*.*"  # of releases and their tables, in the folder of quality


@dataclass
class Receipt:
    """What was erased and what was looked at afterwards; no text, no id. `left` names files of the
    pipeline that hold a text still, relative to the warehouse: with any of them it has failed."""

    pipeline: str
    at: str  # ISO 8601, UTC
    documents: int = 0  # that the command names, or that stand in the files it names
    hashes: list[str] = field(default_factory=list)  # of their ids, as in the list of forgotten
    release: int | None = None  # that is live now
    removed_releases: list[int] = field(default_factory=list)
    erased: dict[str, int] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    path: str = ""  # of this receipt


def why_equal(source: Source) -> str:
    """Why documents go that nobody has named."""
    if source.has_images:
        return "all images of the same pixels go"
    return "without source.id all documents of equal content go"


def source_name(run: Run, given: str) -> str:
    """A source file as documents name it: relative to the home folder, or absolute outside; another
    part of a source by its own name."""
    home = run.warehouse.home
    if given in read_files(run):
        return given
    place = os.path.expanduser(given)  # which keeps an unknown ~user
    path = Path(os.path.abspath(place))
    if not path.exists():
        path = Path(os.path.abspath(home / place))
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix()


def find(run: Run, ids: Collection[str], files: Collection[str]) -> Traces:
    """What there is to forget. Raises ConfigError for what nobody has ever heard of."""
    run = all_lines(run)[0]
    forgotten, read = forgotten_by(run), read_files(run)
    name, releases = run.spec.name, read_releases(run.folder)
    live = releases.get(releases.live)
    if live is not None and not is_readable(run.folder, live):
        raise StoreError(
            f"{name}: release {live.number} is damaged. Run `embedding-pipelines run {name}`, which "
            "makes it anew, then forget."
        )
    if run.spec.migration is None and run.folder.new_line.exists():
        rest = "finish" if run.folder.cutover.exists() else "abort"
        raise ConfigError(
            f"{name}: a migration has left {run.folder.new_line}, where texts are too. Say "
            f"`embedding-pipelines migrate {name} {rest}` first, then forget."
        )
    for each in (*ids, *files):
        if each != each.encode("utf-8", "replace").decode():
            raise ConfigError(f"{name}: {each!r} is not UTF-8, and so is no id and no source file.")
    for file in files:
        if is_pushed(run, file):
            raise ConfigError(
                f"{name}: {file!r} is a part of the log of what was pushed. Name documents by --id."
            )
    traces = trace(run, ids, files)
    for file in files:
        if file not in read and file not in traces.files and not forgotten.has("file", file):
            raise ConfigError(
                f"{name}: no document on record is of {file!r}. Name a file as `source.path` has it, "
                "from the home folder or from here."
            )
    if files and (strangers := _of_unknown_files(run)):
        raise ConfigError(
            f"{name}: the live release holds {strangers:,} documents that the documents on record "
            f"lack, and nobody can tell their files. Run `embedding-pipelines run {name}` first, or "
            "name documents by --id."
        )
    for each in sorted(set(ids) - traces.seen):
        if not forgotten.has("id", each) and not _rejected(run, Traces({each}), []):
            raise ConfigError(
                f"{name}: there is no document {each!r}, in no release either. --id takes a "
                "document's id, as `search` shows it."
            )
    return traces


def forget(
    run: Run,
    ids: Collection[str],
    files: Collection[str],
    erase_history: Callable[[Holds], int] = lambda holds: 0,
) -> Receipt:
    """Erase documents by their ids, and all documents of some source files, for good.

    `erase_history` removes runs from Dagster's history whose events hold a text; how many. Raises
    BusyError while the pipeline runs, ConfigError for what nobody has heard of, StoreError for
    damaged rows, which a run mends first. Whatever is raised, the same call goes on from there.
    """
    run, *others = all_lines(run)
    folder = run.folder
    with (
        folder.lock("run", timeout_seconds=0),
        folder.lock(timeout_seconds=0),
        run.warehouse.batch_jobs_lock(timeout_seconds=0),
        writing(run.warehouse, run.spec.name, run.progress) as writer,
    ):
        now = datetime.now(UTC)
        receipt = Receipt(run.spec.name, now.isoformat(timespec="seconds"))
        traces, places = _begin(run, ids, files, receipt)
        if writer is not None:
            writer.publish()  # before anything is erased, so that no fetch brings it back
        needles = Needles(traces.own_texts)
        require_lease = run.require_lease if writer is None else writer.require_lease
        _erase_by_text(run, traces, receipt)
        receipt.erased["dagster_runs"] = erase_history(needles.are_in)
        _erase_from_pipeline([run, *others], traces, places, receipt, require_lease)
        _erase_reports(run, receipt)
        receipt.erased["server_runs"] = _erase_server_runs(run.warehouse.runs, needles)
        receipt.erased["search_receipts"] = SearchReceipts(folder.folder).forget(
            traces.ids.__contains__, needles.are_quoted
        ) + forget_quotes(run.warehouse.pipelines, needles.are_quoted)
        _check(run, traces, needles, receipt)
        if writer is not None:
            writer.forget()
        path = run.warehouse.forgotten / "receipts" / f"{run.spec.name}-{now:%Y%m%dT%H%M%S%fZ}.json"
        receipt.path = str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(receipt))
    return receipt


def _begin(
    run: Run, ids: Collection[str], files: Collection[str], receipt: Receipt
) -> tuple[Traces, set[Place]]:
    """What there is to forget, once no run brings it back, and where rejected records of it stand."""
    # Nothing is pushed between the look at the log and the tombstone, which refuses it.
    with pushed_log(run.warehouse, run.spec.name).hold(is_alone=True):
        traces = find(run, ids, files)
        receipt.hashes = _leave_tombstone(run, traces, ids, files)
    receipt.documents, receipt.notes = len(traces.ids), traces.unreadable
    if traces.equal:
        receipt.notes.append(
            f"{traces.equal:,} of the documents are named by none: {why_equal(run.spec.source)}."
        )
    # A run that comes before the end of this reads these files again, and leaves them out.
    places = {(row["file"], row["row"]) for row in _rejected(run, traces, files)}
    forget_files(run, {*traces.files, *files, *(file for file, _ in places)})
    return traces, places


def _erase_from_pipeline(
    lines: Sequence[Run],
    traces: Traces,
    places: Collection[Place],
    receipt: Receipt,
    require_lease: Callable[[], None],
) -> None:
    """From tables, shards and output of a pipeline, whose lines these are, the first the one that is
    kept."""
    run, *others = lines
    before = read_releases(run.folder).live
    _erase_from_table(run, traces, receipt)
    for other in others:
        other.folder.delete_line()  # whose tables are gone: the next run fills it from the cache
    _erase_rows(run, traces, places, receipt)
    if run.folder.output.exists():
        receipt.erased["output_rows"] = forget_rows(
            run, traces.ids, before, receipt.release, require_lease
        )
    for line in lines:
        _forget_training(line, receipt)


def allow_again(run: Run, ids: Collection[str], files: Collection[str]) -> int:
    """Let documents come back that are forgotten, if the source still holds them; how many
    tombstones went. Nothing that was erased is restored. Raises BusyError while the pipeline
    runs."""
    if ids and not run.spec.source.id:
        raise ConfigError(
            f"{run.spec.name}: without source.id only whole files come back: name them by --source."
        )
    path = run.warehouse.forgotten / f"{run.spec.name}.json"
    with (
        run.folder.lock("run", timeout_seconds=0),
        run.folder.lock(timeout_seconds=0),
        writing(run.warehouse, run.spec.name, run.progress),
    ):
        before = forgotten_by(run)
        after = before.without(ids, files)
        count = sum(len(entry.files) + len(entry.documents) for entry in before.entries)
        count -= sum(len(entry.files) + len(entry.documents) for entry in after.entries)
        if count:
            write_forgotten(path, after)
            for line in all_lines(run):
                forget_files(line, None)
    return count


def _leave_tombstone(
    run: Run, traces: Traces, ids: Collection[str], files: Collection[str]
) -> list[str]:
    """Before anything is erased: from here on no run brings it back. The hashes of what was
    named."""
    values: dict[Kind, Collection[bytes | str]] = {
        "file": list(files),
        "id": list(traces.ids),
        "content": list(traces.contents),
        # Of an image, or a page, nothing is kept, which says nothing of any other.
        "record": [row["raw"] for row in _rejected(run, traces, files) if row["raw"]],
    }
    forgotten = forgotten_by(run)
    if files and ids:
        own = trace(run, ids, [])
        forgotten = forgotten.with_more({"id": list(own.ids), "content": list(own.contents)})
    forgotten = forgotten.with_more(values)
    write_forgotten(run.warehouse.forgotten / f"{run.spec.name}.json", forgotten)
    by_file = [forgotten.hash("file", name) for name in files]
    return sorted([*by_file, *(forgotten.hash("id", name) for name in ids)])


def _erase_by_text(run: Run, traces: Traces, receipt: Receipt) -> None:
    """Vectors in the cache, and those that batch jobs would file there."""
    keys, notes = cache_keys(run, traces.own_texts | traces.queries)
    receipt.notes += notes
    if run.warehouse.cache.exists():
        receipt.erased["cached_vectors"], is_overwritten = run.cache.remove_many(keys)
        if not is_overwritten:
            receipt.notes.append(
                f"The vectors are out of the cache, but their bytes stay in {run.cache.path} while "
                "another process reads it. Say the same command again when none does."
            )
    waiting = forget_keys(run.warehouse.batch_jobs, keys)
    if waiting:
        receipt.erased["texts_in_batch_jobs"] = waiting
        receipt.notes.append(
            f"{waiting} texts are in batch jobs: their vectors will not be filed, but the service "
            "has the texts. Have it delete them."
        )
    if traces.shared:
        receipt.notes.append(
            f"{len(traces.shared)} of the texts stand in other documents too, word for word, and "
            "stay there."
        )


def _erase_from_table(run: Run, traces: Traces, receipt: Receipt) -> None:
    """Build the live table anew without the documents, and drop all other releases and tables:
    Lance keeps deleted rows in its files, and old versions with them."""
    releases = read_releases(run.folder)
    live = releases.get(releases.live)
    keep = ""
    if live is not None:
        release = live if _is_clean(run, releases, live, traces) else _rebuild(run, live, traces)
        keep, receipt.release = release.table, release.number
    elif releases.releases:
        write_releases(run.folder, Releases())
    if live is None:
        delete(run.folder.table_state)
    receipt.removed_releases = [
        entry.number for entry in releases.releases if entry.number != receipt.release
    ]
    receipt.erased["table_rows"] = traces.rows
    for name in tables_of(run):
        if name != keep:
            run.spec.store.drop(run.folder.tables, name)
    for path in list_files(run.folder.quality, FIGURES):
        if not keep or not path.stem.startswith(f"{keep}-"):
            delete(path)


def _is_clean(run: Run, releases: Releases, live: Release, traces: Traces) -> bool:
    """Whether the live release is the only one and its table never held the documents, or has been
    built anew without them."""
    table = live.spec.store.table(run.folder.tables, live.table)
    return len(releases.releases) == 1 and not traces.rows and table.has_only(live.version)


def _rebuild(run: Run, live: Release, traces: Traces) -> Release:
    """The live release on a table of its own, without some documents."""
    store, folder = live.spec.store, run.folder
    old = store.table(folder.tables, live.table)
    schema, codec = old.schema(live.version), CodecChain.load(folder.codecs / live.codec)
    table, name = unused_table(store, folder.tables, live.table)
    count, gone = 0, set[str]()

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal count
        for batch in old.scan(schema.names, version=live.version):
            mask = rows_of(batch, traces.ids)
            gone.update(batch["document_id"].filter(mask).to_pylist())
            rest = batch.filter(pc.invert(mask))
            count += rest.num_rows
            columns = [rest[column] for column in schema.names]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    table.apply(schema, [], rows())
    trained = table.index(codec.metric, 0, live.spec.search.text_index)
    version = table.version
    assert version is not None
    if table.rows(version) != count:
        raise StoreError(f"Table {name!r} holds {table.rows(version)} rows of {count}. Try again.")
    releases = read_releases(folder)
    numbers = [entry.number for entry in releases.releases]
    metrics = dict(live.metrics)
    if "documents" in metrics:
        metrics["documents"] -= len(gone)
    release = live.model_copy(
        update={
            "number": max([newest_number(folder), *numbers]) + 1,
            "table": name,
            "version": version,
            "rows": count,
            "released_at": datetime.now(UTC),
            "metrics": metrics,
        }
    )
    table.tag({f"release-{release.number}": version})
    figures = read_json(folder.quality / f"{live.table}-{live.version}.json")
    if figures is not None:  # by digests of queries; the sketch beside it holds vectors, and goes
        write_json(folder.quality / f"{name}-{version}.json", figures)
    write_releases(folder, Releases(live=release.number, releases=[release]))
    append_history(folder, release, run.usage())
    state = TableState(name, version, {}, trained, layout(live.spec), count)
    write_json(folder.table_state, asdict(state))
    return release


def _erase_rows(run: Run, traces: Traces, places: Collection[Place], receipt: Receipt) -> None:
    """From the tables of rejected records, by their places, and from the shards of all steps; from
    documents last, for they tell which documents a file has. The next run makes what hangs on
    changed shards from the cache."""
    folder, own = run.folder, sorted(partitions(run, traces.ids))
    receipt.erased["rejected_records"] = len(places)
    for path in (folder.rejected, folder.rejected_by_failure):
        rows = read_table(path)
        if rows is not None and places:
            pairs = zip(rows["file"].to_pylist(), rows["row"].to_pylist(), strict=True)
            rest = pa.array([pair not in places for pair in pairs], pa.bool_())
            write_table(path, REJECTED, rows.filter(rest).to_batches())
    texts = read_table(folder.rejected_texts)
    if texts is not None:
        owners = [name.rpartition("#")[0] for name in texts["chunk_id"].to_pylist()]
        mask = pa.array([owner not in traces.ids for owner in owners], pa.bool_())
        if not pc.all(mask, min_count=0).as_py():
            write_table(folder.rejected_texts, REJECTED_TEXTS, texts.filter(mask).to_batches())
    whole = {name for name in own if _belong_together(folder, name)}
    for shards in (folder.chunks, folder.embeddings, folder.documents):
        receipt.erased[shards.folder.name] = 0
        for name in own:
            # Vectors go on belonging to their chunks: another machine's cache takes them from there.
            cut = folder.chunks.manifest(name) if shards is folder.embeddings else None
            inputs = cut.digest if cut is not None and name in whole else ""
            count = _erase_from_shard(shards, name, traces.ids, inputs)
            receipt.erased[shards.folder.name] += count
        for path in list_files(shards.folder, f"*{DAMAGED}"):
            delete(path)
    if folder.duplicates.exists():
        write_duplicates(run)
        write_near(run)
    log = pushed_log(run.warehouse, run.spec.name)
    log.delete_drafts()
    if traces.pushed:
        receipt.erased["pushed_changes"] = log.erase(traces.ids)
    folder.delete_leftovers(READING)
    shutil.rmtree(folder.folder / CANDIDATES, ignore_errors=True)  # of a killed `optimize`
    folder.sync([folder.tables])


def _belong_together(folder: PipelineFolder, partition: str) -> bool:
    """Whether a partition's vectors were made from its chunks as they are."""
    cut, vectors = folder.chunks.manifest(partition), folder.embeddings.manifest(partition)
    return cut is not None and vectors is not None and vectors.inputs == cut.digest


def _erase_from_shard(shards: Shards, partition: str, ids: Collection[str], inputs: str) -> int:
    """How many rows went. `inputs`: what the partition counts as made from; "": the next run makes it
    anew."""
    manifest, schema = shards.manifest(partition), shards.schema(partition)
    if manifest is None or schema is None:
        return 0
    masks, statistics = list[pa.Array](), dict(manifest.statistics)
    rejected = 0
    for batch in shards.read(partition):
        masks.append(rows_of(batch, ids))
        if VECTOR in batch.schema.names:
            rejected += batch[VECTOR].filter(masks[-1]).null_count
    if rejected:
        statistics["rejected"] = manifest.rejected - rejected
    count = sum(int(mask.true_count) for mask in masks)
    if count:
        rest = (
            batch.filter(pc.invert(mask))
            for batch, mask in zip(shards.read(partition), masks, strict=True)
        )
        shards.write(partition, schema, rest, inputs, manifest.configuration, statistics)
    return count


def _erase_reports(run: Run, receipt: Receipt) -> None:
    """What quotes texts and is made anew: the checks' records and queries, how the last step ended,
    the report."""
    folder = run.folder
    report = run.warehouse.root / "reports" / f"{run.spec.name}.html"
    if report.exists():
        receipt.erased["reports"] = 1
        receipt.notes.append(
            f"The report is deleted; `embedding-pipelines report {run.spec.name}` writes another."
        )
    for path in (report, folder.checks, folder.queries, folder.activity, folder.quarantine):
        delete(path)


def _erase_server_runs(folder: Path, needles: Needles) -> int:
    """What a server has on record of its runs, some of whose errors quote a text; how many files."""
    count = 0
    for path in list_files(folder, "*.*"):
        with contextlib.suppress(FileNotFoundError):  # a server deletes old ones meanwhile
            if any(map(needles.are_in, json_texts(path.read_text("utf-8", "replace")))):
                path.unlink()
                count += 1
    return count


def _check(run: Run, traces: Traces, needles: Needles, receipt: Receipt) -> None:
    """See that searches and files hold nothing of it."""
    name, warehouse = run.spec.name, run.warehouse
    releases = read_releases(run.folder)
    live, hits = releases.get(releases.live), 0
    if live is not None:
        table = live.spec.store.table(run.folder.tables, live.table)
        codec = CodecChain.load(run.folder.codecs / live.codec)
        vectors = [row for row in traces.vectors if len(row) == codec.input_dimensions]
        for vector in vectors:
            rows = nearest(table, codec, vector, NEAREST, None, live.version)
            hits += pc.sum(rows_of(rows, traces.ids)).as_py() or 0
        receipt.checked["searches"] = len(vectors)
        for batch in table.scan(["document_id"], version=live.version):
            hits += rows_of(batch, traces.ids).true_count
    proof = look_for(warehouse.root, run.spec.store, needles)
    receipt.checked |= {
        "files": proof.files,
        "tables": proof.tables,
        "rows": proof.rows,
        "texts": len(needles.texts),
    }
    other = re.compile(
        r"(?:(?:pipelines|pushed)/([^/]+)/|tables/(.+)-[^-]+\.lance|reports/(.+)\.html)"
    )
    others = set[str]()
    for path in proof.left:
        owner = next(filter(None, match.groups()), name) if (match := other.match(path)) else name
        if owner == name:
            receipt.left.append(path)
        else:
            others.add(owner)
    for word in map(pushed_log(warehouse, name).words().get, sorted(traces.ids)):
        if word is not None and f"pushed/{name}/{word.segment}" not in receipt.left:
            receipt.left.append(f"pushed/{name}/{word.segment}")
    if hits:
        receipt.left.append(f"tables/{live.table}.lance" if live else "")
    _note_copies(run, others, receipt)


def _note_copies(run: Run, others: Collection[str], receipt: Receipt) -> None:
    """Say where else texts are, which is not this command's to erase."""
    name = run.spec.name
    for each in sorted(others):
        receipt.notes.append(
            f"Pipeline {each!r} holds some of the texts too: forget them there as well."
        )
    if places := [each.endpoint for each in read_deployments(run.folder)]:
        receipt.notes.append(
            f"{name!r} is deployed to {', '.join(places)}, where its releases are as they were: "
            "undeploy it there, then deploy it again."
        )
    if exports := [path.name for path in list_files(run.warehouse.root / "exports", f"{name}-*")]:
        receipt.notes.append(
            f"Exports are yours, and were not looked into: {', '.join(exports)}. Export again, or "
            "delete them."
        )


def _forget_training(line: Run, receipt: Receipt) -> None:
    """Erase the checkpoints of a training that was cut off, and say what a trained model may keep."""
    for path in line.folder.model.parent.glob(".checkpoints-*/"):
        shutil.rmtree(path)
    if line.spec.model.trains and line.folder.model.exists():
        receipt.notes.append(
            "The model was trained on this pipeline's texts and may keep something of these. Delete "
            f"{line.folder.model} to have the next run train another without them; `clean` removes "
            "the old one once no release names it."
        )


def _rejected(run: Run, traces: Traces, files: Collection[str]) -> list[dict[str, Any]]:
    """Rejected records of these files, and those that have one of the ids or quote a text."""
    needles, records, entries = Needles(traces.own_texts), [], read_files(run)
    for path in (run.folder.rejected, run.folder.rejected_by_failure):
        rows = read_table(path)
        for row in rows.to_pylist() if rows is not None else ():
            entry = entries.get(row["file"])
            encoding = entry.encoding if entry is not None else None
            text = (row["raw"] or b"").decode(encoding or "utf-8", "replace")
            has_id = _record_id(run.spec.source, text, entry) in traces.ids
            if row["file"] in files or has_id or needles.are_in(text):
                records.append(row)
    return records


def _record_id(source: Source, text: str, entry: FileStatistics | None) -> str | None:
    """The id of a rejected record, None if it has none or nobody can tell: of CSV the cell in the
    id's column, of all else the id's field."""
    if source.id is None:
        return None
    if entry is not None and entry.id_cell is not None and not text.startswith(DOUBLE):
        delimiter, at = entry.id_cell
        quote, escape = getattr(source, "quote", None), getattr(source, "escape", None)
        cells = csv.reader(
            [text],
            delimiter=delimiter,
            quotechar=quote,
            escapechar=escape,
            quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        )
        try:
            row = next(cells, [])
        except csv.Error:
            return None
        return row[at] if at < len(row) else None
    record = parse(text)
    if not isinstance(record, dict):
        return _field_of(text, source.id)
    try:
        value = lookup(record, "document_id" if text.startswith(DOUBLE) else source.id)
    except KeyError:
        return None
    except ValueError:
        return _field_of(text, source.id)
    return None if value is None else str(value)


def _field_of(text: str, name: str) -> str | None:
    """The value of a field where text merely looks like JSON: most rejected records are broken."""
    key = re.escape(json.dumps(name.rpartition(".")[2], ensure_ascii=False))
    match = re.search(key + r'\s*:\s*(?:("(?:[^"\\\n]|\\.)*")|([^\s,"}\]]+))', text)
    if match is None:
        return None
    return str(json.loads(match[1], strict=False)) if match[1] else match[2]


def _of_unknown_files(run: Run) -> int:
    """Documents of the live release that are not on record."""
    releases = read_releases(run.folder)
    live = releases.get(releases.live)
    if live is None:
        return 0
    recorded = set[str]()
    for name in run.spec.partition_names:
        rows = run.folder.documents.read_columns(name, ["document_id"])
        recorded |= set(rows["document_id"].to_pylist()) if rows is not None else set()
    table = live.spec.store.table(run.folder.tables, live.table)
    batches = table.scan(["document_id"], version=live.version)
    released = {name for batch in batches for name in batch["document_id"].to_pylist()}
    return len(released - recorded)
