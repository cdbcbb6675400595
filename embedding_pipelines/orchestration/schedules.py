"""Schedules: one per pipeline that asks for it; each run takes all partitions."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.spec.pipeline import PipelineSpec


def pipeline_schedule(
    spec: PipelineSpec, job: UnresolvedAssetJobDefinition
) -> dg.ScheduleDefinition | None:
    """The schedule that the pipeline file asks for; it runs as soon as a daemon does, as the file
    says so."""
    if spec.schedule is None:
        return None

    @dg.schedule(
        name=f"{spec.name}_schedule",
        job=job,
        cron_schedule=spec.schedule,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Brings {spec.name!r} up to date at {spec.schedule!r}.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        return dg.RunRequest(
            run_key=str(context.scheduled_execution_time), tags=all_partitions(spec)
        )

    return schedule
