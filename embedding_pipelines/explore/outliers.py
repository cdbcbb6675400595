"""Outliers of a live table: rows that are like no others."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.access import Principals
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.explore.table import OWN_COLUMNS, LiveTable
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search.results import as_frame
from embedding_pipelines.vectors import Vectors, to_matrix, unit

if TYPE_CHECKING:
    import pandas as pd

REFERENCE_ROWS = 20_000  # that every row is compared with
DEFAULT_NUMBER = 20
COSINES_AT_ONCE = 8_000_000  # 32 MB
# So many neighbours make a row usual: a handful of odd ones that are alike still stand out.
# Measured with MiniLM on 6,000 texts of one kind (bank questions, docstrings, captions; 2,312 of
# PEPs) with 60 of another among them, all twelve pairs of kinds: mean average precision by the 5th
# neighbour 0.61, the 10th 0.66, the 20th 0.72, the 50th 0.82; by scikit-learn's local outlier
# factor of 20 neighbours 0.14, of 100 neighbours 0.62.
NEIGHBOURS = 20


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


def check_amount(number: int | None, share: float | None) -> None:
    """ConfigError for an impossible number or share, and for both."""
    if number is not None and share is not None:
        raise ConfigError("Name the number of outliers or their share, not both.")
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"share is {share}; it must lie above 0 and be 1 at most.")
    if number is not None and number < 1:
        raise ConfigError(f"The number of outliers is {number}; it must be 1 at least.")


def find_outliers(
    home: Path,
    name: str,
    number: int | None = None,
    share: float | None = None,
    principals: Principals = None,
) -> Outliers:
    """The `number` rows of a live table, or this `share` of them, that are farthest from the rest.

    A row's score is 1 less the cosine with its 20th nearest neighbour, in [0, 2], among all rows or
    REFERENCE_ROWS of them; of less than 41 rows, the middle one counts. Raises ReleaseError without
    a release, ConfigError for an impossible number or share, and for less than two rows.
    """
    check_amount(number, share)
    table = LiveTable(home, name, principals)
    total = table.rows
    if total < 2:
        raise ConfigError(f"The live table of {name!r} has {total} rows: none can be an outlier.")
    if share is not None:
        number = max(1, round(share * total))
    number = number or DEFAULT_NUMBER
    numbers, sample = table.sample(REFERENCE_ROWS, "stored", ["chunk_id"])
    reference = unit(to_matrix(sample[VECTOR]))
    k = min(NEIGHBOURS, max(1, (len(reference) - 1) // 2))  # the usual ones are at least half
    schema = table.schema(None, OWN_COLUMNS).insert(0, pa.field("score", pa.float32()))
    best, start, scores = schema.empty_table(), 0, np.empty(total, np.float32)
    for batch in table.read("stored", OWN_COLUMNS):
        part = slice(start, start + batch.num_rows)
        own = np.isin(np.arange(part.start, part.stop), numbers, assume_unique=True)
        scores[part] = isolation(unit(to_matrix(batch[VECTOR])), reference, own, k)
        columns = [pa.array(scores[part]), *(batch[name] for name in OWN_COLUMNS)]
        best = pa.concat_tables([best, pa.table(columns, schema=schema)])
        order = np.argsort(-best["score"].to_numpy(), kind="stable")
        best, start = best.take(order[:number]), part.stop
    typical = float(np.median(scores))
    return Outliers(name, table.release.number, total, typical, best.combine_chunks())


def isolation(units: Vectors, reference: Vectors, own: NDArray[np.bool_], k: int) -> Vectors:
    """How far unit vectors float32[n, d] are from the k-th nearest of `reference` float32[m, d],
    1 <= k < m: 1 less its cosine, float32[n], in [0, 2]. `own[row]`: the row itself is one of the
    reference, and is not its own neighbour."""
    farness = np.empty(len(units), np.float32)
    step = max(1, COSINES_AT_ONCE // len(reference))
    for start in range(0, len(units), step):
        part = slice(start, start + step)
        distances = 1 - units[part] @ reference.T
        distances.partition((k - 1, k), axis=1)
        farness[part] = np.where(own[part], distances[:, k], distances[:, k - 1])
    return farness.clip(0, 2)
