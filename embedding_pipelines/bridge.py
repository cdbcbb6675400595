"""Fits the bridge of a pipeline that migrates: queries of the new model search the old table, before
the new line is filled. It is measured on documents that it was not fitted to, and refused if it
loses too much.

It maps a query into the old model's own space, before the codec: what the table holds stays as it is.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.errors import ConfigError, ReleaseError
from embedding_pipelines.files import delete, write_atomic, write_json
from embedding_pipelines.metrics.bridge import Bridge, Retention, fit_bridge, retention_of
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.quality.queries import has_vector, known_item_queries, read_qrels
from embedding_pipelines.ranking import nearest
from embedding_pipelines.releases import Release, live_release
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.steps.vector_store import pairs
from embedding_pipelines.vectors import Vectors, to_matrix

PAIRS = 5_000  # texts that it is fitted to; 2,000 give nearly as much
QUERIES = 500  # known items that measure it
K = 10
RETENTION = 0.9  # of recall@10, at least, with a confidence of 95%


@dataclass(frozen=True)
class BridgeResult:
    """How much of the old table's recall@10 is left to queries of the new model."""

    pipeline: str
    kind: str  # orthogonal or ridge
    pairs: int  # of vectors that it was fitted to
    retention: float
    retention_low: float  # the true one is greater, with a confidence of 95%
    own_recall: float  # recall@10 of the table with its own model's queries
    overlap: float  # share of their ten nearest rows that bridged queries find, too
    queries: int
    embedded: int  # texts that reached either model; the rest was in the cache


@dataclass(frozen=True)
class _Question:
    text: str
    answers: frozenset[str]  # documents


def build_bridge(run: Run) -> BridgeResult:
    """Fit a bridge, and put it where searches look for it. Raises ReleaseError if it keeps less than
    RETENTION, and as `measure_bridge`."""
    bridge, result = measure_bridge(run)
    folder, space = run.folder, live_release(run.folder).space
    record = folder.bridge.with_suffix(".json")
    delete(record)  # before the map: it is read if the record is there
    if result.retention_low < RETENTION:
        raise ReleaseError(
            f"Pipeline {run.spec.name!r}: the bridge is refused. With queries of the new model the old "
            f"table keeps {result.retention:.1%} of its recall@10 of {result.own_recall:.3f}, and no "
            f"more than {result.retention_low:.1%} is proven by {result.queries:,} queries; "
            f"{RETENTION:.0%} is needed. Search with the old model until the cutover."
        )
    write_atomic(folder.bridge, bridge.to_bytes())
    spaces = {"from": run.model.space.id, "to": space.with_codec(None).id}
    write_json(record, {**spaces, **asdict(result)})
    return result


def measure_bridge(run: Run) -> tuple[Bridge, BridgeResult]:
    """Fit a bridge from `model` to `migration.old_model`, and measure it on other documents.

    Raises ReleaseError once searches read the new line; ConfigError for a pipeline that does not
    migrate, of images, or without queries; BudgetError.
    """
    spec, live, usage = run.spec, _live_on_old_line(run), Usage()
    with Run(spec, run.warehouse, run.progress, is_old_line=True) as old:
        questions = _questions(old)
        if not questions:
            raise ConfigError(
                f"Pipeline {spec.name!r} has no queries to measure a bridge by: its texts are too "
                "short for known items. Name evaluation.queries and evaluation.qrels."
            )
        held_out = frozenset[str]().union(*(question.answers for question in questions))
        texts, before = _sample(old, held_out)
        if len(texts) < 10:
            raise ConfigError(f"Pipeline {spec.name!r} has too few texts to fit a bridge to.")
        new = _embed(run, texts, "document", usage)
        sound = has_vector(new)
        bridge = fit_bridge(new[sound], before[sound])
        cleaned = [spec.preprocessing.clean.text(each.text) or each.text for each in questions]
        own = _embed(old, cleaned, "query", usage)
        mapped = bridge.map(_embed(run, cleaned, "query", usage))
    recalls, overlaps = _search_both(run, live, questions, own, mapped)
    if not overlaps:
        raise ConfigError(f"Pipeline {spec.name!r}: no query has a vector in both models.")
    retention: Retention = retention_of(recalls[:, 1], recalls[:, 0])
    return bridge, BridgeResult(
        pipeline=spec.name,
        kind=bridge.kind,
        pairs=int(sound.sum()),
        retention=retention.mean,
        retention_low=retention.low,
        own_recall=retention.own_recall,
        overlap=float(np.mean(overlaps)),
        queries=retention.queries,
        embedded=usage.embedded,
    )


def _live_on_old_line(run: Run) -> Release:
    spec = run.spec
    if spec.migration is None:
        raise ConfigError(
            f"Pipeline {spec.name!r} does not migrate. `embedding-pipelines migrate {spec.name} start "
            "--to MODEL` begins it."
        )
    if spec.source.has_images:
        raise ConfigError(f"Pipeline {spec.name!r} is of images, and a bridge is fitted to texts.")
    live = live_release(run.folder)
    if live.line:
        raise ReleaseError(f"Pipeline {spec.name!r}: searches read the new line, without a bridge.")
    return live


def _search_both(
    run: Run, live: Release, questions: Sequence[_Question], own: Vectors, mapped: Vectors
) -> tuple[NDArray[np.float64], list[float]]:
    """The recall float64[n, 2] of the old model's queries and of those that are mapped, where both
    have a vector, and which share of the old one's hits the others are."""
    table = live.spec.store.table(run.warehouse.tables, live.table)
    codec = CodecChain.load(run.folder.codecs / live.codec)
    recalls, overlaps = list[tuple[float, float]](), list[float]()
    for at in np.flatnonzero(has_vector(own) & has_vector(mapped)):
        rows = [
            nearest(table, codec, vectors[at], K, None, live.version) for vectors in (own, mapped)
        ]
        answers = questions[int(at)].answers
        hits = [answers.intersection(each["document_id"].to_pylist()) for each in rows]
        recalls.append((len(hits[0]) / len(answers), len(hits[1]) / len(answers)))
        first, second = (set(each["chunk_id"].to_pylist()) for each in rows)
        overlaps.append(len(first & second) / max(1, len(first)))
    return np.array(recalls), overlaps


def _questions(old: Run) -> list[_Question]:
    """Queries with relevance judgements, and known items, of a quarter of the documents at most."""
    names = old.spec.partition_names
    chunks = sum(manifest.rows for manifest in old.folder.chunks.manifests(names))
    judged, questions = read_qrels(old), list[_Question]()
    for name in sorted(judged.queries) if judged else ():
        assert judged is not None
        questions.append(_Question(judged.queries[name], frozenset(judged.answers(name))))
    items = known_item_queries(old, min(QUERIES, chunks // 4))
    questions += [_Question(item.query, frozenset([item.document_id])) for item in items]
    return questions


def _sample(old: Run, held_out: frozenset[str]) -> tuple[list[str], Vectors]:
    """Up to PAIRS texts of chunks of other documents, always the same, and their vectors
    float32[n, d] in the old model's space."""
    texts, parts = list[str](), list[Vectors]()
    generator = np.random.default_rng(old.spec.seed)
    for partition in generator.permutation(old.spec.partition_names):
        for chunks, embeddings in pairs(old, str(partition), ["chunk_id", "document_id", "text"]):
            is_there = embeddings[VECTOR].is_valid().to_pylist()
            documents = chunks["document_id"].to_pylist()
            rows = [
                row for row, name in enumerate(documents) if is_there[row] and name not in held_out
            ][: PAIRS - len(texts)]
            own = pa.array(rows, pa.int64())
            texts += chunks["text"].take(own).to_pylist()
            parts.append(to_matrix(embeddings[VECTOR].take(own)))
        if len(texts) >= PAIRS:
            break
    empty = np.empty((0, old.model.space.dimensions), np.float32)
    return texts, np.concatenate([empty, *parts])


def _embed(run: Run, texts: Sequence[str], input_type: InputType, usage: Usage) -> Vectors:
    """float32[n, d] through the cache, rows of NaN for what the model rejects."""
    budget = BudgetTracker.of(run.spec.budget, run.spec.model)
    try:
        result = embed_all(
            texts, run.model, run.cache, input_type, budget, on_cut=run.progress.note
        )
    finally:
        run.add_usage(Usage(billed_tokens=budget.billed), run.spec.model.price)
    usage.add(result.usage)
    return result.vectors
