"""The container that SageMaker starts: a real process that answers /ping and /invocations alone."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.serving.bundle import write_bundle
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.commands import EXECUTABLE
from embedding_pipelines_tests.serving.processes import serving


@pytest.fixture(scope="module")
def bundle(built_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As SageMaker unpacks it: a folder."""
    folder = tmp_path_factory.mktemp("bundle") / "model"
    write_bundle(Warehouse(built_home), "things", folder, with_shards=False)
    return folder


@pytest.fixture(scope="module")
def address(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a container; a home folder has no part in it."""
    home = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDDING_PIPELINES_SAGEMAKER", "1")
        with serving(home, "--bundle", str(bundle)) as address:
            yield address.replace("0.0.0.0", "127.0.0.1")
    assert not list(home.iterdir())


def invoke(address: str, **body: object) -> httpx2.Response:
    # SageMaker passes the content's type on, and no other header of the caller's.
    return httpx2.post(f"{address}/invocations", json=body, timeout=30)


def test_ping_answers_at_once(address: str) -> None:
    assert httpx2.get(f"{address}/ping", timeout=2).status_code == 200


def test_it_embeds(address: str) -> None:
    reply = invoke(address, model="things", input=["red fox", "blue whale"])
    assert reply.status_code == 200, reply.text
    vectors = [item["embedding"] for item in reply.json()["data"]]
    true = Hashing().open(Path()).embed(["red fox", "blue whale"], "document").vectors
    np.testing.assert_allclose(vectors, true, atol=1e-6)


@pytest.mark.parametrize("body", [{}, {"unknown": 1}, {"documents": ["x"]}])
def test_what_it_cannot_tell_is_said(address: str, body: dict[str, object]) -> None:
    reply = invoke(address, **body)
    assert reply.status_code == 400
    assert "Send a JSON object" in reply.json()["error"]


def test_what_is_no_json_is_said(address: str) -> None:
    for content in (b"", b"{", b"[]", b"[" * 100_000, b"\xff"):
        reply = httpx2.post(f"{address}/invocations", content=content)
        assert reply.status_code == 400
        assert "error" in reply.json()


def test_a_body_that_is_too_large_is_refused(address: str) -> None:
    reply = httpx2.post(f"{address}/invocations", content=b" " * (33 << 20), timeout=60)
    assert reply.status_code == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/docs"),
        ("POST", "/ping"),
        ("GET", "/invocations"),
        ("GET", "/api/embedding-pipelines"),
        ("POST", "/v1/embeddings"),
        ("DELETE", "/api/deployments/things"),
    ],
)
def test_nothing_else_is_open(address: str, method: str, path: str) -> None:
    """For it asks for no key."""
    assert httpx2.request(method, f"{address}{path}").status_code == 404


def test_a_bundle_that_is_damaged_does_not_start(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "golden.parquet"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        done = subprocess.run(
            [EXECUTABLE, "serve", "--bundle", str(bundle), "--port", "0"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
    finally:
        path.write_bytes(before)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "golden.parquet' is damaged: its checksum is another one" in done.stderr


def test_sigterm_ends_it_within_the_30_seconds_that_it_has(bundle: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [EXECUTABLE, "serve", "--sagemaker", "--bundle", str(bundle), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "EMBEDDING_API_KEY": ""},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Ready on http://0.0.0.0:")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_it_searches_and_embeds_in_cohere_s_form(address: str) -> None:
    reply = invoke(address, query="blue whale", k=1)
    assert reply.status_code == 200, reply.text
    assert [hit["document_id"] for hit in reply.json()["hits"]] == ["2"]
    reply = invoke(
        address,
        model="things",
        texts=["red fox"],
        input_type="search_query",
        embedding_types=["float"],
    )
    assert len(reply.json()["embeddings"]["float"][0]) == 64, reply.text
