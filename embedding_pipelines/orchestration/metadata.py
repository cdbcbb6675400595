"""Metadata: a step's report as Dagster shows it; what is numeric is plotted over runs."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from embedding_pipelines.files import list_files
from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.progress import StepReport
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import DESCRIPTIONS, VECTOR
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
    """The statistics of a report, of one partition if the step has some: the number of rows where
    Dagster looks for it, metrics in their groups, and where the data is."""
    counter, metrics = step.row_statistic, {}
    rows = "dagster/partition_row_count" if step.partitioned else "dagster/row_count"
    values: dict[str, Any] = {}
    for name, value in report.statistics.items():
        if name == counter:
            values[rows] = value
        elif name in METRICS:
            metrics[name] = value
        elif isinstance(value, list):
            values[name] = ", ".join(map(str, value))  # as JSON each would stand in a line
        else:
            values[name] = value
    values |= {"seconds": round(report.seconds, 3), "changed": report.changed}
    return {**values, **_links(step, report, run), **_metrics(metrics)}


def run_metadata(step: Step, report: StepReport, run: Run) -> dict[str, Any]:
    """What all of an asset's events of a run say: its columns, and the rows of all partitions."""
    values = {} if step.partitioned else asset_metadata(step, report, run)
    schema, shards = step.written_columns(run), step.shards(run)
    if schema is not None and schema != step.columns(run.spec):
        values["dagster/column_schema"] = column_schema(schema, is_written=True)
    if step.partitioned and shards is not None:
        manifests = shards.manifests(run.spec.partition_names)
        values["dagster/row_count"] = sum(entry.rows - entry.rejected for entry in manifests)
    return values


def file_link(spec: PipelineSpec, home: Path) -> dict[str, Any]:
    """The pipeline's file, if it has one, where Dagster links to what defines an asset."""
    files = [path for path in list_files(home / "pipelines", f"{spec.name}.*") if path.is_file()]
    if len(files) != 1:
        return {}
    with warnings.catch_warnings():  # dagster 1.13 calls both classes beta
        warnings.filterwarnings(
            "ignore", message=r"Class `\w*CodeReference", category=dg.BetaWarning
        )
        reference = dg.LocalFileCodeReference(file_path=str(files[0]), label="pipeline file")
        value = dg.CodeReferencesMetadataValue(code_references=[reference])
    return {"dagster/code_references": value}


def _metrics(values: Mapping[str, float]) -> dict[str, Any]:
    """Each metric as a figure that is plotted over runs, under its group, and one table that says
    what they mean."""
    if not values:
        return {}
    groups = {name: METRICS[name].measure.__module__.rpartition(".")[2] for name in values}
    names = sorted(values, key=lambda name: (groups[name], name))
    rows = [
        "| group | metric | value | better | meaning |\n| --- | --- | ---: | --- | --- |",
        *(
            f"| {groups[name]} | {name} | {values[name]:,.4g} {METRICS[name].unit} "
            f"| {METRICS[name].direction} | {' '.join(METRICS[name].description.split())} |"
            for name in names
        ),
    ]
    meaning = dg.MetadataValue.md("\n".join(rows))
    return {"metrics": meaning, **{f"{groups[name]}/{name}": values[name] for name in names}}


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


def column_schema(schema: pa.Schema, is_written: bool = False) -> dg.TableSchema:
    """An Arrow schema as Dagster's table of columns, with what each one holds. How long a vector
    is, and of which numbers, is known only when the model is open."""
    return dg.TableSchema(
        [
            dg.TableColumn(
                field.name,
                "vector" if field.name == VECTOR and not is_written else _type_name(field.type),
                DESCRIPTIONS.get(field.name, "Metadata, as the source has it."),
            )
            for field in schema
        ]
    )


def _type_name(kind: pa.DataType) -> str:
    """A type as people write it; of a vector its numbers and their count."""
    names = {"halffloat": "float16", "float": "float32", "double": "float64"}
    if pa.types.is_fixed_size_binary(kind):
        return f"binary[{kind.byte_width}]"
    if pa.types.is_fixed_size_list(kind):
        numbers = str(kind.value_type)
        return f"{names.get(numbers, numbers)}[{kind.list_size}]"
    return names.get(str(kind), str(kind))


def _links(step: Step, report: StepReport, run: Run) -> dict[str, Any]:
    """Where source, shards, rejected rows, table and report are."""
    shards, folder = step.shards(run), run.folder
    links: dict[str, Any] = {}
    if shards is not None:
        links["dagster/uri"] = shards.folder.as_uri()
        links["path"] = _path(run, shards.folder)
    if not step.inputs:
        links["source"] = dg.MetadataValue.path(run.spec.source.place)
    if report.statistics.get("rejected"):
        rejected = folder.rejected if not step.inputs else folder.rejected_texts
        links["rejected_rows"] = _path(run, rejected)
    if "table" in report.statistics:
        links["dagster/table_name"] = report.statistics["table"]
        links["dagster/uri"] = run.warehouse.tables.as_uri()
        links["path"] = _path(run, run.warehouse.tables)
    if "release" in report.statistics:
        page = run.warehouse.reports / f"{run.spec.name}.html"
        path = _path(run, page)
        command = f"`embedding-pipelines report {run.spec.name}` writes {path.value}"
        links["report"] = path if page.exists() else command
    return links


def _path(run: Run, path: Path) -> dg.PathMetadataValue:
    """A path below the home folder, from there: Dagster's pages cut long ones."""
    home = run.warehouse.home
    return dg.MetadataValue.path(path.relative_to(home) if path.is_relative_to(home) else path)
