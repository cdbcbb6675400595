"""Measures a compression on the pipeline's own vectors before the pipeline uses it.

The figure is recall@10: the share of the exact ten nearest, in the model's own space, that a search
of the compressed table returns. Nothing of the pipeline changes; only the evidence is written.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from embedding_pipelines.compression.base import CodecChain, Compressor, as_options, check_chain
from embedding_pipelines.compression.pca import Pca, PcaCodec
from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines.files import write_json
from embedding_pipelines.metrics.confidence import lower_bound
from embedding_pipelines.optimize.candidates import Compression, Point, best_point, mark_front
from embedding_pipelines.optimize.search import search_candidates
from embedding_pipelines.optimize.tables import ALPHA, CandidateTables, Corpus, QuerySet
from embedding_pipelines.plugins import choices, parse
from embedding_pipelines.quality.queries import has_vector, known_item_queries, read_qrels
from embedding_pipelines.remote import refresh
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import digest
from embedding_pipelines.spec.evaluation import Optimized
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.codec import fit_codec
from embedding_pipelines.steps.embeddings import check_dimensions
from embedding_pipelines.stores.base import Store

# For the choice, and as many again held out. With a mean of 0.993 their lower bound is 0.991.
QUERIES = 2_000
ENERGIES = (0.9, 0.95, 0.99)  # that PCA may keep, as a guide to its dimensions
AUTO, SAME_AS = "auto", {"quantization": "int8"}
WITH_DIMENSIONS = ("pca", "truncate")


@dataclass(frozen=True)
class OptimizeResult:
    """The points, and the chosen compression: as a pipeline, and as options for its file."""

    problem: str  # why none was chosen; empty if one was
    spec: PipelineSpec
    options: dict[tuple[str, ...], Any]
    points: list[Point]  # those with times are of real tables, the others of codes alone
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """What to measure: compressions by name, in order, or "auto". The lower 95% bound of recall@10
    must reach `floor`; with "auto", the median search may take `most_ms` milliseconds."""

    methods: tuple[str, ...]
    dimensions: int | None = None
    floor: float | None = None
    most_ms: float = 500.0

    def __post_init__(self) -> None:
        """ConfigError if methods, dimensions and floor do not go together."""
        methods = [*choices("compression", Compressor), *SAME_AS, AUTO]
        for method in self.methods:
            if method not in methods or (method == AUTO and len(self.methods) > 1):
                alone = f"; {AUTO!r} stands alone" if method == AUTO else ""
                raise ConfigError(
                    f"--method is {method!r}: write one of {', '.join(methods)}{alone}."
                )
        if self.dimensions is not None and not {AUTO, *WITH_DIMENSIONS} & set(self.methods):
            raise ConfigError(
                f"--dimensions is {self.dimensions}, but {' and '.join(self.methods)} keeps all of "
                "them. Leave it out, or write `--method pca` before."
            )
        if self.floor is not None and not 0 < self.floor <= 1:
            raise ConfigError(
                f"--floor is {self.floor:g}: write a share above 0 and at most 1, e.g. 0.99."
            )
        if self.is_auto and self.floor is None:
            raise ConfigError(f"--method {AUTO} needs a --floor.")

    @property
    def is_auto(self) -> bool:
        return self.methods == (AUTO,)

    @property
    def name(self) -> str:
        return " ".join([*self.methods, *([str(self.dimensions)] if self.dimensions else [])])


def optimize_pipeline(run: Run, goal: Goal) -> OptimizeResult:
    """Measure the compression that the goal names, or find the best; write the evidence.

    Raises as `embed`, ConfigError for an impossible goal or a pipeline without vectors,
    CompressionError for too few queries to prove the floor, BusyError while the pipeline runs.
    """
    refresh(run.warehouse, run.spec.name)
    with run.folder.lock("run", timeout_seconds=0):
        run.progress.update("optimize", 0, None, "queries")
        corpus = Corpus(run)
        with CandidateTables(corpus) as tables:
            measure = _find_best if goal.is_auto else _measure_one
            return measure(corpus, tables, goal)


def refit(run: Run) -> None:
    """Fit the pipeline's codec to its current vectors, which starts a new release line. Raises
    BusyError while the pipeline runs."""
    with run.folder.lock("run", timeout_seconds=0), run.folder.lock():
        fit_codec(run)


def _measure_one(corpus: Corpus, tables: CandidateTables, goal: Goal) -> OptimizeResult:
    """One compression, in the store as it is configured."""
    run, compression = corpus.run, _parse_methods(corpus, goal)
    spec = run.spec.model_copy(update={"compression": compression})
    dimensions = check_chain(compression, corpus.space.dimensions)
    check_dimensions(Run(spec, run.warehouse, model=run.model))
    spec.store.check(compression[-1].codec.dtype, dimensions)
    query_set, origins = _embed_queries(corpus, QUERIES)
    if goal.floor is not None:
        _check_provable(run, goal.floor, len(query_set), ALPHA)
    chain = CodecChain.fit(compression, corpus.blocks, corpus.space.dimensions)
    table = tables.build(spec.store, chain, "candidate")
    figures = vars(table.measure(query_set)) if len(query_set) else {}
    index, refine = getattr(spec.store, "index", "none"), getattr(spec.store, "refine", None)
    point = Point(compression, index, refine, table.bytes_per_vector, **figures)
    point.chosen = goal.floor is None or (point.lower_bound or 0.0) >= goal.floor
    mark_front([point])
    queries = {"selection": len(query_set), "held_out": 0, "from": origins}
    return _result(run, goal, [point], spec.store, queries)


def _find_best(corpus: Corpus, tables: CandidateTables, goal: Goal) -> OptimizeResult:
    """The cheapest of all compressions and indices."""
    assert goal.floor is not None
    run, (query_set, origins) = corpus.run, _embed_queries(corpus, 2 * QUERIES)
    half = len(query_set) // 2
    _check_provable(run, goal.floor, half, ALPHA / 2)
    halves = query_set.part(half), query_set.part(2 * half, half)
    only = goal.dimensions or run.spec.output_dim
    points, store = search_candidates(corpus, tables, *halves, goal.floor, goal.most_ms, only)
    queries = {"selection": half, "held_out": half, "from": origins}
    return _result(run, goal, points, store, queries)


def _parse_methods(corpus: Corpus, goal: Goal) -> Compression:
    """The compressors; ConfigError with PCA's energies if their dimensions are missing."""
    kinds = [SAME_AS.get(method, method) for method in goal.methods]
    sized = [kind for kind in kinds if kind in WITH_DIMENSIONS]
    if sized and goal.dimensions is None:
        codec = Pca(dimensions=1).fit(corpus.blocks())
        assert isinstance(codec, PcaCodec)
        sums = np.cumsum(codec.spectrum, dtype=np.float64)
        guide = [f"{int((sums < energy).sum()) + 1} keep {energy:.0%}" for energy in ENERGIES]
        raise ConfigError(
            f"--method {sized[0]} needs --dimensions. Of the energy of these vectors, the "
            f"strongest {', '.join(guide)}. `--method auto` measures how many are enough for "
            "searching."
        )
    sizes = {kind: {"dimensions": goal.dimensions} for kind in WITH_DIMENSIONS}
    options = [{"kind": kind, **sizes.get(kind, {})} for kind in kinds]
    return tuple(parse("compression", Compressor, choice) for choice in options)


def _embed_queries(corpus: Corpus, most: int) -> tuple[QuerySet, dict[str, int]]:
    """Up to `most` queries in an arbitrary order, first those of the pipeline's own relevance
    judgements, then from the corpus; and how many come from where."""
    run, spec, judged = corpus.run, corpus.run.spec, read_qrels(corpus.run)
    own = judged.queries.values() if judged else ()
    texts = dict.fromkeys(map(spec.preprocessing.clean.text, own), "given")
    for item in known_item_queries(run, most):
        if len(texts) < most:
            texts.setdefault(item.query, "corpus")
    texts.pop("", None)
    names = sorted(texts, key=lambda text: digest(text.encode()))[:most]
    budget = BudgetTracker.of(spec.budget, spec.model)
    try:
        tell = run.progress.note
        vectors = embed_all(
            names,
            run.model,
            run.cache,
            "query",
            budget,
            on_cut=lambda words: tell(f"A query was too long: {words}"),
        ).vectors
    finally:
        run.add_usage(Usage(billed_tokens=budget.billed), spec.model.price)
    is_sound = has_vector(vectors)
    origins = [texts[name] for name, sound in zip(names, is_sound, strict=True) if sound]
    return corpus.query_set(vectors[is_sound]), dict(Counter(origins))


def _check_provable(run: Run, floor: float, queries: int, alpha: float) -> None:
    """CompressionError if even a perfect result of so many queries would not prove the floor."""
    reached = lower_bound(np.ones(queries), 1 - alpha) if queries else 0.0
    if floor > reached:
        raise CompressionError(
            f"Pipeline {run.spec.name!r}: {queries} queries cannot prove a recall of {floor:g}; "
            f"even a perfect result would prove {reached:.4f}. Lower --floor, or give more queries "
            "by evaluation.queries or more documents. Nothing was changed."
        )


def _result(
    run: Run, goal: Goal, points: list[Point], store: Store, queries: dict[str, Any]
) -> OptimizeResult:
    """The outcome, with its evidence written. `store` is that of the chosen point."""
    evidence = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": goal.name,
        "floor": goal.floor,
        "confidence": 1 - ALPHA,
        "most_ms": goal.most_ms if goal.is_auto else None,
        "queries": queries,
        "points": [point.statistics for point in points],
    }
    write_json(run.folder.optimization, evidence)
    best = next((point for point in points if point.chosen), None)
    if best is None:
        return OptimizeResult(_describe_failure(run, goal, points), run.spec, {}, points, evidence)
    plain = CodecChain([], run.model.space.dimensions).bytes_per_vector
    recall, bound = best.recall_at_10, best.lower_bound
    if best.certified:
        recall, bound = best.held_out_recall, best.held_out_lower_bound
    optimized = Optimized(
        measured_on=datetime.now(UTC).date(),
        method=goal.name,
        floor=goal.floor,
        recall_at_10=recall,
        lower_bound=bound,
        queries=(queries["held_out"] or queries["selection"]) or None,
        bytes_per_vector=round(best.bytes_per_vector),
        times_smaller=round(plain / best.bytes_per_vector, 2),
    )
    options: dict[tuple[str, ...], Any] = {
        ("compression",): as_options(best.compression),
        ("optimized",): optimized.model_dump(exclude_none=True),
    }
    changes = {name: value for name, value in store if value != getattr(run.spec.store, name)}
    if changes:
        changes = {"kind": store.kind, **changes}
        options |= {("store", name): value for name, value in changes.items()}
    update = {"compression": best.compression, "store": store, "optimized": optimized}
    return OptimizeResult("", run.spec.model_copy(update=update), options, points, evidence)


def _describe_failure(run: Run, goal: Goal, points: list[Point]) -> str:
    point = best_point(points)
    subject = "no compression is" if goal.is_auto else f"{goal.name} is not"
    time = f" in {goal.most_ms:g} ms a search" if goal.is_auto else ""
    held_out = ", which the held-out queries did not confirm" if point.certified is False else ""
    slow = f" and {point.p50_ms:.0f} ms" if point.p50_ms is not None else ""
    remedy = "raise --max-ms or --dimensions" if goal.is_auto else "try --method auto"
    return (
        f"Pipeline {run.spec.name!r}: {subject} proven to keep a recall of {goal.floor:g}{time}. "
        f"The best is {point}: recall@10 {point.recall_at_10:.4f}, at least "
        f"{point.lower_bound:.4f} with 95% confidence{held_out}, at {point.bytes_per_vector:,.0f} "
        f"bytes a vector{slow}. Nothing was changed. Lower --floor, or {remedy}."
    )
