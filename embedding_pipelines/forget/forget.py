"""Erases documents for good: rows, old releases, vectors, and whatever else holds their texts.

The order makes a kill harmless. First a tombstone: no run brings them back, not even one that comes
before the end, nor one of another machine that shares the warehouse. Then what is filed by its text
(cache, batch jobs, history), while the texts can still be read. Then the table: a new one is built
beside the old one from the rows that stay, and becomes live in one rename. Then what the old one
was made of. The same command goes on from wherever it was killed, for each part is done anew.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from embedding_pipelines.activity import end_killed
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import write_json
from embedding_pipelines.forget.erase import (
    Place,
    erase_by_text,
    erase_from_pipeline,
    erase_reports,
    erase_server_runs,
)
from embedding_pipelines.forget.proof import check
from embedding_pipelines.forget.receipt import Receipt
from embedding_pipelines.forget.records import rejected_records
from embedding_pipelines.forget.traces import Traces, all_lines, trace
from embedding_pipelines.objects import is_uri
from embedding_pipelines.releases import is_readable, read_releases
from embedding_pipelines.remote import refresh, writing
from embedding_pipelines.run import Run
from embedding_pipelines.sources.base import Source
from embedding_pipelines.steps.documents import forget_files, read_files
from embedding_pipelines.steps.reading import forgotten_by, is_pushed
from embedding_pipelines.storage.forgotten import Kind, write_forgotten
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.quotes import Needles
from embedding_pipelines.storage.receipts import Receipts as SearchReceipts
from embedding_pipelines.storage.receipts import forget_quotes

Holds = Callable[[str], bool]  # whether a text of an event quotes what is forgotten


def why_equal(source: Source) -> str:
    """Why documents go that nobody has named."""
    if source.has_images:
        return "all images of the same pixels go"
    return "without source.id all documents of equal content go"


def source_name(run: Run, name: str) -> str:
    """A source file as documents name it: relative to the home folder, or absolute outside; another
    part of a source by its own name."""
    home = run.warehouse.home
    if is_uri(name) or name in read_files(run):
        return name
    place = os.path.expanduser(name)  # which keeps an unknown ~user
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
    for each in sorted(set(ids) - traces.on_record):
        if not forgotten.has("id", each) and not rejected_records(run, Traces({each}), []):
            raise ConfigError(
                f"{name}: there is no document {each!r}, in no release either. --id takes a "
                "document's id, as `search` shows it."
            )
    return traces


def forget_newest(
    run: Run,
    ids: Collection[str],
    sources: Collection[str],
    erase_history: Callable[[Holds], int],
    confirm: Callable[[Traces], None] | None = None,
) -> Receipt:
    """`forget` on the newest copy of a shared warehouse, of source files as a user names them;
    `confirm` is shown what would go, and raises to leave it."""
    files = [source_name(run, name) for name in sources]
    refresh(run.warehouse, run.spec.name)
    if confirm is not None:
        confirm(find(run, ids, files))
    return forget(run, ids, files, erase_history)


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
        end_killed(run)
        now = datetime.now(UTC)
        receipt = Receipt(run.spec.name, now.isoformat(timespec="seconds"))
        traces, places = _begin(run, ids, files, receipt)
        if writer is not None:
            writer.publish()  # before anything is erased, so that no fetch brings it back
        needles = Needles(traces.own_texts)
        require_lease = run.require_lease if writer is None else writer.require_lease
        erase_by_text(run, traces, receipt)
        receipt.erased["dagster_runs"] = erase_history(needles.are_in)
        erase_from_pipeline([run, *others], traces, places, receipt, require_lease)
        erase_reports(run, receipt)
        receipt.erased["server_runs"] = erase_server_runs(run.warehouse.runs, needles)
        receipt.erased["search_receipts"] = SearchReceipts(folder.folder).forget(
            traces.ids.__contains__, needles.are_quoted
        ) + forget_quotes(run.warehouse.pipelines, needles.are_quoted)
        check(run, traces, needles, receipt)
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
    places = {(row["file"], row["row"]) for row in rejected_records(run, traces, files)}
    forget_files(run, {*traces.files, *files, *(file for file, _ in places)})
    return traces, places


def allow_again(run: Run, ids: Collection[str], sources: Collection[str]) -> int:
    """Let documents come back that are forgotten, if the source still holds them, of source files as
    a user names them; how many tombstones went. Nothing that was erased is restored. Raises
    BusyError while the pipeline runs."""
    if ids and not run.spec.source.id:
        raise ConfigError(
            f"{run.spec.name}: without source.id only whole files come back: name them by --source."
        )
    files = [source_name(run, name) for name in sources]
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
        "record": [row["raw"] for row in rejected_records(run, traces, files) if row["raw"]],
    }
    forgotten = forgotten_by(run)
    if files and ids:
        own = trace(run, ids, [])
        forgotten = forgotten.with_more({"id": list(own.ids), "content": list(own.contents)})
    forgotten = forgotten.with_more(values)
    write_forgotten(run.warehouse.forgotten / f"{run.spec.name}.json", forgotten)
    by_file = [forgotten.hash("file", name) for name in files]
    return sorted([*by_file, *(forgotten.hash("id", name) for name in ids)])


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
