"""`cohere`: the contract, its wire format, and other embedding types at the price of one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import Busy, ProviderError, Unreachable
from embedding_pipelines.providers.cohere import Cohere, CohereModel
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

ALL_TYPES = ("float", "int8", "uint8", "ubinary")
WIDTH = 256


def written(vectors: Vectors, name: str) -> list[Any]:
    """float32[n, d] as Cohere's type `name`."""
    small = np.clip(np.rint(np.nan_to_num(vectors) * 400), -128, 127)
    forms = {
        "float": vectors,
        "int8": small.astype(int),
        "uint8": (small + 128).astype(int),
        "ubinary": np.packbits(vectors > 0, axis=1),
    }
    found: list[Any] = forms[name].tolist()
    return found


def answer(body: Body, vectors: Vectors, order: list[int]) -> Any:
    return {
        "id": "54910170-852f-4322-9767-63d36e55c3bf",
        "embeddings": {name: written(vectors, name) for name in body["embedding_types"]},
        "texts": body["texts"],
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": 3 * len(body["texts"])},
        },
        "response_type": "embeddings_by_type",
    }


DIALECT = Dialect(
    path="/v2/embed",
    texts=lambda body: list(body["texts"]),
    answer=answer,
    error=lambda status, message: {
        "id": "54910170-852f-4322-9767-63d36e55c3bf",
        "message": message,
    },
    key=f"Bearer {KEY}",
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WireServer]:
    monkeypatch.setenv("COHERE_API_KEY", KEY)
    with serve(DIALECT, WIDTH) as running:
        yield running


def cohere(server: WireServer, **options: Any) -> CohereModel:
    base = {"model": "embed-v4.0", "dimensions": WIDTH, "base_url": server.url}
    model: CohereModel = server.open(Cohere.model_validate({**base, **options}))
    return model


@pytest.mark.parametrize("name", [*ALL_TYPES, "binary"])
def test_cohere_keeps_the_contract(server: WireServer, name: str) -> None:
    check_provider(cohere(server, embedding_types=[name]))


def test_faults_mean_what_they_say(server: WireServer) -> None:
    model = cohere(server)
    check_service(model, server)
    fewer = fault_of(model, server, Fault("fewer"))
    assert isinstance(fewer, Unreachable)
    assert "3 vectors for 4 texts" in str(fewer)


def test_the_key_stays_in_the_environment(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_secrecy(cohere(server), monkeypatch)


def test_a_wrong_key_ends_the_run(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHERE_API_KEY", "another")
    with pytest.raises(ProviderError, match=r"answered 401: .* Check the key in COHERE_API_KEY"):
        cohere(server).embed(TEXTS, "query")


def test_a_trial_key_waits_a_minute_but_not_a_month(server: WireServer) -> None:
    said = "You are using a Trial key, which is limited to {} API calls / {}."
    assert (
        type(fault_of(cohere(server), server, Fault("status", 429, said.format(100, "minute"))))
        is Busy
    )
    spent = fault_of(cohere(server), server, Fault("status", 429, said.format(1000, "month")))
    assert type(spent) is ProviderError
    assert (
        type(fault_of(cohere(server), server, Fault("status", 498, "invalid token")))
        is ProviderError
    )


@pytest.mark.parametrize(
    ("task", "document", "query"),
    [
        (None, "search_document", "search_query"),
        ("classification", "classification", "classification"),
        ("clustering", "clustering", "clustering"),
    ],
)
def test_what_is_asked(server: WireServer, task: str | None, document: str, query: str) -> None:
    model = cohere(server, task=task)
    assert model.embed(TEXTS, "document").tokens == 12
    model.embed(TEXTS[:1], "query")
    expected = {
        "model": "embed-v4.0",
        "texts": TEXTS,
        "input_type": document,
        "embedding_types": ["float"],
        "truncate": "NONE",
        "output_dimension": WIDTH,
    }
    assert server.requests == [expected, {**expected, "texts": TEXTS[:1], "input_type": query}]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert model.space.prompts == {"document": document, "query": query}


def test_other_types_cost_nothing_and_are_what_another_pipeline_would_get(
    server: WireServer,
) -> None:
    model = cohere(server, embedding_types=ALL_TYPES)
    reply = model.embed(TEXTS, "document")
    assert len(server.requests) == 1
    assert reply.copies.keys() == {
        cohere(server, embedding_types=[name]).space for name in ALL_TYPES[1:]
    }
    for name in ALL_TYPES[1:]:
        other = cohere(server, embedding_types=[name])
        assert np.array_equal(reply.copies[other.space], other.embed(TEXTS, "document").vectors)
        assert other.space.id != model.space.id
        assert not other.space.normalized
    assert model.space == cohere(server).space


def test_each_type_as_float32(server: WireServer) -> None:
    exact = server.vectors(TEXTS)
    found = {
        name: cohere(server, embedding_types=[name]).embed(TEXTS, "document").vectors
        for name in ALL_TYPES
    }
    assert np.allclose(found["float"], exact)
    assert np.array_equal(found["int8"], np.clip(np.rint(exact * 400), -128, 127))
    assert np.array_equal(found["uint8"], found["int8"])
    assert np.array_equal(found["ubinary"], np.where(exact > 0, 1, -1))
    assert {vectors.dtype for vectors in found.values()} == {np.dtype(np.float32)}


def test_bits_have_one_space_whatever_they_are_called(server: WireServer) -> None:
    signed, unsigned = (cohere(server, embedding_types=[name]) for name in ("binary", "ubinary"))
    assert signed.space == unsigned.space
    signed.embed(TEXTS, "document")
    assert server.requests[0]["embedding_types"] == ["ubinary"]


@pytest.mark.parametrize(
    "vectors",
    [
        None,
        {},
        "x",
        [[1.0, 2.0], [1.0]] * 2,
        [[]] * 4,
        [["a"]] * 4,
        [5] * 4,
        [[True]] * 4,
        [[[1.0]]] * 4,
        [None] * 4,
    ],
)
def test_what_is_no_vector_is_a_failure(monkeypatch: pytest.MonkeyPatch, vectors: Any) -> None:
    monkeypatch.setenv("COHERE_API_KEY", KEY)
    odd = Dialect(
        DIALECT.path, DIALECT.texts, lambda *_: {"embeddings": {"float": vectors}}, DIALECT.error
    )
    with serve(odd, WIDTH) as server, pytest.raises(Unreachable, match=r"^cohere at http"):
        cohere(server).embed(TEXTS, "document")


@pytest.mark.parametrize(
    ("name", "number"), [("int8", 128), ("int8", 0.5), ("uint8", -1), ("ubinary", 256)]
)
def test_numbers_that_are_not_of_the_type_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, name: str, number: float
) -> None:
    monkeypatch.setenv("COHERE_API_KEY", KEY)
    odd = Dialect(
        DIALECT.path,
        DIALECT.texts,
        lambda *_: {"embeddings": {name: [[number] * 32] * 4}},
        DIALECT.error,
    )
    with serve(odd, WIDTH) as server, pytest.raises(Unreachable, match=f"not {name}"):
        cohere(server, embedding_types=[name]).embed(TEXTS, "document")


def test_a_vector_left_out_is_a_row_of_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COHERE_API_KEY", KEY)
    holes = Dialect(
        DIALECT.path,
        DIALECT.texts,
        lambda *_: {"embeddings": {"ubinary": [[255], None]}},
        DIALECT.error,
    )
    with serve(holes, WIDTH) as server:
        reply = cohere(server, embedding_types=["ubinary"]).embed(TEXTS[:2], "document")
    assert np.array_equal(reply.vectors, [[1.0] * 8, [np.nan] * 8], equal_nan=True)
    assert reply.tokens is None


def test_limits_space_and_price(tmp_path: Path) -> None:
    third = Cohere(model="embed-english-v3.0").open(tmp_path)
    fourth = Cohere(model="embed-v4.0").open(tmp_path)
    assert (third.space.max_tokens, third.limits.request_texts, third.space.dimensions) == (
        512,
        96,
        1024,
    )
    assert 500 < third.limits.max_tokens < 512
    assert fourth.space.max_tokens == fourth.limits.request_tokens == 128_000
    assert (third.options.price, Cohere(model="embed-v4.0", usd_per_million_tokens=0).price) == (
        0.10,
        0,
    )
    assert Cohere(model="embed-v6.0", dimensions=100).price is None


def test_version_3_is_not_asked_for_its_own_dimensions(server: WireServer) -> None:
    cohere(server, model="embed-english-v3.0", dimensions=1024).embed(TEXTS, "document")
    assert "output_dimension" not in server.requests[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "embed-english-v3.0", "dimensions": 512}, "can give 1024"),
        ({"model": "embed-v6.0"}, "set `dimensions` to the length"),
        ({"model": "embed-v4.0", "embedding_types": []}, "at least 1 item"),
        (
            {"model": "embed-v4.0", "embedding_types": ["base64"]},
            "'float', 'int8', 'uint8', 'binary' or 'ubinary'",
        ),
        ({"model": "embed-v4.0", "embedding_types": ["binary", "ubinary"]}, "the same bits"),
        (
            {"model": "embed-v6.0", "dimensions": 100, "embedding_types": ["binary"]},
            "multiple of 8",
        ),
        ({"model": "embed-v4.0", "task": "image"}, "'classification' or 'clustering'"),
    ],
)
def test_wrong_options_say_what_is_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Cohere.model_validate(options)
