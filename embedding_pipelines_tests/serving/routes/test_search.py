"""`POST /search`: one query or many, in each mode, with filters; and what is wrong with a request."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.delete import delete_pipeline
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.inference.cross_encoder import CrossEncoder
from embedding_pipelines.search import Searcher, search, unreleased
from embedding_pipelines.search.unreleased import is_unreleased
from embedding_pipelines.serving.wire import (
    RELEASE_HEADER,
    SPACE_HEADER,
    TIMEOUT_HEADER,
    SearchAnswer,
    SearchAnswers,
)
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines_tests.chain import run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import HASHING, UNMEASURED
from embedding_pipelines_tests.cross_encoders import write_cross_encoder
from embedding_pipelines_tests.serving.homes import KEY, build, client_of

HYBRID = f"{HASHING}search: {{mode: hybrid}}\n"
ROWS = [
    (f"id-{n}", f"animal{n} runs in room{n % 5}", "even" if n % 2 == 0 else "odd")
    for n in range(40)
]


@pytest.fixture(scope="module")
def hybrid_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("hybrid"), HYBRID, ROWS)


@pytest.fixture
def hybrid(hybrid_home: Path) -> Iterator[TestClient]:
    with client_of(hybrid_home, KEY) as client:
        yield client


def post(client: TestClient, **body: Any) -> dict[str, Any]:
    reply = client.post("/search", json=body)
    assert reply.status_code == 200, reply.text
    result: dict[str, Any] = reply.json()
    return result


def test_what_may_open_a_model_or_ask_a_bucket_does_so_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pipeline(tmp_path, "p", HASHING)
    write_csv(tmp_path, "a.csv", [(1, "red fox", "animal")])
    in_loop = list[bool]()

    def look(*arguments: Any) -> bool:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            in_loop.append(True)
        in_loop.append(False)
        return is_unreleased(*arguments)

    monkeypatch.setattr(unreleased, "is_unreleased", look)
    with client_of(tmp_path) as client:
        assert client.post("/search", json={"query": "fox", "mode": "text"}).status_code in (
            400,
            409,
        )
        body = {"query": "fox", "mode": "text", "pipeline": "p"}
        assert client.post("/search", json=body).status_code == 409
    assert in_loop == [False]


def test_a_request_for_more_hits_than_memory_holds_is_400(hybrid: TestClient) -> None:
    reply = hybrid.post("/search", json={"query": ["fox"] * 11, "k": 10_000})
    assert reply.status_code == 400
    assert "110,000 hits" in reply.json()["error"]


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid", None])
def test_an_answer_is_that_of_a_program_and_names_path_release_and_space(
    hybrid: TestClient, hybrid_home: Path, mode: Any
) -> None:
    body = {"query": "animal7 run", "k": 3} | ({"mode": mode} if mode else {})
    reply = hybrid.post("/search", json=body)
    expected = search(hybrid_home, "things", "animal7 run", 3, mode=mode).model_dump()
    answer = reply.json()
    assert reply.content == SearchAnswer.model_validate(answer).model_dump_json().encode()
    assert reply.headers[RELEASE_HEADER] == "1"
    assert reply.headers[SPACE_HEADER] == answer["space_id"]
    assert answer["mode"] == mode or (mode is None and answer["mode"] == "hybrid")
    scores = [hit.pop("score") for hit in answer["hits"]]
    # By then the server may have the table in memory, in float16.
    assert scores == pytest.approx([hit.pop("score") for hit in expected["hits"]], abs=5e-4)
    assert answer.pop("receipt_id") is None
    for each in (answer, expected):
        del each["milliseconds"]
    assert answer == expected


def test_a_cross_encoder_orders_the_hits_alike_in_package_command_line_and_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cross_encoder(tmp_path / "tiny")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    command = Command(monkeypatch, capsys)
    home = build(tmp_path, f"{HASHING}search: {{rerank: tiny, rerank_candidates: 40}}\n", ROWS)
    plain = search(home, "things", "animal7 room2", k=40, rerank="")
    result = search(home, "things", "animal7 room2", k=3)
    assert (plain.reranked_by, result.reranked_by) == ("", "tiny")
    scores = CrossEncoder("tiny", home).scores([("animal7 room2", hit.text) for hit in plain.hits])
    best = np.argsort(-scores, kind="stable")[:3]
    assert [hit.chunk_id for hit in result.hits] == [plain.hits[at].chunk_id for at in best]
    assert [hit.score for hit in result.hits] == pytest.approx(scores[best], abs=1e-5)
    (many,) = Searcher(home, "things").search(["animal7 room2"], 3)
    assert many.hits == result.hits
    with client_of(home) as client:
        answer = post(client, query="animal7 room2", k=3)
        assert answer["reranked_by"] == "tiny"
        ids = [hit["chunk_id"] for hit in answer["hits"]]
        assert ids == [hit.chunk_id for hit in result.hits]
        assert post(client, query="animal7 room2", rerank=False)["reranked_by"] == ""
    typed = command("search", "things", "animal7 room2", "-k", "3", "--json").results[0]
    assert [hit["chunk_id"] for hit in typed["hits"]] == ids
    typed = command("search", "things", "animal7 room2", "--rerank", "none", "--json").results[0]
    assert typed["reranked_by"] == ""


def test_reranking_without_a_reranker_says_how_to_have_one(hybrid: TestClient) -> None:
    reply = hybrid.post("/search", json={"query": "room2", "rerank": True})
    assert reply.status_code == 400
    assert "search: {rerank: MODEL}" in reply.json()["error"]


def test_searches_end_when_their_caller_has_left(
    hybrid_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, has_left, whole = list[int](), threading.Event(), Searcher.search_embedded

    def slow(self: Searcher, queries: list[str], *arguments: Any) -> Any:
        sizes.append(len(queries))
        assert has_left.wait(60)
        return whole(self, queries, *arguments)

    with client_of(hybrid_home) as client:
        post(client, query="room2", mode="text")  # which opens what the next one finds open
        monkeypatch.setattr(Searcher, "search_embedded", slow)
        body = {"query": ["room2"] * 200, "mode": "text"}
        reply = client.post("/search", json=body, headers={TIMEOUT_HEADER: "0.5"})
        assert reply.status_code == 504
        has_left.set()
    assert sizes == [32]  # once the server has closed, which waits for its threads


def test_many_queries_are_answered_in_their_order(hybrid: TestClient) -> None:
    queries = [f"animal{n}" for n in range(30)]
    results = post(hybrid, pipeline="things", query=queries, k=1, mode="text")["results"]
    assert [result["query"] for result in results] == queries
    assert [result["hits"][0]["document_id"] for result in results] == [
        f"id-{n}" for n in range(30)
    ]
    alone = post(hybrid, pipeline=1, query="animal7", k=1)
    (together,) = post(hybrid, pipeline=1, query=["animal7"], k=1)["results"]
    assert alone["hits"] == together["hits"]


def test_days_times_and_what_is_missing_are_written_as_the_answers_model_writes_them(
    tmp_path: Path,
) -> None:
    metadata = "{day: date, at: timestamp, price: float, sold: bool, tags: 'list[string]'}"
    text = f"source: {{kind: jsonl, path: a.jsonl, id: id, text: [title], metadata: {metadata}}}\n"
    write_pipeline(tmp_path, "p", f"{text}model: {{provider: hashing}}\n{UNMEASURED}")
    row = '{"id": "a", "title": "red fox", "day": "2024-05-01", "at": "2024-05-01T10:00:00.5Z", '
    row += '"price": 0.1, "sold": true, "tags": ["é", "b"]}'
    (tmp_path / "a.jsonl").write_text(f'{row}\n{{"id": "b", "title": "blue whale"}}\n')
    run_steps(tmp_path, "p")
    with client_of(tmp_path) as client:
        reply = client.post("/search", json={"query": ["red fox"]})
    (result,) = search(tmp_path, "p", ["red fox"])
    (answer,) = SearchAnswers.model_validate(reply.json()).results
    expected = SearchAnswer.model_validate({**result.model_dump(), "receipt_id": None})
    answer.milliseconds = expected.milliseconds = 0
    assert answer.model_dump_json() == expected.model_dump_json()
    assert len(answer.hits) == 2


@pytest.mark.parametrize("filter", ["cat = 'odd'", {"cat": "odd"}, {"cat": ["odd"]}])
def test_filters_hold(hybrid: TestClient, filter: Any) -> None:
    for mode in ("vector", "text", "hybrid"):
        hits = post(hybrid, query="animal7 runs", k=40, filter=filter, mode=mode)["hits"]
        assert {hit["metadata"]["cat"] for hit in hits} == {"odd"}
        assert len(hits) == 20


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"query": ""}, 400, "query"),
        ({"query": "  "}, 400, "empty"),
        ({"query": []}, 400, "query"),
        ({"query": "x", "k": 0}, 400, "k: "),
        ({"query": "x", "mode": "words"}, 400, "mode: "),
        ({"query": "x", "filter": "price ="}, 400, "The filter 'price =' cannot be used"),
        ({"query": "x", "filter": {"nothing": 1}}, 400, "cannot be used"),
        ({"query": "x", "filter": {"cat": {"above": 1}}}, 400, "Columns: chunk_id (text)"),
        ({"query": "x", "kk": 3}, 400, "kk"),
        ({"query": "x", "pipeline": "thing"}, 404, "Did you mean 'things'?"),
        ({"query": "x", "pipeline": 9}, 404, "No pipeline has the number 9"),
        ({"query": "x", "pipeline": "../things"}, 404, "There is no pipeline"),
    ],
)
def test_what_is_wrong_is_said(
    hybrid: TestClient, body: dict[str, Any], status: int, words: str
) -> None:
    reply = hybrid.post("/search", json=body)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]


def test_a_key_is_needed(hybrid: TestClient) -> None:
    reply = hybrid.post("/search", json={"query": "x"}, headers={"Authorization": "Bearer no"})
    assert reply.status_code == 401


def test_a_deadline_that_is_over_is_told(hybrid: TestClient) -> None:
    reply = hybrid.post("/search", json={"query": "x"}, headers={TIMEOUT_HEADER: "1e-9"})
    assert reply.status_code == 504


def test_a_new_release_answers_and_so_does_a_first_one(home: Path) -> None:
    write_pipeline(home, "later", HASHING.replace("*.csv", "b.csv"))
    build(home, HASHING.replace("*.csv", "a.csv"))
    write_csv(home, "b.csv", [(4, "grey owl", "animal")])
    with client_of(home, KEY) as client:
        server: Any = client.app.state.server  # type: ignore[attr-defined]
        assert post(client, query="red fox")["release"] == 1
        reply = client.post("/search", json={"query": "red fox", "pipeline": "later"})
        assert reply.status_code == 409
        assert "'later' has no release yet" in reply.json()["error"]
        with run_of(home, "later") as run:
            for step in steps_of(run.spec)[:2]:
                list(step.work(run, run.spec.partition_names))
        answer = post(client, query="wolves", pipeline="later", mode="text")
        assert (answer["release"], answer["mode"], answer["hits"]) == (0, "text", [])
        assert "no release yet" in answer["notes"][0]
        write_csv(home, "a.csv", [(3, "green frog", "animal")])
        write_csv(home, "b.csv", [(4, "grey wolf", "animal")])
        run_steps(home, "things")
        run_steps(home, "later")
        server._looked_at = float("-inf")
        answer = post(client, query="green frog", pipeline="things")
        assert (answer["release"], answer["hits"][0]["document_id"]) == (2, "3")
        answer = post(client, query="grey wolf", pipeline="later")
        assert (answer["release"], answer["hits"][0]["document_id"]) == (1, "4")


def test_a_pipeline_that_is_deleted_and_made_again_answers_with_its_new_documents(
    home: Path,
) -> None:
    build(home, HASHING)
    with client_of(home, KEY) as client:
        server: Any = client.app.state.server  # type: ignore[attr-defined]
        assert post(client, query="red fox")["release"] == 1
        server._memory.submit(int).result()  # the release is in memory
        delete_pipeline(home, "things", keep_file=True)
        server._looked_at = float("-inf")
        assert client.post("/search", json={"query": "x", "pipeline": "things"}).status_code == 409
        assert not server._searchers
        build(home, HASHING, [(3, "green frog", "animal")])
        server._looked_at = float("-inf")
        answer = post(client, query="red fox")
        assert (answer["release"], [hit["text"] for hit in answer["hits"]]) == (1, ["green frog"])


def test_before_the_first_release_an_edited_file_counts(home: Path) -> None:
    text = "source: {kind: push, text: [text]}\nmodel: {provider: hashing, dimensions: 16}\n"
    write_pipeline(home, "notes", text)
    documents = {"documents": [{"id": "a", "text": "grey cat", "color": "grey"}]}
    with client_of(home, KEY) as client:
        server: Any = client.app.state.server  # type: ignore[attr-defined]
        assert client.post("/api/embedding-pipelines/notes/documents", json=documents).is_success
        assert post(client, pipeline="notes", query="cat")["hits"][0]["metadata"] == {}
        edited = text.replace("[text]}", "[text], metadata: [color]}").replace("16", "32")
        write_pipeline(home, "notes", edited)
        server._looked_at = float("-inf")
        (hit,) = post(client, pipeline="notes", query="cat", filter="color = 'grey'")["hits"]
        assert hit["metadata"] == {"color": "grey"}


def test_a_server_comes_to_answer_from_memory_and_answers_alike(hybrid: TestClient) -> None:
    server: Any = hybrid.app.state.server  # type: ignore[attr-defined]
    for mode in ("vector", "hybrid"):
        first = post(hybrid, query="animal7 runs", k=3, mode=mode)["hits"]
        server._memory.submit(int).result()  # after what was submitted before
        assert server.searcher("things").rows.current.memory is not None
        held = post(hybrid, query="animal7 runs", k=3, mode=mode)["hits"]
        assert [hit["chunk_id"] for hit in held] == [hit["chunk_id"] for hit in first]
        scores = [[hit["score"] for hit in hits] for hits in (held, first)]
        assert scores[0] == pytest.approx(scores[1], abs=5e-4)


def test_documents_in_place_of_a_query_find_what_is_like_them(hybrid: TestClient) -> None:
    one = post(hybrid, like="id-7", k=3)
    assert (one["query"], one["mode"], len(one["hits"])) == ("like id-7", "vector", 3)
    both = post(hybrid, like=["id-7", "id-8"], k=40, filter="cat = 'even'")
    names = {hit["document_id"] for hit in both["hits"]}
    assert names == {f"id-{n}" for n in range(0, 40, 2)} - {"id-8"}
    for body, words in (
        ({"like": "id-400"}, "has no document 'id-400'"),
        ({"like": "id-7", "query": "fox"}, "send one of query, image and like"),
        ({"like": "id-7", "mode": "text"}, "Leave mode out"),
        ({"like": "id-7", "rerank": True}, "Leave it out with like"),
        ({"like": []}, "like"),
    ):
        reply = hybrid.post("/search", json=body)
        assert reply.status_code == 400, reply.text
        assert words in reply.json()["error"]
