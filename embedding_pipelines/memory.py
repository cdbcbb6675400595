"""A release's vectors and texts in memory, for a process that answers many searches.

A graph over the vectors (HNSW, by usearch) finds the rows, which an Arrow table holds. Filters and
words are the stored table's.
"""

import contextlib
import threading
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.extras import need
from embedding_pipelines.ranking import as_numbers, query_codec
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, to_matrix, unit

MAX_K = 1_000  # more rows of one query are the table's
MAX_SHARE = 0.5  # of the memory that is free when the index is built
# Measured on 100,000 x 384 in 400 clusters, k = 10, one thread of two processors under load: recall@10
# and median with a width of 48, 64, 96: 0.981, 0.989, 0.996 and 0.31, 0.32, 0.39 ms; built in 29 s of
# processor time, 145 MB. In float32: 64: 0.995 and 0.46 ms; 61 s, 273 MB. int8 finds 0.935.
CONNECTIVITY, BUILD_WIDTH = 16, 64  # neighbours of a node, and candidates for them
SEARCH_WIDTH = 96  # candidates of a search, at least
FEW_ROWS = 50  # of one query, up to which reading single values takes less than Arrow's `take`
NUMBERS = "f16"  # scores are within 0.0005 of the table's
MEMORY, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Near:
    """The rows nearest to a query, nearest first, which are read when they are asked for."""

    table: pa.Table  # of the whole index
    columns: Mapping[str, pa.Array | pa.ChunkedArray]  # of the table, from which values are read
    numbers: Sequence[int]  # of these rows
    scores: Sequence[float]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def column_names(self) -> list[str]:
        return [*self.columns, "score"]

    def to_pylist(self) -> list[dict[str, Any]]:
        """As `to_table().to_pylist()`."""
        if len(self) > FEW_ROWS:
            rows: list[dict[str, Any]] = self.to_table().to_pylist()
            return rows
        columns, names = map(self._values, self.columns.values()), self.column_names
        return [
            dict(zip(names, row, strict=True)) for row in zip(*columns, self.scores, strict=True)
        ]

    def to_table(self) -> pa.Table:
        rows = self.table.take(pa.array(self.numbers, pa.int64()))
        return rows.append_column("score", pa.array(self.scores, pa.float32()))

    def of(self, documents: Container[object]) -> "Near":
        """The rows of these documents."""
        owners = self._values(self.columns["document_id"])
        places = [at for at, name in enumerate(owners) if name in documents]
        numbers, scores = [self.numbers[at] for at in places], [self.scores[at] for at in places]
        return Near(self.table, self.columns, numbers, scores)

    def first(self, k: int) -> "Near":
        return Near(self.table, self.columns, self.numbers[:k], self.scores[:k])

    def _values(self, column: pa.Array | pa.ChunkedArray) -> list[Any]:
        return [column[number].as_py() for number in self.numbers]


class MemoryIndex:
    """All rows of one table version. It is never changed; `find_all` may be called by many threads."""

    def __init__(self, rows: pa.Table, graph: Any, codec: CodecChain) -> None:
        self._rows, self._graph, self._codec = rows, graph, query_codec(codec)
        self._columns = {  # in one piece, unless there are gigabytes
            name: column.chunk(0) if column.num_chunks == 1 else column
            for name, column in zip(rows.column_names, rows.columns, strict=True)
        }
        self._searching = threading.Lock()  # a graph has one working space for each of its threads

    @classmethod
    def build(
        cls,
        table: Table,
        codec: CodecChain,
        version: int,
        free_bytes: int | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> "MemoryIndex | None":
        """The index of a table version; None where it does not fit: memory is short, its distance is
        of bits, rescoring vectors rank its rows, or it is no longer wanted. `free_bytes`: else what
        the machine has.

        Raises ConfigError without usearch, StoreError for a table that cannot be read.
        """
        if codec.metric != "cosine" or codec.rescoring_codec is not None:
            return None
        count, free = table.rows(version), available_bytes() if free_bytes is None else free_bytes
        least = count * (codec.dimensions * 2 + CONNECTIVITY * 10) + table.size_bytes()
        if not count or (free is not None and least > free * MAX_SHARE):
            return None
        usearch = need("usearch.index", "serving")
        graph = usearch.Index(
            ndim=codec.dimensions,
            metric="ip",
            dtype=NUMBERS,
            connectivity=CONNECTIVITY,
            expansion_add=BUILD_WIDTH,
            expansion_search=SEARCH_WIDTH,
        )
        columns = table.columns(version)
        parts, count = list[pa.RecordBatch](), 0
        for batch in table.scan([*columns, VECTOR], version=version):
            if not is_wanted():
                return None
            numbers = unit(as_numbers(codec, to_matrix(batch[VECTOR]))).astype(np.float32)
            # Codes of zeros match nothing.
            whole = np.flatnonzero(np.isfinite(numbers).all(axis=1) & numbers.any(axis=1))
            graph.add(count + whole, numbers[whole], threads=1)
            parts.append(batch.select(columns))
            count += batch.num_rows
        return cls(pa.Table.from_batches(parts).combine_chunks(), graph, codec)

    def find_all(self, vectors: Vectors, k: int) -> list[Near] | None:
        """For each query float32[n, d] of the model's own space, the `k` nearest rows, with the
        columns and scores that `ranking.nearest` gives. None for more than MAX_K, and where the
        graph does not lead to so many, as among hundreds of equal vectors."""
        if k > MAX_K:
            return None
        numbers = unit(self._codec.encode(vectors).astype(np.float32, copy=False))
        size = len(self._graph)
        with self._searching:
            matches = self._graph.search(numbers, min(2 * k, size), threads=1)  # so wide, too
        keys, distances = np.atleast_2d(matches.keys), np.atleast_2d(matches.distances)
        counts = getattr(matches, "counts", [keys.shape[1]])  # what is behind them is filled up
        if min(counts) < min(k, size):
            return None
        scores = 1 - distances[:, :k]
        pairs = zip(keys[:, :k].tolist(), scores.tolist(), strict=True)
        return [Near(self._rows, self._columns, *pair) for pair in pairs]


def available_bytes() -> int | None:
    """The memory that this process may still take; None where nobody says."""
    free = list[int]()
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(
            line for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable:")
        )
        free.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # of a container
        most, used = ((CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
        free.append(int(most) - int(used))
    return min(free, default=None)
