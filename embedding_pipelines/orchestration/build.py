"""Puts pipelines together as Dagster definitions: assets, checks, jobs, schedules, sensors,
resources."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.orchestration.assets import pipeline_assets, provider_key, turn_key
from embedding_pipelines.orchestration.checks import pipeline_checks
from embedding_pipelines.orchestration.resources import (
    ProgressResource,
    ProviderResource,
    TurnResource,
    WarehouseResource,
)
from embedding_pipelines.orchestration.schedules import pipeline_schedule
from embedding_pipelines.orchestration.sensors import batch_sensor, pipeline_sensor
from embedding_pipelines.spec.load import read_pipelines
from embedding_pipelines.spec.pipeline import PipelineSpec


def home_definitions(home: Path) -> dg.Definitions:
    """All pipelines of a home folder. A broken file takes down nothing but itself: it stands in the
    graph as one asset that carries its error."""
    specs, broken = read_pipelines(home)
    for path, error in broken.items():
        dg.get_dagster_logger().error(f"{path} is left out:\n{error}")
    definitions = pipeline_definitions(specs.values())
    return dg.Definitions.merge(
        definitions, dg.Definitions(assets=[_broken(*item) for item in broken.items()])
    )


def pipeline_definitions(specs: Iterable[PipelineSpec], **resources: Any) -> dg.Definitions:
    """The definitions of some pipelines; `resources` replace those of the same key."""
    specs = list(specs)
    jobs = {spec.name: pipeline_job(spec) for spec in specs}
    schedules = [
        schedule for spec in specs if (schedule := pipeline_schedule(spec, jobs[spec.name]))
    ]
    return dg.Definitions(
        assets=[asset for spec in specs for asset in pipeline_assets(spec)],
        asset_checks=[check for spec in specs for check in pipeline_checks(spec)],
        jobs=list(jobs.values()),
        schedules=schedules,
        sensors=[
            *(pipeline_sensor(spec, jobs[spec.name]) for spec in specs),
            *(batch_sensor(spec, jobs[spec.name]) for spec in specs if spec.model.answers_later),
        ],
        resources={
            "warehouse": WarehouseResource(),
            "progress": ProgressResource(),
            **{provider_key(spec): ProviderResource.of(spec.model) for spec in specs},
            **{turn_key(spec): TurnResource(pipeline=spec.name) for spec in specs},
            **resources,
        },
        # Few and full runs: a process per step would load model and libraries again in each.
        executor=dg.in_process_executor,
    )


def pipeline_job(spec: PipelineSpec) -> UnresolvedAssetJobDefinition:
    """The job that brings a pipeline up to date, from its source to its release."""
    return dg.define_asset_job(
        spec.name,
        selection=dg.AssetSelection.groups(spec.name),
        description=f"Brings pipeline {spec.name!r} up to date, from its source to its release.",
    )


def _broken(path: Path, error: ConfigError) -> dg.AssetSpec:
    name = re.sub(r"[^A-Za-z0-9_]", "_", path.stem)
    return dg.AssetSpec(
        key=[name, "broken_pipeline_file"],
        group_name=name,
        kinds={"error"},
        description=f"`{path.name}` is left out until it is mended:\n\n```\n{error}\n```",
    )
