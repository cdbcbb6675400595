"""How a pipeline stands, read from files: nothing is computed, nothing is written, no model is
loaded."""

import contextlib
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_pipelines.activity import last_activity
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.deployments import read_deployments
from embedding_pipelines.errors import (
    CompressionError,
    ConfigError,
    EmbeddingPipelinesError,
    StoreError,
    counted,
    did_you_mean,
)
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.releases import Release, read_releases
from embedding_pipelines.remote import fetch_state, is_current, is_whole, refresh
from embedding_pipelines.run import Run
from embedding_pipelines.spec.ids import pipeline_ids
from embedding_pipelines.spec.load import read_pipelines
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.steps.checks import current_checks, read_checks
from embedding_pipelines.steps.documents import count_waiting, inputs_of, read_files
from embedding_pipelines.steps.duplicates import read_duplicates
from embedding_pipelines.steps.embeddings import quarantine_note
from embedding_pipelines.steps.old_line import lines_of
from embedding_pipelines.steps.output import output_state
from embedding_pipelines.steps.pending import Pending, pending
from embedding_pipelines.steps.reading import FileStatistics, is_pushed
from embedding_pipelines.steps.release import held_back_by
from embedding_pipelines.steps.repair import damaged_states
from embedding_pipelines.steps.vector_store import SAMPLE_BYTES
from embedding_pipelines.storage.warehouse import Manifest, Shards, Warehouse

DRIFT = "data_has_not_drifted"  # the check that compares a candidate with the live release
# What a list can be narrowed to. A pipeline may be in several: one that is live while a run is at
# work is active and building.
FILTERS = ("active", "building", "failed", "deployed", "archived", "all")
BUILDING, FAILED = ("running",), ("failed", "stopped", "held back", "broken")
RECEIVED = "a bundle that was deployed here"
EMPTY = "its text is empty after cleaning"  # of a document, so that no search finds it


def pipeline_status(spec: PipelineSpec, warehouse: Warehouse) -> dict[str, Any]:
    """Releases, rows of every step, rejected records, what is at work or went wrong, and what of
    the source is not released.

    `up_to_date` is true if the live release holds what the source and the pipeline file say now, as
    far as files tell: no model is asked whether it is still the same. `status` is running, held
    back, failed, stopped, active or new: the first of them that is true. Searches see what was
    pushed, so that a pipeline may be active before its first release.
    """
    shared = fetch_state(warehouse, spec.name)
    run = Run(spec, warehouse)
    releases, files = read_releases(run.folder), read_files(run)
    live, newest = releases.get(releases.live), releases.newest
    if spec.migration is not None and live is not None:  # the other line's may be newer
        newest = releases.of_line(live.line)[-1]
    rejected_texts = sum(entry.rejected for entry in _recorded(run, run.folder.embeddings))
    held_back, activity = _held_back(run), last_activity(run)
    state: str = activity.state if activity else ""
    waiting, source = _source(run)
    pushed_waiting = count_waiting(run, live.pushed if live else 0)
    rolled_back = _rolled_back(live, newest)
    lag = _lag(run, live, waiting, source, state, held_back, rolled_back)
    if held_back and state != "running":
        state = "held back"
    return {
        "id": pipeline_ids(warehouse.home).get(spec.name),
        "pipeline": spec.name,
        "status": state or ("active" if live or pushed_waiting else "new"),
        "up_to_date": not lag,
        "freshness": _freshness(live, lag),
        "last_step": str(activity) if activity and state in ("running", "stopped") else None,
        "last_error": str(activity) if activity and state == "failed" else None,
        "held_back": held_back,
        "model": title_of(spec.model),
        "schedule": spec.schedule,
        "source": source,
        "source_is_released": waiting is not None and waiting.is_empty,
        "pushed_waiting": pushed_waiting,
        "pushed_overruling": sum(
            len(entry.overruled) for name, entry in files.items() if not is_pushed(run, name)
        ),
        "bucket": shared,
        **_rows(run),
        "rejected": _rejected_records(run, files),
        "rejected_table": str(run.folder.rejected),
        "duplicates": _duplicates(run),
        "forgotten": sum(statistics.forgotten for statistics in files.values()),
        "rejected_texts": rejected_texts,
        "rejected_texts_table": str(run.folder.rejected_texts),
        "quarantined": quarantine_note(run),
        "live_release": live.number if live else None,
        "released_at": live.released_at.isoformat(timespec="seconds") if live else None,
        "live_rows": live.rows if live else None,
        "live_model": _live_model(run, live) if live else None,
        "override": live.override or None if live else None,
        "forced": live.forced or None if live else None,
        "rolled_back": rolled_back,
        "drift": _drift(run),
        "output": _output(run),
        "kept_releases": [release.number for release in releases.releases],
        "endpoints": [deployment.endpoint for deployment in read_deployments(run.folder)],
    }


def list_status(home: Path, only: Collection[str] | None = None) -> list[dict[str, Any]]:
    """A row for each pipeline, or for `only` some, by name: `pipeline_status` of those whose files
    are right; of the others what is live, with the `problem` of a broken file. They are archived if
    their file is gone, and active if they never had one, since they were deployed here.

    `states` are the words of FILTERS that hold for it, without "all".
    """
    specs, broken = read_pipelines(home)
    ids, warehouse = pipeline_ids(home), Warehouse(home)
    folders = warehouse.pipelines.iterdir() if warehouse.pipelines.is_dir() else ()
    names = specs.keys() | {path.stem for path in broken} | {folder.name for folder in folders}
    names = names if only is None else names & set(only)
    rows = [pipeline_status(spec, warehouse) for spec in specs.values() if spec.name in names]
    for path, error in broken.items():
        if path.stem not in names:
            continue
        row = {"id": ids.get(path.stem), "pipeline": path.stem, **_live(warehouse, path.stem)}
        rows.append(row | {"status": "broken", "problem": str(error)})
    for name in names - {row["pipeline"] for row in rows}:
        if live := _live(warehouse, name):
            was_deployed = warehouse.pipeline(name).received.exists()
            words = {"status": "active", "source": RECEIVED} if was_deployed else {}
            row = {"id": ids.get(name), "pipeline": name, "status": "archived"}
            rows.append(row | live | words)
    return sorted(
        ({**row, "states": states_of(row)} for row in rows), key=lambda row: str(row["pipeline"])
    )


def states_of(row: dict[str, Any]) -> list[str]:
    """The words of FILTERS that hold for a row of `pipeline_status`."""
    status, is_archived = row["status"], row["status"] == "archived"
    is_searched = row.get("live_release") is not None or bool(row.get("pushed_waiting"))
    is_active = is_searched and not is_archived
    holds = {
        "active": is_active,
        "building": status in BUILDING,
        "failed": status in FAILED,
        "deployed": bool(row.get("endpoints")),
        "archived": is_archived,
    }
    return [name for name, is_so in holds.items() if is_so]


def check_filter(word: str) -> str:
    """A word of FILTERS; ConfigError for another."""
    if word not in FILTERS:
        raise ConfigError(
            f"filter is {word!r}: write one of {', '.join(FILTERS)}.{did_you_mean(word, FILTERS)}"
        )
    return word


def _duplicates(run: Run) -> str | None:
    """Groups of images that are the same or alike, and where they are listed; None without any."""
    if not run.spec.source.has_images:
        return None
    try:
        sentence = read_duplicates(run.folder.duplicates).sentence
    except StoreError as error:
        return str(error)
    return f"{sentence}: {run.folder.duplicates}" if sentence else None


def _live(warehouse: Warehouse, name: str) -> dict[str, Any]:
    """What is live of a pipeline whose file is gone or broken; empty if nothing is."""
    folder = warehouse.pipeline(name)
    try:
        releases = read_releases(folder)
    except StoreError:
        return {}
    live = releases.get(releases.live)
    if live is None:
        return {}
    return {
        "model": title_of(live.spec.model),
        "live_release": live.number,
        "released_at": live.released_at.isoformat(timespec="seconds"),
        "live_rows": live.rows,
        "endpoints": [deployment.endpoint for deployment in read_deployments(folder)],
    }


def _rolled_back(live: Release | None, newest: Release | None) -> str | None:
    if live is None or newest is None or live.number == newest.number:
        return None
    return (
        f"from release {newest.number}; a run without changes leaves it so, and so does "
        f"everything but a new release or `rollback --to {newest.number}`"
    )


@dataclass(frozen=True)
class Rejection:
    """A record of the source, or a text, that could not be used."""

    place: str  # file and row, or the chunk's id
    reason: str
    content: str  # what was rejected; bytes that are no UTF-8 are replaced
    bytes: int  # of what was rejected


@dataclass(frozen=True)
class Rejections:
    """What was rejected, records before texts, then the documents that have no text."""

    total: int  # of records and texts
    empty: int  # documents without text: they are on record, and no search finds them
    rows: list[Rejection]
    tables: list[Path]  # the Parquet files with all of it


def read_rejections(run: Run, limit: int) -> Rejections:
    """The first `limit` records and texts that are on record as rejected, and documents without
    text.

    Records are those of the documents in force or, where that is newer, of the run that ended since
    they were too many. Raises StoreError for a damaged table.
    """
    refresh(run.warehouse, run.spec.name)
    folder = run.folder
    empty = _empty_documents(run)
    # A run that ends well deletes the second.
    is_newer = folder.rejected_by_failure.exists()
    records = folder.rejected_by_failure if is_newer else folder.rejected
    total, rows, tables = 0, list[Rejection](), list[Path]()
    for path, content in ((records, "raw"), (folder.rejected_texts, "text")):
        if not path.exists():
            continue
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{path} cannot be read: {error}. The next run writes it.") from error
        total += len(table)
        if len(table):
            tables.append(path)
        for row in table.slice(0, max(limit - len(rows), 0)).to_pylist():
            place = row.get("chunk_id") or f"{row['file']}:{row['row']}"
            text = row[content] or ""
            raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            rows.append(Rejection(place, row["reason"], raw.decode("utf-8", "replace"), len(raw)))
    documents = (document for name in empty for document in _without_text(run, name))
    rows.extend(islice(documents, max(limit - len(rows), 0)))
    return Rejections(total, sum(empty.values()), rows, tables)


def _empty_documents(run: Run) -> dict[str, int]:
    """How many documents have no text, by partition: of those that were cut as they are now."""
    counts = dict[str, int]()
    for name in run.spec.partition_names:
        cut, read = run.folder.chunks.manifest(name), run.folder.documents.manifest(name)
        if cut and read and cut.inputs == read.digest and cut.statistics.get("empty"):
            counts[name] = cut.statistics["empty"]
    return counts


def _without_text(run: Run, partition: str) -> Iterator[Rejection]:
    """The documents of a partition that have no chunk."""
    chunks = run.folder.chunks.read_columns(partition, ["document_id"])
    cut = set(chunks["document_id"].to_pylist()) if chunks else set[str]()
    columns = ["document_id", "source_file", "source_row", "text"]
    for batch in run.folder.documents.read(partition, columns):
        for row in batch.to_pylist():
            if row["document_id"] not in cut:
                place = f"{row['source_file']}:{row['source_row']}"
                text = row["text"] or ""
                yield Rejection(place, EMPTY, text, len(text.encode("utf-8", "surrogatepass")))


def title_of(options: ProviderOptions) -> str:
    """Provider and model in a few letters."""
    model = getattr(options, "title", "") or getattr(options, "model", "")
    return f"{options.kind}:{model}".rstrip(":")


def _live_model(run: Run, live: Release) -> str | None:
    """The model of the live release and why it is not the one of the pipeline file; None if it
    is."""
    ran, options = live.spec.model, run.spec.model
    if run.spec.migration is not None and not live.line:
        command = f"`embedding-pipelines migrate {run.spec.name}`"
        return f"{title_of(ran)}: the pipeline migrates from it; {command} says how far it is"
    copies = (run.warehouse.root / "calibration").relative_to(run.warehouse.home).as_posix()
    other_kind = ran.kind != options.kind
    configured = options.model_dump(mode="json")
    differences = {
        name: value
        for name, value in ran.model_dump(mode="json", exclude_defaults=other_kind).items()
        if value != configured.get(name) and name != "trained" and not str(value).startswith(copies)
    }
    if not differences and not other_kind:
        return None
    differences.pop("model", None)
    title = ", ".join([title_of(ran), *(f"{name} {value}" for name, value in differences.items())])
    if live.override:
        return f"{title}: set for its run alone; the next run uses the model of the pipeline file"
    return f"{title}: the pipeline file has changed since; the next run uses its model"


def _held_back(run: Run) -> str | None:
    """The checks that hold back what the last run wrote, unless it was released with a reason."""
    failed = [check for line in lines_of(run) for check in held_back_by(line)]
    if not failed:
        return None
    return "by " + "; ".join(f"{check.name}: {_first_sentence(check.sentence)}" for check in failed)


def _first_sentence(text: str) -> str:
    """What a check saw, without what to do about it."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def _rows(run: Run) -> dict[str, int]:
    """The rows of every step that has rows, less those that are only on record as rejected."""
    shards = {step.name: step.shards(run) for step in steps_of(run.spec)}
    return {
        name: sum(entry.rows - entry.rejected for entry in _recorded(run, each))
        for name, each in shards.items()
        if each is not None
    }


def _rejected_records(run: Run, files: Mapping[str, FileStatistics]) -> int:
    """The records of the documents in force that are on record as rejected: since `forget` those of
    files, which it has read again, are no measure."""
    with contextlib.suppress(pa.ArrowException, OSError):  # lost, damaged, or on another machine
        return int(pq.read_metadata(run.folder.rejected).num_rows)
    return sum(entry.rejected for entry in files.values())


def _recorded(run: Run, shards: Shards) -> list[Manifest]:
    """The manifests of a step. Where only a search's files were fetched from the bucket, the shards
    are on another machine."""
    read = shards.manifest if is_whole(run.warehouse, run.spec.name) else shards.recorded
    return [entry for name in run.spec.partition_names if (entry := read(name)) is not None]


def _source(run: Run) -> tuple[Pending | None, str]:
    """What of the source is not in the newest release, None if that cannot be told; in a few
    words."""
    if not is_whole(run.warehouse, run.spec.name):
        return None, "not compared: this machine has no rows of the pipeline, which a run fetches"
    try:
        waiting = pending(run, inputs_of(run))
    except EmbeddingPipelinesError as error:
        return None, str(error)
    return waiting, str(waiting)


def _lag(
    run: Run,
    live: Release | None,
    waiting: Pending | None,
    source: str,
    state: str,
    held_back: str | None,
    rolled_back: str | None,
) -> str:
    """Why the live release is not all that it should be, in a few words; empty if it is."""
    if state == "running":
        return "a run is under way"
    if held_back:
        return "the newest candidate is held back"
    if state:
        return f"the last run {'failed' if state == 'failed' else 'was ended from outside'}"
    if waiting is None or not waiting.is_empty:
        return source
    if live is None:
        return "nothing is released"
    if rolled_back:
        return "it was rolled back"
    if current_checks(run) is None:
        return "the pipeline file has changed since the last run, or files of its evaluation"
    if damaged := damaged_states(run.folder):
        verb, what = ("is", "it") if len(damaged) == 1 else ("are", "them")
        files = counted(len(damaged), "file")
        return f"{files} of its state {verb} damaged; the next run mends {what}"
    table = live.spec.store.table(run.warehouse.tables, live.table)
    if words := table.damage(live.version, SAMPLE_BYTES):
        return f"{words}; the next run mends it"
    try:
        CodecChain.load(run.folder.codecs / live.codec)
    except CompressionError as error:
        return str(error)
    try:
        if not is_current(run.warehouse, run.spec.name):
            return "bucket and this machine differ; the next run here brings them together"
    except EmbeddingPipelinesError as error:
        return str(error)
    return ""


def _output(run: Run) -> str | None:
    """Where the live release is delivered, and which one was; None without `output`."""
    if run.spec.output is None:
        return None
    state = output_state(run)
    if state is None or not state.release:
        return f"nothing is delivered to {run.spec.output} yet"
    rows = counted(state.statistics["rows"], "row")
    return f"release {state.release} in {state.place}: {rows}"


def _freshness(live: Release | None, lag: str) -> str:
    """Whether the live release is up to date, how old it is, and why it is not."""
    if live is None:
        return f"not up to date: {lag}"
    age = _words_of(time.time() - live.released_at.timestamp())
    if lag:
        return f"not up to date: {lag}; release {live.number} is {age} old"
    return f"up to date; release {live.number} is {age} old"


def _words_of(seconds: float) -> str:
    """A span of time in its greatest unit."""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            return counted(int(seconds // size), unit)
    return counted(max(int(seconds), 0), "second")


def _drift(run: Run) -> str | None:
    """What the newest checks say of the distribution of the vectors; None if they do not."""
    try:
        record = read_checks(run)
    except StoreError:  # a run makes it anew
        return None
    checks = [check for check in record.checks if check.name == DRIFT] if record else []
    return _first_sentence(checks[0].sentence) if checks else None
