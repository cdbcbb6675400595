"""`tei`: the contract, limits as the server states them, and which of its 413s concerns the call
and which a text."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import (
    BadInput,
    Busy,
    ConfigError,
    ProviderError,
    TooLarge,
    Unreachable,
)
from embedding_pipelines.providers.base import faulty_rows
from embedding_pipelines.providers.tei import Tei, TeiModel
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.providers.contract import check_provider
from embedding_pipelines_tests.providers.wire import Body, Dialect, Fault, WireServer, serve

TEXTS = ["a cat", "a dog", "a bird"]
INFO: Body = {
    "model_id": "intfloat/e5-base-v2",
    "model_sha": "1c644c92ad3ba1efdad3f1451a637716616a20e8",
    "model_dtype": "float16",
    "model_type": {"embedding": {"pooling": "mean"}},
    "max_concurrent_requests": 512,
    "max_input_length": 512,
    "max_batch_tokens": 16384,
    "max_batch_requests": None,
    "max_client_batch_size": 32,
    "auto_truncate": True,
    "tokenization_workers": 4,
    "version": "1.8.2",
    "sha": None,
    "docker_label": None,
}
TYPES = {413: "Validation", 422: "Tokenizer", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}


def answer(body: Body, vectors: Vectors, order: list[int]) -> Any:
    # The server writes what is not finite as null.
    return [[None if np.isnan(value) else float(value) for value in vector] for vector in vectors]


def error(status: int, message: str) -> Any:
    return (
        {"error": message, "error_type": TYPES[status]} if status in TYPES else {"message": message}
    )


def info(**changed: Any) -> Dialect:
    return replace(DIALECT, others={"/info": lambda body: {**INFO, **changed}})


DIALECT = Dialect(
    path="/embed",
    texts=lambda body: body["inputs"],
    answer=answer,
    error=error,
    others={"/info": lambda body: INFO},
)


@pytest.fixture
def server() -> Iterator[WireServer]:
    with serve(DIALECT) as running:
        yield running


def model_at(server: WireServer, **options: Any) -> TeiModel:
    model: TeiModel = server.open(Tei(base_url=server.url, timeout_seconds=5, **options))
    return model


@pytest.mark.parametrize("options", [{}, {"dimensions": 64, "prompts": {}}])
def test_tei_keeps_the_contract(server: WireServer, options: dict[str, Any]) -> None:
    check_provider(model_at(server, **options))


def test_a_request_is_as_the_documentation_has_it(server: WireServer) -> None:
    model = model_at(server, dimensions=64)
    vectors = model.embed(TEXTS, "query").vectors
    assert server.requests == [
        {
            "inputs": ["query: a cat", "query: a dog", "query: a bird"],
            "truncate": False,
            "normalize": True,
            "dimensions": 64,
        }
    ]
    assert "authorization" not in server.headers[0]
    assert np.allclose(vectors, server.vectors(server.requests[0]["inputs"]), atol=1e-6)
    model.embed(TEXTS, "document")
    assert server.requests[1]["inputs"][0] == "passage: a cat"
    model_at(server, prompts={"query": "Q: "}).embed(TEXTS, "document")
    assert server.requests[2] == {"inputs": TEXTS, "truncate": False, "normalize": True}


def test_space_and_limits_are_what_the_server_says(server: WireServer) -> None:
    model = model_at(server, prompts={"document": "a b "}, concurrent_requests=3)
    space, limits = model.space, model.limits
    assert (space.model, space.revision) == (INFO["model_id"], INFO["model_sha"])
    assert (space.dtype, space.pooling, space.max_tokens, space.dimensions) == (
        "float16",
        "mean",
        512,
        64,
    )
    assert (limits.max_tokens, limits.request_tokens, limits.request_texts) == (
        512 - 2 - 2,
        16_384,
        32,
    )
    assert limits.concurrent_requests == 3
    assert model.options.price == 0
    assert model_at(server, prompts={}).space.id != space.id
    assert len(server.requests) == 2  # one text for the number of dimensions, per open model


def test_dimensions_are_asked_for_once_and_not_at_all_where_they_are_named(
    server: WireServer,
) -> None:
    model = model_at(server)
    for _ in range(3):
        assert model.space.dimensions == 64
        model.close()
    assert len(server.requests) == 1
    assert model_at(server, dimensions=32).space.dimensions == 32
    assert len(server.requests) == 1


def test_a_server_that_takes_less_than_one_long_text_in_a_batch_still_takes_one() -> None:
    with serve(info(max_input_length=8192, max_batch_tokens=4096, model_sha=None)) as server:
        model = model_at(server)
        assert model.limits.request_tokens == 8192
        assert model.space.revision == "main"


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (413, "batch size 33 > maximum allowed batch size 32", TooLarge),
        (
            413,
            "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
            BadInput,
        ),
        (413, "Input validation error: `inputs` cannot be empty", BadInput),
        (
            413,
            "Input validation error: `dimensions` should be positive and less than 64. Given: 65",
            ProviderError,
        ),
        (422, "Tokenizer error: cannot encode", BadInput),
        (424, "Backend error: CUDA error", Unreachable),
        (429, "Model is overloaded", Busy),
        (503, "The service is unhealthy", Busy),
        (401, "Unauthorized", ProviderError),
        (404, "Not Found", ProviderError),
        (500, "Internal Server Error", Unreachable),
    ],
)
def test_what_an_error_means(
    server: WireServer, status: int, message: str, kind: type[ProviderError]
) -> None:
    server.faults.append(Fault("status", status, message))
    with pytest.raises(ProviderError) as caught:
        model_at(server, dimensions=64).embed(TEXTS, "document")
    assert type(caught.value) is kind
    assert f"tei at {server.url} answered {status}: {message}" in str(caught.value)


def test_a_413_of_a_proxy_or_the_payload_limit_is_the_calls() -> None:
    with serve(replace(DIALECT, error=lambda status, message: "length limit exceeded")) as server:
        server.faults.append(Fault("status", 413))
        with pytest.raises(TooLarge):
            model_at(server).embed(TEXTS, "document")


def test_when_to_come_back_is_read_from_the_reply(server: WireServer) -> None:
    server.faults.append(Fault("status", 429, "Model is overloaded", {"Retry-After": "3"}))
    with pytest.raises(Busy) as caught:
        model_at(server).embed(TEXTS, "document")
    assert caught.value.retry_after_seconds == 3


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("reset"), "cannot be reached"),
        (Fault("fewer"), "2 vectors for 3 texts"),
        (Fault("inside", message="Backend error"), "without vectors: Backend error"),
    ],
)
def test_a_reply_that_is_none_is_a_fault_on_the_way(
    server: WireServer, fault: Fault, says: str
) -> None:
    server.faults.append(fault)
    with pytest.raises(Unreachable, match=says):
        model_at(server).embed(TEXTS, "document")


@pytest.mark.parametrize(
    ("kind", "says"), [("nan", "no vector, NaN or infinity"), ("zero", "a zero vector")]
)
def test_an_invalid_row_is_left_to_who_checks(server: WireServer, kind: str, says: str) -> None:
    model = model_at(server, dimensions=64)
    server.faults.append(Fault(kind))
    assert faulty_rows(model.embed(TEXTS, "document").vectors, TEXTS, model.space) == {1: says}


def test_a_server_that_serves_no_embeddings_is_an_error() -> None:
    with (
        serve(info(model_type={"reranker": {"id2label": {}, "label2id": {}}})) as server,
        pytest.raises(
            ProviderError, match=r"serves no embedding model: its model_type is \{'reranker'"
        ),
    ):
        model_at(server).space  # noqa: B018


@pytest.mark.parametrize("missing", ["model_id", "max_input_length", "max_batch_tokens"])
def test_a_server_that_does_not_describe_itself_is_an_error(missing: str) -> None:
    said = {name: value for name, value in INFO.items() if name != missing}
    with (
        serve(replace(DIALECT, others={"/info": lambda body: said})) as server,
        pytest.raises(Unreachable, match=f"/info does not describe the model .*{missing}"),
    ):
        model_at(server).space  # noqa: B018


@pytest.mark.parametrize("said", [[], "x", None, {}])
def test_what_is_no_tei_at_all_is_an_error(said: object) -> None:
    with (
        serve(replace(DIALECT, others={"/info": lambda body: said})) as server,
        pytest.raises(ProviderError, match="Check base_url"),
    ):
        model_at(server).space  # noqa: B018


def test_the_key_is_sent_and_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEI_KEY", "sk-secret")
    with serve(replace(DIALECT, key="Bearer sk-secret")) as server:
        model = model_at(server, api_key_env="TEI_KEY")
        model.embed(TEXTS, "document")
        server.faults.extend(
            [Fault("status", 401, "no: sk-secret"), Fault("status", 413, "no: sk-secret")]
        )
        with pytest.raises(ProviderError, match="Check the key in TEI_KEY") as unauthorized:
            model.embed(TEXTS, "document")
        with pytest.raises(BadInput) as invalid:
            model.embed(TEXTS, "document")
        texts = [
            *map(str, (unauthorized.value, invalid.value)),
            repr(model.options),
            model.options.model_dump_json(),
        ]
        assert not any("sk-secret" in text for text in [*texts, model.space.model_dump_json()])
        monkeypatch.delenv("TEI_KEY")
        with pytest.raises(ConfigError, match="the environment variable TEI_KEY is not set"):
            model.embed(TEXTS, "document")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "http://me:pw@tei"}, "an address holds no password"),
        ({"base_url": "http://tei/v1?key=pw"}, "an address holds no password, query or key"),
        ({"dimensions": 0}, "greater than or equal to 1"),
        ({"prompts": {"passage": "x"}}, "'document' or 'query'"),
        ({"model": "e5"}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_option_is_an_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Tei(**options)
