"""A search that would be answered too late is refused before anything is done for it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from embedding_pipelines.search import Searcher
from embedding_pipelines.serving.admission import Lag, Line
from embedding_pipelines.serving.lanes import Lanes
from embedding_pipelines.serving.maps import Maps
from embedding_pipelines.serving.models import ServedModel, ServedReranker
from embedding_pipelines.serving.server import SEARCH_THREADS, Server
from embedding_pipelines.serving.wire import TIMEOUT_HEADER, TooManyRequests
from embedding_pipelines_tests.serving.homes import client_of
from embedding_pipelines_tests.serving.live import live

KINDS = [
    ({"query": "fox", "mode": "text"}, "search_embedded"),
    ({"query": ["fox", "whale"]}, "search_embedded"),
    ({"like": "1"}, "search_like"),
]


@pytest.mark.parametrize(("body", "function"), KINDS)
def test_who_comes_sees_the_queries_before_them_and_is_refused_by_their_time(
    built_home: Path, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], function: str
) -> None:
    with client_of(built_home) as client:
        server: Server = client.app.state.server  # type: ignore[attr-defined]
        during, work = list[float](), getattr(Searcher, function)

        def search(self: Searcher, *given: Any, **named: Any) -> Any:
            during.append(server.searches.waiting)
            return work(self, *given, **named)

        monkeypatch.setattr(Searcher, function, search)
        assert client.post("/search", json=body).status_code == 200
        assert during == [2 if isinstance(body.get("query"), list) else 1]
        monkeypatch.setattr(Lag, "seconds", 0.0)
        monkeypatch.setattr(Line, "wait_seconds", property(lambda line: 8.0 * line.waiting))
        assert client.post("/search", json=body).status_code == 200  # nobody is before it
        server.searches.waiting = 1
        assert client.post("/search", json=body).status_code == 200
        monkeypatch.setattr(Server, "searcher", _not_reached)
        # Eight seconds are more than half of what this caller waits.
        reply = client.post("/search", json=body, headers={TIMEOUT_HEADER: "15"})
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "8")
        server.searches.waiting = 2
        reply = client.post("/search", json=body)
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "16")
        assert "Searches are behind: 16.0 seconds" in reply.json()["error"]
        assert server.metrics.value("refused_total", model="things", lane="search") == 2


def test_a_query_is_not_embedded_where_nobody_could_order_its_hits(
    built_home: Path, monkeypatch: pytest.MonkeyPatch, scored: None
) -> None:
    monkeypatch.setattr(ServedReranker, "admit", refuse)
    with client_of(built_home, reranker="tiny") as client:
        server: Server = client.app.state.server  # type: ignore[attr-defined]
        assert client.portal is not None
        client.portal.call(server.wait_until_ready)
        monkeypatch.setattr(ServedModel, "_prepare", _not_reached)
        reply = client.post("/search", json={"query": "fox", "rerank": True})
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "12")


def test_a_map_is_refused_by_the_chunks_before_it_and_one_that_is_kept_counts_for_none(
    built_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, during = Maps._get, list[float]()

    def watched(self: Maps, *given: Any) -> Any:
        during.append(self.line.waiting)
        return make(self, *given)

    monkeypatch.setattr(Maps, "_get", watched)
    with client_of(built_home) as client:
        server: Server = client.app.state.server  # type: ignore[attr-defined]
        for _ in range(2):
            assert client.get("/page/map?pipeline=things").status_code == 200
        assert during == [2, 0]  # chunks: the second time they have their places
        (kept, _) = server.maps._maps.pop("things")
        with server.maps.stand(kept):  # somebody else's
            monkeypatch.setattr(Line, "wait_seconds", 30.0)
            assert client.get("/page/map?pipeline=things").status_code == 200
        assert during == [2, 0, 2]  # which is counted once
        monkeypatch.setattr(Lag, "seconds", 0.0)
        monkeypatch.setattr(Line, "wait_seconds", property(lambda line: line.waiting / 1_000))
        monkeypatch.setattr(Maps, "_get", _not_reached)
        server.maps.line.waiting = 16_000
        reply = client.get("/page/map?pipeline=things")
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "16")
        assert "The map is behind: 16.0 seconds" in reply.json()["error"]
        assert server.metrics.value("refused_total", model="things", lane="map") == 1
        body = {"query": "fox", "mode": "text"}
        assert client.post("/search", json=body).status_code == 200  # which waits for other threads


def test_many_queries_are_admitted_together_and_none_after_work_for_another(
    built_home: Path, monkeypatch: pytest.MonkeyPatch, scored: None
) -> None:
    """What comes between two of them for the cross-encoder makes the second late, not refused."""
    compute = Lanes.compute

    async def behind(self: Lanes, *given: Any) -> Any:
        scores = await compute(self, *given)
        monkeypatch.setattr(Lanes, "wait_seconds", lambda *_: 12.0)
        monkeypatch.setattr(Lanes, "is_idle", False)
        return scores

    body = {"query": ["fox", "whale"], "mode": "text", "rerank": True}
    with client_of(built_home, reranker="tiny") as client:
        server: Server = client.app.state.server  # type: ignore[attr-defined]
        assert client.portal is not None
        client.portal.call(server.wait_until_ready)
        monkeypatch.setattr(Lanes, "compute", behind)
        reply = client.post("/search", json=body)
        assert reply.status_code == 200, reply.text
        assert [each["reranked_by"] for each in reply.json()["results"]] == ["tiny", "tiny"]
        monkeypatch.setattr(Server, "search", _not_reached)
        reply = client.post("/search", json=body)
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "12")


def test_nothing_else_waits_behind_searches(
    built_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, work = threading.Semaphore(0), threading.Event(), Searcher.search_embedded

    def hold(self: Searcher, *given: Any) -> Any:
        begun.release()
        assert go.wait(60)
        return work(self, *given)

    monkeypatch.setattr(Searcher, "search_embedded", hold)
    with live(built_home) as (address, server, _), ThreadPoolExecutor(SEARCH_THREADS + 1) as pool:

        def post(path: str, **body: str) -> int:
            return httpx2.post(f"{address}/{path}", json=body, timeout=20).status_code

        asking = [
            pool.submit(post, "search", query="fox", mode="text") for _ in range(SEARCH_THREADS + 1)
        ]
        try:
            assert all(begun.acquire(timeout=20) for _ in range(SEARCH_THREADS))
            server._looked_at = float("-inf")  # what is live is looked up, in a thread
            assert post("v1/embeddings", input="fox") == 200
        finally:
            go.set()
        assert {each.result() for each in asking} == {200}


def refuse(*given: Any) -> None:
    raise TooManyRequests("later", retry_after_seconds=12.0)


def _not_reached(*given: Any) -> Any:
    raise AssertionError("this is work for somebody who is refused")
