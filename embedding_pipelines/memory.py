"""A release's vectors and texts in memory, for a process that answers many searches.

A graph over the vectors (HNSW, by usearch) finds the rows, which an Arrow table holds. Filters and
words are the stored table's.
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.extras import need
from embedding_pipelines.ranking import as_numbers, encode_queries
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
NUMBERS = "f16"  # scores are within 0.0005 of the table's
MEMORY, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class MemoryIndex:
    """All rows of one table version. It is never changed; `find_all` may be called by many threads."""

    def __init__(self, rows: pa.Table, graph: Any, codec: CodecChain) -> None:
        self._rows, self._graph, self._codec = rows, graph, codec
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
        parts, done = list[pa.RecordBatch](), 0
        for batch in table.scan([*columns, VECTOR], version=version):
            if not is_wanted():
                return None
            numbers = unit(as_numbers(codec, to_matrix(batch[VECTOR]))).astype(np.float32)
            # Codes of zeros match nothing.
            whole = np.flatnonzero(np.isfinite(numbers).all(axis=1) & numbers.any(axis=1))
            graph.add(done + whole, numbers[whole], threads=1)
            parts.append(batch.select(columns))
            done += batch.num_rows
        return cls(pa.Table.from_batches(parts).combine_chunks(), graph, codec)

    def find_all(self, vectors: Vectors, k: int) -> list[pa.Table] | None:
        """For each query float32[n, d] of the model's own space, the `k` nearest rows as
        `ranking.nearest` gives them, k <= MAX_K. None where the graph does not lead to so many, as
        among hundreds of equal vectors."""
        numbers = unit(encode_queries(self._codec, vectors).astype(np.float32))
        wide = min(2 * k, len(self._graph))  # which makes its search as wide
        with self._searching:
            matches = self._graph.search(numbers, wide, threads=1)
        keys = np.atleast_2d(matches.keys)[:, :k]
        distances = np.atleast_2d(matches.distances)[:, :k]
        fewest = min(
            getattr(matches, "counts", [keys.shape[1]])
        )  # what is behind them is filled up
        if fewest < min(k, len(self._graph)):
            return None
        return [self._take(*each) for each in zip(keys, distances, strict=True)]

    def _take(self, keys: Any, distances: Any) -> pa.Table:
        rows = self._rows.take(pa.array(keys.astype(np.int64)))
        return rows.append_column("score", pa.array(1 - distances, pa.float32()))


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
