"""Compares two releases: options, metrics, documents, and the results of searches.

Both must still be stored, and neither is changed. New embeddings of queries go to the cache.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from embedding_pipelines.diff.documents import (
    DocumentChanges,
    ReleaseTable,
    compare_documents,
    open_release,
)
from embedding_pipelines.diff.queries import (
    QueryPair,
    ResultChanges,
    compare_results,
    stored_queries,
)
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import BudgetError, ProviderError, ReleaseError, SpaceMismatchError
from embedding_pipelines.metrics.base import Metric
from embedding_pipelines.metrics.confidence import paired_loss
from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.quality.evidence import query_figures
from embedding_pipelines.releases import Release, live_release, read_releases
from embedding_pipelines.remote import refresh
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse

# The options that decide the contents of a release.
SECTIONS = {
    "source",
    "preprocessing",
    "model",
    "output_dim",
    "compression",
    "store",
    "search",
    "evaluation",
}
INVISIBLE = 0.00005  # a difference that four decimals do not show
BOUNDED = ("share", "cosine", "correlation")  # units of metrics in [-1, 1]
SLIGHT = 0.01  # of these; 5,000 sampled vectors vary by less
SLIGHT_PART = 0.02  # of other metrics


@dataclass(frozen=True)
class Side:
    """One of the two releases."""

    release: int
    released_at: str
    rows: int
    space: str  # before compression
    codec: str
    forced: str  # the reason to release it although checks failed


@dataclass(frozen=True)
class OptionChange:
    """An option by its path in the pipeline file; None where a release has none."""

    option: str
    before: Any
    after: Any


@dataclass(frozen=True)
class MetricChange:
    """A metric of both releases; None where a release has none."""

    metric: str
    before: float | None
    after: float | None
    difference: float | None
    better: bool | None  # None: equal, not comparable, without a direction, or within chance
    # False: so small a difference may be chance, or is too small to notice. None: there is none.
    beyond_chance: bool | None


@dataclass(frozen=True)
class Diff:
    """All changes from one release to another."""

    pipeline: str
    before: Side
    after: Side
    options: list[OptionChange]
    metrics: list[MetricChange]
    documents: DocumentChanges
    neighbours: ResultChanges | None  # of a sample of documents; None if the space is the same
    queries: ResultChanges | None  # None: the pipeline has no queries yet
    problems: list[str]  # why a part is missing, which texts were cut, what was compared


def diff(
    warehouse: Warehouse, pipeline: str, before: int | None = None, after: int | None = None
) -> Diff:
    """The changes from release `before` to `after`.

    By default `after` is the live one and `before` the one before it, or after a rollback to the
    oldest the newest. Raises ReleaseError without two such releases, StoreError or CompressionError if their tables or
    codecs are damaged.
    """
    refresh(warehouse, pipeline)
    folder = warehouse.pipeline(pipeline)
    old, new = (open_release(warehouse, release) for release in _pair(folder, before, after))
    documents = compare_documents(old, new)
    neighbours, queries, problems = None, None, list[str]()

    def tell(words: str) -> None:
        problems.append(f"A text was too long: {words}")

    with EmbeddingCache(warehouse.cache) as cache:
        try:
            if documents.sample:
                pairs = [
                    QueryPair(entry.document_id, entry.before, entry.after, own=entry.document_id)
                    for entry in documents.sample
                ]
                neighbours = compare_results(old, new, cache, pairs, "document", tell)
            pairs = stored_queries(folder, old, new)
            if pairs:
                queries = compare_results(old, new, cache, pairs, "query", tell)
        except (ProviderError, BudgetError, SpaceMismatchError) as error:
            problems.append(f"The results of searches are not compared: {error}")
    if before is None and old.release.number > new.release.number:
        problems.append(
            f"Release {new.release.number} is live after a rollback, and no older one is kept: this "
            f"is what going back from release {old.release.number} has changed."
        )
    options = (side.release.spec.model_dump(mode="json", include=SECTIONS) for side in (old, new))
    return Diff(
        pipeline,
        before=_side(old),
        after=_side(new),
        options=list(_options("", *options)),
        metrics=list(
            metric_changes(
                *(old.release.metrics, new.release.metrics),
                *(query_figures(folder, side.release) for side in (old, new)),
            )
        ),
        documents=documents,
        neighbours=neighbours,
        queries=queries,
        problems=problems,
    )


def _pair(folder: PipelineFolder, before: int | None, after: int | None) -> tuple[Release, Release]:
    releases, live, name = read_releases(folder), live_release(folder), folder.folder.name
    new = live if after is None else releases.get(after)
    if new is None:
        raise ReleaseError(f"Pipeline {name!r} has no release {after}; it has {releases.numbers}.")
    # After a rollback to the oldest, what it has taken back is of interest.
    default = releases.previous(new.number) or releases.newest
    old = default if before is None else releases.get(before)
    if old is None:
        which = f"before {new.number} to compare it with" if before is None else f"{before}"
        raise ReleaseError(f"Pipeline {name!r} has no release {which}; it has {releases.numbers}.")
    if before is None and old == new:
        raise ReleaseError(
            f"Pipeline {name!r} has no release before {new.number} to compare it with; it has "
            f"{releases.numbers}. The next run whose data or options have changed makes another."
        )
    if old == new:
        raise ReleaseError(
            f"Pipeline {name!r}: release {new.number} cannot differ from itself. Name another one "
            f"of {releases.numbers}."
        )
    return old, new


def _side(table: ReleaseTable) -> Side:
    release, codec = table.release, table.codec.id
    date = release.released_at.isoformat(timespec="seconds")
    return Side(release.number, date, release.rows, str(table.space), codec, release.forced)


def _options(path: str, old: Any, new: Any) -> Iterator[OptionChange]:
    """The options below a path that differ; a list is one value."""
    if isinstance(old, Mapping) or isinstance(new, Mapping):
        left, right = (side if isinstance(side, Mapping) else {} for side in (old, new))
        for name in dict.fromkeys([*left, *right]):
            below = f"{path}.{name}" if path else name
            yield from _options(below, left.get(name), right.get(name))
    elif old != new:
        yield OptionChange(path, old, new)


def metric_changes(
    old: Mapping[str, float],
    new: Mapping[str, float],
    old_queries: Mapping[str, Mapping[str, float]],
    new_queries: Mapping[str, Mapping[str, float]],
) -> Iterator[MetricChange]:
    """The metrics of two releases, with the figures of their queries by metric, where they are kept,
    to tell a change from chance."""
    figures = [_by_query(queries) for queries in (old_queries, new_queries)]
    for name in [*METRICS, *sorted((old.keys() | new.keys()) - METRICS.keys())]:
        left, right = old.get(name), new.get(name)
        difference = right - left if left is not None and right is not None else None
        if difference is not None and abs(difference) < INVISIBLE:
            difference = 0.0
        if left is not None or right is not None:
            metric, better, beyond = METRICS.get(name), None, None
            if left is not None and right is not None:
                beyond = _is_beyond_chance(
                    metric, left, right, *(each.get(name, {}) for each in figures)
                )
            if metric and metric.unit != "ms" and difference is not None and beyond:
                better = metric.improves(difference)  # times depend on what else the machine did
            yield MetricChange(name, left, right, difference, better, beyond)


def _by_query(figures: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """With those of known items found at all, which follow from their ranks."""
    ranks = figures.get("known_item_mrr", {})
    recall = {query: float(rank > 0) for query, rank in ranks.items()}
    return {**figures, "known_item_recall": recall}


def _is_beyond_chance(
    metric: Metric | None,
    left: float,
    right: float,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> bool:
    """Whether a metric has changed beyond chance: certainly (99%) by the queries of both, where
    there are figures of each; else by more than sampling, or another order of sums, is good for."""
    if before.keys() & after.keys():
        return paired_loss(after, before).certain > 0 or paired_loss(before, after).certain > 0
    unit = metric.unit if metric else ""
    noise = SLIGHT if unit in BOUNDED else SLIGHT_PART * max(abs(left), abs(right))
    return abs(right - left) > noise
