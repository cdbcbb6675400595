"""The runs of a pipeline that Dagster has on record, whoever started them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from embedding_pipelines.environment import instance_folder
from embedding_pipelines.orchestration.dead_runs import ENDED
from embedding_pipelines.orchestration.failures import readable_records
from embedding_pipelines.orchestration.instance import has_records, open_instance

STATUS = {  # in our words, by Dagster's
    dg.DagsterRunStatus.SUCCESS: "succeeded",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "failed",
    dg.DagsterRunStatus.STARTED: "running",
    dg.DagsterRunStatus.CANCELING: "running",
}
WAITING = "queued"


@dataclass(frozen=True)
class PastRun:
    """A run on record: status is queued, running, succeeded or failed."""

    run_id: str
    kind: str  # "run", or what else was done: "optimize", "deploy"
    status: str
    began_at: datetime
    ended_at: datetime | None


def past_runs(home: Path, name: str, kinds: Iterable[str], limit: int) -> list[PastRun]:
    """The newest runs of a pipeline, newest first. Raises StoreError if Dagster's records cannot be
    read."""
    folder = instance_folder(home)
    if not has_records(folder):
        return []
    runs = list[PastRun]()
    with readable_records(folder), open_instance(home) as instance:
        for kind in kinds:
            job = name if kind == "run" else f"{name}__{kind}"
            records = instance.get_run_records(dg.RunsFilter(job_name=job), limit=limit)
            runs += [_past_run(record, kind) for record in records]
    return sorted(runs, key=lambda run: run.began_at, reverse=True)[:limit]


def end_run(home: Path, run_id: str) -> None:
    """Mark as failed what a killed process left as started; nothing, if Dagster has no such run."""
    folder = instance_folder(home)
    if not has_records(folder):
        return
    with readable_records(folder), open_instance(home) as instance:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, ENDED)


def _past_run(record: dg.RunRecord, kind: str) -> PastRun:
    run = record.dagster_run
    ended = record.end_time
    return PastRun(
        run_id=run.run_id,
        kind=kind,
        status=STATUS.get(run.status, WAITING),
        began_at=record.create_timestamp.astimezone(UTC),
        ended_at=None if ended is None else datetime.fromtimestamp(ended, UTC),
    )
