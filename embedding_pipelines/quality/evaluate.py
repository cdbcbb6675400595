"""All checks, and how a candidate passes through them: structure first, then what it is worth."""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.allocators import return_memory
from embedding_pipelines.embedding.budget import Usage
from embedding_pipelines.errors import BudgetError, EmbeddingPipelinesError
from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.plugins import objects
from embedding_pipelines.quality.base import Check, Outcome
from embedding_pipelines.quality.evidence import Candidate, gather, keep_figures, search
from embedding_pipelines.quality.queries import query_tokens
from embedding_pipelines.releases import release_anyway
from embedding_pipelines.run import Run
from embedding_pipelines.spec.evaluation import Effect
from embedding_pipelines.spec.pipeline import PipelineSpec

STRUCTURE: dict[str, Check] = objects("quality.structure", Check)  # type: ignore[type-abstract]
CHECKS = STRUCTURE | objects("quality.checks", Check)  # type: ignore[type-abstract]


def effects(spec: PipelineSpec) -> dict[str, Effect]:
    """The checks of a pipeline that are on, and what each does if it fails."""
    own = spec.evaluation.checks
    every = {name: own.get(name, check.effect) for name, check in CHECKS.items()}
    return {name: effect for name, effect in every.items() if effect != "off"}


def cost(run: Run) -> int:
    """Tokens at most that checking a candidate takes, by the model's tokenizer."""
    return query_tokens(run) + sum(CHECKS[name].cost(run) for name in effects(run.spec))


def evaluate(candidate: Candidate) -> list[Outcome]:
    """Run every check that is on, and measure the candidate unless its structure is broken.

    A check that raises becomes an inconclusive warning; it is repeated next run unless the budget
    ran out. Raises as `gather` and `search`.
    """
    run, on = candidate.run, effects(candidate.run.spec)
    try:
        return_memory()
        gather(candidate, _chosen_rows(candidate, on))
        return_memory()  # of the pass over all rows, before the index is in memory
        outcomes = [check.evaluate(candidate) for check in STRUCTURE.values()]
        quality = [CHECKS[name] for name in on if name not in STRUCTURE]
        failed = ", ".join(outcome.name for outcome in outcomes if not outcome.passed)
        if failed:
            reason = f"Not run, since {failed} failed."
            return outcomes + [Outcome(check.name, False, reason, {}, "warn") for check in quality]
        search(candidate)
        return_memory()
        errors: dict[str, EmbeddingPipelinesError] = {}
        for check in quality:
            try:
                check.collect(candidate)
            except EmbeddingPipelinesError as error:
                errors[check.name] = error
    finally:  # whatever has been paid for
        run.add_usage(Usage(billed_tokens=candidate.budget.billed), run.spec.model.price)
    for metric in METRICS.values():
        value = metric.measure(candidate)
        if value is not None and math.isfinite(value):
            candidate.metrics[metric.name] = round(value, 6)
        figures = metric.by_query(candidate) if metric.by_query else {}
        if figures:
            candidate.query_metrics[metric.name] = dict(figures)
    keep_figures(candidate)
    return outcomes + [_outcome(check, candidate, errors.get(check.name)) for check in quality]


def _chosen_rows(candidate: Candidate, names: Iterable[str]) -> dict[str, NDArray[np.int64]]:
    """Rows of some chunks by partition, others for another version; none if no check needs them."""
    if not any(CHECKS[name].needs_stored_codes for name in names):
        return {}
    spec, shards = candidate.run.spec, candidate.run.folder.chunks
    manifests = [(name, shards.manifest(name)) for name in spec.partition_names]
    sizes = [(name, entry.rows) for name, entry in manifests if entry and entry.rows]
    generator = np.random.default_rng(candidate.version)
    generator.shuffle(sizes)
    rows, left = dict[str, NDArray[np.int64]](), spec.evaluation.embedded_again
    for at, (name, size) in enumerate(sizes):
        share = min(-(-left // (len(sizes) - at)), size)
        if share:
            rows[name] = np.sort(generator.choice(size, share, replace=False))
            left -= share
    return rows


def _outcome(check: Check, candidate: Candidate, error: EmbeddingPipelinesError | None) -> Outcome:
    live, spec = candidate.live, candidate.run.spec
    if error is not None:
        is_final = isinstance(error, BudgetError)  # it would be spent again
        return Outcome(check.name, False, f"Inconclusive: {error}", {}, "warn", is_final)
    outcome = check.evaluate(candidate)
    effect = spec.evaluation.checks.get(check.name, outcome.effect)
    if live and live.forced and (live.table, live.version) == (candidate.name, candidate.version):
        effect = "warn"  # it is live whatever its checks say
    outcome = replace(outcome, effect=effect)
    if not outcome.blocks:
        return outcome
    return replace(outcome, sentence=f"{outcome.sentence} {release_anyway(spec.name)}")
