"""Every error is one sentence in one form; the API describes itself."""

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.errors import BusyError, ConfigError, ProviderError, ReleaseError
from embedding_pipelines.serving.api import INTERNAL


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("Correct it."), 400),
        (BusyError("Wait."), 409),
        (ReleaseError("Run it."), 409),
        (ProviderError("It is away."), 503),
    ],
)
def test_errors_have_a_status(client: TestClient, error: Exception, status: int) -> None:
    @client.app.get("/fail")  # type: ignore[attr-defined]
    def fail() -> None:
        raise error

    reply = client.get("/fail")
    assert (reply.status_code, reply.json()) == (status, {"error": str(error)})


def test_a_fault_of_the_program_says_nothing_of_its_inside(client: TestClient) -> None:
    @client.app.get("/fail")  # type: ignore[attr-defined]
    def fail() -> None:
        raise RuntimeError("secret")

    with pytest.raises(RuntimeError):
        client.get("/fail")
    client._transport.raise_server_exceptions = False  # type: ignore[attr-defined]
    reply = client.get("/fail")
    assert (reply.status_code, reply.json()) == (500, {"error": INTERNAL})


def test_an_unknown_path_and_a_wrong_method_are_sentences(client: TestClient) -> None:
    assert "/docs" in client.get("/nothing").json()["error"]
    assert "does not take PUT" in client.put("/v1/embeddings").json()["error"]


@pytest.mark.parametrize(
    ("body", "type", "words"),
    [
        (b"no JSON", "application/json", "the body is no JSON at character 0: Expecting value."),
        (b'{"input": "x"}', "text/plain", "with the header `Content-Type: application/json`."),
        (b"[]", "application/json", "the body is not an object of JSON"),
        (b'{"input": "\xff"}', "application/json", "Send JSON in UTF-8"),
        (b"[" * 100_000, "application/json", "nested less deeply"),
        (b'{"input": ["a", 5]}', "application/json", "is wrong: input[1]: must be text."),
        (b'{"input": 5}', "application/json", "wrong: input: must be text or a list: [ … ]."),
        (b"{}", "application/json", "The request is wrong: input: is missing."),
    ],
)
def test_a_body_that_cannot_be_read_is_told_why(
    client: TestClient, body: bytes, type: str, words: str
) -> None:
    reply = client.post("/v1/embeddings", content=body, headers={"Content-Type": type})
    assert reply.status_code == 400
    assert words in reply.json()["error"]


def test_the_document_lists_every_path_and_no_422(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {"/v1/embeddings", "/health", "/ready"} <= document["paths"].keys()
    assert "422" not in str(document)
    assert client.get("/docs").status_code == 200
