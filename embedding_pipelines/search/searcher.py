"""Searches of a live release, and of texts before the first one."""

import functools
import logging
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, PrivateAttr, TypeAdapter

from embedding_pipelines.access import WIDER, Access, Permitted, Principals, Visible
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.embedding.request import Request, Sender
from embedding_pipelines.embedding.texts import TooLong, prepare
from embedding_pipelines.errors import ConfigError, ReleaseError, StoreError
from embedding_pipelines.extras import need
from embedding_pipelines.files import read_json
from embedding_pipelines.images import pixels_of
from embedding_pipelines.images import prepare as prepare_image
from embedding_pipelines.memory import MAX_K as MEMORY_K
from embedding_pipelines.memory import MemoryIndex, Near, available_bytes
from embedding_pipelines.overlay import (
    UNRELEASED,
    Overlaid,
    Overlay,
    codec_of,
    searched_release,
    table_of,
)
from embedding_pipelines.providers.base import EmbeddingModel, check_reply
from embedding_pipelines.ranking import (
    Filter,
    Query,
    condition_of,
    find,
    rows_needed,
    take_best,
)
from embedding_pipelines.releases import (
    Release,
    doubts,
    find_released,
    live_release,
    no_release,
)
from embedding_pipelines.remote import refresh
from embedding_pipelines.schemas import CHUNK_COLUMNS, TABLE_TYPES, VECTOR
from embedding_pipelines.space import Space, require_same_space
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec, partition_of
from embedding_pipelines.spec.search import Mode
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse
from embedding_pipelines.vectors import Vectors, to_matrix, unit

if TYPE_CHECKING:
    import pandas as pd

    from embedding_pipelines.images import ImageLike
    from embedding_pipelines.inference.cross_encoder import CrossEncoder

log = logging.getLogger(__name__)

MAX_K = 10_000
TEXTS_SHARE = 0.1  # of the free memory that unreleased texts may take, compressed
REMEDY = "Shorten it, or search with its beginning: too_long='cut', on the command line --cut."
ATTEMPTS = 3  # of a query, since a user waits
HIT_COLUMNS = {
    "score": pa.float32(),
    **{name: CHUNK_COLUMNS[name] for name in ("chunk_id", "document_id", "start", "end", "text")},
}


class Hit(BaseModel, frozen=True):
    """One chunk of a search's results."""

    # By vector: cosine similarity; for binary codecs the share of equal bits. By text: BM25, which
    # compares only within one result. Hybrid: by the ranks in both, 1 for the first of both.
    # Reranked: as the cross-encoder gives it, by most between 0 and 1.
    score: float
    chunk_id: str
    document_id: str
    start: int
    end: int
    text: str
    metadata: dict[str, Any]


HITS = TypeAdapter(list[Hit])


class SearchResult(BaseModel, frozen=True):
    """The results of one query, for command line, API and client alike."""

    pipeline: str
    release: int  # 0: texts of a pipeline that has none yet
    space_id: str
    query: str
    mode: Mode = "vector"  # the path that it took
    hits: list[Hit]
    reranked_by: str = ""  # the cross-encoder whose scores the hits have, if one read them
    milliseconds: float
    notes: list[str] = []
    """Sentences: that the query was cut, that the model does not know its words, or has changed."""
    _types: dict[str, str] = PrivateAttr(default_factory=dict)  # of the release's metadata

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each hit, nearest first: score float32, ids, offsets, text, metadata.

        Types are those of `as_frame`. Raises ConfigError without pandas.
        """
        return as_frame(_table_of(self.hits, self._types))


class SearchResults(list[SearchResult]):
    """A result for each of many queries, in their order."""

    def __init__(
        self,
        results: Iterable[SearchResult],
        types: Mapping[str, str],
        index: "pd.Index | None" = None,
    ) -> None:
        """`types` are those of the hits' metadata; `index` is the queries'."""
        super().__init__(results)
        self._types, self._index = types, index

    def to_pandas(self) -> "pd.DataFrame":
        """The hits of all queries. The columns are query, rank (from 1) and those of
        `SearchResult.to_pandas`; metadata of the name query or rank gets the prefix `metadata_`.

        The index is the query's, in its column or in the list, so that
        `frame.join(result.drop(columns="query"))` puts hits beside queries. Raises ConfigError
        without pandas.
        """
        numbers = [number for number, result in enumerate(self) for _ in result.hits]
        ranks = [rank for result in self for rank in range(1, len(result.hits) + 1)]
        names = {name: f"metadata_{name}" for name in ("query", "rank")}
        hits = _table_of([hit for result in self for hit in result.hits], self._types)
        hits = hits.rename_columns([names.get(name, name) for name in hits.column_names])
        hits = hits.add_column(0, "rank", pa.array(ranks, pa.int32()))
        queries = pa.array([self[number].query for number in numbers], pa.string())
        frame = as_frame(hits.add_column(0, "query", queries))
        return frame.set_axis(numbers if self._index is None else self._index.take(numbers))


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
        self._folder = folder = warehouse.pipeline(find_released(warehouse, pipeline))
        stale = refresh(warehouse, folder.folder.name, "search")
        self.release = searched_release(warehouse, folder)
        self._doubts = [*filter(None, [stale]), *doubts(folder, self.release)]
        self.codec = codec_of(folder, self.release)
        self._owns_model = model is None
        self._bridge = _bridge_to(folder, self.release)
        if bridged and model is None:
            name = self.release.spec.name
            if self._bridge is None:
                raise ConfigError(
                    f"{self.release.title} has no bridge. `embedding-pipelines migrate {name} bridge` "
                    "fits one while the pipeline migrates to another model."
                )
            options, trained = find_pipeline(name, warehouse.home).model, folder.new_line / "model"
            model = options.open(warehouse.home, trained)
        self.model = model or self.release.spec.model.open(warehouse.home)
        self._sender = Sender(self.model)
        self._table_folder = warehouse.tables
        self._table = table_of(warehouse, self.release, self.codec)
        self._cache, self._warehouse = warehouse.cache, warehouse
        self._memory: MemoryIndex | None = None
        self._fitting: Space | None = None  # that was compared with the release's
        self._types = self.release.spec.metadata_types  # the same as long as this is open
        # What was pushed since is embedded by the release's own model, which opening does not load.
        self._overlay_model = self.model
        if self._bridge is not None and self._bridge.source == self.model.space.id:
            self._overlay_model = self.release.spec.model.open(warehouse.home)
        self._overlay = Overlay(warehouse, self.release, self._overlay_model, self.codec)
        spec = self.release.spec
        if access is None or access.released != spec.permissions:
            access = Access(warehouse.home, spec.name, spec.permissions)
        self._access = access
        self._encoder: CrossEncoder | None = None
        self._reranking = threading.Lock()  # one thread at a time is in the cross-encoder

    def close(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
        if self._overlay_model is not self.model:
            self._overlay_model.close()
        if self._owns_model:
            self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
        if not isinstance(query, str):
            return self._search_all(query, k, filter, too_long, mode, rerank, principals)
        started = time.perf_counter()
        mode, visible = self.mode(mode), self.visible(principals)
        if mode == "text":
            check_k(k)
            cleaned = Query(self._clean(query, "The query"))
            return self._find(cleaned, query, k, filter, visible, mode, [], started, rerank)
        self._check(self.model.space, k)
        text = self._clean(query, "The query")
        readable = prepare([text], self.model, "query", too_long, lambda _: "The query", REMEDY)
        request = Request(readable.texts, "query", readable.tokens, attempts=ATTEMPTS)
        response = self._sender.send(request)
        for words in response.rejected.values():
            raise ConfigError(f"The query {query!r} has no vector: {words}")
        vector = check_reply(response.vectors, readable.texts, self.model.space)[0]
        notes = [*self._doubts, *readable.notes, *self._bridge_notes(self.model.space)]
        vector = self._in_table_space(vector, self.model.space)
        cleaned = Query(text, vector)
        return self._find(cleaned, query, k, filter, visible, mode, notes, started, rerank)

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
        started, release, visible = time.perf_counter(), self.release, self.visible(principals)
        if not self.model.options.takes_images:
            raise ConfigError(
                f"Release {release.number} of {release.spec.name!r} is of {release.space.title}, "
                "which takes texts alone. Search it with a text."
            )
        self._check(self.model.space, k)
        try:
            name, pixels = pixels_of(image)
        except (OSError, ValueError, TypeError) as error:
            words = error.strerror or error if isinstance(error, OSError) else error
            name = f" {str(image)!r}" if isinstance(image, str | Path) else ""
            text = str(words).removesuffix(".")
            raise ConfigError(f"The image{name} cannot be searched for: {text}.") from error
        vectors = self.model.embed_images(prepare_image(pixels, self.model.resize)[None])
        vector = check_reply(vectors, [name], self.model.space)[0]
        query = Query("", vector)
        return self._find(query, name, k, filter, visible, "vector", self._doubts, started)

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
        started, visible = time.perf_counter(), self.visible(principals)
        check_k(k)
        names = [documents] if isinstance(documents, str) else list(dict.fromkeys(documents))
        if not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"like is {documents!r}. Give the id of a document, or of several.")
        self._follow()
        vectors = [unit(each) for each in self._vectors_of(names, visible)]
        mean = unit(np.stack([each.mean(axis=0) for each in vectors])).mean(axis=0)
        most = k + sum(map(len, vectors))  # their own chunks are among the nearest
        (rows,) = self._rows([Query("", mean)], most, filter, visible, "vector")
        rows = _as_table(rows)
        rows = rows.filter(pc.invert(pc.is_in(rows["document_id"], pa.array(names)))).slice(0, k)
        notes = self._notes("vector", self._doubts)
        return self._result(rows, f"like {', '.join(names)}", "vector", started, notes, visible)

    def _vectors_of(self, names: Sequence[str], visible: Visible | None) -> list[Vectors]:
        """float32[n, d] of each document's chunks, as the table keeps them; ConfigError for one that
        has none."""
        codes: dict[str, list[Any]] = {name: [] for name in names}
        for rows in self._rows_of(names, [VECTOR], visible):
            if rows.num_rows:
                owners, own = rows["document_id"].to_pylist(), to_matrix(rows[VECTOR])
                for owner, code in zip(owners, own, strict=True):
                    codes[owner].append(code)
        for name, each in codes.items():
            if not each:
                raise ConfigError(
                    f"{self.release.title} has no document {name!r}. A search shows the ids, in "
                    "front of each hit."
                )
        return [self.codec.decode(np.stack(each)) for each in codes.values()]

    def _rows_of(
        self, names: Sequence[str], columns: Sequence[str], visible: Visible | None
    ) -> Iterator[pa.RecordBatch | pa.Table]:
        """The rows of documents, each as it was pushed last, else as it is in the release. A partition
        is read once, however many of them are in it."""
        spec, table = self.release.spec, self._overlay.over(self._table)
        columns, released = [*columns, "document_id"], defaultdict[str, list[str]](list)
        for name in names:
            if visible is not None and name not in visible:
                continue
            if isinstance(table, Overlaid) and table.hides(name):
                yield from table.pushed(name, columns)
            else:
                released[spec.partition_names[partition_of(name, spec.partitions)]].append(name)
        for partition, own in released.items():
            ids = pa.array(own, pa.string())
            for batch in self._table.scan(columns, partition, self.release.version):
                yield batch.filter(pc.is_in(batch["document_id"], ids))

    def image_of(self, document_id: str, principals: Principals = None) -> tuple[str, str] | None:
        """Where the image is that a document of the release is, as its column `uri` says, and the
        digest of its pixels; None for one that is no image, not in the release, or not for these
        principals. Raises PermissionsError as `search`."""
        visible = self.visible(principals)
        if not self.release.spec.source.has_images:
            return None
        for rows in self._rows_of([document_id], ["uri", "image"], visible):
            for uri, digest in zip(rows["uri"].to_pylist(), rows["image"].to_pylist(), strict=True):
                return (uri, digest) if uri and digest else None
        return None

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
        results = self._search_all(queries, k, filter, too_long, mode, rerank, principals)
        return results.to_pandas()

    def _search_all(
        self,
        given: Any,
        k: int,
        filter: Filter | None,
        too_long: TooLong,
        mode: Mode | None,
        rerank: str | None,
        principals: Principals,
    ) -> SearchResults:
        started = time.perf_counter()
        mode, visible = self.mode(mode), self.visible(principals)
        check_k(k)
        queries, index = _column(given)
        texts = [self._clean(query, f"queries[{row}]") for row, query in enumerate(queries)]
        searches, notes = [Query(text) for text in texts], list[str]()
        if mode != "text":
            searches, notes = self._embed_all(texts, k, too_long)
        return self._find_all(
            queries, searches, k, filter, visible, mode, notes, started, rerank, index
        )

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
        started = time.perf_counter()
        mode, visible = self.mode(mode), self.visible(principals)
        check_k(k)
        texts = [self._clean(query, f"queries[{row}]") for row, query in enumerate(queries)]
        searches, notes = [Query(text) for text in texts], list[str]()
        if mode != "text":
            if vectors is None or space is None:
                raise ConfigError(f"A search by {mode} needs the vectors of its queries.")
            self._check(space, k)
            vectors = self._in_table_space(vectors, space)
            searches = [Query(text, vector) for text, vector in zip(texts, vectors, strict=True)]
            notes = [*self._doubts, *self._bridge_notes(space)]
        return self._find_all(
            queries, searches, k, filter, visible, mode, notes, started, rerank=""
        )

    def _find_all(
        self,
        queries: Sequence[str],
        searches: Sequence[Query],
        k: int,
        filter: Filter | None,
        visible: Visible | None,
        mode: Mode,
        notes: list[str],
        started: float,
        rerank: str | None,
        index: "pd.Index | None" = None,
    ) -> SearchResults:
        notes, reranker = self._notes(mode, notes), self.reranker(rerank)
        results = list[SearchResult]()
        every = self._ranked(searches, k, filter, visible, mode, reranker)
        for query, rows in zip(queries, every, strict=True):
            results.append(self._result(rows, query, mode, started, notes, visible, reranker))
            started = time.perf_counter()
        return SearchResults(results, self._types, index)

    def _embed_all(
        self, texts: list[str], k: int, too_long: TooLong
    ) -> tuple[list[Query], list[str]]:
        """Cleaned queries with their vectors, through the cache, and what is to be said of them."""
        self._check(self.model.space, k)
        readable = prepare(texts, self.model, "query", too_long, "queries[{}]".format, REMEDY)
        embeddings = embed_all(
            *(texts, self.model, EmbeddingCache(self._cache), "query"), readable=readable
        )
        for row, reason in embeddings.rejected.items():
            raise ConfigError(f"queries[{row}] ({texts[row]!r}) has no vector: {reason}")
        vectors = self._in_table_space(embeddings.vectors, self.model.space)
        queries = [Query(text, vector) for text, vector in zip(texts, vectors, strict=True)]
        return queries, [*self._doubts, *readable.notes, *self._bridge_notes(self.model.space)]

    def search_vector(
        self,
        vector: Vectors,
        space: Space,
        k: int = 10,
        filter: Filter | None = None,
        principals: Principals = None,
    ) -> SearchResult:
        """As `search`, for a vector float32[d] of a query in `space`."""
        visible = self.visible(principals)
        self._check(space, k)
        query = Query("", self._in_table_space(np.asarray(vector, np.float32), space))
        notes = [*self._doubts, *self._bridge_notes(space)]
        return self._find(query, "", k, filter, visible, "vector", notes)

    def visible(self, principals: Principals) -> Visible | None:
        """What principals may see of the pipeline, as its permissions are now; None: all of it.
        Raises as `Access.visible`."""
        return self._access.visible(principals)

    def _find(
        self,
        query: Query,
        given: str,
        k: int,
        filter: Filter | None,
        visible: Visible | None,
        mode: Mode,
        notes: list[str],
        started: float | None = None,
        rerank: str | None = "",
    ) -> SearchResult:
        started = time.perf_counter() if started is None else started
        notes, reranker = self._notes(mode, notes), self.reranker(rerank)
        (rows,) = self._ranked([query], k, filter, visible, mode, reranker)
        return self._result(rows, given, mode, started, notes, visible, reranker)

    def reranker(self, rerank: str | None) -> str:
        """The cross-encoder that was asked for, else the release's; empty for none."""
        return (self.release.spec.search.rerank or "") if rerank is None else rerank

    def candidates(self, k: int) -> int:
        """How many rows a cross-encoder reads for `k` hits."""
        return max(k, self.release.spec.search.rerank_candidates)

    def _ranked(
        self,
        queries: Sequence[Query],
        k: int,
        filter: Filter | None,
        visible: Visible | None,
        mode: Mode,
        reranker: str,
    ) -> Iterator[pa.Table | Near]:
        """The rows for each query, in the cross-encoder's order if there is one."""
        if not reranker:
            yield from self._rows(queries, k, filter, visible, mode)
            return
        from embedding_pipelines.inference.cross_encoder import CrossEncoder

        every = self._rows(queries, self.candidates(k), filter, visible, mode)
        for query, rows in zip(queries, map(_as_table, every), strict=True):
            pairs = [(query.text, text) for text in rows["text"].to_pylist()]
            with self._reranking:
                if self._encoder is not None and self._encoder.name != reranker:
                    self._encoder.close()
                    self._encoder = None
                self._encoder = self._encoder or CrossEncoder(reranker, self._warehouse.home)
                scores = self._encoder.scores(pairs)
            yield take_best(rows, scores, k)

    def mode(self, mode: Mode | None) -> Mode:
        """The mode that was asked for, else the release's. Raises ConfigError for one there is not."""
        if mode is not None and mode not in get_args(Mode):
            raise ConfigError(f"mode is {mode!r}. Write one of {', '.join(get_args(Mode))}.")
        return mode or self.release.spec.search.mode

    def _notes(self, mode: Mode, notes: list[str]) -> list[str]:
        release, name = self.release, self.release.spec.name
        if mode != "vector" and not self._has_text_index:
            notes = [
                *notes,
                f"{release.title} has no full-text index: every text is read "
                "for each search, and a word is found as it is written alone. Write `search: {mode: "
                f"hybrid}}` (or text) in the pipeline file and run `embedding-pipelines run {name}`.",
            ]
        for note in notes:
            log.warning("%s", note)
        return notes

    @property
    def _has_text_index(self) -> bool:
        release = self.release
        if release.number == UNRELEASED:  # its rows are in memory, with the index of their language
            return release.spec.search.text_index is not None
        return self._table.has_text_index(release.version)

    def _rows(
        self,
        queries: Sequence[Query],
        k: int,
        filter: Filter | None,
        visible: Visible | None,
        mode: Mode,
    ) -> Iterator[pa.Table | Near]:
        """The rows for each query."""
        self._follow()
        near = self._from_memory(queries, k, filter, visible, mode)
        for number, query in enumerate(queries):
            rows = near[number] if near else None
            try:
                yield self._search_table(query, k, filter, visible, mode, rows)
            except StoreError:
                if not self._follow():  # it went just now
                    raise
                yield self._search_table(query, k, filter, visible, mode)

    def _from_memory(
        self,
        queries: Sequence[Query],
        k: int,
        filter: Filter | None,
        visible: Visible | None,
        mode: Mode,
    ) -> Sequence[Near | None] | None:
        """The nearest rows of each query, all at once; None where the stored table is to tell."""
        memory, most = self._memory, rows_needed(k, mode)
        wide = most if visible is None else most * WIDER[0]
        if memory is None or mode == "text" or filter is not None or wide > MEMORY_K or not queries:
            return None
        vectors = [query.vector for query in queries if query.vector is not None]
        near = memory.find_all(np.stack(vectors), wide)
        if near is None or visible is None:
            return near
        of_visible = [rows.of(visible) for rows in near]
        return [rows if len(rows) >= most else None for rows in of_visible]

    def _search_table(
        self,
        query: Query,
        k: int,
        filter: Filter | None,
        visible: Visible | None,
        mode: Mode,
        near: Near | None = None,
    ) -> pa.Table | Near:
        table, most = self._overlay.over(self._table), rows_needed(k, mode)
        if near is not None and mode == "vector" and not isinstance(table, Overlaid):
            return near.first(most)  # of what is visible
        names, version = self.release.spec.source.table_names, self.release.version
        nearest = None if near is None else near.to_table()
        if nearest is not None and isinstance(table, Overlaid):
            assert query.vector is not None
            nearest = table.nearest(nearest, self.codec, query.vector, most, visible)
        if nearest is not None:
            nearest = nearest.slice(0, most)
        if visible is None:
            return find(table, self.codec, query, k, filter, version, mode, names, nearest)
        permitted = Permitted(table, visible)
        rows = find(permitted, self.codec, query, k, filter, version, mode, names, nearest)
        return visible.filter(rows)  # whatever gave them

    def load_memory(self, is_wanted: Callable[[], bool] = lambda: True) -> bool:
        """Hold vectors and texts in memory, if they fit; whether they do. Searches go on meanwhile,
        in the stored table. `is_wanted` is asked now and then.

        From then on a search by vectors without a filter takes a tenth of the time. Raises
        ConfigError without the extra `serving`, StoreError for a table that cannot be read.
        """
        table, version = self._table, self.release.version
        if self.release.number == UNRELEASED:
            return False
        memory = MemoryIndex.build(table, self.codec, version, is_wanted=is_wanted)
        if table is self._table:
            self._memory = memory
        return self._memory is not None

    def _follow(self) -> bool:
        """Go on with the live release if the one that was opened has left the disk, since a document
        was forgotten, say; whether it did. One of another space or other columns has to be
        opened."""
        before = self.release
        if not self._table.lacks(before.version):
            return False
        self._memory = None
        live = live_release(self._folder)
        if live.space != before.space or live.spec.metadata_types != self._types:
            return False
        table = live.spec.store.table(self._table_folder, live.table)
        if table.lacks(live.version):
            return False
        self.release, self._table = live, table
        self._access = Access(self._warehouse.home, live.spec.name, live.spec.permissions)
        self._overlay = Overlay(self._warehouse, live, self._overlay_model, self.codec)
        return True

    def _result(
        self,
        rows: pa.Table | Near,
        query: str,
        mode: Mode,
        started: float,
        notes: list[str],
        visible: Visible | None,
        reranker: str = "",
    ) -> SearchResult:
        release = self.release
        result = SearchResult(
            pipeline=release.spec.name,
            release=release.number,
            space_id=release.space.id,
            query=query,
            mode=mode,
            hits=hits_of(rows),
            reranked_by=reranker,
            milliseconds=round((time.perf_counter() - started) * 1000, 3),
            notes=[*notes, *_notes_of(visible), *self._overlay.notes(visible)],
        )
        result._types = self._types  # no part of its JSON
        return result

    def _clean(self, query: str, name: str) -> str:
        return clean_query(self.release.spec, query, name)

    def _check(self, space: Space, k: int) -> None:
        """ConfigError for a wrong k, SpaceMismatchError for a space that is not the release's."""
        check_k(k)
        if space is self._fitting or (self._bridge and space.id == self._bridge.source):
            return
        release = self.release
        require_same_space(
            space.with_codec(self.codec.id),
            release.space.id,
            release.title,
            f"Query it with {release.space.provider}:{release.space.model}, or run "
            f"`embedding-pipelines run {release.spec.name}` to build a release in the new space.",
        )
        self._fitting = space

    def _in_table_space(self, vectors: Vectors, space: Space) -> Vectors:
        """Queries' vectors as the table's own model would have them, before the codec: across the
        bridge, if they are of the space that it begins in."""
        if self._bridge is None or space.id != self._bridge.source:
            return vectors
        return self._bridge.map(vectors)

    def _bridge_notes(self, space: Space) -> list[str]:
        if self._bridge is None or space.id != self._bridge.source:
            return []
        return [
            f"Searched across a bridge from {space.title}, which keeps "
            f"{self._bridge.retention:.1%} of recall@10."
        ]


@dataclass(frozen=True)
class _BridgeTo:
    """The bridge to a release's space, as `migrate bridge` has put it on record."""

    source: str  # the id of the space that it begins in
    retention: float
    map: Callable[[Vectors], Vectors]


def _bridge_to(folder: PipelineFolder, release: Release) -> _BridgeTo | None:
    """None without one. Raises StoreError if it is damaged."""
    record = read_json(folder.bridge.with_suffix(".json"))
    if record is None or record["to"] != release.space.with_codec(None).id:
        return None
    from embedding_pipelines.metrics.bridge import Bridge

    try:
        bridge = Bridge.from_bytes(folder.bridge.read_bytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{folder.bridge} is damaged: {error}. Fit it anew: `embedding-pipelines migrate "
            f"{folder.folder.name} bridge`."
        ) from error
    return _BridgeTo(record["from"], record["retention"], bridge.map)


class UnreleasedTexts:
    """The texts of a pipeline without a release, as they have been cut so far, searched by words:
    vectors, checks and release may take hours. They are in memory alone.

    Raises ConfigError for a pipeline that there is not, ReleaseError before its texts are cut.
    """

    def __init__(self, warehouse: Warehouse, pipeline: str | int) -> None:
        name = find_released(warehouse, pipeline)
        self.spec, folder = find_pipeline(name, warehouse.home), warehouse.pipeline(name)
        manifests = folder.chunks.manifests(self.spec.partition_names)
        if not manifests:
            raise no_release(folder)
        self.digests = tuple(manifest.digest for manifest in manifests)
        free = available_bytes()
        if free is not None and sum(each.size_bytes for each in manifests) > free * TEXTS_SHARE:
            raise StoreError(
                f"Pipeline {name!r} has no release yet, and its texts are too many to be searched in "
                f"memory. Run `embedding-pipelines run {name}` to its end."
            )
        types = self.spec.source.metadata_types
        columns = [name for name in HIT_COLUMNS if name != "score"] + list(types)
        schema = pa.schema([(name, {**CHUNK_COLUMNS, **_arrow(types)}[name]) for name in columns])
        batches = [
            pa.RecordBatch.from_arrays([batch[column] for column in columns], schema=schema)
            for partition in self.spec.partition_names
            for batch in folder.chunks.read(partition, columns)
        ]
        rows = pa.Table.from_batches(batches, schema)
        self._texts = self.spec.store.in_memory(rows, self.spec.search.language)
        self._access = Access(warehouse.home, name, self.spec.permissions)
        self.note = (
            f"Pipeline {name!r} has no release yet: searched are its texts as they are cut so far "
            f"({len(manifests)} of {self.spec.partitions} partitions), unchecked."
        )

    def search(
        self,
        query: str,
        k: int = 10,
        filter: Filter | None = None,
        principals: Principals = None,
    ) -> SearchResult:
        """As `Searcher.search` by text; the release's number is 0."""
        started = time.perf_counter()
        check_k(k)
        visible = self._access.visible(principals)
        texts = self._texts if visible is None else Permitted(self._texts, visible)
        text = clean_query(self.spec, query, "The query")
        names = self.spec.source.table_names
        rows = texts.search_text(text, k, condition_of(filter), 1, names)
        rows = rows.rename_columns(
            ["score" if name == "_score" else name for name in rows.schema.names]
        )
        result = SearchResult(
            pipeline=self.spec.name,
            release=0,
            space_id="",
            query=query,
            mode="text",
            hits=hits_of(rows),
            milliseconds=round((time.perf_counter() - started) * 1000, 3),
            notes=[self.note, *_notes_of(visible)],
        )
        result._types = self.spec.source.metadata_types
        return result


def is_unreleased(warehouse: Warehouse, pipeline: str | int, mode: Mode | None) -> bool:
    """Whether a search by `mode`, else the pipeline file's, is one of texts that are cut and neither
    released nor pushed."""
    name = find_released(warehouse, pipeline)
    if mode in ("vector", "hybrid"):
        return False
    try:
        searched_release(warehouse, warehouse.pipeline(name))
        return False
    except ReleaseError:
        return (mode or find_pipeline(name, warehouse.home).search.mode) == "text"


def _notes_of(visible: Visible | None) -> list[str]:
    return [] if visible is None else visible.notes


def _arrow(types: Mapping[str, str]) -> dict[str, pa.DataType]:
    return {name: TABLE_TYPES[kind] for name, kind in types.items()}


def clean_query(spec: PipelineSpec, query: str, name: str) -> str:
    """The query, cleaned as documents are; ConfigError, beginning with `name`, if empty."""
    if not isinstance(query, str):
        raise ConfigError(f"{name} is {query!r}, not a text. Write at least one word.")
    text = spec.preprocessing.clean.text(query)
    if not text:
        raise ConfigError(f"{name} is empty after cleaning. Write at least one word.")
    return text


def check_k(k: int) -> None:
    """ConfigError unless a search can return so many hits."""
    if isinstance(k, bool) or not hasattr(k, "__index__") or not 1 <= k <= MAX_K:
        raise ConfigError(f"k is {k!r}; it must lie between 1 and {MAX_K}.")


def as_frame(rows: pa.Table) -> "pd.DataFrame":
    """Arrow rows as a DataFrame, with the same types whether values are missing or not.

    Whole numbers are Int64, booleans boolean, days and times datetime64; a vector is an array
    float32[d]. Raises ConfigError without pandas.
    """
    pandas = need("pandas", "explore")
    types = {pa.int64(): pandas.Int64Dtype(), pa.bool_(): pandas.BooleanDtype()}
    return rows.to_pandas(types_mapper=types.get, date_as_object=False)


def _column(queries: Any) -> "tuple[list[str], pd.Index | None]":
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


def hits_of(rows: pa.Table | Near) -> list[Hit]:
    """Rows of `nearest`."""
    metadata = [name for name in rows.column_names if name not in HIT_COLUMNS]
    return HITS.validate_python(  # all in one call, which costs less than one for each
        [{**row, "metadata": {name: row[name] for name in metadata}} for row in rows.to_pylist()]
    )


def _as_table(rows: pa.Table | Near) -> pa.Table:
    return rows.to_table() if isinstance(rows, Near) else rows


def _table_of(hits: Sequence[Hit], types: Mapping[str, str]) -> pa.Table:
    """Hits with metadata of these types; without any, of those that the values have."""
    names = types or dict.fromkeys(name for hit in hits for name in hit.metadata)
    columns = {
        name: pa.array([getattr(hit, name) for hit in hits], kind)
        for name, kind in HIT_COLUMNS.items()
    }
    for name in names:
        kind = types.get(name)
        values = [hit.metadata.get(name) for hit in hits]
        columns[name] = pa.array(values, kind and TABLE_TYPES[kind])
    return pa.table(columns)
