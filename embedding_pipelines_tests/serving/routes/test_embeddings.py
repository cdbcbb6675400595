"""`POST /v1/embeddings`: OpenAI's form, honest about what it does."""

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.serving.dimensions import cut
from embedding_pipelines.serving.wire import (
    RELEASE_HEADER,
    SPACE_HEADER,
    TIMEOUT_HEADER,
    BadRequest,
)
from embedding_pipelines.space import Space
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.homes import build, client_of, finish_writing


def replace_space(**changes: Any) -> Space:
    space = Hashing().open(Path()).space
    return Space(**{**space.model_dump(), "provider": "hf", **changes})


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
    assert "colour: is no option here" in reply.json()["error"]


def test_models_are_listed(client: TestClient) -> None:
    assert [item["id"] for item in client.get("/v1/models").json()["data"]] == ["things", "hashing"]


def test_native_dimensions_are_accepted_and_others_are_400_with_the_list(
    client: TestClient,
) -> None:
    body = {"model": "things", "input": "red fox"}
    assert client.post("/v1/embeddings", json={**body, "dimensions": 64}).status_code == 200
    reply = client.post("/v1/embeddings", json={**body, "dimensions": 32})
    assert reply.status_code == 400
    assert reply.json()["error"] == "dimensions: 'things' gives 64, not 32."


def test_the_pca_of_a_release_is_cut_to_and_is_another_space(tmp_path: Path) -> None:
    rows = [(number, f"word{number} and word{number % 7}", "c") for number in range(40)]
    home = build(tmp_path, f"{HASHING}compression: [{{kind: pca, dimensions: 8}}, int8]\n", rows)
    with client_of(home) as client:
        body = {"model": "things", "input": ["word1 and word2", "word3 and word3"]}
        whole = client.post("/v1/embeddings", json=body)
        short = client.post("/v1/embeddings", json={**body, "dimensions": 8})
        wrong = client.post("/v1/embeddings", json={**body, "dimensions": 9})
    vectors = np.array([item["embedding"] for item in short.json()["data"]])
    assert vectors.shape == (2, 8)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert whole.headers[SPACE_HEADER] != short.headers[SPACE_HEADER]
    assert whole.headers[RELEASE_HEADER] == "1"
    assert wrong.json()["error"] == (
        "dimensions: 'things' gives 64 or 8 (pca of release 1), not 9."
    )


def test_a_prefix_is_cut_to_where_the_model_was_trained_for_it() -> None:
    vectors = np.float32([[3, 4, 12, 0]]) / 13
    space = replace_space(model="nomic-ai/nomic-embed-text-v1.5", dimensions=4)
    served = SimpleNamespace(name="p", release=None)
    short, other = cut(vectors, space, 2, served, None)  # type: ignore[arg-type]
    assert np.allclose(short, [[0.6, 0.8]])
    assert other.id != space.id
    with pytest.raises(BadRequest, match=r"gives 4 or 1 to 3, not 5"):
        cut(vectors, space, 5, served, None)  # type: ignore[arg-type]


def test_a_text_that_is_too_long_is_400_with_its_tokens_and_truncate_opts_in(
    client: TestClient,
) -> None:
    body = {"model": "things", "input": ["red fox", "word " * 300]}
    reply = client.post("/v1/embeddings", json=body)
    assert reply.status_code == 400
    assert "input[1]" in reply.json()["error"]
    assert "has 300 tokens" in reply.json()["error"]
    assert "truncate: true" in reply.json()["error"]
    reply = client.post("/v1/embeddings", json={**body, "truncate": True})
    usage = reply.json()["usage"]
    assert (usage["prompt_tokens"], usage["truncated_tokens"]) == (258, 44)


def test_an_empty_text_is_400(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", json={"model": "things", "input": ["a", "  "]})
    assert reply.status_code == 400
    assert "input[1] is empty" in reply.json()["error"]


def test_texts_are_cleaned_as_documents_are(client: TestClient) -> None:
    dirty = "<html><body><p>red</p> <p>fox\u200b</p></body></html>"
    both = {"model": "things", "input": ["red fox", dirty]}
    first, second = client.post("/v1/embeddings", json=both).json()["data"]
    assert np.allclose(first["embedding"], second["embedding"])


def test_a_request_whose_time_is_over_is_504(client: TestClient) -> None:
    body = {"model": "things", "input": [f"text {number}" for number in range(2_000)]}
    headers = {TIMEOUT_HEADER: "0.0001"}
    reply = client.post("/v1/embeddings", json=body, headers=headers)
    assert reply.status_code == 504
    assert "0.0001 seconds are over" in reply.json()["error"]
    for wrong in ("0", "-1", "nan", "soon"):
        reply = client.post("/v1/embeddings", json=body, headers={TIMEOUT_HEADER: wrong})
        assert reply.status_code == 400
        assert "X-Request-Timeout" in reply.json()["error"]


def test_a_text_is_computed_once(client: TestClient) -> None:
    body = {"model": "things", "input": ["one of a kind", "one of a kind"]}
    for _ in range(2):
        assert client.post("/v1/embeddings", json=body).status_code == 200
        finish_writing(client)
    text = client.get("/metrics").text
    labels = '{model="hashing",lane="bulk"}'
    assert f"embedding_pipelines_serving_tokens_total{labels} 4.0" in text
    assert f"embedding_pipelines_serving_cache_hits_total{labels} 1.0" in text


def test_cohere_s_form_has_roles_and_several_types(client: TestClient) -> None:
    body = {
        "model": "things",
        "input_type": "search_query",
        "texts": ["red fox", "blue whale"],
        "embedding_types": ["float", "base64", "binary", "ubinary"],
    }
    reply = client.post("/v2/embed", json=body)
    assert reply.status_code == 200, reply.text
    forms = reply.json()["embeddings"]
    numbers = np.float32(forms["float"])
    assert np.array_equal(np.frombuffer(base64.b64decode(forms["base64"][1]), "<f4"), numbers[1])
    assert np.array_equal(np.packbits(numbers > 0, axis=1), forms["ubinary"])
    assert np.array_equal(np.array(forms["ubinary"]) - 128, forms["binary"])
    assert reply.json()["texts"] == body["texts"]
    assert reply.json()["meta"]["billed_units"] == {"input_tokens": 4}
    alone = client.post(
        "/v2/embed", json={"inputs": [{"content": [{"type": "text", "text": "red fox"}]}]}
    )
    assert np.allclose(alone.json()["embeddings"]["float"][0], numbers[0])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"images": ["data:image/png;base64,AA"]}, "takes texts alone"),
        (
            {"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "takes texts alone",
        ),
        ({}, "either texts, or images, or inputs"),
        ({"texts": ["a"], "embedding_types": ["int8"]}, "need a scale"),
        ({"texts": ["a"], "truncate": "START"}, "Use END, or NONE"),
        ({"texts": ["word " * 300]}, "texts[0]"),
        ({"inputs": [{"content": [{"type": "text"}]}]}, "texts[0] is empty"),
    ],
)
def test_what_cohere_s_form_does_not_serve_is_said(
    client: TestClient, body: dict[str, Any], words: str
) -> None:
    reply = client.post("/v2/embed", json=body)
    assert reply.status_code == 400
    assert words in reply.json()["error"]
