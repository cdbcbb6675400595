"""Compares the results of two releases for the same queries: documents added and removed.

Each release is searched in its own space. The model is loaded only for texts that the cache lacks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from embedding_pipelines.diff.documents import ReleaseTable
from embedding_pipelines.embedding.budget import BudgetTracker, Usage
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.files import read_json
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.ranking import Query, find
from embedding_pipelines.run import Run
from embedding_pipelines.space import require_same_space
from embedding_pipelines.storage.warehouse import PipelineFolder
from embedding_pipelines.vectors import Vectors

TOP = 10
CHUNKS_FOR_DOCUMENTS = 3 * TOP  # enough for TOP documents with several chunks each


@dataclass(frozen=True)
class QueryPair:
    """One query, as each release cleans it."""

    id: str
    before: str
    after: str
    own: str = ""  # a document that counts as no result, since the query is its text


@dataclass(frozen=True)
class ResultChange:
    """A query with other results. `overlap` is the share of the longer list that is in both."""

    id: str
    text: str
    overlap: float
    added: list[str]
    removed: list[str]


@dataclass
class ResultChanges:
    """How far the results of two releases agree."""

    count: int = 0  # of queries with a vector in both
    mean_overlap: float | None = None
    changed: list[ResultChange] = field(default_factory=list)  # the least overlap first
    without_vector: int = 0  # queries that a provider rejects
    embedded_before: int = 0  # texts that were not in the cache
    embedded_after: int = 0


def stored_queries(
    folder: PipelineFolder, before: ReleaseTable, after: ReleaseTable
) -> list[QueryPair]:
    """The queries of the last checks, if any: the user's own, else those from documents."""
    entries = (read_json(folder.of_line(after.release.line).queries) or {"queries": []})["queries"]
    entries = [entry for entry in entries if not entry["from"]] or entries
    old, new = (table.release.spec.preprocessing.clean.text for table in (before, after))
    pairs = [QueryPair(entry["id"], old(entry["text"]), new(entry["text"])) for entry in entries]
    return [pair for pair in pairs if pair.before and pair.after]


def compare_results(
    before: ReleaseTable,
    after: ReleaseTable,
    cache: EmbeddingCache,
    pairs: Sequence[QueryPair],
    input_type: InputType,
    on_cut: Callable[[str], None],
) -> ResultChanges:
    """Search both; `on_cut` is told of a text that is longer than a model reads.

    Raises ProviderError, BudgetError or SpaceMismatchError if a text that is not in the cache cannot
    be embedded as for the release.
    """
    changes = ResultChanges()
    old_texts, new_texts = [pair.before for pair in pairs], [pair.after for pair in pairs]
    old, changes.embedded_before = _vectors(before, cache, old_texts, input_type, on_cut)
    new, changes.embedded_after = _vectors(after, cache, new_texts, input_type, on_cut)
    overlaps = []
    for pair, left, right in zip(pairs, old, new, strict=True):
        if not np.isfinite(left).all() or not np.isfinite(right).all():
            changes.without_vector += 1
            continue
        change = _change(
            pair,
            _top(before, Query(pair.before, left), pair.own),
            _top(after, Query(pair.after, right), pair.own),
        )
        overlaps.append(change.overlap)
        if change.added or change.removed:
            changes.changed.append(change)
    changes.count = len(overlaps)
    changes.mean_overlap = float(np.mean(overlaps)) if overlaps else None
    changes.changed.sort(key=lambda change: (change.overlap, change.id))
    return changes


def _vectors(
    table: ReleaseTable,
    cache: EmbeddingCache,
    texts: Sequence[str],
    input_type: InputType,
    on_cut: Callable[[str], None],
) -> tuple[Vectors, int]:
    """Vectors float32[n, d], n > 0, in a release's space before compression, NaN for rejected
    texts; and the number of texts that were not in the cache."""
    space, release = table.space, table.release
    keys = {text: cache.key(space.id, input_type, text) for text in texts}
    vectors = cache.get_many(list(keys.values()), space.dimensions)
    missing = [text for text, key in keys.items() if key not in vectors]
    if missing:
        budget = BudgetTracker.of(release.spec.budget, release.spec.model)
        with release.spec.model.open(table.warehouse.home) as model:
            require_same_space(
                model.space,
                space.id,
                f"Release {release.number} of {release.spec.name!r}",
                "The model has changed since this release; compare releases of the current model.",
            )
            try:
                embeddings = embed_all(missing, model, cache, input_type, budget, on_cut=on_cut)
                new = embeddings.vectors
            finally:
                usage, price = Usage(billed_tokens=budget.billed), release.spec.model.price
                Run(release.spec, table.warehouse).add_usage(usage, price)
        vectors |= {keys[text]: vector for text, vector in zip(missing, new, strict=True)}
    return np.stack([vectors[keys[text]] for text in texts]), len(missing)


def _top(table: ReleaseTable, query: Query, own: str) -> list[str]:
    """The first TOP documents of a search, without `own`."""
    k = CHUNKS_FOR_DOCUMENTS if own else TOP
    version, mode = table.release.version, table.release.spec.search.mode
    hits = find(table.table, table.codec, query, k, None, version, mode)
    documents = dict.fromkeys(hits["document_id"].to_pylist())
    documents.pop(own, None)
    return list(documents)[:TOP]


def _change(pair: QueryPair, old: Sequence[str], new: Sequence[str]) -> ResultChange:
    added = [name for name in new if name not in old]
    removed = [name for name in old if name not in new]
    longer = max(len(old), len(new))
    overlap = (len(new) - len(added)) / longer if longer else 1.0
    return ResultChange(pair.id, pair.after, overlap, added, removed)
