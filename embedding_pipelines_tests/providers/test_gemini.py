"""`gemini`: the contract, its wire format, normalization, and what Google means by 400 and 429."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import Busy, ProviderError, Unreachable
from embedding_pipelines.providers.gemini import Gemini, GeminiModel
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.providers.contract import check_provider
from embedding_pipelines_tests.providers.service import (
    KEY,
    TEXTS,
    check_secrecy,
    check_service,
    fault_of,
)
from embedding_pipelines_tests.providers.wire import Body, Dialect, Fault, WireServer, serve

WIDTH = 128
OLD, NEW = "gemini-embedding-001", "gemini-embedding-2"
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
}


def error(status: int, message: str) -> Any:
    """Google's error; a message that is JSON itself replaces fields of it, e.g. its details."""
    more = json.loads(message) if message.startswith("{") else {"message": message}
    return {"error": {"code": status, "status": STATUSES.get(status, "INTERNAL"), **more}}


def answer(body: Body, vectors: Vectors, order: list[int]) -> Any:
    scale = (
        0.7 if "outputDimensionality" in body["requests"][0] else 1.0
    )  # a cut vector is shorter than 1
    return {"embeddings": [{"values": row} for row in (vectors * scale).tolist()]}


def dialect(model: str) -> Dialect:
    return Dialect(
        path=f"/v1beta/models/{model}:batchEmbedContents",
        texts=lambda body: [each["content"]["parts"][0]["text"] for each in body["requests"]],
        answer=answer,
        error=error,
        key_header="x-goog-api-key",
        key=KEY,
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WireServer]:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with serve(dialect(OLD), WIDTH) as running:
        yield running


def gemini(server: WireServer, **options: Any) -> GeminiModel:
    base = {"model": OLD, "dimensions": WIDTH, "base_url": f"{server.url}/v1beta"}
    model: GeminiModel = server.open(Gemini.model_validate({**base, **options}))
    return model


@pytest.mark.parametrize("model", [OLD, NEW])
def test_gemini_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with serve(dialect(model), WIDTH) as server:
        check_provider(gemini(server, model=model))


def test_faults_mean_what_they_say(server: WireServer) -> None:
    model = gemini(server)
    check_service(model, server)
    fewer = fault_of(model, server, Fault("fewer"))
    assert isinstance(fewer, Unreachable)
    assert "3 vectors for 4 texts" in str(fewer)


def test_the_key_stays_in_the_environment(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_secrecy(gemini(server), monkeypatch)


def test_the_old_model_reads_the_task_type(server: WireServer) -> None:
    model = gemini(server)
    for input_type, task_type in (("document", "RETRIEVAL_DOCUMENT"), ("query", "RETRIEVAL_QUERY")):
        model.embed(TEXTS[:2], input_type)  # type: ignore[arg-type]
        assert server.requests[-1] == {
            "requests": [
                {
                    "model": f"models/{OLD}",
                    "content": {"parts": [{"text": text}]},
                    "taskType": task_type,
                    "outputDimensionality": WIDTH,
                }
                for text in TEXTS[:2]
            ]
        }
        assert model.space.prompts[input_type] == task_type
    assert server.headers[0]["x-goog-api-key"] == KEY
    assert "authorization" not in server.headers[0]


def test_the_new_model_reads_the_task_in_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with serve(dialect(NEW), 3072) as server:
        model = gemini(server, model=NEW, dimensions=None)
        model.embed(TEXTS[:1], "document")
        model.embed(TEXTS[:1], "query")
    asked = [body["requests"] for body in server.requests]
    assert [each[0]["content"]["parts"][0]["text"] for each in asked] == [
        "title: none | text: one cat",
        "task: search result | query: one cat",
    ]
    assert all(each[0].keys() == {"model", "content"} for each in asked)


def test_vectors_are_normalized_and_zero_stays_zero(server: WireServer) -> None:
    model = gemini(server)
    assert np.allclose(model.embed(TEXTS, "document").vectors, server.vectors(TEXTS), atol=1e-6)
    server.faults.extend([Fault("zero"), Fault("nan")])
    norms = np.linalg.norm(model.embed(TEXTS, "document").vectors, axis=1)
    assert np.allclose(norms, [1, 1, 0, 1])
    norms = np.linalg.norm(model.embed(TEXTS, "document").vectors, axis=1)
    assert np.allclose(norms, [1, 1, np.nan, 1], equal_nan=True)


def quota(names: list[str], delay: str | None) -> str:
    details: list[Any] = [
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": name} for name in names],
        },
        {"@type": "type.googleapis.com/google.rpc.Help", "links": []},
    ]
    if delay:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    message = "You exceeded your current quota, please check your plan and billing details."
    return json.dumps({"message": message, "details": details})


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("45.837906927s", 45.837906927), ("7s", 7.0), ("soon", 30.0), (None, 30.0)],
)
def test_a_minutes_quota_is_waited_for(
    server: WireServer, delay: str | None, seconds: float
) -> None:
    said = quota(["EmbedContentRequestsPerMinutePerProjectPerModel-FreeTier"], delay)
    error = fault_of(gemini(server), server, Fault("status", 429, said, {"retry-after": "30"}))
    assert isinstance(error, Busy)
    assert error.retry_after_seconds == seconds
    assert "answered 429: You exceeded your current quota" in str(error)


def test_a_days_quota_ends_the_run(server: WireServer) -> None:
    said = quota(
        ["EmbedContentRequestsPerMinute", "EmbedContentRequestsPerDayPerProjectPerModel-FreeTier"],
        "40s",
    )
    error = fault_of(gemini(server), server, Fault("status", 429, said))
    assert type(error) is ProviderError
    assert "run again tomorrow" in str(error)


@pytest.mark.parametrize("details", ["x", [5], [{"violations": 5}], [{"retryDelay": "s"}]])
def test_odd_details_are_passed_over(server: WireServer, details: Any) -> None:
    said = json.dumps({"message": "Slow down.", "details": details})
    assert type(fault_of(gemini(server), server, Fault("status", 429, said))) is Busy


def test_a_400_that_is_no_texts_fault_ends_the_run(server: WireServer) -> None:
    invalid = {
        "message": "API key not valid.",
        "details": [{"reason": "API_KEY_INVALID", "domain": "googleapis.com"}],
    }
    error = fault_of(gemini(server), server, Fault("status", 400, json.dumps(invalid)))
    assert type(error) is ProviderError
    assert "API key not valid. Check the key in GEMINI_API_KEY." in str(error)
    abroad = {
        "message": "User location is not supported for the API use.",
        "status": "FAILED_PRECONDITION",
    }
    error = fault_of(gemini(server), server, Fault("status", 400, json.dumps(abroad)))
    assert type(error) is ProviderError
    assert "User location is not supported" in str(error)


@pytest.mark.parametrize(
    "vectors",
    [
        None,
        {},
        [{}] * 4,
        [{"values": []}] * 4,
        [{"values": "x"}] * 4,
        [{"values": ["1"]}] * 4,
        [[1.0]] * 4,
    ],
)
def test_what_is_no_vector_is_a_failure(monkeypatch: pytest.MonkeyPatch, vectors: Any) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    usual = dialect(OLD)
    odd = Dialect(usual.path, usual.texts, lambda *_: {"embeddings": vectors}, error)
    with serve(odd, WIDTH) as server, pytest.raises(Unreachable, match=r"^gemini at http"):
        gemini(server).embed(TEXTS, "document")


def test_tokens_where_the_reply_has_them(
    monkeypatch: pytest.MonkeyPatch, server: WireServer
) -> None:
    assert gemini(server).embed(TEXTS, "document").tokens is None
    usual = dialect(OLD)
    reply = {"embeddings": [{"values": [1.0]}], "usageMetadata": {"promptTokenCount": 6}}
    telling = Dialect(usual.path, usual.texts, lambda *_: reply, error)
    with serve(telling, WIDTH) as other:
        assert gemini(other).embed(TEXTS[:1], "document").tokens == 6


def test_limits_space_and_price(tmp_path: Path) -> None:
    old, new = (Gemini(model=name).open(tmp_path) for name in (OLD, NEW))
    short = Gemini(model=OLD, dimensions=768).open(tmp_path)
    assert (old.limits.max_tokens, old.limits.request_texts, old.space.dimensions) == (
        2048,
        100,
        3072,
    )
    assert 8_000 < new.limits.max_tokens < new.space.max_tokens == 8192
    assert (
        old.options.price,
        new.options.price,
        Gemini(model=OLD, usd_per_million_tokens=0.01).price,
    ) == (
        0.15,
        0.20,
        0.01,
    )
    assert len({old.space.id, new.space.id, short.space.id}) == 3
    assert old.space.normalized


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": OLD, "dimensions": 4096}, "can give 128 to 3072"),
        ({"model": "gemini-embedding-9"}, "set `dimensions` to the length"),
        (
            {"model": OLD, "base_url": "generativelanguage.googleapis.com"},
            "not the address of a service",
        ),
    ],
)
def test_wrong_options_say_what_is_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Gemini.model_validate(options)
