"""Assets: one chain per pipeline. A body reads, calls a step, reports; what the data means is in
`steps/`."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
from dagster import AssetExecutionContext
from pydantic import Field

from embedding_pipelines import schemas
from embedding_pipelines.embedding.batch_jobs import NotYet
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.orchestration.failures import Refused
from embedding_pipelines.orchestration.metadata import asset_metadata, column_schema
from embedding_pipelines.orchestration.partitions import partition_keys, partitions
from embedding_pipelines.progress import StepReport, summed
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.releases import release as make_release
from embedding_pipelines.space import Space
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.steps.chunks import write_chunks
from embedding_pipelines.steps.codec import fit_codec
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines.steps.embeddings import refuse_wrong_dimensions, write_embeddings
from embedding_pipelines.steps.train import learn_model
from embedding_pipelines.steps.vector_store import update_vector_store

RECORD_SECONDS = 5.0  # an event takes 30 ms with the instance's SQLite: two of each partition were 1.5 s of a small change

DESCRIPTIONS = {
    "documents": "Canonical rows of the source in partitions. Unchanged files are skipped; bad records go to a table "
    "of their own, with file, row and reason.",
    "chunks": "Cleaned text, cut to what the model can take, with exact character offsets.",
    "model": "Learnt once from the pipeline's own chunks, and again when its options change.",
    "embeddings": "One vector per chunk. Texts that the cache knows never reach the model.",
    "codec": "The compression, fitted once for this model and kept, used for documents and queries alike.",
    "vector_store": "The searchable table, brought up to date by row differences, and its index.",
    "release": "Moves the live pointer to the newest table version, if all blocking checks passed.",
}


class CodecConfig(dg.Config):
    """Launchpad options of the asset `codec`."""

    again: bool = Field(
        False, description="Fit it anew to the vectors of today: a new table beside the old one."
    )


class ReleaseConfig(dg.Config):
    """Launchpad options of the asset `release`."""

    force_reason: str = Field(
        "", description="Why to release what failed a check of its quality; empty: never."
    )


def key(spec: PipelineSpec, asset: str) -> dg.AssetKey:
    return dg.AssetKey([spec.name, asset])


def provider_key(spec: PipelineSpec) -> str:
    """The resource that holds a pipeline's provider."""
    return f"{spec.name}_provider"


def turn_key(spec: PipelineSpec) -> str:
    """The resource that lets the runs of a pipeline come one after the other."""
    return f"{spec.name}_turn"


def resource_keys(spec: PipelineSpec) -> set[str]:
    """What every asset and check of a pipeline needs."""
    return {"warehouse", "progress", provider_key(spec), turn_key(spec)}


def pipeline_assets(spec: PipelineSpec) -> list[dg.AssetsDefinition]:
    """The six assets of a pipeline, in the order the data takes; seven if its model is learnt from
    its own texts."""
    learnt = [_model(spec)] if spec.model.learns else []
    before, behind = (
        [_documents(spec), _chunks(spec)],
        [_codec(spec), _vector_store(spec), _release(spec)],
    )
    return [*before, *learnt, _embeddings(spec), *behind]


def step_context(
    context: AssetExecutionContext | dg.AssetCheckExecutionContext, spec: PipelineSpec
) -> StepContext:
    return StepContext(spec, context.resources.warehouse, context.resources.progress)


def space_of(
    context: AssetExecutionContext | dg.AssetCheckExecutionContext, spec: PipelineSpec
) -> Space:
    return provider_of(context, spec).space


@contextlib.contextmanager
def readable_errors() -> Iterator[None]:
    """What a user can mend fails the step with its sentence, without retries."""
    try:
        yield
    except EmbeddingPipelinesError as error:
        raise Refused(error) from error


def _asset(
    spec: PipelineSpec,
    asset: str,
    kinds: set[str],
    *,
    deps: Sequence[str] = (),
    schema: Iterable[pa.Field] | None = None,
    in_partitions: bool = False,
    always: bool = True,  # False: a run may end well without having made it
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """`@dg.asset` with all that the assets of a pipeline share."""
    with warnings.catch_warnings():
        # The policy is what makes one run of the whole chain possible; dagster 1.13 calls this
        # parameter beta.
        warnings.filterwarnings(
            "ignore", message=r"Parameter `backfill_policy`", category=dg.BetaWarning
        )
        return dg.asset(
            key=key(spec, asset),
            deps=[key(spec, name) for name in deps],
            group_name=spec.name,
            description=DESCRIPTIONS[asset]
            if not spec.description
            else f"{DESCRIPTIONS[asset]}\n\n{spec.description}",
            kinds=kinds,
            owners=list(spec.owners),
            metadata={"dagster/column_schema": column_schema(schema)} if schema is not None else {},
            partitions_def=partitions(spec) if in_partitions else None,
            backfill_policy=dg.BackfillPolicy.single_run(),
            required_resource_keys=resource_keys(spec),
            output_required=always,
        )


def _documents(spec: PipelineSpec) -> dg.AssetsDefinition:
    schema = schemas.stored_documents_schema(spec.source.metadata_types)

    @_asset(spec, "documents", {spec.source.kind, "parquet"}, schema=schema)
    def documents(context: AssetExecutionContext) -> dg.MaterializeResult[Any]:
        return _whole(context, spec, write_documents)

    return documents


def _chunks(spec: PipelineSpec) -> dg.AssetsDefinition:
    schema = schemas.chunks_schema(spec.source.metadata_types)

    @_asset(
        spec, "chunks", {"python", "parquet"}, deps=["documents"], schema=schema, in_partitions=True
    )
    def chunks(context: AssetExecutionContext) -> None:
        provider = provider_of(context, spec)

        def work(step: StepContext, names: Sequence[str]) -> Iterator[StepReport]:
            for number, partition in enumerate(names, 1):
                yield write_chunks(step, partition, provider)
                step.progress.update("chunks", number, len(names), "partitions")

        _by_partition(context, spec, "chunks", work)

    return chunks


def _model(spec: PipelineSpec) -> dg.AssetsDefinition:
    @_asset(spec, "model", {spec.model.kind}, deps=["chunks"])
    def model(context: AssetExecutionContext) -> dg.MaterializeResult[Any]:
        provider = provider_of(context, spec)
        return _whole(context, spec, lambda step: learn_model(step, provider))

    return model


def _embeddings(spec: PipelineSpec) -> dg.AssetsDefinition:
    made_from = ["chunks", "model"] if spec.model.learns else ["chunks"]

    @_asset(
        spec,
        "embeddings",
        {spec.model.kind, "parquet"},
        deps=made_from,
        in_partitions=True,
        always=False,
    )
    def embeddings(context: AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        provider = provider_of(context, spec)

        def work(step: StepContext, names: Sequence[str]) -> Iterator[StepReport]:
            refuse_wrong_dimensions(step, provider)
            made = [step.folder.chunks.manifest(partition) for partition in names]
            total, done = sum(entry.statistics["tokens"] for entry in made if entry), 0

            def advance(tokens: int) -> None:
                nonlocal done
                done += tokens
                step.progress.update("embeddings", done, total, "tokens")

            with EmbeddingCache(step.warehouse.cache) as cache:
                yield from write_embeddings(step, names, provider, cache, advance)

        try:
            _by_partition(context, spec, "embeddings", work)
        except NotYet as waiting:
            step_context(context, spec).progress.note(str(waiting))
            return  # and the steps behind it are skipped
        yield dg.MaterializeResult()

    return embeddings


def _codec(spec: PipelineSpec) -> dg.AssetsDefinition:
    @_asset(spec, "codec", {"numpy"}, deps=["embeddings"])
    def codec(context: AssetExecutionContext, config: CodecConfig) -> dg.MaterializeResult[Any]:
        space = space_of(context, spec)
        return _whole(context, spec, lambda step: fit_codec(step, space, config.again))

    return codec


def _vector_store(spec: PipelineSpec) -> dg.AssetsDefinition:
    @_asset(spec, "vector_store", {spec.store.kind}, deps=["chunks", "embeddings", "codec"])
    def vector_store(context: AssetExecutionContext) -> dg.MaterializeResult[Any]:
        space = space_of(context, spec)
        return _whole(context, spec, lambda step: update_vector_store(step, space))

    return vector_store


def _release(spec: PipelineSpec) -> dg.AssetsDefinition:
    @_asset(spec, "release", {spec.store.kind}, deps=["vector_store"])
    def release(context: AssetExecutionContext, config: ReleaseConfig) -> dg.MaterializeResult[Any]:
        space = space_of(context, spec)
        return _whole(context, spec, lambda step: make_release(step, space, config.force_reason))

    return release


def provider_of(
    context: AssetExecutionContext | dg.AssetCheckExecutionContext, spec: PipelineSpec
) -> Provider:
    provider: Provider = getattr(context.resources, provider_key(spec))
    return provider


def _whole(
    context: AssetExecutionContext, spec: PipelineSpec, work: Callable[[StepContext], StepReport]
) -> dg.MaterializeResult[Any]:
    """Run the step of an unpartitioned asset, alone on its pipeline."""
    step = step_context(context, spec)
    started = time.perf_counter()
    with readable_errors(), step.folder.lock():
        report = work(step)
    report = _timed(report, started)
    step.progress.finish(report)
    return dg.MaterializeResult(metadata=asset_metadata(report))


def _by_partition(
    context: AssetExecutionContext,
    spec: PipelineSpec,
    asset: str,
    work: Callable[[StepContext, Sequence[str]], Iterator[StepReport]],
) -> None:
    """Run the step of a partitioned asset.

    Dagster records all partitions when the step ends. Those of a step that takes longer than
    RECORD_SECONDS have events of their own, written when the next partition is committed, and those
    of a step that fails too.
    """
    step, names = step_context(context, spec), partition_keys(context)
    reports: list[StepReport] = []
    unrecorded: list[dg.AssetMaterialization] = []
    started = lap = recorded = time.perf_counter()

    def record() -> None:
        while unrecorded:
            context.log_event(unrecorded.pop(0))

    try:
        with readable_errors(), step.folder.lock():
            for made in work(step, names):
                report, lap = _timed(made, lap), time.perf_counter()
                reports.append(report)
                metadata: Mapping[str, Any] = asset_metadata(report)
                if report.changed and len(names) > 1:
                    partition = dg.AssetMaterialization(
                        key(spec, asset), partition=report.partition, metadata=metadata
                    )
                    unrecorded.append(partition)
                if lap - recorded > RECORD_SECONDS:
                    record()
                    recorded = lap
                context.add_asset_metadata(
                    metadata, asset_key=key(spec, asset), partition_key=report.partition
                )
    except BaseException:
        record()
        raise
    step.progress.finish(_timed(summed(asset, reports), started))


def _timed(report: StepReport, started: float) -> StepReport:
    return StepReport(
        report.step,
        report.changed,
        report.statistics,
        report.partition,
        time.perf_counter() - started,
    )
