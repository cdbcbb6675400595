"""Metadata: a step's report as Dagster shows it; what is numeric is plotted over runs."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from embedding_pipelines.progress import StepReport
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Step
from embedding_pipelines.steps.chain import step_named


def asset_key(spec: PipelineSpec, name: str) -> dg.AssetKey:
    return dg.AssetKey([spec.name, name])


def asset_inputs(step: Step) -> list[str]:
    """The assets that a step reads: checks are none, so what they check stands for them."""
    names: list[str] = []
    for name in step.inputs:
        other = step_named(name)
        names += [name] if other.is_asset else asset_inputs(other)
    return names


def described(text: str, spec: PipelineSpec) -> str:
    """An asset's description: its own, then the pipeline's."""
    return f"{text}\n\n{spec.as_written(spec.description)}".strip()  # Dagster stores it


def asset_metadata(step: Step, report: StepReport, run: Run) -> dict[str, Any]:
    """A report's statistics, the number of rows where Dagster looks for it, and where the data
    is."""
    counter = step.row_statistic
    statistics = {name: value for name, value in report.statistics.items() if name != counter}
    rows = {"dagster/row_count": report.statistics[counter]} if counter else {}
    timing = {"seconds": round(report.seconds, 3), "changed": report.changed}
    return {**rows, **statistics, **timing, **_links(step, report, run)}


def data_version(step: Step, run: Run, names: Sequence[str], report: StepReport) -> dg.DataVersion:
    """The version of what the step made: a digest over its shards, or what identifies its data."""
    shards = step.shards(run)
    if shards is not None:
        manifests = [shards.manifest(partition) for partition in names]
        parts = [manifest.digest for manifest in manifests if manifest is not None]
    else:
        names = step.identity or sorted(report.statistics)
        parts = [str(report.statistics[name]) for name in names]
    return dg.DataVersion(fingerprint(*parts))


def table_columns(steps: Sequence[Step], step: Step, spec: PipelineSpec) -> dict[str, Any]:
    """The columns of a step that has rows, and which columns of its inputs they come from."""
    schema = step.columns(spec)
    if schema is None:
        return {}
    inputs = [
        (asset_key(spec, other.name), set(columns.names))
        for other in steps
        if other.name in step.inputs and (columns := other.columns(spec)) is not None
    ]
    lineage = {}
    for column in schema.names:
        origin = step.lineage.get(column, column)
        keys = [key for key, names in inputs if origin in names]
        lineage[column] = [dg.TableColumnDep(key, origin) for key in keys]
    return {
        "dagster/column_schema": column_schema(schema),
        "dagster/column_lineage": dg.TableColumnLineage(lineage),
    }


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """An Arrow schema as Dagster's table of columns. How long a vector is, and of which numbers,
    is known only when the model is open."""
    types = {field.name: "vector" if field.name == VECTOR else str(field.type) for field in schema}
    return dg.TableSchema([dg.TableColumn(name, kind) for name, kind in types.items()])


def _links(step: Step, report: StepReport, run: Run) -> dict[str, Any]:
    """Where the shards, the table and the report are."""
    shards = step.shards(run)
    links: dict[str, Any] = {}
    if shards is not None:
        links["dagster/uri"] = shards.folder.as_uri()
    if "table" in report.statistics:
        links["dagster/table_name"] = report.statistics["table"]
        links["dagster/uri"] = run.warehouse.tables.as_uri()
    if "release" in report.statistics:
        page = run.warehouse.root / "reports" / f"{run.spec.name}.html"
        command = f"`embedding-pipelines report {run.spec.name}` writes {page}"
        links["report"] = dg.MetadataValue.path(page) if page.exists() else command
    return links
