"""Metadata: a step's report as Dagster shows it; what is numeric is plotted over runs."""

from collections.abc import Iterable
from typing import Any

import dagster as dg
import pyarrow as pa

from embedding_pipelines.progress import StepReport

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


def column_schema(fields: Iterable[pa.Field]) -> dg.TableSchema:
    """An Arrow schema as Dagster's table of columns."""
    return dg.TableSchema([dg.TableColumn(field.name, str(field.type)) for field in fields])
