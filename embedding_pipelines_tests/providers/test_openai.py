"""What OpenAI's documented interface makes of texts, faults and odd replies; other servers that
speak it included."""

import base64
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
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
from embedding_pipelines.providers import _tiktoken
from embedding_pipelines.providers.common.tokenizers import estimate
from embedding_pipelines.providers.openai import Openai, OpenaiModel
from embedding_pipelines.providers.voyage import Voyage
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.providers.contract import check_provider
from embedding_pipelines_tests.providers.wire import Body, Dialect, Fault, WireServer, serve

SECRET = "sk-proj-4711-secret"
DIMENSIONS = 64
TEXTS = ["a red fox", "the court", "x", "rain in spring"]


def answer(body: Body, vectors: Vectors, order: list[int]) -> Body:
    """As documented: base64 where it is asked for."""
    packed = body.get("encoding_format") == "base64"
    rows = [
        base64.b64encode(row.astype("<f4").tobytes()).decode() if packed else row.tolist()
        for row in vectors
    ]
    data = [
        {"object": "embedding", "index": at, "embedding": row}
        for at, row in zip(order, rows, strict=True)
    ]
    usage = {"prompt_tokens": len(vectors) * 3, "total_tokens": len(vectors) * 3}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def error(status: int, message: str) -> Body:
    code = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}.get(status)
    return {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    }


def dialect(reply: Any = None, key: str | None = None) -> Dialect:
    """The right answer, or always `reply`."""
    return Dialect(
        path="/v1/embeddings",
        texts=lambda body: list(body["input"]),
        answer=answer if reply is None else lambda *_: reply,
        error=error,
        key=key,
    )


def local(server: WireServer, **options: Any) -> OpenaiModel:
    """A model that is not published, behind a server without a key."""
    base = {"base_url": f"{server.url}/v1", "model": "my-model", "dimensions": DIMENSIONS}
    model: OpenaiModel = server.open(Openai(**{**base, **options}))
    return model


def own(server: WireServer, **options: Any) -> OpenaiModel:
    """One of OpenAI's models, with a key."""
    base = {
        "model": "text-embedding-3-small",
        "tokenizer_of": "estimate",
        "api_key_env": "OPENAI_API_KEY",
    }
    return local(server, **{**base, **options})


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


@pytest.fixture
def server() -> Iterator[WireServer]:
    with serve(dialect(), DIMENSIONS) as running:
        yield running


def test_contract_of_a_known_model() -> None:
    with serve(dialect(key=f"Bearer {SECRET}"), DIMENSIONS) as server:
        check_provider(own(server))


def test_contract_of_an_unknown_model_with_prompts(server: WireServer) -> None:
    check_provider(local(server, prompts={"query": "query: ", "document": "passage: "}))


def test_a_request_as_documented(server: WireServer) -> None:
    reply = own(server).embed(TEXTS, "document")
    assert server.requests == [
        {
            "model": "text-embedding-3-small",
            "input": TEXTS,
            "dimensions": DIMENSIONS,
            "encoding_format": "base64",
        }
    ]
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    assert np.array_equal(reply.vectors, server.vectors(TEXTS))
    assert reply.tokens == 12


def test_prompts_stand_before_the_text_of_their_input_type_and_in_the_space(
    server: WireServer,
) -> None:
    model = local(server, model="org/e5-small")
    for input_type, prompt in model.space.prompts.items():
        model.embed(["a fox"], "query" if input_type == "query" else "document")
        assert server.requests[-1]["input"] == [f"{prompt}a fox"]
    assert model.space.prompts == {"query": "query: ", "document": "passage: "}
    assert model.space.id != local(server, model="org/e5-small", prompts={}).space.id
    assert model.limits.max_tokens < local(server).limits.max_tokens


def test_dimensions_are_sent_only_where_they_are_understood() -> None:
    with serve(dialect(), 1536) as server:
        for model in ("text-embedding-3-small", "text-embedding-ada-002"):
            own(server, model=model, dimensions=None).embed(["x"], "query")
            own(server, model=model, dimensions=1536).embed(["x"], "query")
    assert all("dimensions" not in body for body in server.requests)
    with serve(dialect(), DIMENSIONS) as server:
        local(server).embed(["x"], "query")
        local(server, send_dimensions=True).embed(["x"], "query")
    assert [body.get("dimensions") for body in server.requests] == [None, DIMENSIONS]


def test_a_key_goes_to_the_service_it_belongs_to(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    assert Openai(model="text-embedding-3-small").api_key_env == "OPENAI_API_KEY"
    assert local(server).options.api_key_env is None
    assert (
        Openai(
            model="m", dimensions=8, base_url="https://api.openai.com.example.org/v1"
        ).api_key_env
        is None
    )
    options = own(server).options
    assert Openai.model_validate_json(options.model_dump_json()) == options
    local(server).embed(["x"], "query")
    assert not {"authorization", "openai-organization", "openai-project"} & server.headers[0].keys()
    local(server, api_key_env="OPENAI_API_KEY").embed(["x"], "query")
    assert server.headers[1]["authorization"] == f"Bearer {SECRET}"
    assert "openai-organization" not in server.headers[1]


def test_a_missing_key_is_named(server: WireServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="the environment variable OPENAI_API_KEY is not set"):
        own(server).embed(["x"], "query")
    assert not server.requests


@pytest.mark.parametrize("key", ["sk-two\nlines", "sk-\u20ac"])
def test_a_key_that_no_header_can_hold_is_not_shown(
    server: WireServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        own(server).embed(["x"], "query")
    assert "sk-" not in str(caught.value)


def test_the_key_is_in_no_text(server: WireServer) -> None:
    model = own(server)
    server.faults.extend(
        [
            Fault("status", 401, f"Incorrect API key provided: {SECRET}."),
            Fault("inside", 500, SECRET),
        ]
    )
    texts = [
        repr(model.options),
        str(model.options),
        model.options.model_dump_json(),
        model.space.model_dump_json(),
    ]
    for _ in range(2):
        with pytest.raises(ProviderError) as caught:
            model.embed(["x"], "query")
        texts += [str(caught.value), repr(caught.value)]
    assert not [text for text in texts if SECRET in text]
    assert "***" in texts[-2]


@pytest.mark.parametrize(
    ("status", "message", "kind", "said"),
    [
        (
            400,
            "This model's maximum context length is 8192 tokens, however you requested 9000.",
            BadInput,
            "8192",
        ),
        (400, "Requested 629204 tokens, max 600000 tokens per request", TooLarge, "629204"),
        (401, "Incorrect API key provided.", ProviderError, "Check the key in OPENAI_API_KEY"),
        (
            403,
            "Project does not have access to model.",
            ProviderError,
            "Check the key in OPENAI_API_KEY",
        ),
        (402, "Insufficient credits.", ProviderError, "The account has to be paid up"),
        (404, "The model `x` does not exist.", ProviderError, "Check model and base_url"),
        (413, "Request too large.", TooLarge, "Request too large"),
        (422, "List should have at most 32 items after validation, not 40", TooLarge, "at most 32"),
        (422, "Input should be a valid string.", BadInput, "valid string"),
        (
            429,
            "You exceeded your current quota, please check your plan.",
            ProviderError,
            "quota is exhausted: raise it",
        ),
        (500, "The server had an error.", Unreachable, "The server had an error"),
        (503, "The engine is overloaded.", Busy, "overloaded"),
    ],
)
def test_errors_mean_what_the_service_means(
    server: WireServer, status: int, message: str, kind: type[ProviderError], said: str
) -> None:
    server.faults.append(Fault("status", status, message, {"x-should-retry": "true"}))
    with pytest.raises(ProviderError, match=said) as caught:
        own(server).embed(["x"], "query")
    assert type(caught.value) is kind
    assert message.rstrip(".") in str(caught.value)
    assert len(server.requests) == 1  # the SDK does not try again


def test_when_to_come_back_is_read_from_the_reply(server: WireServer) -> None:
    server.faults.append(Fault("status", 429, headers={"retry-after": "7"}))
    with pytest.raises(Busy) as caught:
        own(server).embed(["x"], "query")
    assert caught.value.retry_after_seconds == 7
    assert len(server.requests) == 1


def test_what_fails_on_the_way_is_unreachable(server: WireServer) -> None:
    server.faults.append(Fault("reset"))
    with pytest.raises(Unreachable, match="cannot be reached: "):
        local(server).embed(["x"], "query")
    assert len(server.requests) == 1
    server.latency_seconds = 0.3
    with pytest.raises(Unreachable, match="ReadTimeout"):
        local(server, timeout_seconds=0.05).embed(["x"], "query")
    with pytest.raises(Unreachable, match=r"ConnectError.*refused"):
        local(server, base_url="http://127.0.0.1:9/v1").embed(["x"], "query")


def test_the_reply_says_which_vector_is_whose(server: WireServer) -> None:
    server.faults.extend([Fault("reversed"), Fault("fewer")])
    assert np.array_equal(local(server).embed(TEXTS, "document").vectors, server.vectors(TEXTS))
    fewer = local(server).embed(TEXTS, "document").vectors
    assert np.array_equal(fewer[:-1], server.vectors(TEXTS)[:-1])
    assert np.isnan(fewer[-1]).all()


def test_numbers_and_replies_without_an_index_are_taken() -> None:
    rows = [{"embedding": [1, 0.5]}, {"embedding": [0, -1e-3]}]
    with serve(dialect({"data": rows, "usage": {"prompt_tokens": 0, "total_tokens": 0}})) as server:
        reply = local(server, dimensions=2).embed(["a", "b"], "query")
        assert reply.vectors.dtype == np.float32
        assert np.allclose(reply.vectors, [[1, 0.5], [0, -1e-3]])
        assert reply.tokens is None
        with pytest.raises(Unreachable, match="returned 2 vectors for 3 texts, and no index"):
            local(server, dimensions=2).embed(["a", "b", "c"], "query")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            {"error": {"message": "Upstream failed", "code": 502}},
            "without vectors: Upstream failed",
        ),
        ({"data": None}, "without vectors"),
        ({"data": {"0": [1.0]}}, "without vectors"),
        ([[1.0, 2.0]], "without vectors"),
        ("busy", "without vectors: busy"),
        (False, "without vectors"),
        ({"data": []}, "0 vectors for 2 texts"),
        ({"data": ["x", "y"]}, "no vectors"),
        ({"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]}, "empty ones"),
        ({"data": [{"index": 0, "embedding": ""}, {"index": 1, "embedding": ""}]}, "empty ones"),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]},
            "impossible index 0",
        ),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}]},
            "impossible index 2",
        ),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"embedding": [1.0]}]},
            "impossible index None",
        ),
        ({"data": [{"index": "0", "embedding": [1.0]}]}, "impossible index '0'"),
        (
            {"data": [{"index": 0, "embedding": [1.0, 2.0]}, {"index": 1, "embedding": [1.0]}]},
            "different lengths",
        ),
        ({"data": [{"index": 0, "embedding": [[1.0], [2.0]]}]}, "not a list of numbers"),
        ({"data": [{"index": 0, "embedding": "not base64!"}]}, "unreadable"),
        ({"data": [{"index": 0, "embedding": "AAAA"}]}, "unreadable"),
        ({"data": [{"index": 0, "embedding": ["1.0"]}]}, "not a list of numbers"),
        ({"data": [{"index": 0, "embedding": 1.0}]}, "not a list of numbers"),
    ],
)
def test_an_invalid_reply_is_a_failure(reply: Any, said: str) -> None:
    with serve(dialect(reply)) as server, pytest.raises(Unreachable, match=said):
        local(server, dimensions=2).embed(["a", "b"], "query")


def test_a_page_in_place_of_json(tmp_path: Path) -> None:
    said = "answered 200 without JSON: '<html>Gateway of the hotel"
    with serving(b"<html>Gateway of the hotel</html>") as url:
        options = Openai(base_url=url, model="m", dimensions=2, mode="batch")
        for each in (options, Voyage(base_url=url, model="voyage-4", api_key_env=None)):
            answer = f"^{each.kind} at {url} {said}"
            with each.open(tmp_path) as model, pytest.raises(Unreachable, match=answer):
                model.embed(["a"], "query")
        with (
            options.open(tmp_path) as openai,
            pytest.raises(Unreachable, match=f"^openai at {url} {said}"),
        ):
            openai.batch_service.submit({"a": "a text"}, "document", "tag")


def test_vectors_of_other_dimensions_are_left_for_the_caller_to_reject(server: WireServer) -> None:
    assert local(server, dimensions=32).embed(TEXTS, "document").vectors.shape == (
        len(TEXTS),
        DIMENSIONS,
    )
    server.faults.append(Fault("short"))
    assert own(server).embed(TEXTS, "document").vectors.shape == (len(TEXTS), DIMENSIONS // 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"model": "text-embedding-ada-002", "dimensions": 512},
            "cannot give 512 dimensions; it can give 1536",
        ),
        ({"model": "text-embedding-3-small", "dimensions": 2000}, "it can give 1 to 1536"),
        ({"model": "my-model"}, "set `dimensions` to the length"),
        ({"model": ""}, "at least 1 character"),
        (
            {"model": "text-embedding-3-small", "send_dimensions": True},
            "leave it out with 'text-embedding-3-small'",
        ),
        ({"model": "text-embedding-3-small", "max_tokens": 9000}, "reads 8191 tokens of a text"),
        (
            {"model": "my-model", "dimensions": 8, "base_url": "localhost:8080"},
            "not the address of a service",
        ),
        (
            {"model": "my-model", "dimensions": 8, "base_url": "http://localhost:port/v1"},
            "the port of the address is not a number",
        ),
        (
            {"model": "my-model", "dimensions": 8, "prompts": {"title": "x"}},
            "'document' or 'query'",
        ),
    ],
)
def test_wrong_options_are_errors_when_the_file_loads(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Openai(**options)


def test_limits_and_space_say_what_is_published(tmp_path: Path) -> None:
    def model(**options: Any) -> OpenaiModel:
        return Openai(**options).open(tmp_path)

    large = {"model": "text-embedding-3-large", "tokenizer_of": "estimate"}
    limits, space = model(**large).limits, model(**large).space
    assert (limits.request_texts, limits.request_tokens) == (2_048, 300_000)
    assert limits.request_bytes == 1_200_000
    assert (space.max_tokens, space.dimensions, space.normalized) == (8_191, 3_072, True)
    options = {"model": "my-model", "dimensions": 8, "base_url": "http://localhost:1/v1"}
    other = model(**options)
    assert (other.space.max_tokens, other.space.normalized) == (512, False)
    assert other.limits.request_bytes is None
    long = model(**options, max_tokens=32_768)
    assert other.limits.max_tokens < long.limits.max_tokens <= long.limits.request_tokens
    elsewhere = {**options, "base_url": "http://gpu:1/v1", "api_key_env": "K"}
    assert other.space != model(**elsewhere).space  # two servers may call different models alike
    same = [model(**each, revision="weights 7").space for each in (options, elsewhere)]
    assert same[0] == same[1]
    assert space == model(**large, base_url="https://me.openai.azure.com/openai/v1").space


def test_prices_are_the_published_ones_or_the_users() -> None:
    assert Openai(model="text-embedding-3-small").price == 0.02
    assert Openai(model="text-embedding-3-small", usd_per_million_tokens=0.5).price == 0.5
    assert Openai(model="my-model", dimensions=8, base_url="http://localhost:1/v1").price is None
    later = Openai(model="text-embedding-3-small", mode="batch")
    assert (later.price, later.batch_price) == (
        0.02,
        0.01,
    )  # queries and measuring go no other way than before
    assert later.model_copy(update={"usd_per_million_tokens": 0.5}).batch_price == 0.5
    assert (
        Openai(
            model="my-model", dimensions=8, base_url="http://localhost:1/v1", mode="batch"
        ).batch_price
        is None
    )


def test_whose_tokenizer_counts(server: WireServer, tmp_path: Path) -> None:
    published = Openai(model="text-embedding-3-small").open(tmp_path)
    assert published.tokenizer_digest == _tiktoken.cl100k_digest()
    for model in (own(server), local(server)):
        assert model.tokenizer.to_str() == estimate().to_str()
        assert model.tokenizer_digest != published.tokenizer_digest


def test_the_sdk_belongs_to_the_model_and_is_closed_with_it(server: WireServer) -> None:
    first, second = own(server), local(server)
    assert first.sdk is first.sdk is not second.sdk
    sdk = first.sdk
    first.embed(["x"], "query")
    first.close()
    first.close()
    assert sdk.is_closed()
    assert not second.sdk.is_closed()
    second.embed(["x"], "query")
    assert first.embed(["x"], "query").tokens == 3  # an SDK of its own, again
    assert [headers.get("authorization") for headers in server.headers] == [
        f"Bearer {SECRET}",
        None,
        f"Bearer {SECRET}",
    ]


def test_a_missing_sdk_names_the_extra_that_holds_it(
    server: WireServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[openai\]'"):
        local(server).embed(["x"], "query")


@contextmanager
def serving(content: bytes) -> Iterator[str]:
    """The address of a server that answers 200 with this, whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
