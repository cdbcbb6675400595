"""`POST /v1/embeddings`: OpenAI's form, honest about what it does."""

import base64

import numpy as np
from fastapi.testclient import TestClient

from embedding_pipelines.serving.wire import SPACE_HEADER


def test_vectors_come_in_the_order_of_the_texts(client: TestClient) -> None:
    body = {"model": "things", "input": ["red fox", "blue whale"]}
    reply = client.post("/v1/embeddings", json=body)
    assert reply.status_code == 200, reply.text
    first, second = (item["embedding"] for item in reply.json()["data"])
    assert len(first) == 64
    alone = client.post("/v1/embeddings", json={"model": "hashing", "input": "blue whale"})
    assert np.allclose(alone.json()["data"][0]["embedding"], second)
    assert reply.json()["usage"]["prompt_tokens"] == 4
    assert len(reply.headers[SPACE_HEADER]) == 32


def test_base64_comes_exactly_when_it_is_asked_for(client: TestClient) -> None:
    body = {"model": "things", "input": "red fox"}
    plain = client.post("/v1/embeddings", json={**body, "encoding_format": None})
    coded = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
    numbers = np.frombuffer(base64.b64decode(coded.json()["data"][0]["embedding"]), "<f4")
    assert np.array_equal(numbers, np.float32(plain.json()["data"][0]["embedding"]))


def test_a_wrong_model_is_404_with_what_is_served(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", json={"model": "thinks", "input": "x"})
    assert reply.status_code == 404
    assert reply.json() == {
        "error": "There is no model 'thinks' here. Did you mean 'things'? Served: 'things', 'hashing'."
    }


def test_a_wrong_body_is_400_with_the_place(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", json={"input": ["a", ""], "colour": 1})
    assert reply.status_code == 400
    assert "input" in reply.json()["error"]
    assert "colour: Extra inputs" in reply.json()["error"]


def test_models_are_listed(client: TestClient) -> None:
    assert [item["id"] for item in client.get("/v1/models").json()["data"]] == ["things", "hashing"]
