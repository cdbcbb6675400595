"""tune: a compression is measured on the pipeline's own vectors before it is trusted.

Measured is recall@10: the share of the exact ten nearest, in the model's own space, that a search
of the compressed table finds. Nothing of the pipeline is changed here; what was measured is written
down, whatever comes of it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from embedding_pipelines.compression.base import CodecChain, Compressor, as_options, check_chain
from embedding_pipelines.compression.pca import Pca, PcaCodec
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines.files import write_json
from embedding_pipelines.metrics.confidence import lower_bound
from embedding_pipelines.optimize.candidates import Compression, Point, best, mark_front
from embedding_pipelines.optimize.compare import Swept, sweep
from embedding_pipelines.optimize.trial import DOUBT, Asked, Corpus, Trials
from embedding_pipelines.plugins import choices, parse
from embedding_pipelines.quality.queries import has_vector, known_item_queries, read_qrels
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import digest
from embedding_pipelines.spec.evaluation import Optimized
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.codec import fit_codec
from embedding_pipelines.steps.embeddings import check_dimensions

QUERIES = 2_000  # to choose by, and as many again to certify. The bound of so many with a mean of 0.993 is 0.991
ENERGIES = (0.9, 0.95, 0.99)  # that PCA may keep, as a guide to its dimensions
AUTO, SAME_AS = "auto", {"quantization": "int8"}
WITH_DIMENSIONS = ("pca", "truncate")


@dataclass(frozen=True)
class Tuned:
    """What was measured, and what follows: the pipeline as it should be and the options of its file
    that say so.

    `problem` is empty if there is something to follow.
    """

    problem: str
    spec: PipelineSpec
    options: dict[tuple[str, ...], Any]
    points: list[Point]  # those with times are of real tables, the others of codes alone
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What the user asks for: compressions by name, in order, or "auto".

    `floor` is what the lower 95% bound of recall@10 must reach. `most_ms` is how long the median
    search of what "auto" chooses may take, in milliseconds.
    """

    methods: tuple[str, ...]
    dimensions: int | None = None
    floor: float | None = None
    most_ms: float = 500.0

    def __post_init__(self) -> None:
        """ConfigError if methods, dimensions and floor do not go together."""
        known = [*choices("compression", Compressor), *SAME_AS, AUTO]
        for method in self.methods:
            if method not in known or (method == AUTO and len(self.methods) > 1):
                alone = f"; {AUTO!r} stands alone" if method == AUTO else ""
                raise ConfigError(
                    f"--method is {method!r}: write one of {', '.join(known)}{alone}."
                )
        if self.dimensions is not None and not {AUTO, *WITH_DIMENSIONS} & set(self.methods):
            raise ConfigError(
                f"--dimensions is {self.dimensions}, but {' and '.join(self.methods)} keeps all of them. Leave it out, "
                "or write `--method pca` before."
            )
        if self.floor is not None and not 0 < self.floor <= 1:
            raise ConfigError(
                f"--floor is {self.floor:g}: write a share above 0, 1 at most, as 0.99."
            )
        if self.is_auto and self.floor is None:
            raise ConfigError(f"--method {AUTO} needs a --floor.")

    @property
    def is_auto(self) -> bool:
        return self.methods == (AUTO,)

    @property
    def name(self) -> str:
        return " ".join([*self.methods, *([str(self.dimensions)] if self.dimensions else [])])


def tune(run: Run, wish: Wish) -> Tuned:
    """Measure what the user has chosen, or find the best; write the evidence.

    Raises ConfigError for a wish that cannot be fulfilled or a pipeline that was never run,
    CompressionError if the queries are too few to prove the floor, BusyError while the pipeline is
    being run. Raises as `embed`.
    """
    with run.folder.lock("run", timeout_seconds=0):
        run.progress.update("optimize", 0, None, "queries")
        corpus = Corpus(run)
        with Trials(corpus) as trials:
            return (
                _swept(run, corpus, trials, wish)
                if wish.is_auto
                else _measured(run, corpus, trials, wish)
            )


def refit(run: Run) -> None:
    """Fit the pipeline's codec to what its vectors are now: a new release line, beside the one that
    was.

    Raises BusyError while the pipeline is being run.
    """
    with run.folder.lock("run", timeout_seconds=0), run.folder.lock():
        fit_codec(run)


def _measured(run: Run, corpus: Corpus, trials: Trials, wish: Wish) -> Tuned:
    """One compression, in the store as it is configured."""
    compression = _compression(corpus, wish)
    spec = run.spec.model_copy(update={"compression": compression})
    dimensions = check_chain(compression, corpus.space.dimensions)
    check_dimensions(Run(spec, run.warehouse, model=run.model))
    spec.store.check(compression[-1].codec.dtype, dimensions)
    asked, origin = _asked(run, corpus, QUERIES)
    if wish.floor is not None:
        _refuse_unprovable(run, wish.floor, len(asked), DOUBT)
    chain = CodecChain.fit(compression, corpus.blocks, corpus.space.dimensions)
    trial = trials.make(spec.store, chain, "chosen")
    found = vars(trial.searched(asked)) if len(asked) else {}
    index, refine = getattr(spec.store, "index", "none"), getattr(spec.store, "refine", None)
    point = Point(compression, index, refine, trial.bytes_per_vector, **found)
    point.chosen = wish.floor is None or (point.lower_bound or 0.0) >= wish.floor
    mark_front([point])
    queries = {"tuning": len(asked), "held_out": 0, "from": origin}
    return _tuned(run, wish, Swept([point]), spec, queries)


def _swept(run: Run, corpus: Corpus, trials: Trials, wish: Wish) -> Tuned:
    """The cheapest of all compressions and indices."""
    assert wish.floor is not None
    asked, origin = _asked(run, corpus, 2 * QUERIES)
    half = len(asked) // 2
    _refuse_unprovable(run, wish.floor, half, DOUBT / 2)
    only = wish.dimensions or run.spec.output_dim
    swept = sweep(
        corpus, trials, asked.part(half), asked.part(2 * half, half), wish.floor, wish.most_ms, only
    )
    spec = run.spec
    chosen = _chosen(swept.points)
    if chosen is not None:
        spec = spec.model_copy(update={"compression": chosen.compression, "store": swept.store})
    queries = {"tuning": half, "held_out": half, "from": origin}
    return _tuned(run, wish, swept, spec, queries)


def _compression(corpus: Corpus, wish: Wish) -> Compression:
    """The compressors; ConfigError that says what PCA would keep if their dimensions are
    missing."""
    kinds = [SAME_AS.get(method, method) for method in wish.methods]
    if wish.dimensions is None and (
        method := next((kind for kind in kinds if kind in WITH_DIMENSIONS), None)
    ):
        codec = Pca(dimensions=1).fit(corpus.blocks())
        assert isinstance(codec, PcaCodec)
        kept = np.cumsum(codec.spectrum, dtype=np.float64)
        guide = [f"{int((kept < energy).sum()) + 1} keep {energy:.0%}" for energy in ENERGIES]
        raise ConfigError(
            f"--method {method} needs --dimensions. Of the energy of these vectors, the strongest {', '.join(guide)}. "
            "`--method auto` measures how many are enough for searching."
        )
    of_kind = {
        kind: {"dimensions": wish.dimensions} if kind in WITH_DIMENSIONS else {} for kind in kinds
    }
    return tuple(
        parse("compression", Compressor, {"kind": kind, **of_kind[kind]}) for kind in kinds
    )


def _asked(run: Run, corpus: Corpus, wanted: int) -> tuple[Asked, dict[str, int]]:
    """Up to `wanted` queries in an order that says nothing of them, and how many of them come from
    where.

    The judged queries of the pipeline come first; what they lack is taken from the corpus.
    """
    spec, given = run.spec, read_qrels(run)
    texts = dict.fromkeys(
        map(spec.preprocessing.clean.text, given.queries.values() if given else ()), "given"
    )
    for item in known_item_queries(run, wanted):
        if len(texts) < wanted:
            texts.setdefault(item.query, "corpus")
    texts.pop("", None)
    names = sorted(texts, key=lambda text: digest(text.encode()))[:wanted]
    budget = BudgetTracker.of(spec.budget, spec.model)
    try:
        vectors = embed_all(names, run.model, run.cache, "query", budget).vectors
    finally:
        run.add_usage(billed_tokens=budget.billed, price=spec.model.price)
    told = has_vector(vectors)
    origins = [texts[name] for name, sound in zip(names, told, strict=True) if sound]
    return corpus.asked(vectors[told]), {
        origin: origins.count(origin) for origin in dict.fromkeys(origins)
    }


def _refuse_unprovable(run: Run, floor: float, queries: int, doubt: float) -> None:
    """CompressionError if so many queries could not prove the floor even if all of them found
    everything."""
    reached = lower_bound(np.ones(queries), 1 - doubt) if queries else 0.0
    if floor > reached:
        raise CompressionError(
            f"Pipeline {run.spec.name!r}: {queries} queries cannot prove a recall of {floor:g}, even if every one "
            f"of them found everything: that would prove {reached:.4f}. Lower --floor, or give more queries by "
            "evaluation.queries or more documents. Nothing was changed."
        )


def _tuned(run: Run, wish: Wish, swept: Swept, spec: PipelineSpec, asked: dict[str, Any]) -> Tuned:
    """The outcome, with its evidence written. `spec` is the pipeline with what was chosen, if
    something was."""
    evidence = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": wish.name,
        "floor": wish.floor,
        "confidence": 1 - DOUBT,
        "most_ms": wish.most_ms if wish.is_auto else None,
        "queries": asked,
        "points": [point.statistics for point in swept.points],
    }
    write_json(run.folder.optimization, evidence)
    chosen = _chosen(swept.points)
    if chosen is None:
        return Tuned(_refusal(run, wish, swept), run.spec, {}, swept.points, evidence)
    plain = CodecChain([], run.model.space.dimensions).bytes_per_vector
    optimized = Optimized(
        measured_on=datetime.now(UTC).date(),
        method=wish.name,
        floor=wish.floor,
        recall_at_10=chosen.recall_at_10
        if chosen.held_out_recall is None
        else chosen.held_out_recall,
        lower_bound=chosen.lower_bound
        if chosen.held_out_lower_bound is None
        else chosen.held_out_lower_bound,
        queries=(asked["held_out"] or asked["tuning"]) or None,
        bytes_per_vector=round(chosen.bytes_per_vector),
        times_smaller=round(plain / chosen.bytes_per_vector, 2),
    )
    options: dict[tuple[str, ...], Any] = {
        ("compression",): as_options(chosen.compression),
        ("optimized",): optimized.model_dump(exclude_none=True),
    }
    changed = {name: value for name, value in spec.store if value != getattr(run.spec.store, name)}
    if changed:
        options |= {("store", "kind"): spec.store.kind} | {
            ("store", name): value for name, value in changed.items()
        }
    return Tuned(
        "", spec.model_copy(update={"optimized": optimized}), options, swept.points, evidence
    )


def _chosen(points: list[Point]) -> Point | None:
    return next((point for point in points if point.chosen), None)


def _refusal(run: Run, wish: Wish, swept: Swept) -> str:
    point = best(swept.points)
    assert point is not None
    what = "no compression is" if wish.is_auto else f"{wish.name} is not"
    held = ", which other queries did not confirm" if point.certified is False else ""
    slow = f" and {point.p50_ms:.0f} ms" if point.p50_ms is not None else ""
    return (
        f"Pipeline {run.spec.name!r}: {what} proven to keep a recall of {wish.floor:g}"
        f"{f' in {wish.most_ms:g} ms a search' if wish.is_auto else ''}. The best is {point}: recall@10 "
        f"{point.recall_at_10:.4f}, at least {point.lower_bound:.4f} with 95% confidence{held}, at "
        f"{point.bytes_per_vector:,.0f} bytes a vector{slow}. Nothing was changed. Lower --floor, or "
        f"{'raise --max-ms or --dimensions' if wish.is_auto else 'try --method auto'}."
    )
