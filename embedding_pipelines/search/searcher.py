"""A pipeline's live release, opened to be searched by many queries."""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.access import Access, Principals, Visible
from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import need
from embedding_pipelines.overlay import codec_of, searched_release
from embedding_pipelines.providers.base import EmbeddingModel
from embedding_pipelines.ranking import Filter, Query, take_best
from embedding_pipelines.releases import Release, doubts, find_released
from embedding_pipelines.remote import refresh
from embedding_pipelines.search.bridge import bridge_to
from embedding_pipelines.search.models import QueryModel, Reranker
from embedding_pipelines.search.queries import Search, check_k, clean_query, texts_of
from embedding_pipelines.search.results import SearchResult, SearchResults, hits_of
from embedding_pipelines.search.rows import ReleaseRows, as_table
from embedding_pipelines.space import Space
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.search import Mode
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors, unit

if TYPE_CHECKING:
    import pandas as pd

    from embedding_pipelines.images import ImageLike
    from embedding_pipelines.memory import Near

log = logging.getLogger(__name__)


class Searcher:
    """Searches a pipeline's live release; close it, or use it in a `with` block. It leaves a given
    `model` open.

    `warehouse` is a home folder, or its warehouse; `pipeline` a name, or the number that `list`
    shows. Raises ConfigError for a pipeline that there is not, ReleaseError without a release.
    """

    def __init__(
        self,
        warehouse: Warehouse | Path | str,
        pipeline: str | int,
        model: EmbeddingModel | None = None,
        *,
        bridged: bool = False,
        access: Access | None = None,
    ) -> None:
        """`bridged`: with the model that the pipeline migrates to, by the bridge that `migrate bridge`
        has fitted. `access`: the permissions, of a caller that looks at them, too."""
        warehouse = warehouse if isinstance(warehouse, Warehouse) else Warehouse(warehouse)
        folder, home = warehouse.pipeline(find_released(warehouse, pipeline)), warehouse.home
        stale = refresh(warehouse, folder.folder.name, "search")
        release = searched_release(warehouse, folder)
        self._doubts = [*filter(None, [stale]), *doubts(folder, release)]
        self.codec = codec_of(folder, release)
        self._owns_model = model is None
        bridge = bridge_to(folder, release)
        if bridged and model is None:
            name = release.spec.name
            if bridge is None:
                raise ConfigError(
                    f"{release.title} has no bridge. `embedding-pipelines migrate {name} bridge` "
                    "fits one while the pipeline migrates to another model."
                )
            model = find_pipeline(name, home).model.open(home, folder.new_line / "model")
        model = model or release.spec.model.open(home)
        self._queries = QueryModel(model, self.codec, bridge, warehouse.cache)
        # What was pushed since is embedded by the release's own model, which opening does not load.
        self._release_model = model
        if bridge is not None and bridge.source == model.space.id:
            self._release_model = release.spec.model.open(home)
        self.rows = ReleaseRows(warehouse, folder, release, self.codec, self._release_model, access)
        self._types = release.spec.metadata_types  # the same as long as this is open
        self._reranker = Reranker(home)

    def close(self) -> None:
        self._reranker.close()
        if self._release_model is not self.model:
            self._release_model.close()
        if self._owns_model:
            self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def release(self) -> Release:
        """The one that was opened; once that has left the disk, the live one."""
        return self.rows.current.release

    @property
    def model(self) -> EmbeddingModel:
        """What embeds the queries."""
        return self._queries.model

    @overload
    def search(  # type: ignore[overload-overlap]  # a text is an Iterable[str], too
        self,
        query: str,
        k: int = 10,
        filter: Filter | None = None,
        *,
        too_long: TooLong = "refuse",
        mode: Mode | None = None,
        rerank: str | None = None,
        principals: Principals = None,
    ) -> SearchResult: ...

    @overload
    def search(
        self,
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
        self,
        query: "str | Iterable[str] | pd.Series | pd.DataFrame",
        k: int = 10,
        filter: Filter | None = None,
        *,
        too_long: TooLong = "refuse",
        mode: Mode | None = None,
        rerank: str | None = None,
        principals: Principals = None,
    ) -> SearchResult | SearchResults:
        """The `k` chunks that are best for `query` among those that pass `filter`, best first.

        `mode`: by `vector`, by the words of the `text`, or `hybrid`, by both; else as the pipeline's
        `search.mode` says. Words alone need no model. `rerank`: the cross-encoder that reads more of
        them and puts them in its order; else as the pipeline's `search.rerank` says; "": none.

        Of many queries, in a list or in a column of a DataFrame, one result each: they are embedded
        together and through the embedding cache.

        `principals`: for whom, users and groups, where the pipeline has `permissions`: hits are of
        documents that one of them may see. `OPERATOR` sees all.

        Raises ConfigError for an empty query, a mode that there is not, and a query that is longer
        than the model reads; with `too_long` "cut" its beginning is searched for. That, and that the
        model does not know its words, is in the result's `notes` and a warning in the log. Raises
        SpaceMismatchError if the model has changed since the release, PermissionsError for permissions
        that cannot be read and where nobody says for whom, FilterError for a wrong
        filter.
        """
        search = self._search(k, filter, principals, mode, rerank)
        if not isinstance(query, str):
            return self._search_all(query, search, too_long)
        if search.mode == "text":
            text = clean_query(self.release.spec, query, "The query")
            return self._find(Query(text), query, search, [])
        cleaned, notes = self._queries.embed(self.release, query, too_long)
        return self._find(cleaned, query, search, [*self._doubts, *notes])

    async def search_async(
        self,
        query: Any,
        k: int = 10,
        filter: Filter | None = None,
        *,
        too_long: TooLong = "refuse",
        mode: Mode | None = None,
        rerank: str | None = None,
        principals: Principals = None,
    ) -> Any:
        """As `search`, in a thread."""
        import asyncio

        return await asyncio.to_thread(
            functools.partial(self.search, too_long=too_long, mode=mode, rerank=rerank),
            *(query, k, filter),
            principals=principals,
        )

    def search_many(
        self,
        queries: "Iterable[str] | pd.Series | pd.DataFrame",
        k: int = 10,
        filter: Filter | None = None,
        *,
        too_long: TooLong = "refuse",
        mode: Mode | None = None,
        rerank: str | None = None,
        principals: Principals = None,
    ) -> "pd.DataFrame":
        """The hits of many queries as one DataFrame: `search(queries).to_pandas()`, whose columns
        and errors it has."""
        need("pandas", "explore")  # before a query is paid for
        if isinstance(queries, str):
            raise ConfigError("queries is one str: give a list of texts, or one column.")
        search = self._search(k, filter, principals, mode, rerank)
        return self._search_all(queries, search, too_long).to_pandas()

    def search_image(
        self,
        image: "ImageLike",
        k: int = 10,
        filter: Filter | None = None,
        *,
        principals: Principals = None,
    ) -> SearchResult:
        """As `search`, for what is like an image: a file's path, its bytes, or an image of Pillow.

        Raises ConfigError for a model that takes texts alone and for what is no image, and as
        `search`.
        """
        search = self._search(k, filter, principals)
        name, query, notes = self._queries.embed_image(self.release, image)
        return self._find(query, name, search, [*self._doubts, *notes])

    def search_like(
        self,
        documents: str | Iterable[str],
        k: int = 10,
        filter: Filter | None = None,
        *,
        principals: Principals = None,
    ) -> SearchResult:
        """As `search`, for what is like a document, or like several, by their ids: chunks of others.

        A document stands for the mean direction of its chunks as the table keeps them, several, such
        as what somebody liked, for the mean of theirs. No model is asked. Scores are cosines with
        it. Raises ConfigError for an id that is not there, or not for these principals, and as
        `search`.
        """
        search = self._search(k, filter, principals)
        names = [documents] if isinstance(documents, str) else list(dict.fromkeys(documents))
        if not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"like is {documents!r}. Give the id of a document, or of several.")
        vectors = [unit(each) for each in self.rows.vectors_of(names, search.visible)]
        mean = unit(np.stack([each.mean(axis=0) for each in vectors])).mean(axis=0)
        own = sum(map(len, vectors))  # their chunks are among the nearest
        (rows,) = self.rows.find_all([Query("", mean)], replace(search, k=k + own))
        rows = as_table(rows)
        rows = rows.filter(pc.invert(pc.is_in(rows["document_id"], pa.array(names)))).slice(0, k)
        notes = self._say(self._doubts, search)
        return self._result(rows, f"like {', '.join(names)}", search, notes)

    def search_embedded(
        self,
        queries: Sequence[str],
        vectors: Vectors | None,
        space: Space | None,
        k: int = 10,
        filter: Filter | None = None,
        mode: Mode | None = None,
        principals: Principals = None,
    ) -> SearchResults:
        """As `search`, for queries whose vectors float32[n, d] in `space` the caller has; None where
        words alone are searched. No cross-encoder reads them. Raises as `search`."""
        search = self._search(k, filter, principals, mode)
        texts = self._clean_all(queries)
        if search.mode == "text":
            return self._find_all([Query(text) for text in texts], queries, search, [])
        if vectors is None or space is None:
            raise ConfigError(f"A search by {search.mode} needs the vectors of its queries.")
        vectors, notes = self._queries.to_table(self.release, vectors, space)
        cleaned = [Query(text, vector) for text, vector in zip(texts, vectors, strict=True)]
        return self._find_all(cleaned, queries, search, [*self._doubts, *notes])

    def search_vector(
        self,
        vector: Vectors,
        space: Space,
        k: int = 10,
        filter: Filter | None = None,
        principals: Principals = None,
    ) -> SearchResult:
        """As `search`, for a vector float32[d] of a query in `space`."""
        search = self._search(k, filter, principals)
        numbers = np.asarray(vector, np.float32)
        vector, notes = self._queries.to_table(self.release, numbers, space)
        return self._find(Query("", vector), "", search, [*self._doubts, *notes])

    def image_of(self, document_id: str, principals: Principals = None) -> tuple[str, str] | None:
        """Where the image is that a document of the release is, as its column `uri` says, and the
        digest of its pixels; None for one that is no image, not in the release, or not for these
        principals. Raises PermissionsError as `search`."""
        visible = self.visible(principals)
        if not self.release.spec.source.has_images:
            return None
        for rows in self.rows.of_documents([document_id], ["uri", "image"], visible):
            for uri, digest in zip(rows["uri"].to_pylist(), rows["image"].to_pylist(), strict=True):
                return (uri, digest) if uri and digest else None
        return None

    def load_memory(self, is_wanted: Callable[[], bool] = lambda: True) -> bool:
        """Hold vectors and texts in memory, if they fit; whether they do. Searches go on meanwhile,
        in the stored table. `is_wanted` is asked now and then.

        From then on a search by vectors without a filter takes a tenth of the time. Raises
        ConfigError without the extra `serving`, StoreError for a table that cannot be read.
        """
        return self.rows.load_memory(is_wanted)

    def visible(self, principals: Principals) -> Visible | None:
        """What principals may see of the pipeline, as its permissions are now; None: all of it.
        Raises as `Access.visible`."""
        return self.rows.visible(principals)

    def mode(self, mode: Mode | None) -> Mode:
        """The mode that was asked for, else the release's. Raises ConfigError for one there is not."""
        if mode is not None and mode not in get_args(Mode):
            raise ConfigError(f"mode is {mode!r}. Write one of {', '.join(get_args(Mode))}.")
        return mode or self.release.spec.search.mode

    def reranker(self, rerank: str | None) -> str:
        """The cross-encoder that was asked for, else the release's; empty for none."""
        return (self.release.spec.search.rerank or "") if rerank is None else rerank

    def candidates(self, k: int) -> int:
        """How many rows a cross-encoder reads for `k` hits."""
        return max(k, self.release.spec.search.rerank_candidates)

    def _search(
        self,
        k: int,
        filter: Filter | None,
        principals: Principals,
        mode: Mode | None = "vector",
        rerank: str | None = "",
    ) -> Search:
        """Raises as `mode`, `visible` and `check_k`, in this order."""
        started = time.perf_counter()
        mode, visible = self.mode(mode), self.visible(principals)
        check_k(k)
        return Search(k, filter, visible, mode, self.reranker(rerank), started)

    def _search_all(self, queries: Any, search: Search, too_long: TooLong) -> SearchResults:
        texts, index = texts_of(queries)
        cleaned = self._clean_all(texts)
        if search.mode == "text":
            return self._find_all([Query(text) for text in cleaned], texts, search, [], index)
        searches, notes = self._queries.embed_all(self.release, cleaned, too_long)
        return self._find_all(searches, texts, search, [*self._doubts, *notes], index)

    def _clean_all(self, queries: Sequence[str]) -> list[str]:
        spec = self.release.spec
        return [clean_query(spec, query, f"queries[{row}]") for row, query in enumerate(queries)]

    def _find(self, query: Query, text: str, search: Search, notes: list[str]) -> SearchResult:
        return self._find_all([query], [text], search, notes)[0]

    def _find_all(
        self,
        queries: Sequence[Query],
        texts: Sequence[str],
        search: Search,
        notes: list[str],
        index: "pd.Index | None" = None,
    ) -> SearchResults:
        """The results of queries, of which `texts` are what was typed."""
        notes, results = self._say(notes, search), list[SearchResult]()
        for text, rows in zip(texts, self._ranked(queries, search), strict=True):
            results.append(self._result(rows, text, search, notes))
            search = replace(search, started=time.perf_counter())
        return SearchResults(results, self._types, index)

    def _ranked(self, queries: Sequence[Query], search: Search) -> "Iterator[pa.Table | Near]":
        """The rows for each query, in the cross-encoder's order if there is one."""
        if not search.reranker:
            yield from self.rows.find_all(queries, search)
            return
        wide = replace(search, k=self.candidates(search.k))
        every = map(as_table, self.rows.find_all(queries, wide))
        for query, rows in zip(queries, every, strict=True):
            pairs = [(query.text, text) for text in rows["text"].to_pylist()]
            yield take_best(rows, self._reranker.scores(search.reranker, pairs), search.k)

    def _say(self, notes: list[str], search: Search) -> list[str]:
        """Notes and what is to be said of the table, after a warning in the log for each."""
        release, name = self.release, self.release.spec.name
        if search.mode != "vector" and not self.rows.has_text_index:
            notes = [
                *notes,
                f"{release.title} has no full-text index: every text is read "
                "for each search, and a word is found as it is written alone. Write `search: {mode: "
                f"hybrid}}` (or text) in the pipeline file and run `embedding-pipelines run {name}`.",
            ]
        for note in notes:
            log.warning("%s", note)
        return notes

    def _result(
        self, rows: "pa.Table | Near", query: str, search: Search, notes: list[str]
    ) -> SearchResult:
        release, visible = self.release, search.visible
        seen = visible.notes if visible else []
        result = SearchResult(
            pipeline=release.spec.name,
            release=release.number,
            space_id=release.space.id,
            query=query,
            mode=search.mode,
            hits=hits_of(rows),
            reranked_by=search.reranker,
            milliseconds=round((time.perf_counter() - search.started) * 1000, 3),
            notes=[*notes, *seen, *self.rows.current.overlay.notes(visible)],
        )
        return result.with_types(self._types)
