"""Assets: one chain per pipeline, one asset per step, from its files to its release.

A body opens the pipeline, lets the step work, and reports; what the data means is in the core. No
asset has an automation condition: a run takes the whole chain, and a schedule or a sensor asks for
it.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from embedding_pipelines.activity import recorded
from embedding_pipelines.allocators import return_memory
from embedding_pipelines.embedding.batch_jobs import BatchPending
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.orchestration.failures import readable_errors
from embedding_pipelines.orchestration.metadata import (
    asset_inputs,
    asset_key,
    asset_metadata,
    data_version,
    described,
    file_link,
    run_metadata,
    table_columns,
)
from embedding_pipelines.orchestration.partitions import partitions
from embedding_pipelines.orchestration.resources import (
    LogProgress,
    ModelResource,
    WarehouseResource,
)
from embedding_pipelines.orchestration.schedules import freshness
from embedding_pipelines.orchestration.source import SOURCE, source_asset
from embedding_pipelines.orchestration.trail import Noted, step_at_work
from embedding_pipelines.progress import Paused, Progress, StepReport, sum_reports
from embedding_pipelines.run import Run, line_of
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.base import Step
from embedding_pipelines.steps.chain import steps_of


def pipeline_assets(spec: PipelineSpec, home: Path) -> list[dg.AssetsDefinition]:
    """The source of a pipeline and an asset for each of its steps, in the order the data takes."""
    steps = [step for step in steps_of(spec) if step.is_asset]
    return [source_asset(spec, home), *(build_asset(step, steps, spec, home) for step in steps)]


def open_run(
    spec: PipelineSpec,
    home: Path,
    warehouse: WarehouseResource,
    model: ModelResource,
    progress: Progress,
    log: dg.DagsterLogManager,
) -> Run:
    """The pipeline for a step of this Dagster run: with the run's model, which all steps share,
    held against other runs.

    Raises ConfigError if the launchpad names a wrong model.
    """
    opened, options = warehouse.open(home), model.choose(spec)
    folder = opened.pipeline(spec.name, line_of(spec))
    live = model.open(options, opened.home, folder.model.parent)
    warehouse.hold(opened, spec.name, log)
    if isinstance(progress, LogProgress):  # lines of the step, so that the log can be filtered
        progress = LogProgress(log, spec.name)
    require_lease = partial(warehouse.require_lease, folder)
    return Run(spec, opened, Noted(progress), live, options, require_lease=require_lease)


def build_asset(
    step: Step, steps: Sequence[Step], spec: PipelineSpec, home: Path
) -> dg.AssetsDefinition:
    """The asset of one step. Its output is optional: a step that waits for a batch job ends well
    without one, and what is downstream is skipped."""

    @_decorator(step, steps, spec, home)
    def asset(
        context: dg.AssetExecutionContext,
        warehouse: WarehouseResource,
        model: ModelResource,
        progress: dg.ResourceParam[Progress],
    ) -> Iterator[dg.MaterializeResult[Any]]:
        with readable_errors():
            names = _partition_names(context, step, spec)
            with open_run(spec, home, warehouse, model, progress, context.log) as run:
                try:
                    report = _perform(context, step, run, names)
                    if step is steps_of(spec)[-1]:
                        warehouse.publish(run.folder)
                except BatchPending as waiting:
                    run.progress.note(str(waiting))
                    return
                except Paused as paused:  # who asked for it is told at the end
                    context.log.info(f"Stopped as was asked for: {paused}.")
                    return
                run.progress.finish(report)
                yield dg.MaterializeResult(
                    metadata=run_metadata(step, report, run),
                    data_version=data_version(step, run, names, report),
                )

    return asset


def _partition_names(
    context: dg.AssetExecutionContext, step: Step, spec: PipelineSpec
) -> Sequence[str]:
    """The partitions of this Dagster run.

    Raises ConfigError for a run that names none: Dagster lets it through where a selection matches
    nothing, which it takes for everything, and ends it at the next asset.
    """
    if not step.partitioned:
        return spec.partition_names
    if context.has_partition_key or context.has_partition_key_range:
        return sorted(context.partition_keys)
    every = f"{spec.partition_names[0]}...{spec.partition_names[-1]}"
    raise ConfigError(
        f"Pipeline {spec.name!r}: {step.name!r} has partitions, and this run names none. Say "
        f"`--partition-range {every}`, see that the selection names an asset that there is "
        f"('group:{spec.name}', 'key:\"{spec.name}/{step.name}\"'), or launch the job "
        f"{spec.name!r}, which takes all of them."
    )


def _decorator(
    step: Step, steps: Sequence[Step], spec: PipelineSpec, home: Path
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """`@dg.asset` with all that Dagster shows of a step before it ran."""
    names = {other.name for other in steps}
    inputs = [name for name in asset_inputs(step) if name in names] or [SOURCE]
    options = {
        option.name: dg.Field(
            type(option.default),
            is_required=False,
            default_value=option.default,
            description=option.description,
        )
        for option in step.options
    }
    with warnings.catch_warnings():
        # The policy is what makes one run of the whole chain possible; dagster 1.13 calls this
        # parameter beta.
        warnings.filterwarnings(
            "ignore", message=r"Parameter `backfill_policy`", category=dg.BetaWarning
        )
        return dg.asset(
            key=asset_key(spec, step.name),
            deps=[asset_key(spec, name) for name in inputs],
            group_name=spec.name,
            description=described(step.description, spec),
            kinds=step.kinds(spec),
            owners=list(spec.owners),
            metadata={**table_columns(steps, step, spec), **file_link(spec, home)},
            partitions_def=partitions(spec) if step.partitioned else None,
            backfill_policy=dg.BackfillPolicy.single_run(),
            config_schema=options or None,
            output_required=False,
            code_version=step.configuration(spec),
            freshness_policy=freshness(spec) if step is steps[-1] else None,
            pool=spec.name,
        )


def _perform(
    context: dg.AssetExecutionContext, step: Step, run: Run, names: Sequence[str]
) -> StepReport:
    """Let the step work; the report over all its partitions.

    Dagster records each partition when the step ends. If it fails, those that were finished are
    recorded here.
    """
    reports: list[StepReport] = []
    return_memory()  # what the step before has freed
    started = lap = time.perf_counter()
    try:
        with (
            run.folder.lock(),
            recorded(run, step.name, step is steps_of(run.spec)[-1]),
            step_at_work(run.spec.name, context.run.run_id, step.name) as tell,
        ):
            for report in step.work(run, names, context.op_execution_context.op_config):
                seconds, lap = time.perf_counter() - lap, time.perf_counter()
                reports.append(replace(report, seconds=seconds))
                tell(reports[-1])
    except BaseException:
        for report in reports:
            if step.partitioned and report.changed:
                context.log_event(
                    dg.AssetMaterialization(
                        context.asset_key,
                        partition=report.partition,
                        metadata=asset_metadata(step, report, run),
                    )
                )
        raise
    if not step.partitioned:
        return reports[0]
    for report in reports:
        context.add_asset_metadata(
            asset_metadata(step, report, run), partition_key=report.partition
        )
    return replace(sum_reports(step.name, reports), seconds=time.perf_counter() - started)
