"""tune: a compression is measured on the pipeline's own vectors before it is trusted.

Measured is recall@10: the share of the exact ten nearest, in the model's own space, that a search of the compressed
table finds. Nothing of the pipeline is changed here; what was measured is written down, whatever comes of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from embedding_pipelines.compression.base import CodecChain, Compressor, check_chain
from embedding_pipelines.compression.pca import Pca, PcaCodec
from embedding_pipelines.compression.tuning import Compression, Point, as_options, best, mark_front, named
from embedding_pipelines.embedding.budget import Purse
from embedding_pipelines.embedding.ledger import Ledger
from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines.evaluation.confidence import lower_bound
from embedding_pipelines.evaluation.options import Optimized
from embedding_pipelines.pipeline import PipelineSpec
from embedding_pipelines.plugins import choices, parse
from embedding_pipelines.schemas import digest
from embedding_pipelines.steps.context import StepContext
from embedding_pipelines.steps.embeddings import refuse_wrong_dimensions
from embedding_pipelines.steps.queries import answered, embed_texts, judged_queries, known_item_queries
from embedding_pipelines.steps.sweep import DOUBT, Swept, sweep
from embedding_pipelines.steps.trial import Asked, Corpus, Trials, searched
from embedding_pipelines.stores.base import Store
from embedding_pipelines.warehouse import write_json

QUERIES = 2_000  # to choose by, and as many again to certify. The bound of so many with a mean of 0.993 is 0.991
ENERGIES = (0.9, 0.95, 0.99)  # that PCA may keep, as a guide to its dimensions
AUTO, SAME_AS = "auto", {"quantization": "int8"}
WITH_DIMENSIONS = ("pca", "truncate")


@dataclass(frozen=True)
class Tuned:
    """What was measured, and what follows: the pipeline as it should be and the options of its file that say so.

    `problem` is empty if there is something to follow.
    """

    problem: str
    spec: PipelineSpec
    options: dict[tuple[str, ...], Any]
    points: list[Point]  # of real tables, in the order they were measured
    evidence: dict[str, Any]

    @property
    def chosen(self) -> Point | None:
        return next((point for point in self.points if point.chosen), None)


@dataclass(frozen=True)
class Wish:
    """What the user asks for: compressions by name, in order, or "auto".

    `floor` is what the lower 95% bound of recall@10 must reach. `most_ms` is how long the median search of what "auto"
    chooses may take, in milliseconds.
    """

    methods: tuple[str, ...]
    dimensions: int | None = None
    floor: float | None = None
    most_ms: float = 500.0

    def __post_init__(self) -> None:
        """ConfigError if methods and dimensions do not go together."""
        known = [*choices("compression", Compressor), *SAME_AS, AUTO]
        for method in self.methods:
            if method not in known or (method == AUTO and len(self.methods) > 1):
                alone = f"; {AUTO!r} stands alone" if method == AUTO else ""
                raise ConfigError(f"--method is {method!r}: write one of {', '.join(known)}{alone}.")
        if self.dimensions is not None and not {AUTO, *WITH_DIMENSIONS} & set(self.methods):
            raise ConfigError(
                f"--dimensions is {self.dimensions}, but {' and '.join(self.methods)} keeps all of them. Leave it out, "
                "or write `--method pca` before."
            )

    @property
    def is_auto(self) -> bool:
        return self.methods == (AUTO,)

    @property
    def name(self) -> str:
        return " ".join([*self.methods, *([str(self.dimensions)] if self.dimensions else [])])


def tune(context: StepContext, wish: Wish) -> Tuned:
    """Measure what the user has chosen, or find the best; write the evidence.

    Raises ConfigError for a wish that cannot be fulfilled or a pipeline that was never run, CompressionError if the
    queries are too few to prove the floor, BusyError while the pipeline is being run. Raises as `embed`.
    """
    with context.folder.lock("run", timeout_seconds=0):
        context.progress.update("optimize", 0, None, "queries")
        corpus = Corpus(context, context.spec.model.space)
        with Trials(corpus) as trials:
            return _swept(context, corpus, trials, wish) if wish.is_auto else _measured(context, corpus, trials, wish)


def _measured(context: StepContext, corpus: Corpus, trials: Trials, wish: Wish) -> Tuned:
    """One compression, in the store as it is configured."""
    compression = _compression(corpus, wish)
    spec = context.spec.model_copy(update={"compression": compression})
    check_chain(compression, corpus.space.dimensions)
    refuse_wrong_dimensions(StepContext(spec, context.warehouse), spec.model)
    asked, origin = _asked(context, corpus, QUERIES)
    if wish.floor is not None:
        _refuse_unprovable(context, wish.floor, len(asked.vectors), DOUBT)
    chain = CodecChain.fit(compression, corpus.blocks, corpus.space.dimensions)
    spec.store.check(chain.dtype, chain.dimensions)
    table, size = trials.table(spec.store, chain, "chosen")
    index, refine = getattr(spec.store, "index", "none"), getattr(spec.store, "refine", None)
    point = Point(compression, index, refine, round(size, 1))
    if len(asked.vectors):
        point = searched(table, chain, asked, point, 0.0)
    point.chosen = wish.floor is None or (point.lower_bound or 0.0) >= wish.floor
    mark_front([point])
    queries = {"tuning": len(asked.vectors), "held_out": 0, "from": origin}
    return _tuned(context, wish, trials, corpus, Swept(points=[point]), spec, queries)


def _swept(context: StepContext, corpus: Corpus, trials: Trials, wish: Wish) -> Tuned:
    """The cheapest of all compressions and indices."""
    floor = wish.floor if wish.floor is not None else FLOOR
    asked, origin = _asked(context, corpus, 2 * QUERIES)
    half = len(asked.vectors) // 2
    _refuse_unprovable(context, floor, half, DOUBT / 2)
    only = wish.dimensions or context.spec.output_dim
    swept = sweep(corpus, trials, asked.part(0, half), asked.part(half, 2 * half), floor, wish.most_ms, only)
    spec = context.spec
    if swept.chosen is not None:
        spec = spec.model_copy(update={"compression": swept.chosen.point.compression, "store": swept.chosen.store})
    queries = {"tuning": half, "held_out": half, "from": origin}
    return _tuned(context, wish, trials, corpus, swept, spec, queries)
