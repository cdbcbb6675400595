"""Sensors: each pipeline has one that sees new, changed and deleted files and asks for one run; a
pipeline whose provider answers later has another, that asks for one when a batch job has ended.

`changed` is the whole logic of the first, a pure function; the sensor only lists files and passes
on its answer.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg

from embedding_pipelines.embedding.batch_jobs import BatchJobs
from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.files import read_json
from embedding_pipelines.orchestration.metadata import asset_key
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.orchestration.resources import WarehouseResource
from embedding_pipelines.orchestration.source import (
    SOURCE,
    Listing,
    listing_of,
    listing_version,
    observe,
)
from embedding_pipelines.run import Run
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.documents import read_files

TICK_SECONDS = 30
AGAIN_SECONDS = 900.0  # between two runs that are asked for by the same batch jobs
BATCH_TICK_SECONDS = 60  # a batch job takes minutes to hours
SHOWN_FILES = 5
DATA_VERSION_TAG = "dagster/data_version"


@dataclass(frozen=True)
class Changes:
    """How a listing differs from what was last read, and the key of the run that it calls for."""

    new: list[str]
    changed: list[str]
    deleted: list[str]
    run_key: str | None = None  # None: nothing changed, or the run was asked for already

    @property
    def is_empty(self) -> bool:
        return not (self.new or self.changed or self.deleted)

    def __str__(self) -> str:
        groups = {"new": self.new, "changed": self.changed, "deleted": self.deleted}
        parts = []
        for group, names in groups.items():
            shown = ", ".join(names[:SHOWN_FILES]) + (" …" if len(names) > SHOWN_FILES else "")
            parts += [f"{len(names)} {group}: {shown}"] if names else []
        return "; ".join(parts) or "no file has changed"


def changed(
    listing: Listing, read: Listing, options: str, cursor: str | None
) -> tuple[Changes, str]:
    """Compare the files there are with the files that were last read.

    The cursor remembers for what a run was last asked, and how many were asked for: the same files
    with the same options ask once, even if that run fails; files that go and come back ask again,
    and so does a corrected pipeline file.
    """
    last, count = json.loads(cursor) if cursor else (None, 0)
    new = sorted(listing.keys() - read.keys())
    deleted = sorted(read.keys() - listing.keys())
    modified = sorted(
        name for name in listing.keys() & read.keys() if tuple(listing[name]) != tuple(read[name])
    )
    changes = Changes(new, modified, deleted)
    if changes.is_empty:
        return changes, json.dumps([None, count])
    version = listing_version(listing, options)
    if version == last:
        return changes, json.dumps([last, count])
    return replace(changes, run_key=f"{version}:{count + 1}"), json.dumps([version, count + 1])


def pipeline_sensor(spec: PipelineSpec, home: Path) -> dg.SensorDefinition:
    """Asks for one run over all partitions when the source's files differ from those last read,
    and reports those files as the source's new version."""

    @dg.sensor(
        name=f"{spec.name}_source_sensor",
        job_name=spec.name,
        minimum_interval_seconds=TICK_SECONDS,
        description=f"Asks for one run of {spec.name!r} when files of its source are new, changed "
        "or deleted.",
    )
    def source_sensor(
        context: dg.SensorEvaluationContext, warehouse: WarehouseResource
    ) -> dg.SensorResult:
        run = Run(spec, warehouse.open(home))
        try:
            files = spec.source.files(run.warehouse.home)
            record = read_files(run)
        except EmbeddingPipelinesError as error:
            return dg.SensorResult(skip_reason=str(error))
        listing = listing_of(files)
        read = {name: tuple(statistics.stamp) for name, statistics in record.items()}
        changes, cursor = changed(listing, read, fingerprint(spec), context.cursor)
        if changes.run_key is None:
            note = "" if changes.is_empty else "; a run was asked for already"
            return dg.SensorResult(skip_reason=f"{changes}{note}", cursor=cursor)
        context.log.info(str(changes))
        request = dg.RunRequest(run_key=changes.run_key, tags=all_partitions(spec))
        version, metadata = observe(files)
        observation = dg.AssetObservation(
            asset_key(spec, SOURCE),
            description=str(changes),
            metadata=metadata,
            tags={DATA_VERSION_TAG: version},
        )
        return dg.SensorResult(run_requests=[request], asset_events=[observation], cursor=cursor)

    return source_sensor


def batch_sensor(spec: PipelineSpec, home: Path) -> dg.SensorDefinition:
    """Asks for a run when texts that were with the service have come back."""

    @dg.sensor(
        name=f"{spec.name}_batch_sensor",
        job_name=spec.name,
        minimum_interval_seconds=BATCH_TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,  # the pipeline file asks for it
        description=f"Asks for a run of {spec.name!r} when a batch of its texts has been embedded.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, warehouse: WarehouseResource
    ) -> dg.SensorResult:
        opened = warehouse.open(home)
        marker, nothing = opened.pipeline(spec.name).batch_jobs, "No batch job is running."
        if not marker.exists():
            return dg.SensorResult(skip_reason=nothing)
        try:
            # Within the lock nobody replaces or removes the marker.
            with opened.batch_jobs_lock(timeout_seconds=0), Run(spec, opened) as run:
                mine = set((read_json(marker) or {"batches": []})["batches"])
                if not mine:
                    return dg.SensorResult(skip_reason=nothing)
                jobs = BatchJobs(opened.batch_jobs, run.model, run.cache, "document", attempts=1)
                # Those that another pipeline's run has collected are on record no more.
                collected = mine - {job.tag for job in jobs.jobs()}
                ready = sorted({*collected, *jobs.finished()})
                reason = "" if ready else str(jobs.running())
                # Dagster starts one run per key: if that one failed, it is asked for again after a
                # while.
                again = int((time.time() - marker.stat().st_mtime) / AGAIN_SECONDS)
        except EmbeddingPipelinesError as error:
            return dg.SensorResult(skip_reason=str(error))
        if not ready:
            return dg.SensorResult(skip_reason=reason)
        request = dg.RunRequest(run_key=f"{'+'.join(ready)}:{again}", tags=all_partitions(spec))
        return dg.SensorResult(run_requests=[request])

    return sensor
