"""unchanged: whether a run would find nothing to do, told from file times and manifests alone.

Each step decides by the same function as when it runs. Nothing is written, and neither the model
nor the store's library is loaded, so that an hourly run of a thousand pipelines costs next to
nothing.
"""

from collections.abc import Iterator
from pathlib import Path

from embedding_pipelines.files import read_json
from embedding_pipelines.home import instance_folder
from embedding_pipelines.progress import StepReport, summed
from embedding_pipelines.quality.structure import current_verify
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.steps.chunks import chunk_configuration, current_chunks
from embedding_pipelines.steps.codec import current_codec
from embedding_pipelines.steps.documents import current_documents
from embedding_pipelines.steps.embeddings import current_embeddings, refuse_wrong_dimensions
from embedding_pipelines.steps.release import current_release, pinned_model, read_releases
from embedding_pipelines.steps.train import current_model
from embedding_pipelines.steps.vector_store import current_vector_store
from embedding_pipelines.storage.warehouse import Warehouse


def unchanged(home: Path, spec: PipelineSpec) -> list[StepReport] | None:
    """What every step would report, or None if one of them has something to do or to complain of.

    None too if the last whole run is not on record in the Dagster instance of today: its web UI
    would otherwise never learn of what is there.
    """
    context, reports = StepContext(spec, Warehouse(home)), []
    instance = instance_folder(home)
    try:
        recorded = read_json(context.folder.last_run) == {"instance": str(instance)}
        if not recorded or not (instance / "dagster.yaml").is_file():
            return None
        with context.folder.lock("run", timeout_seconds=0):  # else another process is at work on it
            released = read_releases(context.folder).releases[-1].spec.model
            if released not in (spec.model, pinned_model(context)):
                return None  # another model may have to be fetched first
            for report in _reports(context):
                if report is None:
                    return None
                reports.append(report)
    except Exception:  # noqa: BLE001  # for the run to mend or to name, where its history shows it
        return None
    return reports


def _reports(context: StepContext) -> Iterator[StepReport | None]:
    yield current_documents(context)
    provider, names = context.spec.model, context.spec.partition_names
    configuration = chunk_configuration(context, provider)
    yield _summed(
        "chunks", [current_chunks(context, partition, configuration) for partition in names]
    )
    if provider.learns:
        yield current_model(context, provider)
    space = provider.space
    refuse_wrong_dimensions(context, provider)
    yield _summed(
        "embeddings", [current_embeddings(context, partition, space) for partition in names]
    )
    yield current_codec(context, space)
    yield current_vector_store(context, space)
    yield current_verify(context)
    yield current_release(context, space)


def _summed(step: str, reports: list[StepReport | None]) -> StepReport | None:
    made = [report for report in reports if report is not None]
    return summed(step, made) if len(made) == len(reports) else None
