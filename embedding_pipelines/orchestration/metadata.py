"""Metadata: a step's report as Dagster shows it; what is numeric is plotted over runs."""

import base64
from collections.abc import Iterable
from typing import Any

import dagster as dg
import pyarrow as pa

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.files import read_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.releases import read_releases
from embedding_pipelines.report.page import read_history, spectrum
from embedding_pipelines.report.plots import figures
from embedding_pipelines.storage.warehouse import PipelineFolder

ROWS = {  # the fact of a step that counts its rows
    "documents": "documents",
    "chunks": "chunks",
    "embeddings": "vectors",
    "vector_store": "rows",
    "release": "rows",
}


def asset_metadata(report: StepReport) -> dict[str, Any]:
    """A report's statistics, with the number of rows where Dagster looks for it."""
    rows = ROWS.get(report.step)
    statistics = {name: value for name, value in report.statistics.items() if name != rows}
    count = {"dagster/row_count": report.statistics[rows]} if rows else {}
    return {**count, **statistics, "seconds": round(report.seconds, 3), "changed": report.changed}


def pictures(folder: PipelineFolder) -> dict[str, dg.MarkdownMetadataValue]:
    """The charts of the report on the newest release, as Markdown that holds them."""
    codec = CodecChain.load(folder.codecs / read_releases(folder).releases[-1].codec)
    drawn = figures(read_history(folder), read_json(folder.optimization), *spectrum(codec))
    return {
        title: dg.MetadataValue.md(
            f"![{title}](data:image/png;base64,{base64.b64encode(picture).decode()})"
        )
        for title, picture in drawn.items()
    }


def column_schema(fields: Iterable[pa.Field]) -> dg.TableSchema:
    """An Arrow schema as Dagster's table of columns."""
    return dg.TableSchema([dg.TableColumn(field.name, str(field.type)) for field in fields])
