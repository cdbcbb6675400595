"""Assets: one chain per pipeline. A body reads, calls a step, reports; what the data means is in `steps/`."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext, MaterializeResult

from embedding_pipelines import schemas
from embedding_pipelines.embedding.ledger import Ledger
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.orchestration.partitions import bucket_keys, buckets
from embedding_pipelines.pipeline import PipelineSpec
from embedding_pipelines.progress import StepReport, summed
from embedding_pipelines.steps.chunks import write_chunks
from embedding_pipelines.steps.codec import fit_codec
from embedding_pipelines.steps.context import StepContext
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines.steps.embeddings import refuse_wrong_dimensions, write_embeddings
from embedding_pipelines.steps.release import release as make_release
from embedding_pipelines.steps.vector_store import update_vector_store

Metadata = Mapping[str, Any]

DESCRIPTIONS = {
    "documents": "Canonical rows of the source in buckets. Unchanged files are skipped; bad records go to a table "
    "of their own, with file, row and reason.",
    "chunks": "Cleaned text, cut to what the model can take, with exact character offsets.",
    "embeddings": "One vector per chunk. Texts that the ledger knows never reach the model.",
    "codec": "The compression, fitted once for this model and kept, used for documents and queries alike.",
    "vector_store": "The searchable table, brought up to date by row differences, and its index.",
    "release": "Moves the live pointer to the newest table version, if all blocking checks passed.",
}


def key(spec: PipelineSpec, asset: str) -> dg.AssetKey:
    return dg.AssetKey([spec.name, asset])


def provider_key(spec: PipelineSpec) -> str:
    """The resource that holds a pipeline's provider."""
    return f"{spec.name}_provider"


def pipeline_assets(spec: PipelineSpec) -> list[dg.AssetsDefinition]:
    """The six assets of a pipeline, in the order the data takes."""
    return [_documents(spec), _chunks(spec), _embeddings(spec), _codec(spec), _vector_store(spec), _release(spec)]


def step_context(context: AssetExecutionContext | dg.AssetCheckExecutionContext, spec: PipelineSpec) -> StepContext:
    return StepContext(spec, context.resources.warehouse, context.resources.progress)


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """What a user can mend fails the step with its sentence, without retries."""
    try:
        yield
    except EmbeddingPipelinesError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def _options(spec: PipelineSpec, asset: str, kinds: set[str], schema: Iterable[Any] | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"pipeline": spec.name}
    if schema is not None:
        columns = [dg.TableColumn(field.name, str(field.type)) for field in schema]
        metadata["dagster/column_schema"] = dg.TableSchema(columns=columns)
    return {
        "key": key(spec, asset),
        "group_name": spec.name,
        "description": DESCRIPTIONS[asset] if not spec.description else f"{DESCRIPTIONS[asset]}\n\n{spec.description}",
        "kinds": kinds,
        "owners": list(spec.owners) or None,
        "metadata": metadata,
        "backfill_policy": dg.BackfillPolicy.single_run(),
    }


def _documents(spec: PipelineSpec) -> dg.AssetsDefinition:
    schema = schemas.stored_documents_schema(spec.source.metadata_types)

    @dg.asset(
        **_options(spec, "documents", {spec.source.kind, "parquet"}, schema),
        required_resource_keys={"warehouse", "progress"},
    )
    def documents(context: AssetExecutionContext) -> MaterializeResult:
        return _whole(context, spec, lambda step: write_documents(step))

    return documents


def _chunks(spec: PipelineSpec) -> dg.AssetsDefinition:
    @dg.asset(
        **_options(spec, "chunks", {"python", "parquet"}, schemas.chunks_schema(spec.source.metadata_types)),
        deps=[key(spec, "documents")],
        partitions_def=buckets(spec),
        required_resource_keys={"warehouse", "progress", provider_key(spec)},
    )
    def chunks(context: AssetExecutionContext) -> None:
        provider = getattr(context.resources, provider_key(spec))

        def work(step: StepContext) -> Iterator[StepReport]:
            names = bucket_keys(context)
            for number, bucket in enumerate(names, 1):
                yield write_chunks(step, bucket, provider)
                step.progress.update("chunks", number, len(names), "buckets")

        _by_bucket(context, spec, "chunks", work)

    return chunks


def _embeddings(spec: PipelineSpec) -> dg.AssetsDefinition:
    @dg.asset(
        **_options(spec, "embeddings", {spec.model.kind, "parquet"}, None),
        deps=[key(spec, "chunks")],
        partitions_def=buckets(spec),
        required_resource_keys={"warehouse", "progress", provider_key(spec)},
        pool=f"embed_{spec.model.kind}",
    )
    def embeddings(context: AssetExecutionContext) -> None:
        provider = getattr(context.resources, provider_key(spec))

        def work(step: StepContext) -> Iterator[StepReport]:
            refuse_wrong_dimensions(step, provider)
            names = bucket_keys(context)
            made = [step.folder.chunks.manifest(bucket) for bucket in names]
            total, done = sum(entry.facts["tokens"] for entry in made if entry), 0

            def advance(tokens: int) -> None:
                nonlocal done
                done += tokens
                step.progress.update("embeddings", done, total, "tokens")

            with Ledger(step.warehouse.ledger) as ledger:
                for bucket in names:
                    yield write_embeddings(step, bucket, provider, ledger, advance)

        _by_bucket(context, spec, "embeddings", work)

    return embeddings


def _codec(spec: PipelineSpec) -> dg.AssetsDefinition:
    @dg.asset(
        **_options(spec, "codec", {"numpy"}, None),
        deps=[key(spec, "embeddings")],
        required_resource_keys={"warehouse", "progress", provider_key(spec)},
    )
    def codec(context: AssetExecutionContext) -> MaterializeResult:
        space = getattr(context.resources, provider_key(spec)).space
        return _whole(context, spec, lambda step: fit_codec(step, space))

    return codec


def _vector_store(spec: PipelineSpec) -> dg.AssetsDefinition:
    @dg.asset(
        **_options(spec, "vector_store", {spec.store.kind}, None),
        deps=[key(spec, "chunks"), key(spec, "embeddings"), key(spec, "codec")],
        required_resource_keys={"warehouse", "progress", provider_key(spec)},
    )
    def vector_store(context: AssetExecutionContext) -> MaterializeResult:
        space = getattr(context.resources, provider_key(spec)).space
        return _whole(context, spec, lambda step: update_vector_store(step, space))

    return vector_store


def _release(spec: PipelineSpec) -> dg.AssetsDefinition:
    @dg.asset(
        **_options(spec, "release", {spec.store.kind}, None),
        deps=[key(spec, "vector_store")],
        required_resource_keys={"warehouse", "progress", provider_key(spec)},
    )
    def release(context: AssetExecutionContext) -> MaterializeResult:
        space = getattr(context.resources, provider_key(spec)).space
        return _whole(context, spec, lambda step: make_release(step, space))

    return release


def _whole(context: AssetExecutionContext, spec: PipelineSpec, work: Any) -> MaterializeResult:
    """Run the step of an unpartitioned asset, alone on its pipeline."""
    step = step_context(context, spec)
    started = time.perf_counter()
    with readable_errors(), step.folder.lock():
        report = work(step)
    report = _timed(report, started)
    step.progress.finish(report)
    return MaterializeResult(metadata=metadata(report))


def _by_bucket(context: AssetExecutionContext, spec: PipelineSpec, asset: str, work: Any) -> None:
    """Run the step of a partitioned asset; each bucket is on record as soon as it is committed."""
    step = step_context(context, spec)
    reports: list[StepReport] = []
    started = time.perf_counter()
    with readable_errors(), step.folder.lock():
        for report in work(step):
            reports.append(report)
            if report.changed and len(context.partition_keys) > 1:
                # A run that dies later keeps this bucket; otherwise Dagster records all at the end.
                context.log_event(
                    dg.AssetMaterialization(key(spec, asset), partition=report.bucket, metadata=metadata(report))
                )
            context.add_asset_metadata(metadata(report), asset_key=key(spec, asset), partition_key=report.bucket)
    total = _timed(summed(asset, reports), started)
    context.log.info(f"{asset}: {total.facts}")
    step.progress.finish(total)


def _timed(report: StepReport, started: float) -> StepReport:
    return StepReport(report.step, report.changed, report.facts, report.bucket, time.perf_counter() - started)


ROWS = {
    "documents": "documents",
    "chunks": "chunks",
    "embeddings": "vectors",
    "vector_store": "rows",
    "release": "rows",
}


def metadata(report: StepReport) -> dict[str, Any]:
    """A report as Dagster metadata; what is numeric is plotted over runs."""
    values: dict[str, Any] = dict(report.facts)
    if report.step in ROWS:
        values["dagster/row_count"] = report.facts[ROWS[report.step]]
    if report.seconds:
        values["seconds"] = round(report.seconds, 3)
    return values | {"changed": report.changed}
