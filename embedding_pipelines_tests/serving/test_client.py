"""The clients against a server that answers, fails and breaks off as a script says."""

import asyncio
import base64
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines import AsyncEmbeddingPipelines, EmbeddingPipelines
from embedding_pipelines.serving import client as module
from embedding_pipelines.serving.pictures import image_bytes
from embedding_pipelines.serving.wire import (
    KEY_OF_REQUEST,
    BadRequest,
    Conflict,
    NotFound,
    RunFailed,
    SearchAnswer,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from embedding_pipelines_tests.serving.scripted import ANSWER, BREAKS, Script, scripted

RUN = {
    "run_id": str(uuid.uuid4()),
    "pipeline": "p",
    "kind": "run",
    "status": "succeeded",
    "began_at": "2026-11-27T05:00:00Z",
}


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted() as script:
        yield script


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a client makes, which pass at once."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(module.time, "sleep", pauses.append)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    return pauses


def test_what_is_transient_is_tried_again_after_pauses_that_double(
    script: Script, pauses: list[float]
) -> None:
    error = {"error": "not now"}
    script.answers = [(503, error), BREAKS, (502, "no JSON"), (504, error), (202, RUN)]
    with EmbeddingPipelines("key", script.address) as client:
        assert client.run("p").run_id == RUN["run_id"]
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    keys = {headers[KEY_OF_REQUEST] for _, _, headers, _ in script.requests}
    assert len(keys) == 1  # so that the server starts one run, however often it hears of it
    assert {headers["Authorization"] for _, _, headers, _ in script.requests} == {"Bearer key"}


def test_the_async_client_does_the_same(script: Script, pauses: list[float]) -> None:
    script.answers = [(503, {"error": "not now"}), BREAKS, (202, RUN), (200, RUN)]

    async def work() -> str:
        async with AsyncEmbeddingPipelines("key", script.address) as client:
            run = await client.optimize(7, "pca", 128)
            return (await client.wait(run)).status

    assert asyncio.run(work()) == "succeeded"
    assert pauses == [0.5, 1.0]
    method, path, _, body = script.requests[0]
    assert (method, path) == ("POST", "/api/embedding-pipelines/7/optimize")
    assert body == {"method": "pca", "dimensions": 128}


RECEIPT = {
    "pipeline": "p",
    "number": 3,
    "documents": 1,
    "chunks": 1,
    "embedded": 1,
    "unknown": ["b"],
    "ignored": [],
}
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str, Any]] = [
    ("release", (7, "It is so."), {}, "release", {"reason": "It is so."}),
    ("rollback", (7,), {}, "rollback", {}),
    ("rollback", (7, 2), {}, "rollback", {"to": 2}),
    ("plan", (7,), {}, "plan", None),
    (
        "forget",
        (7, ["a"]),
        {"sources": ["b.csv"]},
        "forget",
        {"ids": ["a"], "sources": ["b.csv"], "undo": False},
    ),
    ("push", (7, iter([{"id": "a"}])), {}, "documents", {"documents": [{"id": "a"}]}),
    ("delete_documents", (7, ["a", "b"]), {}, "documents/delete", {"ids": ["a", "b"]}),
    ("withdraw", (7, ["a"]), {}, "documents/withdraw", {"ids": ["a"]}),
]


@pytest.mark.parametrize(("method", "given", "options", "path", "body"), CALLS)
def test_what_is_live_and_what_is_in_it_are_changed_by_one_call_each(
    script: Script, method: str, given: Any, options: dict[str, Any], path: str, body: Any
) -> None:
    reply = RECEIPT if path.startswith("documents") else RUN
    script.answers = [(202, reply), (202, reply)]

    async def work(again: Any) -> Any:
        async with AsyncEmbeddingPipelines("key", script.address) as client:
            return await getattr(client, method)(*again, **options)

    with EmbeddingPipelines("key", script.address) as client:
        again = (given[0], [{"id": "a"}]) if method == "push" else given
        answers = [getattr(client, method)(*given, **options), asyncio.run(work(again))]
    assert answers[0] == answers[1]
    for sent, where, headers, values in script.requests:
        assert (sent, where, values) == ("POST", f"/api/embedding-pipelines/7/{path}", body)
        assert ("Idempotency-Key" in headers) == (reply is RUN)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("push", [{"id": "a", "price": float("nan")}], "finite numbers"),
        ("push", [{"id": "a", "at": object()}], "not JSON serializable"),
        ("push", [{"id": "a", "text": "\ud800"}], "whole characters"),
        ("delete_documents", ["\udcff"], "whole characters"),
        ("delete_documents", "abc", r"ids is the text 'abc'. Give a list: \['abc'\]"),
        ("forget", "abc", "Give a list"),
    ],
)
def test_what_json_cannot_say_is_a_sentence(method: str, given: Any, words: str) -> None:
    with EmbeddingPipelines("key") as client, pytest.raises(BadRequest, match=words):
        getattr(client, method)(7, given)


def test_a_server_says_how_long_to_wait(script: Script, pauses: list[float]) -> None:
    busy = {"error": "busy"}
    script.answers = [
        (429, busy, {"Retry-After": "7"}),
        (429, busy, {"Retry-After": "1", "Retry-After-Ms": "1700"}),
        (429, busy, {"Retry-After": "Fri, 27 Nov 2026 05:00:00 GMT"}),
        (200, {"pipelines": []}),
    ]
    with EmbeddingPipelines("key", script.address) as client:
        assert client.list("active") == []
    assert pauses == [7.0, 1.7, 2.0]
    assert script.requests[0][1] == "/api/embedding-pipelines?filter=active"


def test_it_gives_up_in_the_end_and_says_why(script: Script, pauses: list[float]) -> None:
    script.answers = [(429, {"error": "too many"})] * 3
    with (
        EmbeddingPipelines("key", script.address, retries=2) as client,
        pytest.raises(TooManyRequests, match="too many"),
    ):
        client.list()
    script.answers = [(429, {"error": "not today"}, {"Retry-After": "3600"})]
    with (
        EmbeddingPipelines("key", script.address) as client,
        pytest.raises(TooManyRequests) as refused,
    ):
        client.list()
    assert refused.value.retry_after_seconds == 3600
    assert pauses == [0.5, 1.0]


def test_nobody_there_is_said_with_the_address(pauses: list[float]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            EmbeddingPipelines("key", address) as client,
            pytest.raises(Unavailable, match=f"{address} cannot be reached") as error,
        ):
            client.list()
        assert "key" not in str(error.value)
        assert "no server listens there. Start it with `embedding-pipelines serve`" in str(
            error.value
        )
        assert pauses == [0.5]  # it may just be starting

        async def work() -> None:
            async with AsyncEmbeddingPipelines("key", address) as client:
                await client.list()

        with pytest.raises(Unavailable, match="no server listens there"):
            asyncio.run(work())
        assert pauses == [0.5, 0.5]


def test_a_name_without_an_address_is_said_soon(pauses: list[float]) -> None:
    with (
        EmbeddingPipelines("key", "http://no-such-host.invalid") as client,
        pytest.raises(Unavailable, match="no server listens there"),
    ):
        client.list()
    assert len(pauses) == 1


def test_a_server_that_has_answered_is_waited_for(script: Script, pauses: list[float]) -> None:
    script.answers = [(200, {"pipelines": []})]
    with EmbeddingPipelines("key", script.address) as client:
        assert client.list() == []
        script.server.shutdown()
        script.server.server_close()
        with pytest.raises(Unavailable, match="no server listens there"):
            client.list()
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_an_image_is_sent_in_place_of_a_query(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.answers = [(200, ANSWER)] * 3
    photo, content = tmp_path / "a.jpg", b"\xff\xd8 and so on"
    photo.write_bytes(content)

    async def work() -> Any:
        async with AsyncEmbeddingPipelines("key", script.address) as client:
            return await client.search("photos", image=str(photo))

    with EmbeddingPipelines("key", script.address) as client:
        answers = [client.search("photos", image=photo), client.search("photos", image=content)]
        answers.append(asyncio.run(work()))
        for wrong in ({}, {"query": "a", "image": photo}):
            with pytest.raises(BadRequest, match="one of a query, an image, and the ids"):
                client.search("photos", **wrong)  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            client.search("photos", image=tmp_path / "b.jpg")
        monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 5)
        for large in (photo, content):
            with pytest.raises(BadRequest, match="it is larger than 0 MB"):
                client.search("photos", image=large)
    assert all(isinstance(answer, SearchAnswer) for answer in answers)
    url = f"data:image/any;base64,{base64.b64encode(content).decode()}"
    assert [body for *_, body in script.requests] == [
        {"image": url, "pipeline": "photos", "k": 10}
    ] * 3
    assert image_bytes(url, "image") == content  # as the server reads it


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (401, Unauthorized), (404, NotFound), (409, Conflict), (500, Unavailable)],
)
def test_an_error_is_the_servers_sentence_and_is_not_tried_again(
    script: Script, status: int, kind: type[Exception]
) -> None:
    script.answers = [(status, {"error": "Invalid config: x"})]
    with (
        EmbeddingPipelines("key", script.address) as client,
        pytest.raises(kind, match=r"^Invalid config: x$"),
    ):
        client.create_pipeline({"model": "x"})
    assert len(script.requests) == 1


def test_a_server_of_another_kind_is_said(script: Script) -> None:
    script.answers = [(200, "<html>"), (418, "tea")]
    with EmbeddingPipelines("key", script.address) as client:
        with pytest.raises(Unavailable, match="Is this its address"):
            client.list()
        with pytest.raises(BadRequest, match="answered 418 and no reason"):
            client.list()


def test_waiting_ends_with_the_run_or_in_time(script: Script, pauses: list[float]) -> None:
    running = {**RUN, "status": "running"}
    failed = {**RUN, "status": "failed", "error": "no room on the disk"}
    script.answers = [(200, running), (200, running), (200, failed), (200, running)]
    with EmbeddingPipelines("key", script.address) as client:
        with pytest.raises(RunFailed, match=r"run of p\): no room on the disk"):
            client.wait(str(RUN["run_id"]))
        assert pauses == sorted(pauses)
        assert len(pauses) == 2
        with pytest.raises(TimeoutError, match=r"still running\. It goes on"):
            client.wait(str(RUN["run_id"]), timeout_seconds=0)


@pytest.mark.parametrize(
    ("id", "path"),
    [
        ("../keys", "..%2Fkeys"),
        ("a/b?c=d#e", "a%2Fb%3Fc%3Dd%23e"),
        ("a\r\nX-Key: b", "a%0D%0AX-Key%3A%20b"),
        (12, "12"),
    ],
)
def test_an_id_is_one_part_of_the_path(script: Script, id: int | str, path: str) -> None:
    script.answers = [(404, {"error": "none"})]
    with EmbeddingPipelines("key", script.address) as client, pytest.raises(NotFound):
        client.delete(id)
    assert script.requests[0][1] == f"/api/embedding-pipelines/{path}"


def test_dots_alone_are_no_id() -> None:
    with EmbeddingPipelines("key") as client, pytest.raises(BadRequest, match="is no pipeline"):
        client.get("..")


@pytest.mark.parametrize("key", ["a\r\nX-Other: b", "a b", "käse", "a\x00"])
def test_a_key_that_would_be_another_header_is_refused(key: str) -> None:
    with pytest.raises(BadRequest) as error:
        EmbeddingPipelines(key)
    assert key not in str(error.value)


@pytest.mark.parametrize("server", ["my-server:8080", "ftp://a", "http://", "http://a?b=c"])
def test_an_address_that_is_none_is_said(server: str) -> None:
    with pytest.raises(BadRequest, match="is no server"):
        EmbeddingPipelines("key", server)


def test_the_key_is_that_of_the_environment(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_API_KEY", "mine")
    script.answers = [(200, {"pipelines": []}), (200, {"pipelines": []})]
    with EmbeddingPipelines(server=script.address) as client:
        client.list()
    with EmbeddingPipelines("", script.address) as client:
        client.list()
    assert script.requests[0][2]["Authorization"] == "Bearer mine"
    assert "Authorization" not in script.requests[1][2]


def test_the_key_follows_no_redirection(script: Script) -> None:
    script.answers = [(307, "", {"Location": f"{script.address}/elsewhere"})]
    with EmbeddingPipelines("key", script.address) as client, pytest.raises(BadRequest):
        client.list()
    assert len(script.requests) == 1


def test_it_needs_neither_the_server_nor_anything_heavy() -> None:
    code = (
        "import sys\n"
        "for name in ('fastapi', 'uvicorn', 'starlette'): sys.modules[name] = None\n"
        "from embedding_pipelines import EmbeddingPipelines\n"
        "EmbeddingPipelines(api_key='key').close()\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"dagster", "lancedb", "pyarrow", "numpy", "torch"} & set(loaded)
    own = {name for name in loaded if name.startswith("embedding_pipelines.")}
    assert own <= {
        "embedding_pipelines.serving",
        "embedding_pipelines.serving.client",
        "embedding_pipelines.serving.wire",
        "embedding_pipelines.errors",
    }
