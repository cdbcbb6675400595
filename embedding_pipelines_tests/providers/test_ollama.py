"""`ollama`: the contract, the documented requests, and what each of the server's errors means."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_pipelines.errors import BadInput, Busy, ConfigError, ProviderError, Unreachable
from embedding_pipelines.providers.base import faulty_rows
from embedding_pipelines.providers.ollama import Ollama, OllamaModel
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.providers.contract import check_provider
from embedding_pipelines_tests.providers.wire import Body, Dialect, Fault, WireServer, serve

DIGEST = "0a109f422b47e3a30ba2b10eca18548e944e8a23073ee3f3e947efcf3c45e59f"
TEXTS = ["a cat", "a dog", "a bird"]


def answer(body: Body, vectors: Vectors, order: list[int]) -> Body:
    return {
        "model": body["model"],
        "embeddings": [None if vector is None else vector.tolist() for vector in vectors],
        "total_duration": 14143917,
        "load_duration": 1019500,
        "prompt_eval_count": sum(len(text.split()) for text in body["input"]),
    }


def shown(**info: Any) -> Body:
    return {
        "license": "Apache License",
        "parameters": 'num_ctx                        8192\nstop                           "</s>"',
        "details": {"format": "gguf", "family": "nomic-bert", "quantization_level": "F16"},
        "model_info": {
            "general.architecture": "nomic-bert",
            "nomic-bert.context_length": 2048,
            "nomic-bert.embedding_length": 64,
            "nomic-bert.pooling_type": 1,
            **info,
        },
        "capabilities": ["embedding"],
    }


DIALECT = Dialect(
    path="/api/embed",
    texts=lambda body: body["input"],
    answer=answer,
    error=lambda status, message: {"error": message},
    others={
        "/api/tags": lambda body: {
            "models": [{"name": "nomic-embed-text:latest", "digest": DIGEST}]
        },
        "/api/show": lambda body: shown(),
    },
)


@pytest.fixture
def server() -> Iterator[WireServer]:
    with serve(DIALECT) as running:
        yield running


def model_at(server: WireServer, **options: Any) -> OllamaModel:
    base = {"model": "nomic-embed-text", "base_url": server.url, "timeout_seconds": 5}
    model: OllamaModel = server.open(Ollama.model_validate({**base, **options}))
    return model


@pytest.mark.parametrize("prompts", [None, {}, {"query": "Q: ", "document": "D: "}])
def test_ollama_keeps_the_contract(server: WireServer, prompts: Any) -> None:
    check_provider(model_at(server, prompts=prompts))


def test_a_request_is_as_the_documentation_has_it(server: WireServer) -> None:
    model = model_at(server, prompts={"query": "search_query: "}, keep_alive="30m")
    reply = model.embed(TEXTS, "query")
    assert server.requests == [
        {
            "model": "nomic-embed-text",
            "input": ["search_query: a cat", "search_query: a dog", "search_query: a bird"],
            "truncate": False,
            "options": {"num_ctx": 2048, "num_batch": 2048},
            "keep_alive": "30m",
        }
    ]
    assert "authorization" not in server.headers[0]
    assert reply.tokens == 9
    assert np.allclose(reply.vectors, server.vectors(server.requests[0]["input"]), atol=1e-6)
    model.embed(TEXTS, "document")
    assert server.requests[1]["input"] == TEXTS


def test_the_space_is_what_the_server_says_of_the_model(server: WireServer) -> None:
    model = model_at(server, prompts={"document": "a b c "})
    space = model.space
    assert (space.revision, space.dimensions, space.max_tokens) == (DIGEST, 64, 2048)
    assert (space.pooling, space.dtype, space.normalized) == ("mean", "F16", True)
    assert model.limits.max_tokens == 2048 - 2 - 3
    assert model.limits.concurrent_requests == 2
    assert server.requests == []  # it took no embedding
    others = [
        model_at(server, prompts={}),
        model_at(server, num_ctx=512),
        model_at(server, dimensions=32),
    ]
    assert len({space.id, *(other.space.id for other in others)}) == 4


@pytest.mark.parametrize(
    ("asked", "parameters", "trained", "loaded"),
    [
        (None, "", 32_768, 4_096),
        (None, "num_ctx 8192", 32_768, 8_192),
        (16_384, "num_ctx 8192", 32_768, 16_384),
    ],
)
def test_the_context_is_asked_for_and_is_never_longer_than_the_models(
    asked: int | None, parameters: str, trained: int, loaded: int
) -> None:
    facts = {**shown(**{"nomic-bert.context_length": trained}), "parameters": parameters}
    dialect = replace(DIALECT, others={**DIALECT.others, "/api/show": lambda body: facts})
    with serve(dialect) as server:
        model = model_at(server, num_ctx=asked)
        model.embed(["a cat"], "document")
        assert model.space.max_tokens == loaded
        assert server.requests[0]["options"]["num_ctx"] == loaded


def test_shorter_vectors_are_asked_for() -> None:
    with serve(DIALECT, dimensions=32) as server:
        model = model_at(server, dimensions=32)
        assert (
            model.embed(TEXTS, "document").vectors.shape == (3, model.space.dimensions) == (3, 32)
        )
        assert server.requests[0]["dimensions"] == 32
        with pytest.raises(ConfigError, match="gives 64 dimensions, not 65"):
            model_at(server, dimensions=65).space  # noqa: B018


@pytest.mark.parametrize(
    ("status", "message", "kind", "says"),
    [
        (
            400,
            "the input length exceeds the context length",
            BadInput,
            "the input length exceeds the context length",
        ),
        (500, "the input length exceeds the context length", BadInput, "answered 500"),
        (400, "invalid input type", BadInput, "invalid input type"),
        (400, "do embedding request: EOF", Unreachable, "EOF"),
        (
            404,
            'model "x" not found, try pulling it first',
            ProviderError,
            "Fetch the model with `ollama pull nomic",
        ),
        (501, "this model does not support embeddings", ProviderError, "Choose an embedding model"),
        (401, "unauthorized", ProviderError, "Check api_key_env, which is not set"),
        (
            500,
            "llama runner process has terminated",
            Unreachable,
            "llama runner process has terminated",
        ),
        (
            503,
            "server busy, please try again. maximum pending requests exceeded",
            Busy,
            "server busy",
        ),
    ],
)
def test_what_an_error_means(
    server: WireServer, status: int, message: str, kind: type[ProviderError], says: str
) -> None:
    server.faults.append(Fault("status", status, message))
    with pytest.raises(ProviderError) as caught:
        model_at(server).embed(TEXTS, "document")
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert server.url in str(caught.value)


def test_when_to_come_back_is_read_from_the_reply(server: WireServer) -> None:
    server.faults.append(Fault("status", 429, "too many requests", {"Retry-After": "7"}))
    with pytest.raises(Busy) as caught:
        model_at(server).embed(TEXTS, "document")
    assert caught.value.retry_after_seconds == 7


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("reset"), "cannot be reached"),
        (Fault("fewer"), "2 vectors for 3 texts"),
        (Fault("inside", message="out of memory"), "without vectors: out of memory"),
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
    model = model_at(server)
    server.faults.append(Fault(kind))
    assert faulty_rows(model.embed(TEXTS, "document").vectors, TEXTS, model.space) == {1: says}


@pytest.mark.parametrize(
    "rows",
    [
        None,
        {},
        "vectors",
        [[], [], []],
        [[1.0], [1.0, 2.0], [1.0]],
        [["1"], ["2"], ["3"]],
        [[[1.0]], [[2.0]], [[3.0]]],
    ],
)
def test_vectors_that_are_none_are_an_error(rows: object) -> None:
    with serve(replace(DIALECT, answer=lambda *_: {"embeddings": rows})) as server:
        model = model_at(server)
        with pytest.raises(Unreachable, match="ollama at http://127"):
            model.embed(TEXTS, "document")


def test_null_is_a_row_that_is_missing_and_too_large_a_number_is_infinite() -> None:
    rows = [[1.0, 0], None, [1e39, None]]
    with serve(replace(DIALECT, answer=lambda *_: {"embeddings": rows})) as server:
        found = model_at(server).embed(TEXTS, "document").vectors
    np.testing.assert_array_equal(
        found, np.array([[1, 0], [np.nan, np.nan], [np.inf, np.nan]], np.float32)
    )


def test_a_server_that_is_not_running_is_one_sentence() -> None:
    with serve(DIALECT) as gone:
        model = model_at(gone)
    with pytest.raises(
        Unreachable, match="Is Ollama running there\\? Start it with `ollama serve`"
    ):
        model.embed(TEXTS, "document")


def test_a_model_that_was_not_pulled_is_an_error_with_the_command(server: WireServer) -> None:
    for model in ("mxbai-embed-large", "nomic-embed-text:v1"):
        with pytest.raises(
            ProviderError, match=f"has no model '{model}'. Fetch it with `ollama pull {model}`"
        ):
            model_at(server, model=model).space  # noqa: B018
    assert model_at(server, model="Nomic-Embed-Text:LATEST").space.revision == DIGEST


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/api/tags", []),
        ("/api/tags", {"models": None}),
        ("/api/show", {"details": {}}),
        ("/api/show", ["x"]),
    ],
)
def test_a_server_that_does_not_describe_its_model_is_an_error(path: str, said: object) -> None:
    with (
        serve(replace(DIALECT, others={**DIALECT.others, path: lambda body: said})) as server,
        pytest.raises(Unreachable, match=path),
    ):
        model_at(server).space  # noqa: B018


def test_the_key_is_sent_and_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_KEY", "sk-secret")
    with serve(replace(DIALECT, key="Bearer sk-secret")) as server:
        model = model_at(server, api_key_env="OLLAMA_KEY")
        model.embed(TEXTS, "document")
        texts = [
            repr(model.options),
            model.options.model_dump_json(),
            model.space.model_dump_json(),
        ]
        for words in ("no such key: sk-secret", "x" * 295 + "sk-secret"):
            server.faults.append(Fault("status", 401, words))
            with pytest.raises(ProviderError, match="Check the key in OLLAMA_KEY") as caught:
                model.embed(TEXTS, "document")
            texts.append(str(caught.value))
        assert not any("sk-" in text for text in texts)
        monkeypatch.delenv("OLLAMA_KEY")
        with pytest.raises(ConfigError, match="the environment variable OLLAMA_KEY is not set"):
            model.embed(TEXTS, "document")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "localhost:11434"}, "is not the address of a service"),
        ({"dimensions": 0}, "greater than or equal to 1"),
        ({"num_ctx": "all"}, "valid integer"),
        ({"prompts": {"passage": "x"}}, "'document' or 'query'"),
        ({"truncate": True}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_option_is_an_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Ollama(**{"model": "nomic-embed-text", **options})


def test_a_prompt_that_leaves_no_room_is_an_error(server: WireServer) -> None:
    model = model_at(server, num_ctx=16, prompts={"document": "word " * 20})
    with pytest.raises(ConfigError, match="takes 20 of the 16 tokens"):
        model.limits  # noqa: B018
