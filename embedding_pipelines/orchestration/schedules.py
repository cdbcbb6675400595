"""Schedules: one per pipeline that asks for it, and how fresh that keeps its release."""

from datetime import timedelta
from pathlib import Path

import dagster as dg

from embedding_pipelines.orchestration.dead_runs import end_dead_runs
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import Warehouse

NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
# The longest time between two runs if a field of the schedule names some values only, by field.
LONGEST = (
    timedelta(hours=1),
    timedelta(days=1),
    timedelta(days=31),
    timedelta(days=366),
    timedelta(days=7),
)


def pipeline_schedule(spec: PipelineSpec, home: Path) -> dg.ScheduleDefinition | None:
    """The schedule that the pipeline file asks for; it runs as soon as a daemon does, as the file
    says so."""
    if spec.schedule is None:
        return None

    @dg.schedule(
        name=f"{spec.name}_schedule",
        job_name=spec.name,
        cron_schedule=spec.schedule,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Brings {spec.name!r} up to date at {spec.schedule!r}.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        end_dead_runs(context.instance, Warehouse(home))
        return dg.RunRequest(
            run_key=str(context.scheduled_execution_time), tags=all_partitions(spec)
        )

    return schedule


def freshness(spec: PipelineSpec) -> dg.FreshnessPolicy | None:
    """When Dagster calls the release stale: a warning after one and a half, a failure after two and
    a half times the longest time between two runs.

    The coarsest field that the schedule restricts says how long that may be: `*/15 * * * *` counts
    as an hour, weekdays at nine as a week.
    """
    if spec.schedule is None:
        return None
    fields = NAMED.get(spec.schedule.strip(), spec.schedule).split()
    longest = max(
        (span for span, field in zip(LONGEST, fields, strict=True) if field not in ("*", "?")),
        default=timedelta(minutes=1),
    )
    return dg.FreshnessPolicy.time_window(fail_window=longest * 2.5, warn_window=longest * 1.5)
