"""`voyage`: the contract, its wire format in base64, and a model of version 4 that embeds queries
for another."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import BadInput, ProviderError, TooLarge, Unreachable
from embedding_pipelines.providers.base import faulty_rows
from embedding_pipelines.providers.voyage import Voyage, VoyageModel
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

WIDTH = 256


def written(vectors: Vectors, dtype: str) -> list[str]:
    """float32[n, d] as base64 of Voyage's type `dtype`."""
    small = np.clip(np.rint(np.nan_to_num(vectors) * 400), -128, 127)
    forms = {
        "float": vectors.astype("<f4"),
        "int8": small.astype(np.int8),
        "uint8": (small + 128).astype(np.uint8),
        "ubinary": np.packbits(vectors > 0, axis=1),
    }
    return [base64.b64encode(row.tobytes()).decode() for row in forms[dtype]]


def answer(body: Body, vectors: Vectors, order: list[int]) -> Any:
    rows = zip(order, written(vectors, body["output_dtype"]), strict=True)
    return {
        "object": "list",
        "data": [{"object": "embedding", "embedding": row, "index": at} for at, row in rows],
        "model": body["model"],
        "usage": {"total_tokens": 5 * len(body["input"])},
    }


DIALECT = Dialect(
    path="/v1/embeddings",
    texts=lambda body: list(body["input"]),
    answer=answer,
    error=lambda status, message: {"detail": message},
    key=f"Bearer {KEY}",
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WireServer]:
    monkeypatch.setenv("VOYAGE_API_KEY", KEY)
    with serve(DIALECT, WIDTH) as running:
        yield running


def voyage(server: WireServer, **options: Any) -> VoyageModel:
    base = {"model": "voyage-4", "dimensions": WIDTH, "base_url": f"{server.url}/v1"}
    model: VoyageModel = server.open(Voyage.model_validate({**base, **options}))
    return model


def answering(reply: Any) -> Dialect:
    return Dialect(DIALECT.path, DIALECT.texts, lambda *_: reply, DIALECT.error)


@pytest.mark.parametrize("dtype", ["float", "int8", "uint8", "binary", "ubinary"])
def test_voyage_keeps_the_contract(server: WireServer, dtype: str) -> None:
    check_provider(voyage(server, output_dtype=dtype))


def test_faults_mean_what_they_say(server: WireServer) -> None:
    check_service(voyage(server), server)


def test_the_key_stays_in_the_environment(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_secrecy(voyage(server), monkeypatch)


def test_a_wrong_key_ends_the_run(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOYAGE_API_KEY", "another")
    with pytest.raises(ProviderError, match=r"answered 401: .* Check the key in VOYAGE_API_KEY"):
        voyage(server).embed(TEXTS, "query")


def test_too_many_tokens_in_a_batch_are_no_texts_fault(server: WireServer) -> None:
    batch = (
        "Request to model 'voyage-4' failed. The max allowed tokens per submitted batch is 320000."
    )
    text = "Request to model 'voyage-4' failed. The example at index 0 in your batch has too many tokens."
    large = fault_of(voyage(server), server, Fault("status", 400, batch))
    assert type(large) is TooLarge
    assert batch in str(large)
    assert type(fault_of(voyage(server), server, Fault("status", 400, text))) is BadInput


@pytest.mark.parametrize("input_type", ["document", "query"])
def test_what_is_asked(server: WireServer, input_type: Any) -> None:
    assert voyage(server).embed(TEXTS, input_type).tokens == 20
    assert server.requests == [
        {
            "model": "voyage-4",
            "input": TEXTS,
            "input_type": input_type,
            "truncation": False,
            "output_dtype": "float",
            "encoding_format": "base64",
            "output_dimension": WIDTH,
        }
    ]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_its_own_dimensions_are_not_asked_for(server: WireServer) -> None:
    voyage(server, model="voyage-3", dimensions=1024).embed(TEXTS, "document")
    assert "output_dimension" not in server.requests[0]


def test_the_index_tells_which_is_which_and_what_is_missing(server: WireServer) -> None:
    model = voyage(server)
    whole = model.embed(TEXTS, "document").vectors
    assert np.allclose(whole, server.vectors(TEXTS))
    server.faults.extend([Fault("reversed"), Fault("fewer")])
    assert np.array_equal(model.embed(TEXTS, "document").vectors, whole)
    fewer = model.embed(TEXTS, "document").vectors
    assert np.array_equal(fewer[:3], whole[:3])
    assert faulty_rows(fewer, TEXTS, model.space) == {3: "no vector, NaN or infinity"}


def test_each_type_as_float32(server: WireServer) -> None:
    exact = server.vectors(TEXTS)
    small = np.clip(np.rint(exact * 400), -128, 127)
    signs = np.where(exact > 0, 1, -1)
    for dtype, expected in {
        "int8": small,
        "uint8": small,
        "binary": signs,
        "ubinary": signs,
    }.items():
        model = voyage(server, output_dtype=dtype)
        found = model.embed(TEXTS, "document").vectors
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)
        assert not model.space.normalized


ROW = base64.b64encode(np.zeros(4, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    "data",
    [
        None,
        "x",
        [],
        [5],
        [{"embedding": ROW}] * 2,
        [{"embedding": ROW, "index": 0}, {"embedding": ROW}],
        [{"embedding": ROW, "index": 1}],
        [{"embedding": ROW, "index": -1}],
        [{"embedding": ROW, "index": True}],
        [{"embedding": ROW, "index": "0"}],
        [{"embedding": ROW, "index": 0}] * 2,
        [{"embedding": "", "index": 0}],
        [{"embedding": "AAA=", "index": 0}],
        [{"embedding": "not base64", "index": 0}],
        [{"embedding": [0.5, 0.5], "index": 0}],
    ],
)
def test_what_is_no_vector_is_a_failure(monkeypatch: pytest.MonkeyPatch, data: Any) -> None:
    monkeypatch.setenv("VOYAGE_API_KEY", KEY)
    with (
        serve(answering({"data": data}), WIDTH) as server,
        pytest.raises(Unreachable, match=r"^voyage at http"),
    ):
        voyage(server).embed(TEXTS[:1], "document")


def test_vectors_of_different_lengths_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOYAGE_API_KEY", KEY)
    data = [{"embedding": ROW, "index": 0}, {"embedding": ROW[:16], "index": 1}]
    with (
        serve(answering({"data": data}), WIDTH) as server,
        pytest.raises(Unreachable, match="different lengths"),
    ):
        voyage(server).embed(TEXTS[:2], "document")


def test_a_cheaper_model_of_the_family_may_embed_queries(server: WireServer) -> None:
    """Documents of another model are another space all the same: who changes to a better one wants
    its vectors."""
    both = voyage(server, model="voyage-4-large", query_model="voyage-4-lite")
    assert (
        both.space.id
        == voyage(server, model="voyage-4-large").space.id
        != voyage(server, model="voyage-4").space.id
    )
    both.embed(TEXTS, "document")
    both.embed(TEXTS, "query")
    assert [body["model"] for body in server.requests] == ["voyage-4-large", "voyage-4-lite"]
    for model, query_model in (("voyage-4-large", "voyage-3.5"), ("voyage-3.5", "voyage-3.5-lite")):
        with pytest.raises(ValidationError, match="not published as one family"):
            Voyage(model=model, query_model=query_model)


def test_limits_and_price(tmp_path: Path) -> None:
    totals = {
        "voyage-4-large": 120_000,
        "voyage-4": 320_000,
        "voyage-4-lite": 1_000_000,
        "voyage-3.5": 320_000,
    }
    assert {
        name: Voyage(model=name).open(tmp_path).limits.request_tokens for name in totals
    } == totals
    limits = Voyage(model="voyage-9", dimensions=64).open(tmp_path).limits
    assert (limits.request_tokens, limits.request_texts) == (120_000, 1_000)
    assert Voyage(model="voyage-4").price == 0.06
    assert Voyage(model="voyage-4", usd_per_million_tokens=0).price == 0
    assert Voyage(model="voyage-9", dimensions=64).price is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "voyage-4", "dimensions": 300}, "can give 256 or 512 or 1024 or 2048"),
        ({"model": "voyage-9"}, "set `dimensions` to the length"),
        ({"model": "voyage-9", "dimensions": 100, "output_dtype": "ubinary"}, "multiple of 8"),
        (
            {"model": "voyage-4", "output_dtype": "float16"},
            "'float', 'int8', 'uint8', 'binary' or 'ubinary'",
        ),
    ],
)
def test_wrong_options_say_what_is_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Voyage.model_validate(options)
