"""From a request's queries to hits: their vectors by the lanes, then the release's table in a thread."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from embedding_pipelines.access import Principals, Visible
from embedding_pipelines.embedding.texts import TooLong
from embedding_pipelines.errors import ConfigError, ReleaseError, did_you_mean
from embedding_pipelines.ranking import Filter, order_of
from embedding_pipelines.releases import Release
from embedding_pipelines.serving.admission import Line
from embedding_pipelines.serving.lanes import (
    FOR_EVER,
    MAX_WAIT_SECONDS,
    OF_DEADLINE,
    Recipient,
)
from embedding_pipelines.serving.models import Embedded, ServedModel, ServedReranker
from embedding_pipelines.serving.server import Served, Server
from embedding_pipelines.serving.wire import BadRequest, NotFound, TooManyRequests, Unavailable
from embedding_pipelines.spec.ids import find_name
from embedding_pipelines.spec.search import Mode

QUERIES_AT_ONCE = 32  # that are searched in one call

T = TypeVar("T")

if TYPE_CHECKING:
    from embedding_pipelines.search import Searcher, SearchResult


async def find_pipeline(server: Server, pipeline: str | int | None) -> str:
    """The name of the pipeline with this name or number, or of the only one with a release.

    Raises NotFound with what is served, Unavailable with what is the matter with it, BadRequest
    where several could be meant.
    """
    served = await server.served()
    if pipeline is None:
        released = [name for name, each in served.items() if each.release]
        if len(released) == 1:
            return released[0]
        which = ", ".join(map(repr, released)) or "none has a release yet"
        raise BadRequest(f"pipeline is missing. Name one of: {which}.")
    name = str(pipeline)
    if name in served:
        return name
    try:
        name = await asyncio.to_thread(find_name, server.home, name)
    except ConfigError as error:
        raise NotFound(str(error)) from None
    if name in served:
        return name
    if name in server.problems:
        raise Unavailable(f"Pipeline {name!r} cannot be searched: {server.problems[name]}")
    which = ", ".join(map(repr, served)) or "no pipeline yet"
    raise NotFound(
        f"There is no pipeline {name!r} here.{did_you_mean(name, served)} Served: {which}."
    )


@contextlib.contextmanager
def admit_search(
    server: Server, name: str, recipient: Recipient, queries: int = 1
) -> Iterator[None]:
    """A search of a pipeline, from when it comes to its answer. Raises TooManyRequests if that would
    come too late; before anything is done for it. What its model has to do is for
    `ServedModel.embed` to refuse.

    One query is counted all the time, since it waits for a thread more than once. Many are counted
    part by part, as they take turns with others.
    """
    _refuse_late(server, server.searches, "search", name, recipient)
    with server.searches.stand(1 if queries == 1 else 0):
        yield


@contextlib.contextmanager
def admit_map(
    server: Server, name: str, release: Release | None, recipient: Recipient
) -> Iterator[None]:
    """The same of a pipeline's map, which waits for a thread of its own. One that is being made for
    somebody else costs nothing more, and is not refused."""
    maps = server.maps
    if release is None or not maps.is_coming(release):
        _refuse_late(server, maps.line, "map", name, recipient)
    with maps.stand(release) if release else contextlib.nullcontext():
        yield


def _refuse_late(server: Server, line: Line, kind: str, name: str, recipient: Recipient) -> None:
    """Raises TooManyRequests if what comes now would be answered too late, for what is before it."""
    wait = 2 * server.lag.seconds + line.wait_seconds
    if line.waiting and wait > min(MAX_WAIT_SECONDS, recipient.seconds_left * OF_DEADLINE):
        server.metrics.count("refused_total", model=name, lane=kind)
        behind = "Searches are" if kind == "search" else f"The {kind} is"
        raise TooManyRequests(
            f"{behind} behind: {wait:.1f} seconds. Send it again after that time.",
            retry_after_seconds=wait,
        )


async def search_pipeline(
    server: Server,
    name: str,
    queries: Sequence[str],
    k: int,
    filter: Filter | None,
    mode: Mode | None,
    too_long: TooLong,
    rerank: bool | None = None,
    *,
    principals: Principals = None,
    label: str = "query[{}]",
    recipient: Recipient = FOR_EVER,
) -> "Sequence[SearchResult]":
    """A result for each query from the pipeline's live release. `label` says what errors call a
    query, by its number. Before the first release words are searched in the texts as they are cut.
    `rerank`: whether a cross-encoder orders the hits, None: as the pipeline says. Raises as
    `Searcher.search`, `ServedModel.embed` and `ServedReranker.score`, and ReleaseError without a
    release."""
    from embedding_pipelines.search.unreleased import is_unreleased

    served = (await server.served()).get(name)
    has_texts_alone = False
    if served and not served.release:  # in a thread: it may open the model, or ask a bucket
        has_texts_alone = await asyncio.to_thread(is_unreleased, server.warehouse, name, mode)
    if served and has_texts_alone:
        return await _search_texts(server, served, queries, k, filter, principals)
    searcher = await open_searcher(server, name, principals)
    reranker = _reranker(server, name, rerank)
    with reranker.in_use() if reranker else contextlib.nullcontext():
        if reranker:  # for all queries, before anything is done for one of them
            reranker.admit(None, recipient.seconds_left)
        embedded = None
        if searcher.mode(mode) != "text":
            embedded = await _model(server, name, searcher).embed(
                queries,
                "query",
                searcher.release.spec.preprocessing.clean.texts,
                too_long,
                name=label.format,
                recipient=recipient,
            )
        most = searcher.candidates(k) if reranker else k
        options = (most, filter, mode, principals)
        results = await _search_embedded(server, searcher, queries, embedded, options)
        if not reranker:
            return results
        clean = searcher.release.spec.preprocessing.clean.text
        return [await _reranked(reranker, each, clean, k, recipient) for each in results]


async def _search_texts(
    server: Server,
    served: Served,
    queries: Sequence[str],
    k: int,
    filter: Filter | None,
    principals: Principals,
) -> "list[SearchResult]":
    """By words, in the texts of a pipeline that has no release yet."""
    opener = partial(server.unreleased, served)
    texts = await asyncio.to_thread(open_for, server, served.name, principals, opener)
    return [await server.search(texts.search, query, k, filter, principals) for query in queries]


async def _search_embedded(
    server: Server,
    searcher: "Searcher",
    queries: Sequence[str],
    embedded: Embedded | None,
    options: tuple[int, Filter | None, Mode | None, Principals],
) -> "list[SearchResult]":
    """A result for each query, by its vector where there is one. `options`: how many hits, and what
    else `Searcher.search_embedded` takes."""
    results = list["SearchResult"]()
    space = embedded.space if embedded else None
    for first in range(0, len(queries), QUERIES_AT_ONCE):  # whoever leaves ends it between two
        some = slice(first, first + QUERIES_AT_ONCE)
        vectors = embedded.vectors[some] if embedded else None
        with server.searches.stand(len(queries[some]) if len(queries) > 1 else 0):
            arguments = (queries[some], vectors, space, *options)
            results += await server.search(searcher.search_embedded, *arguments)
    notes = _notes(embedded.truncated_tokens, embedded.unknown) if embedded else []
    for result in results:
        result.notes.extend(notes)
    return results


def _model(server: Server, name: str, searcher: "Searcher") -> ServedModel:
    """The release's own model, whatever has become live since. Raises Unavailable where it is closed."""
    for model in server.models:
        if model.model is searcher.model:
            return model
    raise Unavailable(f"Pipeline {name!r} has changed meanwhile. Try again.")


def _reranker(server: Server, name: str, rerank: bool | None) -> ServedReranker | None:
    """What orders a pipeline's hits, as `search_pipeline` says of `rerank`. Raises BadRequest where
    there is none to do it."""
    reranker = None if rerank is False else server.reranker_of(name)
    if rerank and reranker is None and (reranker := server.reranker) is None:
        raise BadRequest(
            f"rerank: neither {name!r} nor this server has a cross-encoder. Write `search: {{rerank: "
            "MODEL}` in the pipeline file and run it, or start the server with --reranker."
        )
    return reranker


async def open_searcher(server: Server, name: str, principals: Principals) -> "Searcher":
    """A pipeline's searcher, before a query is embedded. Raises as `Server.searcher` and `open_for`."""
    return await asyncio.to_thread(
        open_for, server, name, principals, partial(server.searcher, name)
    )


def open_for(server: Server, name: str, principals: Principals, opener: Callable[[], T]) -> T:
    """What `opener` opens of a pipeline, once it is known that these principals may read it; to be
    called in a thread. Raises as `Access.visible`, then as `opener` and `without_quotes`."""
    with without_quotes(name, server.access(name).visible(principals)):
        return opener()


@contextlib.contextmanager
def without_quotes(name: str, visible: Visible | None) -> Iterator[None]:
    """A ReleaseError does not say what holds a candidate back, which quotes its documents, to whoever
    sees only some of them."""
    try:
        yield
    except ReleaseError:
        if visible is None:
            raise
        raise ReleaseError(f"Pipeline {name!r} has no release yet.") from None


async def _reranked(
    reranker: ServedReranker,
    result: "SearchResult",
    clean: Callable[[str], str],
    k: int,
    recipient: Recipient,
) -> "SearchResult":
    if result.hits:
        texts = [hit.text for hit in result.hits]
        scored = await reranker.score(
            clean(result.query), texts, "cut", recipient, is_admitted=True
        )
        scores = scored.scores
        best = [(result.hits[at], float(scores[at])) for at in order_of(scores, k)]
        hits = [hit.model_copy(update={"score": score}) for hit, score in best]
        result = result.model_copy(update={"hits": hits})
    return result.model_copy(update={"reranked_by": reranker.name})


async def search_by_image(
    server: Server,
    name: str,
    data: bytes,
    k: int,
    filter: Filter | None,
    principals: Principals,
    recipient: Recipient,
) -> "SearchResult":
    """What of a pipeline's live release is like an image, by its file. Raises BadRequest for what is
    no image and for a model that takes texts alone, else as `search_pipeline`."""
    searcher = await open_searcher(server, name, principals)
    model = _model(server, name, searcher)
    if not model.options.takes_images:
        raise BadRequest(
            f"image: {name!r} is of {model.title}, which takes texts alone. Search it with a query."
        )
    model.admit("interactive", recipient.seconds_left)
    squares = await server.pictures.squares([data], model.model.resize, "image")
    embedded = await model.embed_images(squares, "interactive", recipient)
    return await server.search(
        searcher.search_vector, embedded.vectors[0], embedded.space, k, filter, principals
    )


async def search_by_documents(
    server: Server,
    name: str,
    documents: str | Sequence[str],
    k: int,
    filter: Filter | None,
    principals: Principals,
) -> "SearchResult":
    """What of a pipeline's live release is like documents, by their ids. Raises as
    `Searcher.search_like`."""
    searcher = await open_searcher(server, name, principals)
    return await server.search(
        partial(searcher.search_like, principals=principals), documents, k, filter
    )


def _notes(truncated_tokens: int, unknown: str) -> list[str]:
    cut = f"{truncated_tokens:,} tokens at the end of what was asked for were not read."
    return [*([cut] if truncated_tokens else []), *([unknown] if unknown else [])]
