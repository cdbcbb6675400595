"""`POST /rerank`: documents in the order of their relevance."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.inference.cross_encoder import CrossEncoder
from embedding_pipelines.serving.models import ServedReranker, Worker
from embedding_pipelines.serving.wire import TooManyRequests
from embedding_pipelines_tests.chain import copy_home, write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.cross_encoders import write_cross_encoder
from embedding_pipelines_tests.serving.homes import client_of

DOCUMENTS = ["blue whale", {"text": "a red fox"}, "red fox"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_in_the_order_of_their_relevance(client: TestClient, path: str) -> None:
    body = {"model": "things", "query": "red fox", "documents": DOCUMENTS}
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    results = reply.json()["results"]
    assert [each["index"] for each in results] == [2, 1, 0]
    assert results[0]["relevance_score"] == pytest.approx(1, abs=1e-6)
    assert results[0]["document"] is None
    assert reply.json()["meta"]["scored_by"].startswith("cosine of hashing:words")
    assert reply.json()["meta"]["tokens"] == {"input_tokens": 9}


def test_the_first_are_returned_with_their_texts(client: TestClient) -> None:
    body = {"query": "red fox", "documents": DOCUMENTS, "top_n": 1, "return_documents": True}
    (first,) = client.post("/rerank", json=body).json()["results"]
    assert first["document"] == {"text": "red fox"}


def test_a_document_that_is_too_long_is_named(client: TestClient) -> None:
    body = {"query": "red fox", "documents": ["a", "word " * 300]}
    reply = client.post("/rerank", json=body)
    assert reply.status_code == 400
    assert "documents[1]" in reply.json()["error"]
    assert client.post("/rerank", json={**body, "truncate": True}).status_code == 200


def test_a_cross_encoder_scores_where_the_server_has_one(built_home: Path, tmp_path: Path) -> None:
    write_cross_encoder(tmp_path / "tiny")
    name = str(tmp_path / "tiny")
    body = {"query": "red fox", "documents": DOCUMENTS}
    with client_of(built_home, reranker=name) as client:
        reply = client.post("/rerank", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["meta"]["scored_by"] == f"cross-encoder hf:{name}"
        scores = {each["index"]: each["relevance_score"] for each in reply.json()["results"]}
        by_cosine = client.post("/rerank", json={**body, "model": "things"})
        assert by_cosine.json()["meta"]["scored_by"].startswith("cosine")
        long = {**body, "documents": ["fox", "word " * 300]}
        reply = client.post("/rerank", json=long)
        assert reply.status_code == 400
        assert "documents[1] has 305 tokens beside the query" in reply.json()["error"]
        assert client.post("/rerank", json={**long, "truncate": True}).status_code == 200
    model = CrossEncoder(name, tmp_path)
    expected = model.scores([("red fox", text) for text in ("blue whale", "a red fox", "red fox")])
    assert np.allclose([scores[0], scores[1], scores[2]], expected, atol=1e-5)
    model.close()


@pytest.fixture
def two(built_home: Path, tmp_path: Path, scored: None) -> Iterator[TestClient]:
    """A server without a cross-encoder of its own; that of a pipeline is `tiny`."""
    copy_home(built_home, tmp_path)
    write_pipeline(tmp_path, "elsewhere", f"{HASHING}search: {{rerank: tiny}}\n")
    with client_of(tmp_path) as client:
        yield client


def test_the_cross_encoder_of_a_pipeline_scores_by_its_name(two: TestClient) -> None:
    body = {"query": "red fox", "documents": DOCUMENTS}
    for model in ("tiny", "hf:tiny"):
        reply = two.post("/rerank", json={**body, "model": model})
        assert reply.status_code == 200, reply.text
        assert reply.json()["meta"]["scored_by"] == "cross-encoder hf:tiny"
        assert [each["index"] for each in reply.json()["results"]] == [0, 1, 2]
    for other in ({}, {"model": "things"}, {"model": "elsewhere"}):
        reply = two.post("/rerank", json={**body, **other})
        assert reply.json()["meta"]["scored_by"].startswith("cosine")
    reply = two.post("/rerank", json={**body, "model": "tinny"})
    assert reply.status_code == 404
    assert "Did you mean 'tiny'?" in reply.json()["error"]


@pytest.mark.parametrize("model", ["tiny", "things"])
def test_who_is_refused_has_cost_nothing(
    two: TestClient, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    counts = list[object]()

    def admit(worker: Worker, lane: str | None, *given: object) -> None:
        if isinstance(worker, ServedReranker) or lane is None:  # a query alone goes another way
            raise TooManyRequests("later", retry_after_seconds=12.0)

    monkeypatch.setattr(ServedReranker, "_count", lambda *given: counts.append(given))
    monkeypatch.setattr(Worker, "admit", admit)
    body = {"query": "red fox", "documents": DOCUMENTS, "model": model}
    reply = two.post("/rerank", json=body)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "12")
    assert not counts
