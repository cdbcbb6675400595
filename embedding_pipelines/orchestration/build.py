"""Puts pipelines together as Dagster definitions: assets, checks, jobs, schedules, sensors,
resources."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg

from embedding_pipelines.orchestration.assets import pipeline_assets
from embedding_pipelines.orchestration.checks import broken_file, pipeline_checks
from embedding_pipelines.orchestration.partitions import job_tags
from embedding_pipelines.orchestration.resources import RESOURCES
from embedding_pipelines.orchestration.schedules import pipeline_schedule
from embedding_pipelines.orchestration.sensors import batch_sensor, pipeline_sensor
from embedding_pipelines.spec.load import read_pipelines
from embedding_pipelines.spec.pipeline import PipelineSpec


def home_definitions(home: Path) -> dg.Definitions:
    """All pipelines of a home folder. A broken file takes down nothing but itself: it stands in the
    graph as an asset with its error and a failing check."""
    specs, broken = read_pipelines(home)
    parts = [pipeline_definitions(specs.values(), home)]
    for path, error in broken.items():
        dg.get_dagster_logger().error(f"{path} is left out:\n{error}")
        parts.append(broken_file(path, re.sub(r"[^A-Za-z0-9_]", "_", path.stem), str(error)))
    return dg.Definitions.merge(*parts)


def pipeline_definitions(
    specs: Iterable[PipelineSpec], home: Path, **resources: Any
) -> dg.Definitions:
    """The definitions of some pipelines below a home folder; `resources` replace those of the same
    key."""
    specs = list(specs)
    jobs = [
        dg.define_asset_job(
            spec.name,
            selection=dg.AssetSelection.groups(spec.name),
            description=f"Brings {spec.name!r} up to date, from its source to its release.",
            # A process per step would load the model and its libraries again in each.
            executor_def=dg.in_process_executor,
            tags=job_tags(spec),
        )
        for spec in specs
    ]
    schedules = [pipeline_schedule(spec) for spec in specs]
    return dg.Definitions(
        assets=[asset for spec in specs for asset in pipeline_assets(spec, home)],
        asset_checks=[check for spec in specs for check in pipeline_checks(spec, home)],
        jobs=jobs,
        schedules=[schedule for schedule in schedules if schedule is not None],
        sensors=[
            *(pipeline_sensor(spec, home) for spec in specs),
            *(batch_sensor(spec, home) for spec in specs if spec.model.uses_batch_jobs),
        ],
        resources={**RESOURCES, **resources},
    )
