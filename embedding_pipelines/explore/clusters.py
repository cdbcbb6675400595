"""Clusters of a live table: what it is about, in keywords, and which rows belong together."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.access import Principals
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.explore.table import LiveTable, check_file, write_rows
from embedding_pipelines.metrics.clusters import FIT_ROWS, fit_clusters, keywords, label
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search.results import as_frame
from embedding_pipelines.vectors import to_matrix

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 3  # documents of each cluster that are named
FILE = pa.schema(
    {
        "chunk_id": pa.string(),
        "document_id": pa.string(),
        "cluster": pa.int32(),
        "label": pa.string(),
        "cosine": pa.float32(),  # with the cluster's centre
        "text": pa.string(),
    }
)
ASSIGNMENTS = ["chunk_id", "document_id", "cluster", "cosine"]


@dataclass(frozen=True)
class Cluster:
    """Rows that lie together."""

    number: int  # from 0
    label: str
    rows: int
    share: float  # of all rows
    cosine: float | None  # mean, of its rows with its centre; None without rows
    keywords: list[str]
    examples: list[str]  # ids of the documents nearest to its centre


@dataclass(frozen=True)
class TableClusters:
    """All rows of a live table in clusters."""

    pipeline: str
    release: int
    rows: int
    silhouette: float | None  # of a sample, in [-1, 1]; None: the number of clusters was given
    clusters: list[Cluster]
    assignments: pa.Table  # of ASSIGNMENTS, in the order of the table

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each of the table: chunk_id, document_id, cluster int32, cosine float32."""
        return as_frame(self.assignments)


def find_clusters(
    home: Path,
    name: str,
    k: int | None = None,
    to: Path | None = None,
    principals: Principals = None,
) -> TableClusters:
    """Part the live table of a pipeline into `k` clusters, by default as many as suit, 20 at most.

    They are fitted to a sample of FIT_ROWS rows, then every row goes to the nearest centre; with
    `to` all rows are written to a CSV or Parquet file of the columns of FILE. Raises ReleaseError
    without a release, ConfigError for too large a k, another file, and without scikit-learn.
    """
    if to is not None:
        check_file(to)
    table = LiveTable(home, name, principals)
    if not table.rows:
        raise ConfigError(
            f"The live table of {name!r} holds no rows to be seen, so there are no clusters."
        )
    _, sample = table.sample(FIT_ROWS, "stored", ["document_id", "text"])
    vectors = to_matrix(sample[VECTOR])
    try:
        fit = fit_clusters(vectors, k, table.release.spec.seed)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    numbers, cosines = fit.assign(vectors)
    words = keywords(sample["text"].to_pylist(), numbers, len(fit.centres))
    labels = pa.array([label(*pair) for pair in enumerate(words)], pa.string())
    parts: list[pa.RecordBatch] = []

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in table.read("stored", ["chunk_id", "document_id", "text"]):
            numbers, cosines = fit.assign(to_matrix(batch[VECTOR]))
            ids = batch["chunk_id"], batch["document_id"]
            columns = [*ids, numbers, labels.take(numbers), cosines, batch["text"]]
            part = pa.record_batch(columns, schema=FILE)
            parts.append(part.select(ASSIGNMENTS))
            yield part

    if to is not None:
        write_rows(to, FILE, rows())
    else:
        deque(rows(), maxlen=0)
    assignments = pa.Table.from_batches(parts)
    clusters = []
    for number, entry in enumerate(words):
        own = pc.filter(assignments["cosine"], pc.equal(assignments["cluster"], number))
        members = np.flatnonzero(numbers == number)
        nearest = members[np.argsort(-cosines[members], kind="stable")]
        documents = sample["document_id"].take(nearest).unique().to_pylist()
        share, cosine = len(own) / len(assignments), pc.mean(own).as_py()
        cluster = Cluster(
            number, labels[number].as_py(), len(own), share, cosine, entry, documents[:EXAMPLES]
        )
        clusters.append(cluster)
    return TableClusters(
        name, table.release.number, len(assignments), fit.silhouette, clusters, assignments
    )
