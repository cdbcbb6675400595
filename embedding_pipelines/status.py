"""How a pipeline stands, read from the warehouse: nothing is computed and no model is loaded."""

from typing import Any

from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.releases import Release, read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.spec.ids import pipeline_ids
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.checks import current_checks
from embedding_pipelines.steps.documents import read_files
from embedding_pipelines.steps.vector_store import table_state
from embedding_pipelines.storage.warehouse import Shards, Warehouse


def pipeline_status(spec: PipelineSpec, warehouse: Warehouse) -> dict[str, Any]:
    """Releases, rows of every step, rejected records, and files that differ from those last
    read."""
    run = Run(spec, warehouse)
    releases, files = read_releases(run.folder), read_files(run)
    live = releases.get(releases.live)
    return {
        "id": pipeline_ids(warehouse.home).get(spec.name),
        "pipeline": spec.name,
        "status": "active" if live else "new",
        "model": f"{spec.model.kind}:{getattr(spec.model, 'model', '')}".rstrip(":"),
        "schedule": spec.schedule,
        "documents": _rows(run, run.folder.documents),
        "chunks": _rows(run, run.folder.chunks),
        "embeddings": _rows(run, run.folder.embeddings) - _rejected_texts(run),
        "rejected": sum(statistics.rejected for statistics in files.values()),
        "rejected_table": str(run.folder.rejected),
        "rejected_texts": _rejected_texts(run),
        "rejected_texts_table": str(run.folder.rejected_texts),
        "live_release": live.number if live else None,
        "live_rows": live.rows if live else None,
        "released_at": live.released_at.isoformat(timespec="seconds") if live else None,
        "override": live.override or None if live else None,
        "held_back": _held_back(run, live),
        "kept_releases": [release.number for release in releases.releases],
        "source": _source(run),
    }


def _held_back(run: Run, live: Release | None) -> str | None:
    """The checks that keep what the last run made from being released, unless somebody had a reason
    to do it."""
    state = table_state(run)
    if live and state and (live.table, live.version) == (state.table, state.version):
        return None
    record = current_checks(run)
    failed = [check.name for check in record.checks if check.blocks] if record else []
    return (
        f"by {', '.join(failed)}; `embedding-pipelines run {run.spec.name}` says why"
        if failed
        else None
    )


def _rows(run: Run, shards: Shards) -> int:
    return sum(
        made.rows for partition in run.spec.partition_names if (made := shards.manifest(partition))
    )


def _rejected_texts(run: Run) -> int:
    made = [run.folder.embeddings.manifest(partition) for partition in run.spec.partition_names]
    return sum(entry.statistics.get("rejected", 0) for entry in made if entry)


def _source(run: Run) -> str:
    """Whether the files are those that were last read, in a few words."""
    try:
        listing = run.spec.source.files(run.warehouse.home)
    except EmbeddingPipelinesError as error:
        return str(error)
    read = {name: tuple(statistics.stamp) for name, statistics in read_files(run).items()}
    found = {file.name: file.stamp for file in listing}
    new, gone = len(found.keys() - read.keys()), len(read.keys() - found.keys())
    changed = sum(found[name] != read[name] for name in found.keys() & read.keys())
    if not new and not gone and not changed:
        return "up to date"
    return f"{new} new, {changed} changed, {gone} deleted files since the last run"
