"""Receipts of searches, and what people say of their results."""

import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.serving.wire import TIMEOUT_HEADER
from embedding_pipelines.storage.receipts import Receipts
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.homes import build, client_of


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("receipts"))


def ask(client: TestClient, query: Any = "red fox") -> Any:
    return client.post("/search", json={"pipeline": "things", "query": query, "k": 2}).json()


def kept(home: Path) -> Receipts:
    return Receipts(Warehouse(home).pipeline("things").folder)


def test_nothing_is_kept_unless_the_file_says_so_and_no_release_has_to_wait(home: Path) -> None:
    write_pipeline(home, "things", HASHING)
    with client_of(home) as client:
        assert ask(client)["receipt_id"] is None
        assert not kept(home).folder.exists()
    write_pipeline(home, "things", HASHING + "receipts: {share: 100%}\n")
    with client_of(home) as client:
        answer = ask(client)
        (receipt,) = kept(home).read()[0]
        assert answer["receipt_id"] == receipt.id
        assert (receipt.query, receipt.documents, receipt.release) == ("red fox", ["1", "2"], 1)
        both = ask(client, ["blue whale", "red fox"])["results"]
        assert len({answer["receipt_id"] for answer in both}) == 2


def test_no_answer_comes_late_for_its_receipt(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(home, "things", HASHING + "receipts: {share: 1}\n")
    body, headers = {"pipeline": "things", "query": "red fox"}, {TIMEOUT_HEADER: "0.5"}
    is_quick, ids = threading.Event(), list[str]()

    def add(*_: Any, **__: Any) -> str:
        is_quick.wait(5)
        ids.append("id")
        return "id"

    with client_of(home) as client:
        ask(client)
        monkeypatch.setattr(Receipts, "add", add)
        answer = client.post("/search", json=body, headers=headers).json()
        assert (len(answer["hits"]), answer["receipt_id"], ids) == (2, None, [])
        is_quick.set()


def test_feedback_is_kept_with_its_receipt(home: Path) -> None:
    write_pipeline(home, "things", HASHING + "receipts: {share: 1}\n")
    with client_of(home) as client:
        name = ask(client)["receipt_id"]
        path = "/api/embedding-pipelines/1/feedback"
        for body in ({"document_id": "1", "rating": 3}, {"document_id": "2"}):
            assert client.post(path, json={"receipt_id": name, **body}).status_code == 200
        ratings = [each for each in kept(home).read()[1] if each.receipt == name]
        assert [(each.document_id, each.rating) for each in ratings] == [("1", 3), ("2", 1)]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("things", {"receipt_id": "x", "document_id": "1"}, 404, "no receipt 'x'"),
        ("nobody", {"receipt_id": "x", "document_id": "1"}, 404, "nobody"),
        ("..%2Fthings", {"receipt_id": "x", "document_id": "1"}, 404, ""),
        ("things", {"receipt_id": "x", "document_id": "1", "rating": 4}, 400, "rating"),
        ("things", {"receipt_id": "x" * 65, "document_id": "1"}, 400, "receipt_id"),
        ("things", {"document_id": "1"}, 400, "receipt_id"),
        ("things", {"receipt_id": "x", "document_id": "1", "stars": 3}, 400, "stars"),
    ],
)
def test_wrong_feedback_is_answered_in_a_sentence(
    home: Path, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    with client_of(home) as client:
        reply = client.post(f"/api/embedding-pipelines/{path}/feedback", json=body)
    assert reply.status_code == status
    assert words in reply.json()["error"]


def test_a_search_is_answered_where_no_receipt_can_be_written(home: Path) -> None:
    write_pipeline(home, "things", HASHING + "receipts: {share: 1, keep: hash}\n")
    folder = kept(home).folder
    away = folder.rename(folder.with_name("away")) if folder.exists() else None
    folder.touch()  # no folder can be made here
    try:
        with client_of(home) as client:
            answer = ask(client)
        assert len(answer["hits"]) == 2
        assert answer["receipt_id"] is None
    finally:
        folder.unlink()
        if away is not None:
            away.rename(folder)
