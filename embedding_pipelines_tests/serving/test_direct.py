"""The short way is the same way: what is refused, and what is said of it."""

from pathlib import Path

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient

from embedding_pipelines.serving.api import create_app
from embedding_pipelines.serving.auth import Keys, add_key
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import TIMEOUT_HEADER

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "body", "sentence"),
    [
        (JSON, b"[no JSON", "the body is no JSON at character 1"),
        (JSON, b'{"input": ["a", ""]}', "input[1]"),
        ({"Content-Type": "text/plain"}, b'{"input": "a"}', "Content-Type: application/json"),
        ({**JSON, TIMEOUT_HEADER: "soon"}, b'{"input": "a"}', TIMEOUT_HEADER),
        ({**JSON, TIMEOUT_HEADER: "inf"}, b'{"input": "a"}', TIMEOUT_HEADER),
        ({**JSON, TIMEOUT_HEADER: "nan"}, b'{"input": "a"}', TIMEOUT_HEADER),
    ],
)
def test_what_is_wrong_is_said_as_everywhere(
    client: TestClient, headers: dict[str, str], body: bytes, sentence: str
) -> None:
    reply = client.post("/v1/embeddings", content=body, headers=headers)
    assert reply.status_code == 400
    assert sentence in reply.json()["error"]


def test_a_body_that_comes_in_parts_is_read_whole_and_told_as_everywhere(
    client: TestClient,
) -> None:
    parts = [b'{"input": ', b'"a fox"', b', "inptu": 1}']
    wrong = client.post("/v1/embeddings", content=iter(parts), headers=JSON)
    assert (wrong.status_code, "inptu" in wrong.json()["error"]) == (400, True)
    right = client.post("/v1/embeddings", content=iter([*parts[:2], b"}"]), headers=JSON)
    assert right.status_code == 200


def test_the_short_way_passes_no_route_and_answers_the_same(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parameter of its content type sends a request the short way, too; another type does not."""
    body = {"input": "a fox", "input_type": "query"}
    kinds = ["application/json", "application/json; charset=utf-8", "application/x+json"]
    replies = [
        client.post("/v1/embeddings", json=body, headers={"Content-Type": kind}) for kind in kinds
    ]
    assert [reply.json() for reply in replies] == [replies[0].json()] * 3
    assert replies[0].headers["X-Embedding-Space"] == replies[2].headers["X-Embedding-Space"]

    async def refuse(*_: object) -> None:
        raise AssertionError("a route was looked for")

    monkeypatch.setattr(APIRouter, "app", refuse)
    assert client.post("/v1/embeddings", json=body).json() == replies[0].json()
    assert client.post("/search", json={"query": ["fox"], "image": "x"}).status_code == 400


def test_a_wrong_request_counts_once_against_the_rate(tmp_path: Path) -> None:
    headers = {**JSON, "Authorization": f"Bearer {add_key(tmp_path, 'program', 'read', 2)}"}
    with TestClient(create_app(Server(tmp_path, Keys(None, tmp_path)))) as client:
        statuses = [
            client.post("/v1/embeddings", content=b"{}", headers=headers).status_code
            for _ in range(3)
        ]
    assert statuses == [400, 400, 429]
