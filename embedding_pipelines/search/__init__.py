"""The one read path: query → clean → embed as a query → ranking → SearchResult.

Everything comes from the release, its model and its cleaning included; the pipeline file has no
part in it.
"""

import functools
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from embedding_pipelines.access import Principals
from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.ranking import Filter
from embedding_pipelines.search.results import Hit, SearchResult, SearchResults
from embedding_pipelines.search.searcher import Searcher
from embedding_pipelines.search.unreleased import UnreleasedTexts, is_unreleased
from embedding_pipelines.spec.search import Mode
from embedding_pipelines.storage.warehouse import Warehouse

if TYPE_CHECKING:
    import pandas as pd

    from embedding_pipelines.images import ImageLike

__all__ = [
    "Hit",
    "SearchResult",
    "SearchResults",
    "Searcher",
    "search",
    "search_async",
]


@overload
def search(  # type: ignore[overload-overlap]
    home: Path | str,
    pipeline: str | int,
    query: str | None = None,
    k: int = 10,
    filter: Filter | None = None,
    *,
    too_long: TooLong = "refuse",
    mode: Mode | None = None,
    rerank: str | None = None,
    principals: Principals = None,
    image: "ImageLike | None" = None,
    like: str | Iterable[str] | None = None,
) -> SearchResult: ...


@overload
def search(
    home: Path | str,
    pipeline: str | int,
    query: "Iterable[str] | pd.Series | pd.DataFrame",
    k: int = 10,
    filter: Filter | None = None,
    *,
    too_long: TooLong = "refuse",
    mode: Mode | None = None,
    rerank: str | None = None,
    principals: Principals = None,
) -> SearchResults: ...


def search(
    home: Path | str,
    pipeline: str | int,
    query: "str | Iterable[str] | pd.Series | pd.DataFrame | None" = None,
    k: int = 10,
    filter: Filter | None = None,
    *,
    too_long: TooLong = "refuse",
    mode: Mode | None = None,
    rerank: str | None = None,
    principals: Principals = None,
    image: "ImageLike | None" = None,
    like: str | Iterable[str] | None = None,
) -> SearchResult | SearchResults:
    """One query or many to a pipeline's live release; see `Searcher.search`. In place of a query
    `image`, see `Searcher.search_image`, or `like`, the ids of documents, see `Searcher.search_like`.

    One query by words is answered before the first release, too, from the texts as they are cut.
    """
    if [query is None, image is None, like is None].count(False) != 1:
        raise ConfigError("Give one of: a query, image=, or like= with the ids of documents.")
    if query is None and mode not in (None, "vector"):
        raise ConfigError(f"mode is {mode!r}: images and documents are compared by vectors alone.")
    warehouse = Warehouse(home)
    if isinstance(query, str) and is_unreleased(warehouse, pipeline, mode):
        return UnreleasedTexts(warehouse, pipeline).search(query, k, filter, principals)
    with Searcher(home, pipeline) as searcher:
        if like is not None:
            return searcher.search_like(like, k, filter, principals=principals)
        if query is None:
            assert image is not None
            return searcher.search_image(image, k, filter, principals=principals)
        return searcher.search(
            query, k, filter, too_long=too_long, mode=mode, rerank=rerank, principals=principals
        )


async def search_async(
    home: Path | str,
    pipeline: str | int,
    query: Any = None,
    k: int = 10,
    filter: Filter | None = None,
    *,
    too_long: TooLong = "refuse",
    mode: Mode | None = None,
    rerank: str | None = None,
    principals: Principals = None,
    image: "ImageLike | None" = None,
    like: str | Iterable[str] | None = None,
) -> Any:
    """As `search`, in a thread."""
    import asyncio  # here, since a run without work imports this module

    return await asyncio.to_thread(
        functools.partial(
            search, too_long=too_long, mode=mode, rerank=rerank, image=image, like=like
        ),
        *(home, pipeline, query, k, filter),
        principals=principals,
    )


class _CallableModule(types.ModuleType):
    """`from embedding_pipelines import search` gives this module, and it is called."""

    __call__ = staticmethod(search)


sys.modules[__name__].__class__ = _CallableModule
