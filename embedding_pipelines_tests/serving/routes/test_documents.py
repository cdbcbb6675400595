"""`/api/embedding-pipelines/{id}/documents`: durable and searchable when the answer comes."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.push import Pusher
from embedding_pipelines.search import Searcher
from embedding_pipelines.serving.models import ServedModel
from embedding_pipelines.serving.wire import TIMEOUT_HEADER, TooManyRequests
from embedding_pipelines.spec.ids import pipeline_ids
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import copy_home, write_pipeline
from embedding_pipelines_tests.serving.homes import KEY, client_of

HASHING = '{"model": {"provider": "hashing", "dimensions": 16}, "input_type": "text"}'


@pytest.fixture
def home(built_home: Path, tmp_path: Path) -> Path:
    """`things`, released from a file, and `notes`, without a file."""
    copy_home(built_home, tmp_path)
    write_pipeline(tmp_path, "notes", HASHING)
    return tmp_path


@pytest.fixture
def client(home: Path) -> Iterator[TestClient]:
    with client_of(home, KEY) as client:
        yield client


def found(home: Path, name: str, query: str) -> list[str]:
    with Searcher(Warehouse(home), name) as searcher:
        return [hit.document_id for hit in searcher.search(query).hits]


def test_documents_are_searchable_when_the_answer_comes(client: TestClient, home: Path) -> None:
    path = "/api/embedding-pipelines/notes/documents"
    reply = client.post(
        path, json={"documents": [{"id": "a/b?", "text": "one"}, {"id": 2, "text": "two"}]}
    )
    assert reply.status_code == 200, reply.text
    assert reply.json() == {
        "pipeline": "notes",
        "number": 1,
        "documents": 2,
        "chunks": 2,
        "embedded": 2,
        "unknown": [],
        "ignored": [],
    }
    assert found(home, "notes", "one") == ["a/b?", "2"]
    assert client.delete(f"{path}/a%2Fb%3F").json()["documents"] == 1
    assert found(home, "notes", "one") == ["2"]
    log = pushed_log(Warehouse(home), "notes")
    before = log.last()
    reply = client.delete(f"{path}/a%2Fb%3F")
    assert reply.status_code == 404
    assert log.last() == before  # nothing is said of what is not there
    assert reply.json() == {"error": "Pipeline 'notes' has no document 'a/b?'."}


def test_documents_are_not_cut_for_who_is_refused(
    client: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, cuts = list[int](), list[object]()

    def admit(_: ServedModel, lane: str | None, seconds_left: float, characters: int) -> None:
        sizes.append(characters)
        raise TooManyRequests("later", retry_after_seconds=12.0)

    monkeypatch.setattr(ServedModel, "admit", admit)
    monkeypatch.setattr(Pusher, "cut", lambda *given: cuts.append(given))
    body = {"documents": [{"id": 2, "text": "one"}, {"id": "3", "text": "four"}]}
    reply = client.post("/api/embedding-pipelines/notes/documents", json=body)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "12")
    assert (sizes, cuts) == ([8], [])
    assert pushed_log(Warehouse(home), "notes").last() == 0


def test_documents_of_files_are_replaced_deleted_and_withdrawn(
    client: TestClient, home: Path
) -> None:
    path = f"/api/embedding-pipelines/{pipeline_ids(home)['things']}/documents"
    reply = client.post(path, json={"documents": [{"id": "1", "title": "green snake"}]})
    assert reply.json()["pipeline"] == "things", reply.text
    assert found(home, "things", "green snake")[0] == "1"
    reply = client.post(f"{path}/delete", json={"ids": ["1", "2", "nope"]})
    assert reply.json()["unknown"] == ["nope"]
    assert found(home, "things", "green snake") == []
    assert client.post(f"{path}/withdraw", json={"ids": ["1"]}).json()["documents"] == 1


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
@pytest.mark.parametrize(("name", "field"), [("things", "title"), ("notes", "text")])
def test_the_same_server_finds_them(client: TestClient, name: str, field: str, mode: str) -> None:
    path, search = f"/api/embedding-pipelines/{name}/documents", {"pipeline": name, "mode": mode}
    for text in ("a green snake", "a yellow snake"):
        reply = client.post(path, json={"documents": [{"id": "new", field: text}]})
        assert reply.status_code == 200, reply.text
        answer = client.post("/search", json={**search, "query": text}).json()
        assert (answer["hits"][0]["document_id"], answer["hits"][0]["text"]) == ("new", text)
        assert answer["release"] == (1 if name == "things" else 0)
    client.delete(f"{path}/new")
    answer = client.post("/search", json={**search, "query": "yellow snake"}).json()
    assert "new" not in [hit["document_id"] for hit in answer["hits"]]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        (
            "notes/documents",
            {"documents": [{"id": "a"}]},
            400,
            "documents[0] (id 'a'): its text is empty",
        ),
        ("notes/documents", {"documents": [{"text": "x"}]}, 400, "the id column 'id' is empty"),
        ("notes/documents", {"documents": []}, 400, "documents"),
        ("notes/documents", {"documents": [3]}, 400, "documents[0]"),
        ("notes/documents", {"document": [{}]}, 400, "document: is no option here"),
        ("notes/documents/delete", {"ids": [""]}, 400, "ids[0]"),
        ("nots/documents", {"documents": [{"id": "a", "text": "x"}]}, 404, "no pipeline 'nots'"),
        ("..%2Fnotes/documents", {"documents": [{"id": "a", "text": "x"}]}, 404, ""),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    client: TestClient, home: Path, path: str, body: object, status: int, words: str
) -> None:
    reply = client.post(f"/api/embedding-pipelines/{path}", json=body)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]
    assert not Warehouse(home).pushed.exists()


def test_a_slow_store_holds_no_request_beyond_its_deadline(
    client: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_quick, put = threading.Event(), EmbeddingCache.put_many

    def put_slowly(*given: Any) -> None:
        is_quick.wait(5)
        put(*given)

    monkeypatch.setattr(EmbeddingCache, "put_many", put_slowly)
    headers, path = {TIMEOUT_HEADER: "0.5"}, "/api/embedding-pipelines/notes/documents"
    for text in ("one", "two"):
        body = {"documents": [{"id": "a", "text": text}]}
        reply = client.post(path, json=body, headers=headers)
        assert reply.status_code == 504
        assert pushed_log(Warehouse(home), "notes").last() == 0  # nothing was written
    body = {"model": "notes", "input": "three", "dimensions": 8}  # cut beside the store
    assert client.post("/v1/embeddings", json=body, headers=headers).status_code == 504
    is_quick.set()
    body = {"documents": [{"id": "a", "text": "one"}]}
    assert client.post(path, json=body).json()["number"] == 1


def test_a_pipeline_whose_file_is_broken_takes_no_documents(client: TestClient, home: Path) -> None:
    write_pipeline(home, "notes", "model: {provider: nope}\n")
    body = {"documents": [{"id": "a", "text": "x"}]}
    reply = client.post("/api/embedding-pipelines/notes/documents", json=body)
    assert reply.status_code == 503
    assert "its file is broken: notes.yaml:1: " in reply.json()["error"]
    reply = client.post("/api/embedding-pipelines/nots/documents", json=body)
    assert str(home) not in reply.json()["error"]


def test_nobody_writes_without_a_key(home: Path) -> None:
    with client_of(home, KEY) as client:
        reply = client.post(
            "/api/embedding-pipelines/notes/documents",
            json={"documents": [{"id": "a", "text": "x"}]},
            headers={"Authorization": "Bearer wrong"},
        )
    assert reply.status_code == 401
    assert not Warehouse(home).pushed.exists()
