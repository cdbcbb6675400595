"""Outliers of a live table: rows that are like no others."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.explore.table import OWN_COLUMNS, LiveTable, matrix
from embedding_pipelines.metrics.outliers import NEIGHBOURS, isolation
from embedding_pipelines.search import as_frame
from embedding_pipelines.vectors import unit

if TYPE_CHECKING:
    import pandas as pd

REFERENCE_ROWS = 20_000  # that every row is compared with
DEFAULT_NUMBER = 20


@dataclass(frozen=True)
class Outliers:
    """The rows of a live table that are farthest from all others."""

    pipeline: str
    release: int
    rows: int  # of the table
    typical: float  # the median score of all rows
    table: pa.Table  # score float32, ids, offsets and text of each, the farthest first

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each outlier: score float32, chunk_id, document_id, start, end, text."""
        return as_frame(self.table)


def find_outliers(
    home: Path, name: str, number: int | None = None, share: float | None = None
) -> Outliers:
    """The `number` rows of a pipeline's live table, or this `share` of them, that are farthest from
    all others.

    A row's score is 1 less the cosine with its 20th nearest neighbour, in [0, 2], among all rows or
    REFERENCE_ROWS of them; of less than 41 rows, the middle one counts. Raises ReleaseError without
    a release, ConfigError for a number or a share that cannot be, and for a table of less than two
    rows.
    """
    if number is not None and share is not None:
        raise ConfigError("Name the number of outliers or their share, not both.")
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"share is {share}; it must lie above 0 and be 1 at most.")
    if number is not None and number < 1:
        raise ConfigError(f"The number of outliers is {number}; it must be 1 at least.")
    table = LiveTable(home, name)
    total = table.release.rows
    if total < 2:
        raise ConfigError(f"The live table of {name!r} has {total} rows: none can be an outlier.")
    if share is not None:
        number = max(1, round(share * total))
    number = number or DEFAULT_NUMBER
    numbers, sample = table.sample(REFERENCE_ROWS, "stored", ["chunk_id"])
    reference = unit(matrix(sample))
    k = min(NEIGHBOURS, max(1, (len(reference) - 1) // 2))  # the usual ones are at least half
    best, done = None, 0
    scores = np.empty(total, np.float32)
    for batch in table.read("stored", OWN_COLUMNS):
        part = slice(done, done + batch.num_rows)
        own = np.isin(np.arange(part.start, part.stop), numbers, assume_unique=True)
        scores[part] = isolation(unit(matrix(batch)), reference, own, k)
        rows = pa.Table.from_batches([batch.select(OWN_COLUMNS)])
        rows = rows.add_column(0, "score", pa.array(scores[part]))
        best = pa.concat_tables([best, rows]) if best is not None else rows
        order = np.argsort(-best["score"].to_numpy(), kind="stable")
        best, done = best.take(order[:number]), part.stop
    assert best is not None  # there are two rows at least
    return Outliers(
        name, table.release.number, total, float(np.median(scores)), best.combine_chunks()
    )
