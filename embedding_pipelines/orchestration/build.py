"""Puts pipelines together as Dagster definitions: assets, checks, jobs, schedules, sensors,
resources."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.orchestration.assets import pipeline_assets
from embedding_pipelines.orchestration.checks import broken_file, pipeline_checks
from embedding_pipelines.orchestration.partitions import job_tags
from embedding_pipelines.orchestration.resources import RESOURCES
from embedding_pipelines.orchestration.schedules import pipeline_schedule
from embedding_pipelines.orchestration.sensors import batch_sensor, pipeline_sensor
from embedding_pipelines.spec.load import escaped, find_file, read_pipelines
from embedding_pipelines.spec.pipeline import PipelineSpec


def home_definitions(home: Path) -> dg.Definitions:
    """All pipelines of a home folder. A broken file takes down nothing but itself: it stands in the
    graph as an asset with its error and a failing check."""
    specs, broken = read_pipelines(home)
    parts = [dg.Definitions(resources=RESOURCES)]
    for spec in specs.values():
        try:
            parts.append(_definitions(spec, home))
        except Exception as refusal:  # noqa: BLE001 - whatever it is, the other pipelines are up
            words = " ".join(str(refusal).split())
            broken[find_file(spec.name, home)] = ConfigError(f"Dagster does not take it: {words}")
    groups = {name for name in specs if find_file(name, home) not in broken}
    for path, error in sorted(broken.items()):
        name = _group(path, groups)
        groups.add(name)
        dg.get_dagster_logger().error(f"{escaped(path)} is left out:\n{error}")
        parts.append(broken_file(path, name, str(error)))
    return dg.Definitions.merge(*parts)


def _group(path: Path, taken: set[str]) -> str:
    """A name for Dagster of a file that may have any: the file's, as far as Dagster allows it."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", path.stem)[:100]
    number = 1
    while (name if number == 1 else f"{name}_{number}") in taken:
        number += 1
    return name if number == 1 else f"{name}_{number}"


def pipeline_definitions(
    specs: Iterable[PipelineSpec], home: Path, **resources: Any
) -> dg.Definitions:
    """The definitions of some pipelines below a home folder; `resources` replace those of the same
    key."""
    parts = [_definitions(spec, home) for spec in specs]
    return dg.Definitions.merge(dg.Definitions(resources={**RESOURCES, **resources}), *parts)


def _definitions(spec: PipelineSpec, home: Path) -> dg.Definitions:
    """Those of one pipeline, which take the resources of the whole."""
    job = dg.define_asset_job(
        spec.name,
        selection=dg.AssetSelection.groups(spec.name),
        description=f"Brings {spec.name!r} up to date, from its source to its release.",
        # A process per step would load the model and its libraries again in each.
        executor_def=dg.in_process_executor,
        tags=job_tags(spec),
    )
    schedule = pipeline_schedule(spec, home)
    sensors = [pipeline_sensor(spec, home)]
    if any(model.uses_batch_jobs for model in spec.models):
        sensors.append(batch_sensor(spec, home))
    return dg.Definitions(
        assets=pipeline_assets(spec, home),
        asset_checks=pipeline_checks(spec, home),
        jobs=[job],
        schedules=[] if schedule is None else [schedule],
        sensors=sensors,
    )
