"""measure: what a candidate is worth, in figures. Nothing is judged here; `quality.py` does that.

One pass over the embeddings gives the exact neighbours, the sample and the sketch; then each query
is searched in the table as a user's would be.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.metrics.drift import Sketch
from embedding_pipelines.metrics.health import DuplicateCount, health
from embedding_pipelines.metrics.labels import knn_accuracy
from embedding_pipelines.metrics.neighbours import TIES, ExactSearch, K, recall
from embedding_pipelines.metrics.retrieval import judged
from embedding_pipelines.metrics.similarity import cosine_spearman
from embedding_pipelines.quality.queries import (
    Judged,
    KnownQuery,
    answered,
    embed_texts,
    judged_queries,
    known_item_queries,
    scored_pairs,
)
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR, digest
from embedding_pipelines.search import as_numbers, encode_queries, nearest
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors, cosine, to_matrix

JUDGED_K = 100  # chunks that a judged query asks for
SAMPLE = 5_000  # vectors that are looked at among themselves
NEIGHBOURS = (
    128  # chunks whose nearest other one is looked for, and queries that an index is compared on
)
NEAR_DUPLICATE = 0.98
SHORT_TOKENS = 4  # two of them are BERT's own


@dataclass
class Measured:
    """Figures by name (see `MEASURES`), each query's own, and what is remembered of the vectors."""

    metrics: dict[str, float] = field(default_factory=dict)
    per_query: dict[str, dict[str, float]] = field(
        default_factory=dict
    )  # measure -> query id -> value
    queries: list[dict[str, str]] = field(default_factory=list)
    sketch: Sketch | None = None


@dataclass(frozen=True)
class Candidate:
    """A table version, and what its searches need."""

    run: Run
    codec: CodecChain
    table: Table
    name: str  # of the table
    version: int
    has_index: bool
    budget: BudgetTracker  # what measuring may cost


def measure(candidate: Candidate) -> Measured:
    """Every figure that the pipeline's data and options allow. Raises as `embed`, and ConfigError
    for its files."""
    spec, made = candidate.run.spec, Measured()
    budget = candidate.budget
    known = known_item_queries(candidate.run, spec.evaluation.known_items)
    vectors = embed_texts(
        candidate.run.model, candidate.run.cache, [item.query for item in known], "query", budget
    )
    rests = embed_texts(
        candidate.run.model, candidate.run.cache, [item.rest for item in known], "document", budget
    )
    told = answered(vectors) & answered(rests)
    known = [item for item, sound in zip(known, told, strict=True) if sound]
    vectors, rests = vectors[told], rests[told]
    made.queries = [{"id": item.id, "text": item.query, "from": item.document_id} for item in known]
    exact = _look_at_all(candidate, vectors, made)
    _search_known_items(candidate, known, vectors, rests, exact, made)
    if candidate.has_index and candidate.codec.rescoring_codec is None and len(known):
        made.metrics["index_recall_at_10"] = _index_recall(candidate, vectors[:NEIGHBOURS])
    _search_judged(candidate, budget, made)
    _compare_pairs(candidate, budget, made)
    metrics = {name: round(float(value), 6) for name, value in made.metrics.items()}
    made.metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return made


def _look_at_all(candidate: Candidate, queries: Vectors, made: Measured) -> ExactSearch:
    """The exact neighbours of the queries in the model's own space, and what concerns the vectors
    alone."""
    spec, folder = candidate.run.spec, candidate.run.folder
    generator, codec = np.random.default_rng(spec.seed), candidate.codec
    total = sum(
        entry.rows
        for partition in spec.partition_names
        if (entry := folder.embeddings.manifest(partition))
    )
    chosen = np.sort(generator.choice(total, min(total, SAMPLE), replace=False))
    exact, doubles, made.sketch = ExactSearch(queries, TIES * K), DuplicateCount(), Sketch()
    near, near_ids = (
        ExactSearch(np.empty((0, candidate.run.model.space.dimensions), np.float32), 2),
        list[str](),
    )
    parts, labels, first, short = (
        [np.empty((0, queries.shape[1]), np.float32)],
        list[str | None](),
        0,
        0,
    )
    for block in _blocks(candidate):
        if not near_ids:
            some = generator.choice(len(block.ids), min(len(block.ids), NEIGHBOURS), replace=False)
            near, near_ids = ExactSearch(block.vectors[some], 2), [block.ids[row] for row in some]
        for search in (exact, near):
            search.add(block.ids, block.vectors)
        doubles.add(block.vectors)
        made.sketch.add(block.partition, block.ids, block.vectors)
        rows = chosen[(chosen >= first) & (chosen < first + len(block.ids))] - first
        first += len(block.ids)
        short += block.short
        parts.append(block.vectors[rows])
        labels += [block.labels[row] for row in rows] if block.labels else []
    sample = np.concatenate(parts)
    if not len(sample):
        made.sketch = None  # of nothing; a later release cannot have drifted from it
        return exact
    kept = codec.decode(codec.encode(sample))
    made.metrics |= health(sample)
    made.metrics |= {
        "duplicate_rate": doubles.rate,
        "near_duplicate_rate": _near_duplicates(near, near_ids),
        "short_rate": short / first,
        "codec_cosine": float(cosine(sample, kept, both_zero=1).mean()),
    }
    told = [row for row, label in enumerate(labels) if label is not None]
    if len(told) > K:
        made.metrics["knn_accuracy"] = knn_accuracy(
            kept[told], [str(labels[row]) for row in told], K
        )
    return exact


@dataclass(frozen=True)
class _Block:
    """Chunks that have a vector."""

    partition: str
    ids: list[str]
    vectors: Vectors
    short: int
    labels: list[str | None]  # of the pipeline's column; none if it names none


def _blocks(candidate: Candidate) -> Iterator[_Block]:
    spec, folder = candidate.run.spec, candidate.run.folder
    label = spec.evaluation.label
    columns = ["tokens", *([label] if label else [])]
    for partition in spec.partition_names:
        pairs = zip(
            folder.embeddings.read(partition, ["chunk_id", VECTOR]),
            folder.chunks.read(partition, columns),
            strict=True,
        )
        for embeddings, chunks in pairs:
            mask = pc.is_valid(embeddings[VECTOR])
            embeddings, chunks = embeddings.filter(mask), chunks.filter(mask)
            if embeddings.num_rows:
                yield _Block(
                    partition,
                    embeddings["chunk_id"].to_pylist(),
                    to_matrix(embeddings[VECTOR]),
                    pc.sum(pc.less_equal(chunks["tokens"], SHORT_TOKENS)).as_py(),
                    chunks[label].to_pylist() if label else [],
                )


def _near_duplicates(near: ExactSearch, ids: list[str]) -> float:
    """The share of vectors with another one that is all but the same."""
    names, found = near.result()
    others = [
        max((score for name, score in zip(row, scores, strict=False) if name != own), default=-1.0)
        for own, row, scores in zip(ids, names, found.tolist(), strict=True)
    ]
    return float(np.mean(np.array(others) >= NEAR_DUPLICATE))


def _search_known_items(
    candidate: Candidate,
    known: list[KnownQuery],
    queries: Vectors,
    rests: Vectors,
    exact: ExactSearch,
    made: Measured,
) -> None:
    """What users get: time and recall of each search, and how high the rest of a query's own
    document comes."""
    if not known:
        return
    scores, milliseconds, found = (
        _scores(candidate.codec, queries, rests),
        list[float](),
        list[list[str]](),
    )
    ranks: dict[str, float] = {}
    for number, (item, vector, score) in enumerate(zip(known, queries, scores, strict=True)):
        candidate.run.progress.update("checks", number, len(known), "searches")
        started = time.perf_counter()
        hits = nearest(candidate.table, candidate.codec, vector, K, None, candidate.version)
        milliseconds.append((time.perf_counter() - started) * 1000)
        rows = list(
            zip(
                hits["chunk_id"].to_pylist(),
                hits["document_id"].to_pylist(),
                hits["score"].to_pylist(),
                strict=True,
            )
        )
        found.append([name for name, _, _ in rows])
        ranks[item.id] = _reciprocal_rank(item, rows, float(score))
    made.per_query["known_item_mrr"] = ranks
    made.metrics |= {
        "known_item_mrr": float(np.mean(list(ranks.values()))),
        "known_item_recall": float(np.mean([rank > 0 for rank in ranks.values()])),
        "recall_at_10": float(recall(found, exact.result(), K).mean()),
        "search_p50_ms": float(
            np.percentile(milliseconds[1:] or milliseconds, 50)
        ),  # the first opens the table
        "search_p95_ms": float(np.percentile(milliseconds[1:] or milliseconds, 95)),
    }


def _reciprocal_rank(item: KnownQuery, rows: list[tuple[str, str, float]], score: float) -> float:
    """1 / rank of a document among the first ten, if its first chunk were without the query; 0
    behind them."""
    own = [
        found
        for name, document, found in rows
        if document == item.document_id and not name.endswith("#0")
    ]
    others = [(document, found) for _, document, found in rows if document != item.document_id]
    best = max([score, *own])
    above = {document for document, found in others if found > best}
    if len(others) == len(rows) and len(above) == len({document for document, _ in others}):
        return 0.0  # behind everything that was found
    return 1 / (len(above) + 1)


def _scores(codec: CodecChain, queries: Vectors, documents: Vectors) -> Vectors:
    """The score that a search would give each document float32[n, d] for its query."""
    copies = codec.encode_rescoring(documents)
    if copies is not None:
        return np.array(
            [codec.rescore(query, copies[row : row + 1])[0] for row, query in enumerate(queries)]
        )
    left, right = encode_queries(codec, queries), codec.encode(documents)
    if codec.metric == "hamming":
        different = np.unpackbits(np.bitwise_xor(left, right), axis=1).sum(axis=1)
        agreeing: Vectors = (1 - different / codec.dimensions).astype(np.float32)
        return agreeing
    return cosine(left, right, both_zero=1)


def _index_recall(candidate: Candidate, queries: Vectors) -> float:
    """How much of the exact ten nearest codes the index finds."""
    codec, table = candidate.codec, candidate.table
    exact = ExactSearch(as_numbers(codec, encode_queries(codec, queries)), TIES * K)
    for batch in table.scan(["chunk_id", VECTOR], version=candidate.version):
        codes = as_numbers(codec, to_matrix(batch[VECTOR]))
        exact.add(batch["chunk_id"].to_pylist(), codes)
    found = [
        nearest(table, codec, vector, K, None, candidate.version)["chunk_id"].to_pylist()
        for vector in queries
    ]
    return float(recall(found, exact.result(), K).mean())


def _search_judged(candidate: Candidate, budget: BudgetTracker, made: Measured) -> None:
    asked = judged_queries(candidate.run)
    if asked is None:
        return
    _refuse_strangers(candidate, asked)
    names = list(asked.queries)
    vectors = embed_texts(
        candidate.run.model, candidate.run.cache, list(asked.queries.values()), "query", budget
    )
    run: dict[str, Mapping[str, float]] = {}
    for name, vector, told in zip(names, vectors, answered(vectors), strict=True):
        if told:  # what is refused finds nothing
            hits = nearest(
                candidate.table, candidate.codec, vector, JUDGED_K, None, candidate.version
            )
            best: dict[str, float] = {}
            for document, score in zip(
                hits["document_id"].to_pylist(), hits["score"].to_pylist(), strict=True
            ):
                best.setdefault(document, score)  # nearest first
            run[name] = best
    values = judged(run, asked.gains)
    # By what was asked and how it was judged: figures of other judgements are none to compare with.
    made.per_query["ndcg_at_10"] = {
        digest(
            asked.queries[name].encode(), str(sorted(asked.gains[name].items())).encode()
        ).hex(): found["ndcg_at_10"]
        for name, found in values.items()
    }
    for measure_name in next(iter(values.values())):
        made.metrics[measure_name] = float(
            np.mean([found[measure_name] for found in values.values()])
        )
    made.queries = [
        {"id": name, "text": text, "from": ""} for name, text in asked.queries.items()
    ] + made.queries


def _refuse_strangers(candidate: Candidate, asked: Judged) -> None:
    """ConfigError if no judged document is in the table: their ids are then not those of the
    pipeline."""
    wanted = pa.array({name for found in asked.gains.values() for name in found}, pa.string())
    for batch in candidate.table.scan(["document_id"], version=candidate.version):
        if pc.any(pc.is_in(batch["document_id"], wanted), min_count=0).as_py():
            return
    raise ConfigError(
        f"evaluation.qrels: none of its {len(wanted)} documents, such as {wanted[0].as_py()!r}, is in the table. Their "
        "ids must be those that `source.id` names."
    )


def _compare_pairs(candidate: Candidate, budget: BudgetTracker, made: Measured) -> None:
    pairs = scored_pairs(candidate.run)
    if not pairs:
        return
    texts = [left for left, _, _ in pairs] + [right for _, right, _ in pairs]
    left, right = np.split(
        embed_texts(candidate.run.model, candidate.run.cache, texts, "document", budget), 2
    )
    told = answered(left) & answered(right)
    codec = candidate.codec
    kept = [codec.decode(codec.encode(side[told])) for side in (left, right)]
    scores = [pair[2] for pair, sound in zip(pairs, told, strict=True) if sound]
    if len(set(scores)) > 1:  # else there is no order to find again
        made.metrics["pair_spearman"] = cosine_spearman(kept[0], kept[1], scores)
