"""Cleaning: a job that deletes what nothing in the home's warehouse needs, and its weekly schedule."""

from pathlib import Path

import dagster as dg

from embedding_pipelines.clean import clean
from embedding_pipelines.orchestration.dead_runs import CLEANS as NAME  # which no pipeline can have
from embedding_pipelines.orchestration.failures import readable_errors

WEEKLY = "30 3 * * 0"


def cleaning(home: Path) -> dg.Definitions:
    """For a whole home, once. The schedule runs as soon as a daemon does: what it deletes nobody
    needs."""

    @dg.op(name="clean_warehouse", description="What `embedding-pipelines clean` does.")
    def clean_warehouse(context: dg.OpExecutionContext) -> None:
        with readable_errors():
            cleaned = clean(home)
        for name, garbage in cleaned.garbage.items():
            for entry in garbage:
                context.log.info(f"{name}: {entry.what} {entry.path}, {entry.size_bytes:,} bytes")
        context.log.info(
            f"{cleaned.vectors:,} vectors of the embedding cache; {cleaned.size_bytes:,} bytes in all"
        )
        for name in cleaned.partial:
            context.log.info(f"{name}: not looked at: this machine has only what its searches read")
        for sentence in cleaned.left_alone:
            context.log.warning(f"left alone: {sentence}")

    @dg.job(
        name=NAME,
        executor_def=dg.in_process_executor,
        description="Deletes what no release, no candidate and no next run of any pipeline needs.",
    )
    def job() -> None:
        clean_warehouse()

    schedule = dg.ScheduleDefinition(
        name=f"{NAME}_schedule",
        job=job,
        cron_schedule=WEEKLY,
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    return dg.Definitions(jobs=[job], schedules=[schedule])
