"""A candidate for a release, and what is gathered of it: one pass over embeddings and chunks, one
over the table, then a search for each query as a user would make it."""

import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embedding_pipelines.compression.base import CodecChain, code_width
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.drift import Sketch
from embedding_pipelines.metrics.evidence import Evidence, Search
from embedding_pipelines.metrics.health import SHORT_TOKENS, DistinctVectors
from embedding_pipelines.metrics.neighbours import TIES, ExactSearch, K
from embedding_pipelines.providers.base import NORM_TOLERANCE, InputType
from embedding_pipelines.quality.queries import (
    KnownItemQuery,
    Qrels,
    has_vector,
    known_item_queries,
    read_pairs,
    read_qrels,
)
from embedding_pipelines.releases import Release, search_alike
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR, digest
from embedding_pipelines.search import as_numbers, nearest
from embedding_pipelines.search import queries as as_queries
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, cosine, to_matrix

QRELS_K = 100  # chunks that a query with relevance judgements asks for
SAMPLE = 5_000  # vectors that are compared with one another
NEIGHBOURS = 128  # chunks whose nearest other is looked for, and queries that test an index
GROWTH = 1.25  # of the table, from which on known items may come later: there is more to find


@dataclass(kw_only=True)
class Candidate(Evidence):
    """A table version that may be released, what its searches need, and what was gathered of it."""

    run: Run
    codec: CodecChain
    table: Table
    name: str  # of the table
    version: int
    rows: int
    has_index: bool
    source_rows: int  # that were read from the source's files
    live: Release | None
    budget: BudgetTracker  # what the checks may cost
    # Known items, with float32[n, d] of their queries and target passages.
    items: list[KnownItemQuery] = field(default_factory=list)
    queries: Vectors = field(init=False)
    targets: Vectors = field(init=False)
    judgements: Qrels | None = None
    has_judged_document: bool = False  # in the table
    # Faults by name, and how many vectors have them.
    faults: dict[str, int] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)  # ids of the chunks without a vector
    rejected_documents: int = 0  # of whose chunks none is in the table
    documents: int = 0  # in the table
    duplicate_rows: int = 0  # chunk ids that came before
    # Some chunks: their texts, and their codes in the table.
    texts: dict[str, str] = field(default_factory=dict)
    codes: dict[str, Vectors] = field(default_factory=dict)
    collected: dict[str, Any] = field(default_factory=dict)  # by check, for itself
    metrics: dict[str, float] = field(default_factory=dict)
    query_metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # by metric, by query

    @functools.cached_property
    def shard_dimensions(self) -> set[int]:
        shards = self.run.folder.embeddings
        schemas = (shards.schema(partition) for partition in self.run.spec.partition_names)
        return {schema.field(VECTOR).type.list_size for schema in schemas if schema is not None}

    @functools.cached_property
    def is_aligned(self) -> bool:
        """Whether each chunk has its row of embeddings, and these have the model's dimensions: else
        there is nothing to measure."""
        folder, names = self.run.folder, self.run.spec.partition_names
        pairs = [(folder.chunks.manifest(name), folder.embeddings.manifest(name)) for name in names]
        return self.shard_dimensions <= {self.run.model.space.dimensions} and all(
            (chunks.rows if chunks else 0) == (embeddings.rows if embeddings else 0)
            for chunks, embeddings in pairs
        )

    @property
    def has_only_grown(self) -> bool:
        """Whether it is the live release with much more data: what is looked for may then come
        later."""
        if self.live is None or self.rows <= self.live.rows * GROWTH:
            return False
        space = self.run.model.space.with_codec(self.codec.id)
        return space == self.live.space and search_alike(self.run.spec, self.live.spec)

    def embed(self, texts: Sequence[str], input_type: InputType, use_cache: bool = True) -> Vectors:
        """Vectors float32[len(texts), d] within the budget, rows of NaN for what the provider
        rejects. Raises as `embed`."""
        cache = self.run.cache if use_cache else None
        return embed_all(texts, self.run.model, cache, input_type, self.budget).vectors


def gather(candidate: Candidate, chosen: Mapping[str, NDArray[np.int64]]) -> None:
    """All that takes a pass over the data. Raises as `embed`, and ConfigError for the files of
    `evaluation:`.

    `chosen` are the rows, by partition and rising, of the chunks whose text and code to keep.
    """
    candidate.judgements = read_qrels(candidate.run)
    most = candidate.run.spec.evaluation.known_items if candidate.is_aligned else 0
    candidate.items = known_item_queries(candidate.run, most)
    queries = candidate.embed([item.query for item in candidate.items], "query")
    targets = candidate.embed([item.target for item in candidate.items], "document")
    sound = has_vector(queries) & has_vector(targets)
    candidate.items = list(itertools.compress(candidate.items, sound))
    candidate.queries, candidate.targets = queries[sound], targets[sound]
    _read_embeddings(candidate, chosen)
    _read_table(candidate)


def search(candidate: Candidate) -> None:
    """What the table returns for each query, and what compression does to vectors. Raises as
    `gather`, and ConfigError if the relevance judgements are of no document in the table."""
    if candidate.sample is not None:
        candidate.decoded = candidate.codec.decode(candidate.codec.encode(candidate.sample))
    _search_known_items(candidate)
    _search_judged_queries(candidate)
    _embed_pairs(candidate)


@dataclass(frozen=True)
class _Block:
    """Chunks of a partition that have a sound vector."""

    partition: str
    ids: list[str]
    vectors: Vectors
    chunks: pa.RecordBatch


def _read_embeddings(candidate: Candidate, chosen: Mapping[str, NDArray[np.int64]]) -> None:
    """The exact neighbours of the queries in the model's own space, and what concerns the vectors
    alone."""
    run, label = candidate.run, candidate.run.spec.evaluation.label
    manifests = map(run.folder.embeddings.manifest, run.spec.partition_names)
    total = sum(manifest.rows for manifest in manifests if manifest)
    generator = np.random.default_rng(run.spec.seed)
    numbers = np.sort(generator.choice(total, min(total, SAMPLE), replace=False))
    exact, distinct, sketch = ExactSearch(candidate.queries, TIES * K), DistinctVectors(), Sketch()
    near = ExactSearch(np.empty((0, run.model.space.dimensions), np.float32), 2)
    near_ids, parts = list[str](), list[Vectors]()
    for block in _blocks(candidate, chosen):
        if not near_ids:
            count = len(block.ids)
            some = generator.choice(count, min(count, NEIGHBOURS), replace=False)
            near, near_ids = ExactSearch(block.vectors[some], 2), [block.ids[row] for row in some]
        for exact_search in (exact, near):
            exact_search.add(block.ids, block.vectors)
        distinct.add(block.vectors)
        sketch.add(block.partition, block.ids, block.vectors)
        first, last = candidate.vectors, candidate.vectors + len(block.ids)
        rows = numbers[(numbers >= first) & (numbers < last)] - first
        candidate.vectors = last
        candidate.short_texts += pc.sum(pc.less_equal(block.chunks["tokens"], SHORT_TOKENS)).as_py()
        parts.append(block.vectors[rows])
        candidate.labels += block.chunks[label].take(pa.array(rows)).to_pylist() if label else []
    candidate.exact = exact.result()
    if candidate.vectors:
        candidate.distinct, candidate.sketch = distinct.distinct, sketch
        candidate.sample = np.concatenate(parts)
        candidate.nearest_other = _nearest_other(near, near_ids)


def _blocks(candidate: Candidate, chosen: Mapping[str, NDArray[np.int64]]) -> Iterator[_Block]:
    """Read all partitions, counting faults on the way; nothing is yielded of shards that are not
    aligned."""
    run, faults, is_aligned = candidate.run, candidate.faults, candidate.is_aligned
    label, normalized = run.spec.evaluation.label, run.model.space.normalized
    faults |= dict.fromkeys(("vectors", "not_finite", "zero", "not_normalized"), 0)
    nothing = np.empty(0, np.int64)
    for partition in run.spec.partition_names:
        wanted, done = chosen.get(partition, nothing), 0
        columns = ["tokens", *([label] if label else []), *(["text"] if len(wanted) else [])]
        shards = run.folder.embeddings.read(partition, ["chunk_id", VECTOR])
        chunk_batches = run.folder.chunks.read(partition, columns) if is_aligned else None
        for embeddings in shards:
            mask = pc.is_valid(embeddings[VECTOR])
            ids = embeddings["chunk_id"]
            candidate.rejected += ids.filter(pc.invert(mask)).to_pylist()
            vectors = to_matrix(embeddings[VECTOR].filter(mask))
            norms = np.linalg.norm(vectors, axis=1)
            finite = np.isfinite(norms)
            faults["vectors"] += len(vectors)
            faults["not_finite"] += int((~finite).sum())
            faults["zero"] += int((norms == 0).sum())
            if normalized:
                lengths = np.abs(norms[finite] - 1)
                faults["not_normalized"] += int((lengths > NORM_TOLERANCE).sum())
            if chunk_batches is None:
                continue
            chunks = next(chunk_batches)
            start, end = np.searchsorted(wanted, [done, done + len(ids)])
            rows = pa.array(wanted[start:end] - done)
            if len(rows):
                texts = chunks["text"].take(rows).to_pylist()
                candidate.texts |= zip(ids.take(rows).to_pylist(), texts, strict=True)
            done += len(ids)
            if finite.any():
                names = ids.filter(mask).filter(pa.array(finite)).to_pylist()
                sound = chunks.filter(mask).filter(pa.array(finite))
                yield _Block(partition, names, vectors[finite], sound)


def _nearest_other(near: ExactSearch, ids: list[str]) -> Vectors:
    """The cosine float32[n] of each vector with the nearest one of another id."""
    names, cosines = near.result()
    others = [
        max((score for name, score in zip(row, scores, strict=False) if name != own), default=-1.0)
        for own, row, scores in zip(ids, names, cosines.tolist(), strict=True)
    ]
    return np.array(others, np.float32)


def _read_table(candidate: Candidate) -> None:
    """The exact nearest codes of the first queries, ids, faults and the chosen rows' codes."""
    codec, table, first = candidate.codec, candidate.table, candidate.queries[:NEIGHBOURS]
    width = table.schema(candidate.version).field(VECTOR).type.list_size
    fits = width == code_width(codec.dimensions, codec.dtype)
    exact: ExactSearch | None = None
    if candidate.has_index and codec.rescoring_codec is None and len(first) and fits:
        exact = ExactSearch(as_numbers(codec, as_queries(codec, first)), TIES * K)
    chosen = pa.array(list(candidate.texts), pa.string())
    rejected = {name.rpartition("#")[0] for name in candidate.rejected}
    judged = set[str]().union(
        *candidate.judgements.relevance.values() if candidate.judgements else ()
    )
    chunks, documents, rows = list[NDArray[np.int64]](), list[NDArray[np.int64]](), 0
    candidate.faults["table_zero_or_not_finite"] = 0
    for batch in table.scan(["chunk_id", "document_id", VECTOR], version=candidate.version):
        ids, codes = batch["chunk_id"].to_pylist(), to_matrix(batch[VECTOR])
        names = pc.unique(batch["document_id"]).to_pylist()
        chunks.append(_hashes(ids))
        documents.append(_hashes(names))
        rows += len(ids)
        rejected.difference_update(names)
        candidate.has_judged_document |= not judged.isdisjoint(names)
        finite = np.ones(len(ids), bool)
        if codec.dtype != "binary":  # of packed bits every pattern is sound, 0 too
            norms = np.linalg.norm(codes.astype(np.float32), axis=1)
            finite = np.isfinite(norms)
            candidate.faults["table_zero_or_not_finite"] += int((~finite | (norms == 0)).sum())
        if exact is not None:
            exact.add(list(itertools.compress(ids, finite)), as_numbers(codec, codes[finite]))
        for row in np.flatnonzero(pc.is_in(batch["chunk_id"], chosen).to_numpy(False)):
            candidate.codes[ids[row]] = codes[row].copy()
    candidate.exact_codes = exact.result() if exact else None
    candidate.duplicate_rows = rows - _distinct(chunks)
    candidate.documents, candidate.rejected_documents = _distinct(documents), len(rejected)


def _hashes(names: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, names), np.int64, len(names))


def _distinct(hashes: list[NDArray[np.int64]]) -> int:
    """How many names are different. Of ten million, two have the same hash with a probability of 3
    in a million, and other two in the next process."""
    return len(np.unique(np.concatenate([np.empty(0, np.int64), *hashes])))


def _search_known_items(candidate: Candidate) -> None:
    """What users get: what each search returns, how long it takes, and how high the target passage
    of the query comes."""
    codec, items, progress = candidate.codec, candidate.items, candidate.run.progress
    if not items:
        return
    scores = _scores(codec, candidate.queries, candidate.targets)
    for number, (item, vector, score) in enumerate(
        zip(items, candidate.queries, scores, strict=True)
    ):
        progress.update("checks", number, len(items), "searches")
        started = time.perf_counter()
        rows = nearest(candidate.table, codec, vector, K, None, candidate.version)
        milliseconds = (time.perf_counter() - started) * 1000
        columns = (rows[name].to_pylist() for name in ("chunk_id", "document_id", "score"))
        hits = list(zip(*columns, strict=True))
        candidate.searches.append(
            Search(item.id, item.document_id, float(score), hits, milliseconds)
        )


def _scores(codec: CodecChain, queries: Vectors, documents: Vectors) -> Vectors:
    """The score that a search would give each document float32[n, d] for its query."""
    copies = codec.encode_rescoring(documents)
    if copies is not None:
        return np.array(
            [codec.rescore(query, copies[row : row + 1])[0] for row, query in enumerate(queries)]
        )
    left, right = as_queries(codec, queries), codec.encode(documents)
    if codec.metric == "hamming":
        different = np.unpackbits(np.bitwise_xor(left, right), axis=1).sum(axis=1)
        agreeing: Vectors = (1 - different / codec.dimensions).astype(np.float32)
        return agreeing
    return cosine(left, right, both_zero=1)


def _search_judged_queries(candidate: Candidate) -> None:
    qrels = candidate.judgements
    if qrels is None:
        return
    if not candidate.has_judged_document:
        strangers = sorted(set[str]().union(*qrels.relevance.values()))
        raise ConfigError(
            f"evaluation.qrels: none of its {len(strangers)} documents, such as {strangers[0]!r}, "
            "is in the table. Write the ids that `source.id` names."
        )
    vectors = candidate.embed(list(qrels.queries.values()), "query")
    for name, vector, sound in zip(qrels.queries, vectors, has_vector(vectors), strict=True):
        if sound:  # a query that the provider rejects finds nothing
            rows = nearest(
                candidate.table, candidate.codec, vector, QRELS_K, None, candidate.version
            )
            best: dict[str, float] = {}
            for document, score in zip(
                rows["document_id"].to_pylist(), rows["score"].to_pylist(), strict=True
            ):
                best.setdefault(document, score)  # nearest first
            candidate.rankings[name] = best
    candidate.qrels = qrels.relevance
    candidate.query_ids = {
        name: digest(text.encode(), str(sorted(qrels.relevance[name].items())).encode()).hex()
        for name, text in qrels.queries.items()
    }


def _embed_pairs(candidate: Candidate) -> None:
    pairs = read_pairs(candidate.run)
    if not pairs:
        return
    texts = [left for left, _, _ in pairs] + [right for _, right, _ in pairs]
    left, right = np.split(candidate.embed(texts, "document"), 2)
    sound, codec = has_vector(left) & has_vector(right), candidate.codec
    left, right = (codec.decode(codec.encode(side[sound])) for side in (left, right))
    scores = [score for _, _, score in pairs]
    candidate.pairs = left, right, list(itertools.compress(scores, sound))
