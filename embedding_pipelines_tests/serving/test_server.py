"""What a server has open, and what it waits for at its start."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.serving.models import ServedModel
from embedding_pipelines.serving.server import Server
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.homes import KEY, client_of
from embedding_pipelines_tests.serving.live import wait_until


def test_it_is_ready_without_the_models_of_what_has_no_release(
    built_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, answered = tmp_path / "home", threading.Event()
    shutil.copytree(built_home, home)
    write_pipeline(home, "elsewhere", HASHING.replace("hashing", "hashing, dimensions: 8"))
    warm = ServedModel._warm

    def from_a_hub(model: ServedModel) -> Any:
        if getattr(model.options, "dimensions", 0) != 8:
            return warm(model)
        assert answered.wait(60)
        raise ProviderError("The hub has no such model. Name another one.")

    monkeypatch.setattr(ServedModel, "_warm", from_a_hub)
    with client_of(home, KEY) as client:
        try:
            server: Server = client.app.state.server  # type: ignore[attr-defined]
            assert client.portal is not None
            client.portal.call(server.wait_until_ready)
            assert client.get("/ready").json() == {"status": "ok", "problems": {}}
            body = {"pipeline": "things", "query": "fox"}
            assert client.post("/search", json=body).status_code == 200
        finally:
            answered.set()
        wait_until(lambda: client.get("/ready").json()["problems"])
        assert client.get("/ready").json() == {
            "status": "ok",
            "problems": {"elsewhere": "The hub has no such model. Name another one."},
        }
        reply = client.post("/v1/embeddings", json={"model": "elsewhere", "input": "fox"})
        assert (reply.status_code, "no such model" in reply.json()["error"]) == (503, True)
