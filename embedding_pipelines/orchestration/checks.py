"""Asset checks: what the core finds in a new table, shown on the table and in the way of a wrong
release."""

import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg

from embedding_pipelines.activity import recorded
from embedding_pipelines.orchestration.assets import open_run
from embedding_pipelines.orchestration.failures import readable_errors
from embedding_pipelines.orchestration.metadata import asset_key
from embedding_pipelines.orchestration.resources import ModelResource, WarehouseResource
from embedding_pipelines.progress import Progress
from embedding_pipelines.quality.evaluate import CHECKS, STRUCTURE, effects
from embedding_pipelines.releases import live_release, read_releases
from embedding_pipelines.spec.load import escaped
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.checks import current_checks
from embedding_pipelines.steps.vector_store import table_state

SHOWN_COLUMNS = 90  # of a block of text in the web interface


def pipeline_checks(spec: PipelineSpec, home: Path) -> list[dg.AssetChecksDefinition]:
    return [_table_checks(spec, home), _release_check(spec, home)]


def _table_checks(spec: PipelineSpec, home: Path) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            name,
            asset=asset_key(spec, "vector_store"),
            blocking=effect == "block",
            description=CHECKS[name].description,
        )
        for name, effect in effects(spec).items()
    ]

    @dg.multi_asset_check(
        name=f"{spec.name}_table_checks", specs=specs, can_subset=True, pool=spec.name
    )
    def table_checks(
        context: dg.AssetCheckExecutionContext,
        warehouse: WarehouseResource,
        model: ModelResource,
        progress: dg.ResourceParam[Progress],
    ) -> Iterator[dg.AssetCheckResult]:
        started = time.perf_counter()
        with readable_errors():
            run = open_run(spec, home, warehouse, model, progress, context.log)
            with run, run.folder.lock(), recorded(run, "checks"):
                (report,) = step_named("checks").work(run, spec.partition_names)
                record = current_checks(run)
        assert record is not None
        outcomes = record.checks
        run.progress.finish(replace(report, seconds=time.perf_counter() - started))
        blocking = [f"\n  {other.name}: {other.sentence}" for other in outcomes if other.blocks]
        selected = {key.name for key in context.selected_asset_check_keys}
        for outcome in outcomes:
            if not outcome.passed and not blocking:
                run.progress.note(f"{outcome.name}: {outcome.sentence}")
            if outcome.name in selected:
                yield dg.AssetCheckResult(
                    passed=outcome.passed,
                    asset_key=asset_key(spec, "vector_store"),
                    check_name=outcome.name,
                    severity=dg.AssetCheckSeverity.ERROR
                    if outcome.effect == "block"
                    else dg.AssetCheckSeverity.WARN,
                    description=outcome.sentence,
                    metadata=outcome.statistics,
                )
        if blocking:  # Dagster's own error, which follows, names the checks alone
            context.log.error(f"{spec.name} checks: the release is held back:{''.join(blocking)}")

    return table_checks


def _release_check(spec: PipelineSpec, home: Path) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        name="released_version_is_checked",
        asset=asset_key(spec, "release"),
        description="The live release passed its checks; after a rollback it may be older than "
        "the newest one.",
        pool=spec.name,
    )
    def released_version_is_checked(
        context: dg.AssetCheckExecutionContext,
        warehouse: WarehouseResource,
        model: ModelResource,
        progress: dg.ResourceParam[Progress],
    ) -> dg.AssetCheckResult:
        with readable_errors():
            run = open_run(spec, home, warehouse, model, progress, context.log)
            live, newest = live_release(run.folder), read_releases(run.folder).releases[-1]
            state = table_state(run)
        failed = [name for name in STRUCTURE if not live.checks.get(name)]
        faults = [f"it did not pass {', '.join(failed)}"] if failed else []
        if state is None or (newest.table, newest.version) != (state.table, state.version):
            faults.append(f"the table has moved on since release {newest.number}")
        return dg.AssetCheckResult(
            passed=not faults,
            description=f"live: release {live.number}, {live.table} version {live.version}"
            + (f"; but {' and '.join(faults)}" if faults else ""),
            metadata={"live": live.number, "newest": newest.number, "checks": live.checks},
        )

    return released_version_is_checked


def broken_file(path: Path, name: str, error: str) -> dg.Definitions:
    """A pipeline file that cannot be read, as an asset with its error and a check that fails."""
    key = dg.AssetKey([name, "pipeline_file"])
    lines = "\n".join(textwrap.fill(line, SHOWN_COLUMNS) for line in error.splitlines())
    asset = dg.AssetSpec(
        key,
        group_name=name,
        description=f"`{escaped(path.name)}` is left out until it is corrected:\n\n```\n{lines}\n```",
        metadata={"path": dg.MetadataValue.path(escaped(path))},
    )

    @dg.asset_check(
        name="is_valid", asset=key, description="The pipeline file was readable when it was loaded."
    )
    def is_valid() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(
            passed=False,
            description=f"{error}\nCorrect the file, then reload the definitions.",
        )

    return dg.Definitions(assets=[asset], asset_checks=[is_valid])
