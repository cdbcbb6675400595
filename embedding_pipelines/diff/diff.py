"""diff: what changed from one release to another: options, measures, documents, and what searches
answer.

Only kept releases can be compared; nothing of them is changed. What has to be embedded for it goes
to the cache.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from embedding_pipelines.diff.documents import Documents, Opened, compare_documents, open_release
from embedding_pipelines.diff.queries import (
    Answers,
    as_questions,
    compare_answers,
    measured_queries,
)
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import BudgetError, ProviderError, ReleaseError, SpaceMismatchError
from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.releases import Release, live_release, read_releases
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse

SECTIONS = ("source", "preprocessing", "model", "output_dim", "compression", "store", "evaluation")


@dataclass(frozen=True)
class Side:
    """One of the two releases."""

    release: int
    released_at: str
    rows: int
    space: str  # before compression
    codec: str
    forced: str  # why it was released though checks of its quality failed


@dataclass(frozen=True)
class OptionChange:
    """An option by its path in the pipeline file; None where it is not given or unknown to the
    choice."""

    option: str
    before: Any
    after: Any


@dataclass(frozen=True)
class MetricChange:
    """A measure of both releases; None where it was not taken."""

    measure: str
    before: float | None
    after: float | None
    difference: float | None
    better: bool | None  # None: the same, or there is nothing to compare


@dataclass(frozen=True)
class Diff:
    """All that changed."""

    pipeline: str
    before: Side
    after: Side
    options: list[OptionChange]
    metrics: list[MetricChange]
    documents: Documents
    neighbours: Answers | None  # of sampled documents, where the releases are of two spaces
    queries: Answers | None  # None: none were measured yet
    problems: list[str]  # why a part is missing


def diff(
    warehouse: Warehouse, pipeline: str, before: int | None = None, after: int | None = None
) -> Diff:
    """What changed from release `before` (default: the one before the other) to `after` (default:
    the live one).

    Raises ReleaseError if there are no two such releases, StoreError or CompressionError if what
    they need is damaged.
    """
    folder = warehouse.pipeline(pipeline)
    old, new = (open_release(warehouse, release) for release in _pair(folder, before, after))
    documents, problems = compare_documents(old, new), []
    neighbours, queries = None, None
    with EmbeddingCache(warehouse.cache) as cache:
        try:
            if documents.sample:
                neighbours = compare_answers(
                    old, new, cache, as_questions(documents.sample), "document"
                )
            questions = measured_queries(folder, old, new)
            if questions:
                queries = compare_answers(old, new, cache, questions, "query")
        except (ProviderError, BudgetError, SpaceMismatchError) as error:
            problems.append(f"What searches answer could not be compared: {error}")
    return Diff(
        pipeline,
        _side(old),
        _side(new),
        list(_options(old.release, new.release)),
        list(_metrics(old.release, new.release)),
        documents,
        neighbours,
        queries,
        problems,
    )


def _pair(folder: PipelineFolder, before: int | None, after: int | None) -> tuple[Release, Release]:
    releases, live, name = read_releases(folder), live_release(folder), folder.folder.name
    kept = f"kept are: {', '.join(str(entry.number) for entry in releases.releases)}."
    new = live if after is None else releases.get(after)
    if new is None:
        raise ReleaseError(f"Pipeline {name!r} has no release {after}; {kept}")
    older = [entry for entry in releases.releases if entry.number < new.number]
    old = releases.get(before) if before is not None else (older[-1] if older else None)
    if old is None:
        which = (
            f"no release {before}"
            if before is not None
            else f"no release before {new.number} to compare it with"
        )
        raise ReleaseError(f"Pipeline {name!r} has {which}; {kept}")
    if old == new:
        raise ReleaseError(
            f"Pipeline {name!r}: release {new.number} cannot differ from itself. Name another; {kept}"
        )
    return old, new


def _side(opened: Opened) -> Side:
    release = opened.release
    released_at = release.released_at.isoformat(timespec="seconds")
    return Side(
        release.number,
        released_at,
        release.rows,
        str(opened.space),
        opened.codec.id,
        release.forced,
    )


def _options(before: Release, after: Release) -> Iterator[OptionChange]:
    old, new = _flat(before), _flat(after)
    for option in dict.fromkeys([*old, *new]):
        if old.get(option) != new.get(option):
            yield OptionChange(option, old.get(option), new.get(option))


def _flat(release: Release) -> dict[str, Any]:
    """The options that decide what a release holds, by path; a list is one value."""
    values: dict[str, Any] = {}

    def enter(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, part in value.items():
                enter(f"{path}.{name}", part)
        else:
            values[path] = value

    for section, value in release.spec.model_dump(mode="json", include=set(SECTIONS)).items():
        enter(section, value)
    return values


def _metrics(before: Release, after: Release) -> Iterator[MetricChange]:
    old, new = before.metrics, after.metrics
    for name in [*METRICS, *sorted((old.keys() | new.keys()) - METRICS.keys())]:
        left, right = old.get(name), new.get(name)
        difference = right - left if left is not None and right is not None else None
        if left is not None or right is not None:
            metric = METRICS.get(name)
            better = metric.improves(difference) if metric and difference is not None else None
            yield MetricChange(name, left, right, difference, better)
