"""Asset checks: what `steps/verify.py` finds, shown on the table and in the way of a wrong release."""

from collections.abc import Iterator

import dagster as dg

from embedding_pipelines.orchestration.assets import key, provider_key, readable_errors, step_context
from embedding_pipelines.pipeline import PipelineSpec
from embedding_pipelines.steps.release import live_release, read_releases
from embedding_pipelines.steps.vector_store import table_state
from embedding_pipelines.steps.verify import CHECKS, verify


def pipeline_checks(spec: PipelineSpec) -> list[dg.AssetChecksDefinition]:
    return [_table_checks(spec), _release_check(spec)]


def _table_checks(spec: PipelineSpec) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(name, asset=key(spec, "vector_store"), blocking=True, description=text)
        for name, text in CHECKS.items()
    ]

    @dg.multi_asset_check(
        name=f"{spec.name}_table_checks",
        specs=specs,
        required_resource_keys={"warehouse", "progress", provider_key(spec)},
    )
    def table_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        step = step_context(context, spec)
        with readable_errors(), step.folder.lock():
            outcomes = verify(step, getattr(context.resources, provider_key(spec)).space)
        for outcome in outcomes:
            yield dg.AssetCheckResult(
                passed=outcome.passed,
                asset_key=key(spec, "vector_store"),
                check_name=outcome.name,
                description=outcome.sentence,
                metadata=outcome.facts,
            )

    return table_checks


def _release_check(spec: PipelineSpec) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        name="released_version_is_checked",
        asset=key(spec, "release"),
        description="The live release passed its checks; after a rollback it may be older than the newest one.",
        required_resource_keys={"warehouse", "progress"},
    )
    def released_version_is_checked(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        step = step_context(context, spec)
        with readable_errors():
            live, newest = live_release(step.folder), read_releases(step.folder).releases[-1]
        state = table_state(step)
        passed = (
            set(live.checks) == set(CHECKS)
            and all(live.checks.values())
            and state is not None
            and (newest.table, newest.version) == (state.table, state.version)
        )
        return dg.AssetCheckResult(
            passed=passed,
            description=f"live: release {live.number}, {live.table} version {live.version}",
            metadata={"live": live.number, "newest": newest.number, "checks": live.checks},
        )

    return released_version_is_checked
