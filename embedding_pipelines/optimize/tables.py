"""Measures compressions on the pipeline's own vectors: what searches of them cost and find.

Vectors are read block by block. Tables are real ones, in a folder that is removed afterwards.
"""

import functools
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.codes import encoded, vector_columns
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.confidence import lower_bound
from embedding_pipelines.metrics.neighbours import TIES, ExactSearch, K, Neighbours, recall
from embedding_pipelines.optimize.candidates import Compression
from embedding_pipelines.ranking import as_numbers, encode_queries, nearest
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.stores.base import Store, Table
from embedding_pipelines.vectors import Vectors, to_matrix

FIRST_QUERIES = 500  # after these, a search that misses the floor ends
WARM_UP = 10  # searches without a time
TIMED = 50  # searches of a table whose results are known without asking it
ALPHA = 0.05  # the probability that a bound is wrong, at most
ROW = "row"  # the column of row numbers, which stand for ids here

Rows = dict[Compression, list[list[int]]]  # the row numbers that each query returns


@dataclass(frozen=True)
class QuerySet:
    """Queries in the model's own space, float32[q, d], with their exact nearest neighbours."""

    vectors: Vectors
    exact: Neighbours

    def __len__(self) -> int:
        return len(self.vectors)

    def part(self, end: int, start: int = 0) -> "QuerySet":
        exact = Neighbours(self.exact.ids[start:end], self.exact.cosines[start:end])
        return QuerySet(self.vectors[start:end], exact)


class Corpus:
    """The vectors of a pipeline's last embedding. Raises ConfigError without any of this space."""

    def __init__(self, run: Run) -> None:
        self.run, self.space = run, run.model.space
        manifests = [run.folder.embeddings.manifest(name) for name in run.spec.partition_names]
        own = [entry for entry in manifests if entry and entry.configuration == self.space.id]
        self.rows = sum(entry.rows - entry.statistics.get("rejected", 0) for entry in own)
        if len(own) < len(manifests) or not self.rows:
            name = run.spec.name
            raise ConfigError(
                f"Pipeline {name!r} has no vectors of {self.space.title} to measure with. Run "
                f"`embedding-pipelines run {name}`."
            )

    def numbered_blocks(self) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
        """All vectors, float32[n_i, d], with the numbers of their rows."""
        count = 0
        for partition in self.run.spec.partition_names:
            for batch in self.run.folder.embeddings.read(partition, [VECTOR]):
                vectors = to_matrix(batch[VECTOR].drop_null())
                rows = np.arange(count, count + len(vectors))
                count += len(vectors)
                self.run.progress.update("optimize", count, self.rows, "vectors")
                if len(vectors):
                    yield rows, vectors

    def blocks(self) -> Iterator[Vectors]:
        """The same without the numbers."""
        return (vectors for _, vectors in self.numbered_blocks())

    def query_set(self, vectors: Vectors) -> QuerySet:
        """Queries float32[q, d] with their exact neighbours."""
        search = ExactSearch(vectors, K * TIES)
        for rows, block in self.numbered_blocks():
            search.add(rows, block)
        return QuerySet(vectors, search.result())


def search_codes(
    corpus: Corpus, chains: Mapping[Compression, CodecChain], query_set: QuerySet
) -> Rows:
    """The rows that each chain's codes return if every row is compared, which no index exceeds. One
    pass over the vectors serves all chains, and a second one those with rescoring vectors."""
    searches: dict[Compression, ExactSearch] = {}
    for name, chain in chains.items():
        numbers = as_numbers(chain, encode_queries(chain, query_set.vectors))
        searches[name] = ExactSearch(numbers, K * chain.oversample)
    for rows, block in corpus.numbered_blocks():
        for name, search in searches.items():
            search.add(rows, as_numbers(chains[name], chains[name].encode(block)))
    results = {name: search.result().ids for name, search in searches.items()}
    rescored = {name: chain for name, chain in chains.items() if chain.rescoring_codec}
    return results | _rescore(corpus, rescored, results, query_set)


@dataclass(frozen=True)
class Measurement:
    """Figures of searches: recall@10 with its lower bound, and milliseconds a search."""

    recall_at_10: float
    lower_bound: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class CandidateTable:
    """A table of all vectors; its bytes on disk are of codes, rescoring vectors and index."""

    corpus: Corpus
    chain: CodecChain
    name: str
    store: Store
    table: Table
    bytes_per_vector: float
    is_exact: bool  # without an index

    def measure(self, query_set: QuerySet, floor: float = 0.0, alpha: float = ALPHA) -> Measurement:
        """Search the table; the bound is wrong with a probability of `alpha` at most.

        An index gets all queries, unless its recall for the first ones is below `floor`. A table
        without one gets some, for their times: the codes tell its results.
        """
        version = self.table.version
        assert version is not None
        results: list[list[int]] = []
        milliseconds: list[float] = []
        for vector in query_set.vectors[:WARM_UP]:
            nearest(self.table, self.chain, vector, K, None, version)
        for vector in query_set.vectors[: TIMED if self.is_exact else None]:
            started = time.perf_counter()
            hits = nearest(self.table, self.chain, vector, K, None, version)
            milliseconds.append((time.perf_counter() - started) * 1000)
            results.append(hits[ROW].to_pylist())
            if len(results) == FIRST_QUERIES:
                shares = recall(results, query_set.part(FIRST_QUERIES).exact, K)
                if shares.mean() < floor:
                    break
        if self.is_exact:
            results = search_codes(self.corpus, {(): self.chain}, query_set)[()]
        shares = recall(results, query_set.part(len(results)).exact, K)
        p50, p95 = np.percentile(milliseconds, [50, 95]).round(3).tolist()
        return Measurement(*summarize(shares, alpha), p50, p95)


class CandidateTables:
    """Candidate tables of a locked pipeline; leaving the `with` block removes them."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._folder: Path = corpus.run.folder.folder / "candidates"

    def __enter__(self) -> "CandidateTables":
        shutil.rmtree(self._folder, ignore_errors=True)  # of a process that was killed
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def build(self, store: Store, chain: CodecChain, name: str) -> CandidateTable:
        """A table of all vectors as `store` keeps and indexes them."""
        schema = pa.schema([pa.field(ROW, pa.int32()), *vector_columns(store, chain)])
        table = store.table(self._folder, name)
        table.apply(schema, [], self._rows(store, chain, schema))
        is_exact = table.index(chain.metric, 0) == 0
        size = round((table.size_bytes() - self._number_bytes) / self._corpus.rows, 1)
        return CandidateTable(self._corpus, chain, name, store, table, size, is_exact)

    def reopen(self, candidate: CandidateTable, store: Store) -> CandidateTable:
        """The same table, searched with other options."""
        table = store.table(self._folder, candidate.name)
        return replace(candidate, store=store, table=table)

    def drop(self, candidate: CandidateTable) -> None:
        candidate.store.drop(self._folder, candidate.name)

    @functools.cached_property
    def _number_bytes(self) -> int:
        """The bytes on disk of the row numbers, which no table of a pipeline has."""
        rows = pa.record_batch({ROW: pa.array(range(self._corpus.rows), pa.int32())})
        table = self._corpus.run.spec.store.table(self._folder, "numbers")
        table.apply(rows.schema, [], [rows])
        return table.size_bytes()

    def _rows(self, store: Store, chain: CodecChain, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for rows, block in self._corpus.numbered_blocks():
            columns = {ROW: pa.array(rows, pa.int32()), **encoded(store, chain, block)}
            yield pa.record_batch(columns, schema)


def summarize(shares: Vectors, alpha: float = ALPHA) -> tuple[float, float]:
    """Mean and lower bound."""
    return round(float(shares.mean()), 6), round(lower_bound(shares, 1 - alpha), 6)


def _rescore(
    corpus: Corpus, chains: Mapping[Compression, CodecChain], results: Rows, query_set: QuerySet
) -> Rows:
    """The best K of these results by the chains' rescoring vectors."""
    if not chains:
        return {}
    rows_of = {
        name: np.unique(np.concatenate([*map(np.asarray, results[name]), []])).astype(np.int64)
        for name in chains
    }
    parts: dict[Compression, list[Any]] = {name: [] for name in chains}
    for numbers, block in corpus.numbered_blocks():
        for name, chain in chains.items():
            start, end = np.searchsorted(rows_of[name], [numbers[0], numbers[-1] + 1])
            vectors = block[rows_of[name][start:end] - numbers[0]]
            parts[name].append(chain.encode_rescoring(vectors))
    ranked: Rows = {name: [] for name in chains}
    for name, chain in chains.items():
        codes = np.concatenate(parts[name])
        for vector, rows in zip(query_set.vectors, results[name], strict=True):
            scores = chain.rescore(vector, codes[np.searchsorted(rows_of[name], rows)])
            best = np.argsort(-scores, kind="stable")[:K]
            ranked[name].append([rows[place] for place in best])
    return ranked
