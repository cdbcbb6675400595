"""`/health` and `/ready`."""

import errno
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.releases import Releases, write_releases
from embedding_pipelines.serving import server
from embedding_pipelines.serving.lanes import Budget
from embedding_pipelines.serving.models import ServedModel, ServedReranker
from embedding_pipelines.serving.server import Server
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.homes import KEY, build, client_of
from embedding_pipelines_tests.serving.live import wait_until


def test_health_and_readiness_need_no_key(client: TestClient) -> None:
    del client.headers["Authorization"]
    assert client.get("/health").json()["status"] == "ok"


def test_what_is_wrong_with_a_pipeline_is_said_to_whoever_has_a_key(tmp_path: Path) -> None:
    write_pipeline(tmp_path, "broken", "source: {kind: csv}\n")
    with client_of(tmp_path, KEY) as client:
        assert client.portal is not None
        client.portal.call(client.app.state.server.wait_until_ready)  # type: ignore[attr-defined]
        assert "broken" in client.get("/ready").json()["problems"]
        for key in ("", "Bearer wrong"):
            reply = client.get("/ready", headers={"Authorization": key})
            assert reply.json() == {"status": "ok", "problems": {}}


def test_what_cannot_be_read_is_not_gone(built_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error", "releases.json")

    with client_of(built_home, KEY) as client:
        assert client.post("/search", json={"query": "fox"}).status_code == 200
        monkeypatch.setattr(server, "REFRESH_SECONDS", -1.0)
        for name in ("_stamp", "pipeline_files"):
            monkeypatch.setattr(server, name, fail)
            assert client.post("/search", json={"query": "fox"}).status_code == 200
            assert "Input/output error" in str(client.get("/ready").json()["problems"])


def test_a_server_that_is_about_to_end_is_not_ready(client: TestClient) -> None:
    served: Server = client.app.state.server  # type: ignore[attr-defined]
    assert client.portal is not None
    client.portal.call(served.wait_until_ready)
    assert client.get("/ready").status_code == 200
    served.is_draining = True
    reply = client.get("/ready")
    assert (reply.status_code, reply.json()["status"]) == (503, "draining")
    assert client.get("/health").status_code == 200


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The dimensions of models that cannot be loaded, as if their folders were gone."""
    dimensions: set[int] = {64}
    warm = ServedModel._warm

    def load(model: ServedModel) -> Any:
        if getattr(model.options, "dimensions", 0) in dimensions:
            raise ProviderError("there is no such folder")
        return warm(model)

    monkeypatch.setattr(ServedModel, "_warm", load)
    return dimensions


def test_a_server_whose_live_models_are_lost_is_not_ready_until_one_is_back(
    built_home: Path, lost: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(built_home, KEY) as client:
        assert client.portal is not None
        client.portal.call(client.app.state.server.wait_until_ready)  # type: ignore[attr-defined]
        reply = client.get("/ready")
        expected = {"status": "failing", "problems": {"things": "there is no such folder"}}
        assert (reply.status_code, reply.json()) == (503, expected)
        assert client.get("/ready", headers={"Authorization": ""}).json()["problems"] == {}
        assert client.get("/health").status_code == 200
        lost.clear()  # nobody sends a request with which it would be tried
        monkeypatch.setattr(server, "RETRY_SECONDS", 0.0)
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.get("/ready").json() == {"status": "ok", "problems": {}}
        assert client.post("/search", json={"query": "fox"}).status_code == 200


def test_a_server_that_can_answer_one_of_its_pipelines_is_ready(
    tmp_path: Path, lost: set[int]
) -> None:
    build(tmp_path)
    build(tmp_path, HASHING.replace("hashing", "hashing, dimensions: 8"), name="others")
    with client_of(tmp_path, KEY) as client:
        assert client.portal is not None
        client.portal.call(client.app.state.server.wait_until_ready)  # type: ignore[attr-defined]
        reply = client.get("/ready")
        assert (reply.status_code, reply.json()["status"]) == (200, "ok")
        assert reply.json()["problems"] == {"things": "there is no such folder"}


def test_searches_by_words_need_no_model(tmp_path: Path, lost: set[int]) -> None:
    build(tmp_path, f"{HASHING}search: {{mode: text}}\n")
    with client_of(tmp_path, KEY) as client:
        assert client.portal is not None
        client.portal.call(client.app.state.server.wait_until_ready)  # type: ignore[attr-defined]
        assert client.get("/ready").status_code == 200
        assert client.post("/search", json={"query": "fox"}).json()["hits"]


@pytest.mark.parametrize("mode", ["vector", "text"])
def test_a_server_without_the_cross_encoder_of_its_pipeline_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    build(tmp_path, f"{HASHING}search: {{mode: {mode}, rerank: no/such}}\n")

    def fail(_: ServedReranker) -> NoReturn:
        raise ProviderError("no/such cannot be loaded as a cross-encoder")

    monkeypatch.setattr(ServedReranker, "_warm", fail)
    with client_of(tmp_path, KEY) as client:
        assert client.portal is not None
        client.portal.call(client.app.state.server.wait_until_ready)  # type: ignore[attr-defined]
        reply = client.get("/ready")
        assert (reply.status_code, reply.json()["status"]) == (503, "failing")
        assert "no/such cannot be loaded" in reply.json()["problems"]["things"]
        monkeypatch.setattr(ServedReranker, "_warm", lambda _: (Budget(1, 1), 0, 0.0))
        monkeypatch.setattr(server, "RETRY_SECONDS", 0.0)
        wait_until(lambda: client.get("/ready").status_code == 200)


def test_a_release_whose_record_cannot_be_read_is_not_ready(
    built_home: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(built_home, home)
    records = list(home.rglob("releases*"))  # and its copy
    for record in records:
        record.write_text("{}")
    with client_of(home, KEY) as client:
        assert client.portal is not None
        client.portal.call(client.app.state.server.wait_until_ready)  # type: ignore[attr-defined]
        assert client.get("/ready").status_code == 503
    # Nothing is live after all has been forgotten, say: then a file that is wrong hinders nobody.
    warehouse = Warehouse(home)
    for record in records:
        record.unlink()
    write_releases(warehouse.pipeline("things"), Releases())
    (home / "pipelines" / "things.yaml").write_text("model: no-such-model")
    with client_of(home, KEY) as client:
        assert client.portal is not None
        client.portal.call(client.app.state.server.wait_until_ready)  # type: ignore[attr-defined]
        reply = client.get("/ready")
        assert (reply.status_code, [*reply.json()["problems"]]) == (200, ["things"])
