"""`/health` and `/ready`."""

import errno
from pathlib import Path
from typing import NoReturn

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.serving import server
from embedding_pipelines.serving.server import Server
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.serving.homes import KEY, client_of


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
