"""trial: what a compression and an index would cost and find, measured on the pipeline's own
vectors.

All vectors are read block by block. A trial table is a real one, in a folder of its own that is
gone afterwards.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.confidence import lower_bound
from embedding_pipelines.metrics.neighbours import TIES, ExactSearch, K, Neighbours, recall
from embedding_pipelines.optimize.candidates import Compression
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import as_numbers, nearest, queries
from embedding_pipelines.steps.vector_store import encoded, vector_columns
from embedding_pipelines.stores.base import Store, Table
from embedding_pipelines.vectors import Vectors

FIRST_LOOK = 500  # queries after which what finds too little is given up
WARM_UP = 10  # searches that are not timed
TIMED = 50  # searches of a table whose findings are known otherwise
DOUBT = 0.05  # the probability that a bound is wrong, at most
ROW = "row"  # the column of the rows' numbers, by which they are known here


@dataclass(frozen=True)
class Asked:
    """Queries in the model's own space, float32[q, d], and what is truly nearest to each."""

    vectors: Vectors
    exact: Neighbours

    def __len__(self) -> int:
        return len(self.vectors)

    def part(self, end: int, start: int = 0) -> "Asked":
        return Asked(
            self.vectors[start:end],
            Neighbours(self.exact.ids[start:end], self.exact.cosines[start:end]),
        )


class Corpus:
    """The vectors of a pipeline as they were last embedded. Raises ConfigError if there are none of
    this space."""

    def __init__(self, run: Run) -> None:
        self.run, self.space = run, run.model.space
        space = self.space
        made = [run.folder.embeddings.manifest(partition) for partition in run.spec.partition_names]
        self.rows = sum(entry.rows - entry.statistics.get("rejected", 0) for entry in made if entry)
        if not self.rows or any(entry is None or entry.configuration != space.id for entry in made):
            name = run.spec.name
            raise ConfigError(
                f"Pipeline {name!r} has no vectors of {space} to measure with. Run `embedding-pipelines run {name}`."
            )

    def blocks(self) -> Iterator[Vectors]:
        """All vectors, float32[n_i, d]."""
        done = 0
        for partition in self.run.spec.partition_names:
            for batch in self.run.folder.embeddings.read(partition, [VECTOR]):
                vectors = (
                    batch[VECTOR]
                    .drop_null()
                    .flatten()
                    .to_numpy()
                    .reshape(-1, self.space.dimensions)
                )
                done += len(vectors)
                self.run.progress.update("optimize", done, self.rows, "vectors")
                if len(vectors):
                    yield vectors

    def numbered(self) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
        """The same, each with the numbers of its rows."""
        first = 0
        for block in self.blocks():
            yield np.arange(first, first + len(block)), block
            first += len(block)

    def asked(self, vectors: Vectors) -> Asked:
        """Queries float32[q, d] with their exact neighbours."""
        search = ExactSearch(vectors, K * TIES)
        for rows, block in self.numbered():
            search.add(rows, block)
        return Asked(vectors, search.result())


def by_codes(
    corpus: Corpus, chains: Mapping[Compression, CodecChain], asked: Asked
) -> dict[Compression, list[list[int]]]:
    """The rows that each chain's codes find if every row is compared: no index over them finds
    more.

    All chains are searched by one pass over the vectors, and those with copies by a second one.
    """
    searches = {
        name: ExactSearch(as_numbers(chain, queries(chain, asked.vectors)), K * chain.oversample)
        for name, chain in chains.items()
    }
    for rows, block in corpus.numbered():
        for name, search in searches.items():
            search.add(rows, as_numbers(chains[name], chains[name].encode(block)))
    found = {name: search.result().ids for name, search in searches.items()}
    return found | _by_copies(
        corpus,
        {name: chain for name, chain in chains.items() if chain.rescoring_codec},
        found,
        asked,
    )


@dataclass(frozen=True)
class Found:
    """What searches in a table found, as recall@10 with its lower bound, and the milliseconds they
    took."""

    recall_at_10: float
    lower_bound: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Trial:
    """A real table of all vectors.

    Its bytes are those on disk: of the codes, their copies and the index.
    """

    corpus: Corpus
    chain: CodecChain
    name: str
    table: Table
    bytes_per_vector: float
    is_exact: bool  # there is no index

    def searched(self, asked: Asked, floor: float = 0.0, doubt: float = DOUBT) -> Found:
        """Ask the table; the bound is wrong with a probability of `doubt` at most.

        An index is asked all queries, unless it finds less than `floor` with the first ones. What
        finds the nearest codes for sure is asked some of them to see how long it takes.
        """
        version = self.table.version
        assert version is not None
        found: list[list[int]] = []
        milliseconds: list[float] = []
        for vector in asked.vectors[:WARM_UP]:
            nearest(self.table, self.chain, vector, K, None, version)
        for vector in asked.vectors[: TIMED if self.is_exact else None]:
            started = time.perf_counter()
            hits = nearest(self.table, self.chain, vector, K, None, version)
            milliseconds.append((time.perf_counter() - started) * 1000)
            found.append(hits[ROW].to_pylist())
            if (
                len(found) == FIRST_LOOK
                and recall(found, asked.part(FIRST_LOOK).exact, K).mean() < floor
            ):
                break
        if self.is_exact:
            found = by_codes(self.corpus, {(): self.chain}, asked)[()]
        mean, bound = summary(recall(found, asked.part(len(found)).exact, K), doubt)
        p50, p95 = np.percentile(milliseconds, [50, 95]).round(3).tolist()
        return Found(mean, bound, p50, p95)


class Trials:
    """Trial tables of one pipeline; leaving the `with` block removes them. The pipeline is locked
    meanwhile."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._folder: Path = corpus.run.folder.folder / "trial"
        self._numbers: int | None = None

    def __enter__(self) -> "Trials":
        shutil.rmtree(self._folder, ignore_errors=True)  # of a process that was killed
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def make(self, store: Store, chain: CodecChain, name: str) -> Trial:
        """A table of all vectors as `store` keeps and indexes them."""
        schema = pa.schema([pa.field(ROW, pa.int32()), *vector_columns(store, chain)])
        table = store.table(self._folder, name)
        table.apply(schema, [], self._rows(store, chain, schema))
        is_exact = table.index(chain.metric, 0) == 0
        size = table.size_bytes() - self._bytes_of_numbers(store)
        return Trial(self._corpus, chain, name, table, round(size / self._corpus.rows, 1), is_exact)

    def reopened(self, trial: Trial, store: Store) -> Trial:
        """The same table, searched with other options."""
        return replace(trial, table=store.table(self._folder, trial.name))

    def drop(self, trial: Trial, store: Store) -> None:
        store.drop(self._folder, trial.name)

    def _bytes_of_numbers(self, store: Store) -> int:
        """What the rows' numbers take on disk, which no table of a pipeline has."""
        if self._numbers is None:
            schema = pa.schema([pa.field(ROW, pa.int32())])
            table = store.table(self._folder, "numbers")
            table.apply(
                schema,
                [],
                [pa.record_batch([pa.array(range(self._corpus.rows), pa.int32())], schema)],
            )
            self._numbers = table.size_bytes()
        return self._numbers

    def _rows(self, store: Store, chain: CodecChain, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for rows, block in self._corpus.numbered():
            made: dict[str, Any] = {ROW: pa.array(rows, pa.int32()), **encoded(store, chain, block)}
            yield pa.RecordBatch.from_arrays([made[name] for name in schema.names], schema=schema)


def summary(shares: Vectors, doubt: float = DOUBT) -> tuple[float, float]:
    """Mean and lower bound."""
    return round(float(shares.mean()), 6), round(lower_bound(shares, 1 - doubt), 6)


def _by_copies(
    corpus: Corpus,
    chains: Mapping[Compression, CodecChain],
    found: Mapping[Compression, list[list[int]]],
    asked: Asked,
) -> dict[Compression, list[list[int]]]:
    """What was found, in the order of the copies."""
    wanted = {
        name: np.unique(np.concatenate([*map(np.asarray, found[name]), []])).astype(np.int64)
        for name in chains
    }
    parts: dict[Compression, list[Any]] = {name: [] for name in chains}
    for rows, block in corpus.numbered() if chains else ():
        for name, chain in chains.items():
            start, end = np.searchsorted(wanted[name], [rows[0], rows[-1] + 1])
            parts[name].append(chain.encode_rescoring(block[wanted[name][start:end] - rows[0]]))
    ranked: dict[Compression, list[list[int]]] = {}
    for name, chain in chains.items():
        copies = np.concatenate(parts[name])
        ranked[name] = []
        for vector, rows_found in zip(asked.vectors, found[name], strict=True):
            scores = chain.rescore(vector, copies[np.searchsorted(wanted[name], rows_found)])
            best = np.argsort(-scores, kind="stable")[:K]
            ranked[name].append([rows_found[place] for place in best])
    return ranked
