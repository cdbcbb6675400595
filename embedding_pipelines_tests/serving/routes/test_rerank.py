"""`POST /rerank`: documents in the order of their relevance."""

import pytest
from fastapi.testclient import TestClient

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
