"""Searches that the report shows: the queries of a release's metrics, and what it answers them.

No model is called: queries whose vectors are not in the embedding cache are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedding_pipelines import ranking
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.files import read_json
from embedding_pipelines.quality.evidence import query_figures
from embedding_pipelines.releases import Release
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.stores.base import Table
from embedding_pipelines.vectors import Vectors

MAX_QUERIES = 1_000
SAMPLES, WORST = 5, 6  # queries whose results stand in the page
HITS = 3  # documents of each
CHUNKS = 20  # in which they are looked for
TEXT_CHARACTERS = 200  # of a text that the page shows
KNOWN, JUDGED = "known_item_mrr", "ndcg_at_10"  # what a query's figure is


@dataclass(frozen=True)
class Query:
    """A query of the last checks."""

    text: str
    answers: Sequence[str]  # documents that are right, the most relevant first
    is_own: bool  # written by people; else taken from its one answer
    figure: float | None  # of this release, 1 is best; None: not measured
    vector: Vectors  # float32[d] of the model's own space


def read_queries(warehouse: Warehouse, release: Release) -> list[Query]:
    """MAX_QUERIES at most, each text once. Raises StoreError for a damaged file or cache."""
    folder = warehouse.pipeline(release.spec.name, release.line)
    space = release.space.with_codec(None)
    entries = (read_json(folder.queries) or {}).get("queries", [])
    figures = query_figures(folder, release)
    texts = {str(entry["text"]): entry for entry in reversed(entries)}
    texts = dict(list(reversed(texts.items()))[:MAX_QUERIES])
    cache = EmbeddingCache(warehouse.cache, read_only=True)
    keys = {text: cache.key(space.id, "query", text) for text in texts}
    vectors = cache.get_many(list(keys.values()), space.dimensions)
    return [
        Query(
            text,
            entry.get("answers") or [entry["from"]] * bool(entry["from"]),
            not entry["from"],
            figures.get(KNOWN if entry["from"] else JUDGED, {}).get(
                entry.get("figure") or entry["id"]
            ),
            vectors[keys[text]],
        )
        for text, entry in texts.items()
        if keys[text] in vectors
    ]


def searches(
    table: Table, release: Release, codec: CodecChain, queries: Sequence[Query]
) -> dict[str, list[dict[str, Any]]]:
    """The results of some queries, evenly chosen, and of those with the worst figures. Raises
    StoreError or CompressionError for a damaged table or codec."""
    measured = [query for query in queries if query.figure is not None and query.figure < 1]
    worst = sorted(measured, key=lambda query: query.figure or 0.0)[:WORST]
    others = [query for query in queries if query not in worst and query.is_own]
    others = others or [query for query in queries if query not in worst]
    places = np.unique(np.linspace(0, len(others) - 1, min(SAMPLES, len(others))).astype(int))

    def results(query: Query) -> dict[str, Any]:
        question, mode = ranking.Query(query.text, query.vector), release.spec.search.mode
        rows = ranking.find(table, codec, question, CHUNKS, None, release.version, mode)
        return {
            "query": cut(query.text),
            "answers": [cut(name) for name in query.answers[:HITS]],
            "verdict": _verdict(query),
            "hits": _documents(rows.to_pylist(), query.answers),
        }

    return {
        "samples": [results(others[place]) for place in places],
        "worst": [results(query) for query in worst],
    }


def _documents(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[dict[str, Any]]:
    """The first HITS documents of rows, each by its nearest chunk."""
    first = {row["document_id"]: row for row in reversed(rows)}
    names = list(dict.fromkeys(row["document_id"] for row in rows))[:HITS]
    return [
        {
            "document": cut(name),
            "score": f"{first[name]['score']:.3f}",
            "text": cut(first[name]["text"]),
            "is_answer": name in answers,
        }
        for name in names
    ]


def _verdict(query: Query) -> str:
    if query.figure is None:
        return ""
    if query.is_own:
        return f"nDCG@10 {query.figure:.3f}"
    if query.figure <= 0:
        return "its document was not found"
    place = round(1 / query.figure)
    return "its document stands first" if place == 1 else f"its document stands at {place}"


def cut(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}…"
