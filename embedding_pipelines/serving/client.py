"""The client of a server, for programs: `EmbeddingPipelines`, and the same with `await`,
`AsyncEmbeddingPipelines`. It needs no part of this package but the bodies that both sides share.

A fault of the network, or a server that cannot answer now, is tried again, after a time that
doubles; whatever is tried again is done once. Where nobody listens, and nobody has answered before,
one second attempt is all. Every other error is one of `wire.ERRORS`, whose text
is the server's sentence.
"""

import asyncio
import base64
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ValidationError

from embedding_pipelines.serving.wire import (
    ERRORS,
    KEY_OF_REQUEST,
    KEY_VARIABLE,
    MAX_IMAGE_BYTES,
    PRINCIPALS_HEADER,
    BadRequest,
    CreatedReply,
    DeletedReply,
    DocumentsReceipt,
    EmbeddingsResponse,
    PipelineReply,
    PipelinesReply,
    RunFailed,
    RunReply,
    RunsReply,
    SearchAnswer,
    SearchAnswers,
    ServingError,
    Unavailable,
    principals_header,
)

if TYPE_CHECKING:
    import httpx2
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_SERVER = "http://127.0.0.1:8080"
PIPELINES = "/api/embedding-pipelines"
TRANSIENT = (429, 502, 503, 504)
RETRIES = 5
RETRIES_OF_NOBODY = 1  # where no server has ever answered: it may just be starting
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 60.0
POLL_SECONDS, LONGEST_POLL_SECONDS = 0.2, 5.0
TEXTS_PER_REQUEST = 512

Pipelines = list[PipelineReply]  # `list` is a method's name below
RunsOf = list[RunReply]
Reply = TypeVar("Reply")
Kind = TypeVar("Kind", bound=BaseModel)


@dataclass(frozen=True)
class Call(Generic[Reply]):
    """A request, and how its reply is read."""

    method: str
    path: str
    read: "Callable[[httpx2.Response], Reply]"
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class _Client:
    """What both clients share: everything but waiting."""

    def __init__(
        self,
        api_key: str | None = None,
        server: str = DEFAULT_SERVER,
        *,
        principals: Sequence[str] | None = None,
        timeout_seconds: float = 60.0,
        retries: int = RETRIES,
    ) -> None:
        """`api_key`: None takes $EMBEDDING_API_KEY, and sends none if that is not set. `principals`:
        for whom pipelines with permissions are read; the key has to act for others. `retries`: how
        often a request is tried again. Raises BadRequest for a key, an address or principals that are
        none.
        """
        key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
        if not all("!" <= letter <= "~" for letter in key):
            raise BadRequest(
                "The API key has spaces, line breaks or other letters than ASCII's. Copy it anew."
            )
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise BadRequest(f"{server!r} is no server. Write its address, as {DEFAULT_SERVER}.")
        self.server, self.retries = server.rstrip("/"), retries
        self._has_answered = False  # the server, so that it will be there again
        self._options: dict[str, Any] = {
            "base_url": self.server,
            "headers": ({"Authorization": f"Bearer {key}"} if key else {}) | _for(principals),
            "timeout": timeout_seconds,
        }

    def _error(self, response: "httpx2.Response") -> ServingError:
        """What a reply with an error's status says."""
        try:
            text = str(response.json()["error"])
        except (ValueError, KeyError, TypeError):
            text = f"{self.server} answered {response.status_code} and no reason."
        kind = ERRORS.get(response.status_code)
        if kind is None:
            kind = Unavailable if response.status_code >= 500 else BadRequest
        return kind(text, _retry_after(response))

    def _unreachable(self, error: Exception) -> Unavailable:
        if _is_nobody(error):
            return Unavailable(
                f"{self.server} cannot be reached: no server listens there. Start it with "
                "`embedding-pipelines serve`, or name the address of one that runs."
            )
        words = str(error) or type(error).__name__
        return Unavailable(
            f"{self.server} cannot be reached: {words}. Is the server running, and is this its "
            "address?"
        )

    def _pause_after_reply(self, response: "httpx2.Response", attempt: int) -> float:
        """Seconds until a request is sent again whose reply is an error. Raises that error if it is
        not to be."""
        self._has_answered, pause = True, None
        if response.status_code in TRANSIENT:
            pause = self._pause(attempt, _retry_after(response))
        if pause is None:
            raise self._error(response)
        return pause

    def _pause_after_error(self, error: Exception, attempt: int) -> float:
        """The same of a request that got no reply."""
        is_over = not self._has_answered and _is_nobody(error) and attempt >= RETRIES_OF_NOBODY
        pause = None if is_over else self._pause(attempt, None)
        if pause is None:
            raise self._unreachable(error)
        return pause

    def _pause(self, attempt: int, retry_after: float | None) -> float | None:
        """Seconds until the next attempt; None: there is none."""
        if attempt >= self.retries:
            return None
        pause: float = min(FIRST_PAUSE_SECONDS * 2.0**attempt, LONGEST_PAUSE_SECONDS)
        pause *= random.uniform(0.5, 1.0)  # so that many clients do not come back at once
        if retry_after is None:
            return pause
        return None if retry_after > LONGEST_PAUSE_SECONDS else max(pause, retry_after)


class EmbeddingPipelines(_Client):
    """A server's pipelines, for programs. Threads may share one; `close` it, or use `with`."""

    def __init__(
        self,
        api_key: str | None = None,
        server: str = DEFAULT_SERVER,
        *,
        principals: Sequence[str] | None = None,
        timeout_seconds: float = 60.0,
        retries: int = RETRIES,
    ) -> None:
        import httpx2

        super().__init__(
            api_key,
            server,
            principals=principals,
            timeout_seconds=timeout_seconds,
            retries=retries,
        )
        self._http = httpx2.Client(**self._options)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def create_pipeline(self, config: Mapping[str, Any]) -> CreatedReply:
        """A pipeline of a configuration, as a pipeline file would say it; `name` may be part of it.
        Of the same configuration there is one, however often it is sent.

        Raises BadRequest, with "Invalid config" in its text, if something is wrong with it.
        """
        return self._send(create_pipeline(config))

    def list(self, filter: str = "all") -> Pipelines:
        """The pipelines that are active, building, failed, deployed or archived, or all."""
        return self._send(list_pipelines(filter))

    def get(self, id: int | str) -> PipelineReply:
        """How a pipeline stands."""
        return self._send(get(id))

    def run(self, id: int | str) -> RunReply:
        """Start to bring a pipeline up to date; `wait` for the run."""
        return self._send(start(f"{_path(id)}/run", None))

    def release(self, id: int | str, reason: str) -> RunReply:
        """Start to release what checks of its quality hold back; the release keeps the reason."""
        return self._send(release(id, reason))

    def rollback(self, id: int | str, to: int | None = None) -> RunReply:
        """Start to make an earlier release live again, None: the one before; `wait` for the run, whose
        `result` says which was live `before`."""
        return self._send(rollback(id, to))

    def plan(self, id: int | str) -> RunReply:
        """Start to reckon what a run would do, cost and take; `wait` for the run, whose `result` has
        the figures."""
        return self._send(plan(id))

    def forget(
        self,
        id: int | str,
        ids: Sequence[str] = (),
        *,
        sources: Sequence[str] = (),
        undo: bool = False,
    ) -> RunReply:
        """Start to erase documents for good, by their ids or by their source files; `wait` for the
        run, whose `result` is the receipt. `undo`: let them come back with the next run."""
        return self._send(forget(id, ids, sources, undo))

    def push(self, id: int | str, documents: Iterable[Mapping[str, Any]]) -> DocumentsReceipt:
        """Put documents, by the names of the source's columns, in place of those with their ids: all
        or none. Searches see them when this returns."""
        return self._send(push(id, documents))

    def delete_documents(self, id: int | str, ids: Sequence[str]) -> DocumentsReceipt:
        """Delete documents, those of files, too; `unknown` names ids of which there was nothing."""
        return self._send(push_ids(id, "delete", ids))

    def withdraw(self, id: int | str, ids: Sequence[str]) -> DocumentsReceipt:
        """Take back what was pushed of documents: from the next run on, files count again."""
        return self._send(push_ids(id, "withdraw", ids))

    def optimize(
        self,
        id: int | str,
        method: str | Sequence[str],
        dimensions: int | None = None,
        *,
        floor: float | None = None,
        max_ms: float | None = None,
    ) -> RunReply:
        """Start to make a pipeline's vectors smaller: method is pca, truncate, float16, int8 (or
        quantization), binary, or several of them, or auto. `wait` for the run."""
        return self._send(optimize(id, method, dimensions, floor, max_ms))

    def compare(
        self,
        id: int | str,
        models: Sequence[str | Mapping[str, Any]],
        documents: int | None = None,
    ) -> RunReply:
        """Start to measure models on a sample of a pipeline's data, beside its own; `wait` for the run,
        whose `result` has the figures. Nothing of the pipeline changes. `models` are written as in a
        pipeline file; `documents`: the size of the sample, None: 2,000."""
        return self._send(compare(id, models, documents))

    def deploy(self, id: int | str, endpoint: str) -> RunReply:
        """Start to give a pipeline's live release to an endpoint; `wait` for the run."""
        return self._send(start(f"{PIPELINES}/deploy", {"id": id, "endpoint": endpoint}))

    def undeploy(self, id: int | str, endpoint: str | None = None) -> RunReply:
        """Start to remove all that `deploy` made; None: at its only endpoint."""
        return self._send(start(f"{PIPELINES}/undeploy", {"id": id, "endpoint": endpoint}))

    def delete(self, id: int | str, keep_file: bool = False) -> DeletedReply:
        """Delete a pipeline with all that it has produced."""
        return self._send(delete(id, keep_file))

    def runs(self, id: int | str, limit: int = 20) -> RunsOf:
        """The newest runs of a pipeline, newest first, whoever started them."""
        return self._send(list_runs(id, limit))

    def get_run(self, run: RunReply | str) -> RunReply:
        """How a run stands."""
        return self._send(get_run(run))

    def wait(self, run: RunReply | str, timeout_seconds: float | None = None) -> RunReply:
        """The run, once it has succeeded. Raises RunFailed with the reason if it has not,
        TimeoutError if it takes longer; it goes on all the same."""
        waiting = _Waiting(run, timeout_seconds)
        while (result := waiting.look(self.get_run(run))) is None:
            time.sleep(waiting.pause)
        return result

    def embed(
        self,
        texts: str | Iterable[str],
        model: int | str | None = None,
        *,
        input_type: str = "document",
        truncate: bool = False,
    ) -> "NDArray[np.float32]":
        """Vectors of texts, float32[n, d]; of one text float32[d]. `model`: a pipeline, or a model
        by its name; None: the only one that is served."""
        calls = embed(texts, model, input_type, truncate)
        return _joined(texts, [self._send(call) for call in calls])

    def search(
        self,
        pipeline: int | str | None,
        query: str | Sequence[str] | None = None,
        k: int = 10,
        filter: str | Mapping[str, Any] | None = None,
        *,
        image: "str | os.PathLike[str] | bytes | None" = None,
        like: str | Sequence[str] | None = None,
        mode: str | None = None,
        rerank: bool | None = None,
        truncate: bool = False,
        principals: Sequence[str] | None = None,
    ) -> SearchAnswer | SearchAnswers:
        """The best chunks for a query, or for each of many. `pipeline`: its number or name; None:
        the only one. `filter`: a condition such as `price < 9`, or columns with what they are.
        `image`: in place of a query, the path of an image or the bytes of its file; `like`: the id of
        a document, or of several. `mode`: vector,
        text or hybrid; None: as the pipeline says. `rerank`: whether a cross-encoder orders the
        hits; None: as the pipeline says. `truncate`: search with the beginning of a query that is
        too long. `principals`: for whom, where the pipeline has permissions; None: those of this
        client. Raises OSError for an image that cannot be read."""
        arguments = (pipeline, query, k, filter, image, like, mode, rerank, truncate, principals)
        return self._send(search(*arguments))

    def metrics(self) -> str:
        """What a monitor watches, in Prometheus' text format."""
        return self._send(Call("GET", "/metrics", _text))

    def _send(self, call: Call[Reply]) -> Reply:
        import httpx2

        attempt, options = 0, _options(call)
        while True:
            try:
                response = self._http.request(call.method, call.path, **options)
            except httpx2.TransportError as error:
                pause = self._pause_after_error(error, attempt)
            else:
                if response.is_success:
                    self._has_answered = True
                    return _read(call, response)
                pause = self._pause_after_reply(response, attempt)
            time.sleep(pause)
            attempt += 1


class AsyncEmbeddingPipelines(_Client):
    """The same for an event loop; `aclose` it, or use `async with`."""

    def __init__(
        self,
        api_key: str | None = None,
        server: str = DEFAULT_SERVER,
        *,
        principals: Sequence[str] | None = None,
        timeout_seconds: float = 60.0,
        retries: int = RETRIES,
    ) -> None:
        import httpx2

        super().__init__(
            api_key,
            server,
            principals=principals,
            timeout_seconds=timeout_seconds,
            retries=retries,
        )
        self._http = httpx2.AsyncClient(**self._options)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def create_pipeline(self, config: Mapping[str, Any]) -> CreatedReply:
        return await self._send(create_pipeline(config))

    async def list(self, filter: str = "all") -> Pipelines:
        return await self._send(list_pipelines(filter))

    async def get(self, id: int | str) -> PipelineReply:
        return await self._send(get(id))

    async def run(self, id: int | str) -> RunReply:
        return await self._send(start(f"{_path(id)}/run", None))

    async def release(self, id: int | str, reason: str) -> RunReply:
        return await self._send(release(id, reason))

    async def rollback(self, id: int | str, to: int | None = None) -> RunReply:
        return await self._send(rollback(id, to))

    async def plan(self, id: int | str) -> RunReply:
        return await self._send(plan(id))

    async def forget(
        self,
        id: int | str,
        ids: Sequence[str] = (),
        *,
        sources: Sequence[str] = (),
        undo: bool = False,
    ) -> RunReply:
        return await self._send(forget(id, ids, sources, undo))

    async def push(self, id: int | str, documents: Iterable[Mapping[str, Any]]) -> DocumentsReceipt:
        return await self._send(push(id, documents))

    async def delete_documents(self, id: int | str, ids: Sequence[str]) -> DocumentsReceipt:
        return await self._send(push_ids(id, "delete", ids))

    async def withdraw(self, id: int | str, ids: Sequence[str]) -> DocumentsReceipt:
        return await self._send(push_ids(id, "withdraw", ids))

    async def optimize(
        self,
        id: int | str,
        method: str | Sequence[str],
        dimensions: int | None = None,
        *,
        floor: float | None = None,
        max_ms: float | None = None,
    ) -> RunReply:
        return await self._send(optimize(id, method, dimensions, floor, max_ms))

    async def compare(
        self,
        id: int | str,
        models: Sequence[str | Mapping[str, Any]],
        documents: int | None = None,
    ) -> RunReply:
        return await self._send(compare(id, models, documents))

    async def deploy(self, id: int | str, endpoint: str) -> RunReply:
        return await self._send(start(f"{PIPELINES}/deploy", {"id": id, "endpoint": endpoint}))

    async def undeploy(self, id: int | str, endpoint: str | None = None) -> RunReply:
        return await self._send(start(f"{PIPELINES}/undeploy", {"id": id, "endpoint": endpoint}))

    async def delete(self, id: int | str, keep_file: bool = False) -> DeletedReply:
        return await self._send(delete(id, keep_file))

    async def runs(self, id: int | str, limit: int = 20) -> RunsOf:
        return await self._send(list_runs(id, limit))

    async def get_run(self, run: RunReply | str) -> RunReply:
        return await self._send(get_run(run))

    async def wait(self, run: RunReply | str, timeout_seconds: float | None = None) -> RunReply:
        waiting = _Waiting(run, timeout_seconds)
        while (result := waiting.look(await self.get_run(run))) is None:
            await asyncio.sleep(waiting.pause)
        return result

    async def embed(
        self,
        texts: str | Iterable[str],
        model: int | str | None = None,
        *,
        input_type: str = "document",
        truncate: bool = False,
    ) -> "NDArray[np.float32]":
        calls = embed(texts, model, input_type, truncate)
        return _joined(texts, [await self._send(call) for call in calls])

    async def search(
        self,
        pipeline: int | str | None,
        query: str | Sequence[str] | None = None,
        k: int = 10,
        filter: str | Mapping[str, Any] | None = None,
        *,
        image: "str | os.PathLike[str] | bytes | None" = None,
        like: str | Sequence[str] | None = None,
        mode: str | None = None,
        rerank: bool | None = None,
        truncate: bool = False,
        principals: Sequence[str] | None = None,
    ) -> SearchAnswer | SearchAnswers:
        arguments = (pipeline, query, k, filter, image, like, mode, rerank, truncate, principals)
        return await self._send(await asyncio.to_thread(search, *arguments))  # it may read a file

    async def metrics(self) -> str:
        return await self._send(Call("GET", "/metrics", _text))

    async def _send(self, call: Call[Reply]) -> Reply:
        import httpx2

        attempt, options = 0, _options(call)
        while True:
            try:
                response = await self._http.request(call.method, call.path, **options)
            except httpx2.TransportError as error:
                pause = self._pause_after_error(error, attempt)
            else:
                if response.is_success:
                    self._has_answered = True
                    return _read(call, response)
                pause = self._pause_after_reply(response, attempt)
            await asyncio.sleep(pause)
            attempt += 1


def _options(call: Call[Reply]) -> dict[str, Any]:
    """What httpx is given of a request. Raises BadRequest for a body that JSON cannot say."""
    options: dict[str, Any] = {"params": call.params, "headers": dict(call.headers)}
    if call.body is not None:
        try:
            text = json.dumps(call.body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            options["content"] = text.encode()
        except (TypeError, ValueError) as error:  # half a character is one of these
            raise BadRequest(
                f"The request is no JSON in UTF-8: {error}. Send texts of whole characters, finite "
                "numbers, booleans, null, lists and objects."
            ) from None
        options["headers"]["Content-Type"] = "application/json"
    return options


def create_pipeline(config: Mapping[str, Any]) -> Call[CreatedReply]:
    return Call("POST", PIPELINES, _as(CreatedReply), dict(config))


def list_pipelines(filter: str) -> Call[list[PipelineReply]]:
    def read(response: "httpx2.Response") -> list[PipelineReply]:
        return PipelinesReply.model_validate_json(response.content).pipelines

    return Call("GET", PIPELINES, read, params={"filter": filter})


def get(id: int | str) -> Call[PipelineReply]:
    return Call("GET", _path(id), _as(PipelineReply))


def start(path: str, body: Mapping[str, Any] | None) -> Call[RunReply]:
    """Long work, which is started once even if the request is sent again."""
    body = (
        None if body is None else {key: value for key, value in body.items() if value is not None}
    )
    return Call("POST", path, _as(RunReply), body, headers={KEY_OF_REQUEST: str(uuid.uuid4())})


def optimize(
    id: int | str,
    method: str | Sequence[str],
    dimensions: int | None,
    floor: float | None,
    max_ms: float | None,
) -> Call[RunReply]:
    methods = method if isinstance(method, str) else list(method)
    body = {"method": methods, "dimensions": dimensions, "floor": floor, "max_ms": max_ms}
    return start(f"{_path(id)}/optimize", body)


def compare(
    id: int | str, models: Sequence[str | Mapping[str, Any]], documents: int | None
) -> Call[RunReply]:
    body = {"models": list(models), "documents": documents}
    return start(f"{_path(id)}/compare", body)


def release(id: int | str, reason: str) -> Call[RunReply]:
    return start(f"{_path(id)}/release", {"reason": reason})


def rollback(id: int | str, to: int | None) -> Call[RunReply]:
    return start(f"{_path(id)}/rollback", {"to": to})


def plan(id: int | str) -> Call[RunReply]:
    return start(f"{_path(id)}/plan", None)


def forget(id: int | str, ids: Sequence[str], sources: Sequence[str], undo: bool) -> Call[RunReply]:
    body = {"ids": _list(ids, "ids"), "sources": _list(sources, "sources"), "undo": undo}
    return start(f"{_path(id)}/forget", body)


def push(id: int | str, documents: Iterable[Mapping[str, Any]]) -> Call[DocumentsReceipt]:
    body = {"documents": [dict(document) for document in documents]}
    return Call("POST", f"{_path(id)}/documents", _as(DocumentsReceipt), body)


def push_ids(id: int | str, verb: str, ids: Sequence[str]) -> Call[DocumentsReceipt]:
    """Delete or withdraw documents."""
    body = {"ids": _list(ids, "ids")}
    return Call("POST", f"{_path(id)}/documents/{verb}", _as(DocumentsReceipt), body)


def _list(texts: Sequence[str], name: str) -> Sequence[str]:
    """A single text is a sequence of letters, each of which would be another document's id."""
    if isinstance(texts, str):
        raise BadRequest(f"{name} is the text {texts!r}. Give a list: [{texts!r}].")
    return list(texts)


def delete(id: int | str, keep_file: bool) -> Call[DeletedReply]:
    params = {"keep_file": "true"} if keep_file else {}
    return Call("DELETE", _path(id), _as(DeletedReply), params=params)


def list_runs(id: int | str, limit: int) -> Call[list[RunReply]]:
    def read(response: "httpx2.Response") -> list[RunReply]:
        return RunsReply.model_validate_json(response.content).runs

    return Call("GET", f"{_path(id)}/runs", read, params={"limit": str(limit)})


def get_run(run: RunReply | str) -> Call[RunReply]:
    run_id = run if isinstance(run, str) else run.run_id
    return Call("GET", f"{PIPELINES}/runs/{quote(run_id, safe='')}", _as(RunReply))


def embed(
    texts: str | Iterable[str], model: int | str | None, input_type: str, truncate: bool
) -> Iterable[Call[EmbeddingsResponse]]:
    """A request for each so many texts."""
    every = [texts] if isinstance(texts, str) else list(texts)
    body: dict[str, Any] = {"encoding_format": "base64", "input_type": input_type}
    body |= {"truncate": truncate} if truncate else {}
    body |= {} if model is None else {"model": str(model)}
    call = Call("POST", "/v1/embeddings", _as(EmbeddingsResponse))
    for first in range(0, len(every), TEXTS_PER_REQUEST):
        yield replace(call, body={**body, "input": every[first : first + TEXTS_PER_REQUEST]})


def search(
    pipeline: int | str | None,
    query: str | Sequence[str] | None,
    k: int,
    filter: str | Mapping[str, Any] | None,
    image: "str | os.PathLike[str] | bytes | None",
    like: str | Sequence[str] | None,
    mode: str | None,
    rerank: bool | None,
    truncate: bool,
    principals: Sequence[str] | None,
) -> Call[SearchAnswer | SearchAnswers]:
    if [query is None, image is None, like is None].count(False) != 1:
        raise BadRequest("search: give one of a query, an image, and the ids of documents (like).")
    is_one = query is None or isinstance(query, str)
    values = {
        "query": query if query is None or isinstance(query, str) else list(query),
        "image": None if image is None else _data_url(image),
        "like": like if like is None or isinstance(like, str) else list(like),
        "pipeline": pipeline,
        "k": k,
        "filter": filter,
        "mode": mode,
        "rerank": rerank,
        "truncate": truncate or None,
    }
    body = {name: value for name, value in values.items() if value is not None}
    kind: type[SearchAnswer | SearchAnswers] = SearchAnswer if is_one else SearchAnswers
    return Call("POST", "/search", _as(kind), body, headers=_for(principals))


def _for(principals: Sequence[str] | None) -> dict[str, str]:
    """The header that says for whom a request reads."""
    return {} if principals is None else {PRINCIPALS_HEADER: principals_header(principals)}


def _data_url(image: "str | os.PathLike[str] | bytes") -> str:
    """An image as a request takes it; the server tells its format from its bytes."""
    name = "image" if isinstance(image, bytes) else f"image {os.fspath(image)}"
    size = len(image) if isinstance(image, bytes) else os.stat(image).st_size
    if size > MAX_IMAGE_BYTES:
        raise BadRequest(f"{name}: it is larger than {MAX_IMAGE_BYTES >> 20} MB. Reduce it.")
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    return f"data:image/any;base64,{base64.b64encode(data).decode()}"


class _Waiting:
    """Looks at a run until it has ended, more and more rarely."""

    def __init__(self, run: RunReply | str, timeout_seconds: float | None) -> None:
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self.pause = POLL_SECONDS / 1.5

    def look(self, run: RunReply) -> RunReply | None:
        """The run if it has succeeded, None if it is still at work. Raises as `wait`."""
        if run.status == "failed":
            raise RunFailed(f"Run {run.run_id} ({run.kind} of {run.pipeline}): {run.error}")
        if run.status == "succeeded":
            return run
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise TimeoutError(
                f"Run {run.run_id} ({run.kind} of {run.pipeline}) is still {run.status}. It goes "
                "on; wait for it again."
            )
        self.pause = min(self.pause * 1.5, LONGEST_POLL_SECONDS)
        return None


def _joined(
    texts: str | Iterable[str], replies: Sequence[EmbeddingsResponse]
) -> "NDArray[np.float32]":
    import numpy as np

    items = [item for reply in replies for item in sorted(reply.data, key=lambda item: item.index)]
    vectors = [np.frombuffer(base64.b64decode(str(item.embedding)), "<f4") for item in items]
    if isinstance(texts, str):
        return vectors[0].astype(np.float32)
    return np.stack(vectors).astype(np.float32) if vectors else np.empty((0, 0), np.float32)


def _as(kind: type[Kind]) -> "Callable[[httpx2.Response], Kind]":
    return lambda response: kind.model_validate_json(response.content)


def _text(response: "httpx2.Response") -> str:
    return response.text


def _read(call: Call[Reply], response: "httpx2.Response") -> Reply:
    try:
        return call.read(response)
    except ValidationError:
        raise Unavailable(
            f"{response.url.copy_with(query=None)} answered {response.status_code}, but not as "
            "embedding-pipelines does. Is this its address?"
        ) from None


def _is_nobody(error: BaseException) -> bool:
    """Whether a connection failed because its address has no listener, or its name no address."""
    causes, cause = [error], error.__cause__ or error.__context__
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(
        isinstance(each, ConnectionRefusedError)
        or (isinstance(each, socket.gaierror) and each.errno == socket.EAI_NONAME)
        for each in causes
    )


def _retry_after(response: "httpx2.Response") -> float | None:
    """Seconds that the server asks to wait."""
    text = response.headers.get("Retry-After-Ms")
    try:
        if text is not None:
            return max(float(text) / 1000, 0.0)
        return max(float(response.headers["Retry-After"]), 0.0)
    except (KeyError, ValueError):  # none, or a date
        return None


def _path(id: int | str) -> str:
    """Of a pipeline. An id is one part of the path, whatever stands in it."""
    text = str(id)
    if not text.strip("."):
        raise BadRequest(f"{text!r} is no pipeline. Write its number or its name.")
    return f"{PIPELINES}/{quote(text, safe='')}"
