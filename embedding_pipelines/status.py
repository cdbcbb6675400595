"""How a pipeline stands, read from the warehouse: nothing is computed and no model is loaded."""

from typing import Any

from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.quality.structure import known_checks
from embedding_pipelines.spec.ids import pipeline_ids
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.steps.documents import known_files
from embedding_pipelines.steps.release import Release, read_releases
from embedding_pipelines.steps.vector_store import table_state
from embedding_pipelines.storage.warehouse import Shards, Warehouse


def pipeline_status(spec: PipelineSpec, warehouse: Warehouse) -> dict[str, Any]:
    """Releases, rows of every step, rejected records, and files that differ from those last
    read."""
    context = StepContext(spec, warehouse)
    releases, files = read_releases(context.folder), known_files(context)
    live = releases.get(releases.live)
    return {
        "id": pipeline_ids(warehouse.home).get(spec.name),
        "pipeline": spec.name,
        "status": "active" if live else "new",
        "model": f"{spec.model.kind}:{getattr(spec.model, 'model', '')}".rstrip(":"),
        "schedule": spec.schedule,
        "documents": _rows(context, context.folder.documents),
        "chunks": _rows(context, context.folder.chunks),
        "embeddings": _rows(context, context.folder.embeddings) - _rejected_texts(context),
        "rejected": sum(statistics.rejected for statistics in files.values()),
        "rejected_table": str(context.folder.rejected),
        "rejected_texts": _rejected_texts(context),
        "rejected_texts_table": str(context.folder.rejected_texts),
        "live_release": live.number if live else None,
        "live_rows": live.rows if live else None,
        "released_at": live.released_at.isoformat(timespec="seconds") if live else None,
        "held_back": _held_back(context, live),
        "kept_releases": [release.number for release in releases.releases],
        "source": _source(context),
    }


def _held_back(context: StepContext, live: Release | None) -> str | None:
    """The checks that keep what the last run made from being released, unless somebody had a reason
    to do it."""
    state = table_state(context)
    if live and state and (live.table, live.version) == (state.table, state.version):
        return None
    failed = [check.name for check in known_checks(context) or () if check.blocks]
    return (
        f"by {', '.join(failed)}; `embedding-pipelines run {context.spec.name}` says why"
        if failed
        else None
    )


def _rows(context: StepContext, shards: Shards) -> int:
    return sum(
        made.rows
        for partition in context.spec.partition_names
        if (made := shards.manifest(partition))
    )


def _rejected_texts(context: StepContext) -> int:
    made = [
        context.folder.embeddings.manifest(partition) for partition in context.spec.partition_names
    ]
    return sum(entry.statistics.get("rejected", 0) for entry in made if entry)


def _source(context: StepContext) -> str:
    """Whether the files are those that were last read, in a few words."""
    try:
        listing = context.spec.source.files(context.warehouse.home)
    except EmbeddingPipelinesError as error:
        return str(error)
    read = {name: tuple(statistics.stamp) for name, statistics in known_files(context).items()}
    found = {file.name: file.stamp for file in listing}
    new, gone = len(found.keys() - read.keys()), len(read.keys() - found.keys())
    changed = sum(found[name] != read[name] for name in found.keys() & read.keys())
    if not new and not gone and not changed:
        return "up to date"
    return f"{new} new, {changed} changed, {gone} deleted files since the last run"
