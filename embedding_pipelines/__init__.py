"""Keep a published, measured, searchable vector store true to changing data.

What programs use is imported from here; each name loads its module when it is first used:

    from embedding_pipelines import EmbeddingService, Searcher, load_table, search

Start at `spec/` (what a user writes), `steps/` (what each asset does, without Dagster) and
`definitions.py` (what Dagster loads). ARCHITECTURE.md shows the way the data takes.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedding_pipelines.access import OPERATOR
    from embedding_pipelines.errors import EmbeddingPipelinesError
    from embedding_pipelines.explore.table import load_table, load_vectors
    from embedding_pipelines.metrics.similarity import cosine_similarity, find_most_similar
    from embedding_pipelines.orchestration.launch import run_named as run_pipeline
    from embedding_pipelines.search import Hit, Searcher, SearchResult, SearchResults, search_async
    from embedding_pipelines.service import EmbeddingCache, EmbeddingConfig, EmbeddingService
    from embedding_pipelines.serving.client import AsyncEmbeddingPipelines, EmbeddingPipelines
    from embedding_pipelines.sources.changes import changes, listing
    from embedding_pipelines.spec.load import find_pipeline

__version__ = "0.1.0"

__all__ = [
    "OPERATOR",
    "AsyncEmbeddingPipelines",
    "EmbeddingCache",
    "EmbeddingConfig",
    "EmbeddingPipelines",
    "EmbeddingPipelinesError",
    "EmbeddingService",
    "Hit",
    "SearchResult",
    "SearchResults",
    "Searcher",
    "changes",
    "cosine_similarity",
    "find_most_similar",
    "find_pipeline",
    "listing",
    "load_table",
    "load_vectors",
    "run_pipeline",
    "search",
    "search_async",
]
# The module of each name, and its name there; `search` is a module that is called like a function.
_PLACES = {
    "OPERATOR": ("access", "OPERATOR"),
    "AsyncEmbeddingPipelines": ("serving.client", "AsyncEmbeddingPipelines"),
    "EmbeddingCache": ("service", "EmbeddingCache"),
    "EmbeddingConfig": ("service", "EmbeddingConfig"),
    "EmbeddingPipelines": ("serving.client", "EmbeddingPipelines"),
    "EmbeddingPipelinesError": ("errors", "EmbeddingPipelinesError"),
    "EmbeddingService": ("service", "EmbeddingService"),
    "Hit": ("search", "Hit"),
    "SearchResult": ("search", "SearchResult"),
    "SearchResults": ("search", "SearchResults"),
    "Searcher": ("search", "Searcher"),
    "changes": ("sources.changes", "changes"),
    "cosine_similarity": ("metrics.similarity", "cosine_similarity"),
    "find_most_similar": ("metrics.similarity", "find_most_similar"),
    "find_pipeline": ("spec.load", "find_pipeline"),
    "listing": ("sources.changes", "listing"),
    "load_table": ("explore.table", "load_table"),
    "load_vectors": ("explore.table", "load_vectors"),
    "run_pipeline": ("orchestration.launch", "run_named"),
    "search_async": ("search", "search_async"),
}


def __getattr__(name: str) -> Any:
    if name == "search":
        return importlib.import_module(f"{__name__}.search")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
