"""quality: a candidate's figures are held against what is required, what is usual and what is live.

Each check has a default effect, which `evaluation.checks` may change: one that blocks keeps the
live release where it is, one that warns is shown. `releases` remember their figures, so the next
candidate is compared with them.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace

from embedding_pipelines.errors import BudgetError, EmbeddingPipelinesError
from embedding_pipelines.files import delete, list_files, read_json, write_atomic, write_json
from embedding_pipelines.metrics.confidence import paired_loss
from embedding_pipelines.metrics.drift import Sketch, drift
from embedding_pipelines.quality.canaries import canary_cosine, stored_cosine
from embedding_pipelines.quality.check import Check
from embedding_pipelines.quality.input_types import input_types_differ
from embedding_pipelines.quality.measure import Candidate, Measured, measure
from embedding_pipelines.releases import Release, read_releases, search_alike
from embedding_pipelines.run import Run
from embedding_pipelines.spec.evaluation import CHECKS, HIGHER, METRICS, Effect
from embedding_pipelines.spec.pipeline import PipelineSpec

CANARY_COSINE = 0.995  # the same model in other precisions and batches: 0.9996 and above
STORED_COSINE = 0.99  # of vectors after the codec; int8 and pca leave 0.9999 of equal ones
STORED_COSINE_OF_BITS = 0.95  # one bit in forty may lie so near to zero that it turns
INDEX_RECALL = 0.95  # DESIGN: every index with its refine has 0.979 and more
KNOWN_ITEM_RECALL = 0.1  # queries of another model find their document by chance: 10 / rows
ROWS_TO_TELL = 500  # below, ten results are too large a part of the table
GROWTH = 1.25  # of the table, from which on known items may be found later only because there is more to find
DRIFT_P = 0.001
USUAL = {  # what a healthy space keeps to, whatever it holds; measured on this project's test corpora
    "anisotropy": 0.9,
    "hubness": 15.0,
    "duplicate_rate": 0.5,
    "near_duplicate_rate": 0.7,
    "short_rate": 0.3,
}
LEAST_RANK = 0.02  # of the dimensions: fewer are in use than one in fifty


@dataclass
class Evidence:
    """What the checks look at."""

    candidate: Candidate
    measured: Measured
    live: Release | None
    rows: int

    @property
    def has_only_grown(self) -> bool:
        """Whether the candidate is the live release with much more data: what is looked for may
        then come later."""
        if self.live is None or self.rows <= self.live.rows * GROWTH:
            return False
        run = self.candidate.run
        space = self.candidate.run.model.space.with_codec(self.candidate.codec.id)
        return space == self.live.space and search_alike(run.spec, self.live.spec)


def enabled_checks(spec: PipelineSpec) -> dict[str, Effect]:
    """The checks of a pipeline and what each does when it fails."""
    chosen = spec.evaluation.checks
    effects = {name: chosen.get(name, default) for name, (default, _) in CHECKS.items()}
    return {name: effect for name, effect in effects.items() if effect != "off"}


def check_quality(candidate: Candidate, rows: int) -> tuple[list[Check], dict[str, float]]:
    """All checks of a candidate and its figures, which are kept for later candidates. Raises as
    `measure`.

    What was released by force is live whatever its checks say: they warn.
    """
    run = candidate.run
    known = read_releases(run.folder)
    live = known.get(known.live)
    try:
        evidence = Evidence(candidate, measure(candidate), live, rows)
        outcomes = _outcomes(evidence)
    finally:  # whatever has been paid for
        run.add_usage(billed_tokens=candidate.budget.billed, price=run.spec.model.price)
    _keep(candidate, evidence.measured)
    return outcomes, evidence.measured.metrics


def _outcomes(evidence: Evidence) -> list[Check]:
    """Of each check that is wanted. What could not be told warns; a service that was away is asked
    again by the next run, a budget that was spent is not: it would be spent again.
    """
    candidate, live, outcomes = evidence.candidate, evidence.live, []
    forced = (
        live is not None
        and live.forced
        and (live.table, live.version) == (candidate.name, candidate.version)
    )
    for name, effect in enabled_checks(candidate.run.spec).items():
        try:
            outcome = TAKE[name](evidence)
        except EmbeddingPipelinesError as error:
            told = isinstance(error, BudgetError)
            outcome, effect = (
                Check(name, False, f"It could not be told: {error}", conclusive=told),
                "warn",
            )
        outcomes.append(replace(outcome, name=name, effect="warn" if forced else effect))
    return outcomes


def _provider_is_unchanged(evidence: Evidence) -> Check:
    cosine = canary_cosine(
        evidence.candidate.run, evidence.candidate.run.model, evidence.candidate.budget
    )
    evidence.measured.metrics["canary_cosine"] = round(cosine, 6)
    sentence = (
        f"The frozen canaries are at a cosine of {cosine:.4f} or more to those of the first time."
    )
    if cosine < CANARY_COSINE:
        space = evidence.candidate.run.model.space
        sentence = (
            f"The provider gives other vectors for the same texts than it used to (cosine {cosine:.4f}): "
            f"{space.provider}:{space.model} was changed under its name. What is stored and what is asked no longer "
            "belong together: set the model's `revision` (or another name), so that all is embedded anew."
        )
    return Check("", cosine >= CANARY_COSINE, sentence, {"cosine": cosine})


def _vectors_belong(evidence: Evidence) -> Check:
    of = evidence.candidate
    wanted, seed = of.run.spec.evaluation.embedded_again, of.version
    cosine, worst = stored_cosine(of.run, of.run.model, of.codec, of.table, wanted, seed, of.budget)
    evidence.measured.metrics["stored_cosine"] = round(cosine, 6)
    passed = cosine >= (STORED_COSINE_OF_BITS if of.codec.dtype == "binary" else STORED_COSINE)
    sentence = (
        f"{len(worst)} stored vectors are those of their texts (cosine {cosine:.4f} or more)."
    )
    if not passed:
        sentence = (
            f"Chunk {worst[0]!r} is stored with another vector than its text has (cosine {cosine:.4f}, of {len(worst)} "
            "that were looked at): vectors stand beside texts that are not theirs, or the model is asked otherwise "
            "than when they were made."
        )
    return Check(
        "", passed, sentence, {"cosine": cosine, "looked_at": len(worst), "worst": worst[:5]}
    )


def _input_types(evidence: Evidence) -> Check:
    return input_types_differ(
        evidence.candidate.run.model, evidence.candidate.run.cache, evidence.candidate.budget
    )


def _known_items(evidence: Evidence) -> Check:
    found = evidence.measured.metrics.get("known_item_recall")
    rows = evidence.rows
    count = len(evidence.measured.per_query.get("known_item_mrr", {}))
    if found is None or rows < ROWS_TO_TELL:
        return Check(
            "",
            True,
            f"Not judged: {rows} rows, {count} queries; from {ROWS_TO_TELL} rows on it is.",
        )
    passed = found >= KNOWN_ITEM_RECALL
    sentence = (
        f"{found:.0%} of {count} queries from the corpus find their document among the first ten"
    )
    tail = (
        "."
        if passed
        else (
            f", and chance alone finds {10 / rows:.1%}: queries and documents are not embedded by the same model, or "
            "not as it wants them. If the texts are no language (codes, numbers), set evaluation.checks: "
            "{known_items_are_found: warn}."
        )
    )
    return Check("", passed, sentence + tail, {"known_item_recall": found, "queries": count})


def _index(evidence: Evidence) -> Check:
    found = evidence.measured.metrics.get("index_recall_at_10")
    if found is None:
        return Check(
            "",
            True,
            "There is no index to compare: searches look at every row, or compare finer copies.",
        )
    sentence = f"The index finds {found:.1%} of the exact ten nearest codes"
    tail = (
        "."
        if found >= INDEX_RECALL
        else f"; {INDEX_RECALL:.0%} is the least. Raise store.nprobes or store.refine."
    )
    return Check("", found >= INDEX_RECALL, sentence + tail, {"index_recall_at_10": found})


def _required(evidence: Evidence) -> Check:
    metrics, faults, statistics = evidence.measured.metrics, [], {}
    for name, bound in evidence.candidate.run.spec.evaluation.require.items():
        found, higher = metrics.get(name), METRICS[name][0] == HIGHER
        statistics[name] = found
        if found is None and name == "mean_shift":
            continue  # there is nothing that it could have moved from
        if found is None:
            faults.append(f"{name} was not measured")
        elif found < bound if higher else found > bound:
            faults.append(
                f"{name} is {found:.4g}, {'at least' if higher else 'at most'} {bound:.4g} is required"
            )
    said = (
        "; ".join(faults)
        if faults
        else f"All {len(statistics)} required measures hold."
        if statistics
        else "None is required."
    )
    return Check("", not faults, said, statistics)


def _not_worse(evidence: Evidence) -> Check:
    live = evidence.live
    before = _kept(evidence.candidate.run, live) if live else {}
    if live is None or not before:
        return Check("", True, "There is no live release with figures to compare with.")
    must = f"If it must be: `embedding-pipelines release {live.spec.name} --force --reason …`."
    if not evidence.rows and live.rows >= ROWS_TO_TELL:  # as an export that failed leaves it
        return Check(
            "", False, f"The table is empty; release {live.number} has {live.rows} rows. {must}"
        )
    may_lose, faults, said, statistics = (
        evidence.candidate.run.spec.evaluation.may_lose,
        [],
        [],
        {},
    )
    for name in ("ndcg_at_10", "known_item_mrr"):
        loss = paired_loss(evidence.measured.per_query.get(name, {}), before.get(name, {}))
        if not loss.queries:
            continue
        statistics[name] = {
            "loss": loss.mean,
            "certain_loss": loss.certain,
            "queries": loss.queries,
        }
        said.append(f"{name} {-loss.mean:+.4f} over {loss.queries} queries")
        if loss.mean > may_lose and loss.certain > 0 and not evidence.has_only_grown:
            faults.append(name)
    sentence = f"Against release {live.number}: {', '.join(said) or 'no query in common'}."
    if faults:
        sentence += f" {' and '.join(faults)} may lose {may_lose:g}. {must}"
    return Check("", not faults, sentence, statistics)


def _healthy(evidence: Evidence) -> Check:
    metrics = evidence.measured.metrics
    statistics = {
        name: metrics[name] for name in (*USUAL, "effective_rank", "mean_norm") if name in metrics
    }
    if evidence.rows < ROWS_TO_TELL:
        return Check(
            "",
            True,
            f"Not judged: {evidence.rows} rows; from {ROWS_TO_TELL} rows on it is.",
            statistics,
        )
    faults = [
        f"{name} is {statistics[name]:.3g} (usual: {most:g} or less)"
        for name, most in USUAL.items()
        if statistics[name] > most
    ]
    dimensions = evidence.candidate.run.model.space.dimensions
    if statistics["effective_rank"] < LEAST_RANK * dimensions:
        faults.append(
            f"effective_rank is {statistics['effective_rank']:.1f} of {dimensions} dimensions"
        )
    return Check("", not faults, "; ".join(faults) or "All within what is usual.", statistics)


def _drifted(evidence: Evidence) -> Check:
    live, now = evidence.live, evidence.measured.sketch
    if live is None:
        return Check("", True, "There is no live release to compare with.")
    if now is None:
        said = f"The table is empty; release {live.number} has {live.rows:,} rows."
        return Check("", live.rows == 0, said)
    space = evidence.candidate.run.model.space
    if live.space.with_codec(None) != space:
        return Check(
            "",
            True,
            f"Release {live.number} is of another space; their vectors cannot be compared.",
        )
    before = _kept_sketch(evidence.candidate.run, live)
    if before is None:
        return Check("", True, f"Of release {live.number} no sketch is kept.")
    found = drift(now, before)
    evidence.measured.metrics["mean_shift"] = round(found.mean_shift, 6)
    passed = found.p_value > DRIFT_P and found.worst_partition_p > DRIFT_P
    sentence = (
        f"The mean vector has moved by {found.mean_shift:.4f} since release {live.number} (p {found.p_value:.3g}); "
        f"most in partition {found.worst_partition!r}, by {found.worst_partition_shift:.4f} (p {found.worst_partition_p:.3g})."
    )
    return Check("", passed, sentence, vars(found))


TAKE: dict[str, Callable[[Evidence], Check]] = {
    "provider_is_unchanged": _provider_is_unchanged,
    "vectors_belong_to_their_texts": _vectors_belong,
    "input_types_differ": _input_types,
    "known_items_are_found": _known_items,
    "index_finds_the_nearest": _index,
    "required_metrics_hold": _required,
    "not_worse_than_live": _not_worse,
    "space_is_healthy": _healthy,
    "data_has_not_drifted": _drifted,
}


def _keep(candidate: Candidate, measured: Measured) -> None:
    """Remember each query's figure and a sketch of the vectors, for the candidates after this
    one."""
    folder = candidate.run.folder
    folder.quality.mkdir(parents=True, exist_ok=True)
    kept = {_name(entry.table, entry.version) for entry in read_releases(folder).releases}
    for path in list_files(folder.quality, "*-*-*.*"):
        if path.stem not in kept:
            delete(path)
    name = _name(candidate.name, candidate.version)
    write_json(folder.queries, {"queries": measured.queries})
    write_json(folder.quality / f"{name}.json", {"per_query": measured.per_query})
    if measured.sketch is not None:
        write_atomic(folder.quality / f"{name}.npz", measured.sketch.to_bytes())


def _kept(run: Run, release: Release) -> dict[str, dict[str, float]]:
    """Each query's figures of a release; empty if they were not kept."""
    found = read_json(run.folder.quality / f"{_name(release.table, release.version)}.json") or {}
    per_query: dict[str, dict[str, float]] = found.get("per_query", {})
    return per_query


def _kept_sketch(run: Run, release: Release) -> Sketch | None:
    """What is remembered of a release's vectors; None if nothing is, or nothing that can be
    read."""
    try:
        return Sketch.from_bytes(
            (run.folder.quality / f"{_name(release.table, release.version)}.npz").read_bytes()
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _name(table: str, version: int) -> str:
    return f"{table}-{version}"
