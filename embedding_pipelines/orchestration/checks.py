"""Asset checks: what `steps/verify.py` finds, shown on the table and in the way of a wrong
release."""

import time
from collections.abc import Iterator
from dataclasses import replace

import dagster as dg

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.orchestration.assets import (
    key,
    provider_of,
    readable_errors,
    resource_keys,
    step_context,
)
from embedding_pipelines.quality.check import STRUCTURE
from embedding_pipelines.quality.checks import wanted_checks
from embedding_pipelines.quality.structure import verify
from embedding_pipelines.releases import live_release, read_releases
from embedding_pipelines.spec.evaluation import CHECKS
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.vector_store import table_state


def pipeline_checks(spec: PipelineSpec) -> list[dg.AssetChecksDefinition]:
    return [_table_checks(spec), _release_check(spec)]


def _table_checks(spec: PipelineSpec) -> dg.AssetChecksDefinition:
    effects = wanted_checks(spec)
    texts = STRUCTURE | {name: CHECKS[name][1] for name in effects}
    specs = [
        dg.AssetCheckSpec(
            name,
            asset=key(spec, "vector_store"),
            blocking=effects.get(name, "block") == "block",
            description=text,
        )
        for name, text in texts.items()
    ]

    @dg.multi_asset_check(
        name=f"{spec.name}_table_checks",
        specs=specs,
        can_subset=True,
        required_resource_keys=resource_keys(spec),
    )
    def table_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        step, started = step_context(context, spec), time.perf_counter()
        with readable_errors(), step.folder.lock(), EmbeddingCache(step.warehouse.cache) as cache:
            report, outcomes = verify(step, provider_of(context, spec), cache)
        step.progress.finish(replace(report, seconds=time.perf_counter() - started))
        selected = {chosen.name for chosen in context.selected_asset_check_keys}
        for outcome in outcomes:
            if not outcome.passed and not any(other.blocks for other in outcomes):
                step.progress.note(f"{outcome.name}: {outcome.sentence}")
            if outcome.name in selected:
                yield dg.AssetCheckResult(
                    passed=outcome.passed,
                    asset_key=key(spec, "vector_store"),
                    check_name=outcome.name,
                    severity=dg.AssetCheckSeverity.ERROR
                    if outcome.effect == "block"
                    else dg.AssetCheckSeverity.WARN,
                    description=outcome.sentence,
                    metadata=outcome.statistics,
                )

    return table_checks


def _release_check(spec: PipelineSpec) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        name="released_version_is_checked",
        asset=key(spec, "release"),
        description="The live release passed its checks; after a rollback it may be older than the newest one.",
        required_resource_keys=resource_keys(spec),
    )
    def released_version_is_checked(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        step = step_context(context, spec)
        with readable_errors():
            live, newest = live_release(step.folder), read_releases(step.folder).releases[-1]
        state, unproved = (
            table_state(step),
            [name for name in STRUCTURE if not live.checks.get(name)],
        )
        is_newest = state is not None and (newest.table, newest.version) == (
            state.table,
            state.version,
        )
        faults = [f"it did not pass {', '.join(unproved)}"] if unproved else []
        faults += [] if is_newest else [f"the table has moved on since release {newest.number}"]
        return dg.AssetCheckResult(
            passed=not faults,
            description=f"live: release {live.number}, {live.table} version {live.version}"
            + (f"; but {' and '.join(faults)}" if faults else ""),
            metadata={"live": live.number, "newest": newest.number, "checks": live.checks},
        )

    return released_version_is_checked
