"""Rows of a LanceDB table that this project did not make, as a pipeline of their own."""

import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.schemas import digest
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.stores.survey import Columns, open_table
from embedding_pipelines.vectors import Vectors

TABLE_ROWS, TABLE_ITEMS = "rows.parquet", 500  # of a foreign table: its texts, and known items
PAGE_ROWS = 8_192  # of such a table that are read at once


@dataclass(frozen=True)
class TableRows:
    """Some rows of a foreign table."""

    texts: dict[str, list[str]]  # by column: id, which is the row's number, and text
    total: int  # rows of the table


def read_rows(path: Path, most: int) -> tuple[TableRows, dict[str, Vectors]]:
    """Rows with texts, as chance has it, always the same; and their vectors float32[d] by id, NaN for
    none, if all are as long."""
    texts, values, size = dict[str, str](), dict[str, Any](), 0
    with open_table(path) as table:
        columns = Columns.of(table.schema)
        if columns.text is None:
            raise ConfigError(f"{path} has no column of texts, so there is nothing to embed.")
        numbers = (
            digest(str(row).encode())[:8] + row.to_bytes(8, "big") for row in range(table.rows)
        )
        sample = {int.from_bytes(each[8:], "big") for each in heapq.nsmallest(most, numbers)}
        kinds = {name: table.schema.field(name).type.value_type for name in columns.vectors}
        vectors = [name for name in kinds if pa.types.is_floating(kinds[name])][:1]
        names, first = [columns.text, *vectors], 0
        for page in table.pages(names, PAGE_ROWS):
            for row in (row for row in range(page.num_rows) if first + row in sample):
                text = page.column(columns.text)[row].as_py()
                if text is None or not text.strip():
                    continue
                name = str(first + row)
                texts[name] = text
                if vectors:
                    vector = page.column(vectors[0])[row].as_py()
                    values[name] = vector
                    size = max(size, len(vector or ()))
            first += page.num_rows
        total = table.rows
    rows = TableRows({"id": list(texts), "text": list(texts.values())}, total)
    empty = np.full(size, np.nan, np.float32)
    return rows, {
        name: empty if vector is None or len(vector) != size else np.array(vector, np.float32)
        for name, vector in values.items()
    }


def table_pipeline(path: Path, folder: Path) -> PipelineSpec:
    """A pipeline of the rows that were written, whatever its model."""
    values = {
        "source": {"kind": "parquet", "path": str(folder / TABLE_ROWS), "id": "id", "text": "text"},
        "preprocessing": {"chunk": None},
        "model": {"provider": "hashing"},
        "evaluation": {"known_items": TABLE_ITEMS},
    }
    return parse_pipeline(json.dumps(values), "table", str(path))
