"""Erases documents from each place that keeps them: cache, tables, shards, output and records."""

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.batch_jobs import forget_keys
from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import delete, list_files, read_json, write_json
from embedding_pipelines.forget.receipt import Receipt
from embedding_pipelines.forget.traces import Traces, cache_keys, partitions, rows_of, tables_of
from embedding_pipelines.releases import (
    Release,
    Releases,
    append_history,
    newest_number,
    read_releases,
    write_releases,
)
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import REJECTED, REJECTED_TEXTS, VECTOR
from embedding_pipelines.steps.documents import READING
from embedding_pipelines.steps.duplicates import write_duplicates, write_near
from embedding_pipelines.steps.garbage import CANDIDATES
from embedding_pipelines.steps.output import forget_rows
from embedding_pipelines.steps.vector_store import TableState, layout, unused_table
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.quotes import Needles, json_texts
from embedding_pipelines.storage.warehouse import (
    DAMAGED,
    PipelineFolder,
    Shards,
    read_table,
    write_table,
)

Place = tuple[str, int]  # of a rejected record: its file and row
FIGURES = "*-*-*.*"  # of releases and their tables, in the folder of quality


def erase_by_text(run: Run, traces: Traces, receipt: Receipt) -> None:
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


def erase_from_pipeline(
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
    """From the tables of rejected records, by their places, and from the shards of all steps, with
    all that is made of them."""
    folder = run.folder
    _erase_rejected(folder, traces, places)
    receipt.erased["rejected_records"] = len(places)
    _erase_from_shards(run, traces, receipt)
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


def _erase_rejected(folder: PipelineFolder, traces: Traces, places: Collection[Place]) -> None:
    """From the tables of rejected records and texts."""
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


def _erase_from_shards(run: Run, traces: Traces, receipt: Receipt) -> None:
    """From documents last, for they tell which documents a file has. The next run makes what hangs
    on changed shards from the cache."""
    folder, own = run.folder, sorted(partitions(run, traces.ids))
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


def erase_reports(run: Run, receipt: Receipt) -> None:
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


def erase_server_runs(folder: Path, needles: Needles) -> int:
    """What a server has on record of its runs, some of whose errors quote a text; how many files."""
    count = 0
    for path in list_files(folder, "*.*"):
        with contextlib.suppress(FileNotFoundError):  # a server deletes old ones meanwhile
            if any(map(needles.are_in, json_texts(path.read_text("utf-8", "replace")))):
                path.unlink()
                count += 1
    return count


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
