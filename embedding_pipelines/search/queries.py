"""What is asked of a search: its queries, cleaned and counted, and what holds for all of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedding_pipelines.access import Visible
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.ranking import Filter
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.spec.search import Mode

if TYPE_CHECKING:
    import pandas as pd

MAX_K = 10_000


@dataclass(frozen=True)
class Search:
    """What a search asks for, whatever its queries are."""

    k: int
    filter: Filter | None
    visible: Visible | None  # None: every document
    mode: Mode
    reranker: str  # the cross-encoder that orders its hits; empty for none
    started: float  # by `time.perf_counter`


def check_k(k: int) -> None:
    """ConfigError unless a search can return so many hits."""
    if isinstance(k, bool) or not hasattr(k, "__index__") or not 1 <= k <= MAX_K:
        raise ConfigError(f"k is {k!r}; it must lie between 1 and {MAX_K}.")


def clean_query(spec: PipelineSpec, query: str, name: str) -> str:
    """The query, cleaned as documents are; ConfigError, beginning with `name`, if empty."""
    if not isinstance(query, str):
        raise ConfigError(f"{name} is {query!r}, not a text. Write at least one word.")
    text = spec.preprocessing.clean.text(query)
    if not text:
        raise ConfigError(f"{name} is empty after cleaning. Write at least one word.")
    return text


def texts_of(queries: Any) -> "tuple[list[str], pd.Index | None]":
    """The texts of a list, of a column or of a DataFrame that has one column or one named query,
    and the index of the latter. Raises ConfigError for any other DataFrame."""
    columns = getattr(queries, "columns", None)
    if columns is not None:
        name = columns[0] if len(columns) == 1 else "query"
        if name not in columns:
            raise ConfigError(
                f"The DataFrame has the columns {', '.join(map(str, columns))}. Give the one with "
                "the queries, such as frame['text']."
            )
        queries = queries[name]
    if not isinstance(queries, Iterable) or isinstance(queries, bytes | Mapping):
        raise ConfigError(f"The query is {queries!r}. Give a text, a list of texts, or a column.")
    index = getattr(queries, "index", None)  # of a list a method, of a column an Index
    return list(queries), None if callable(index) else index
