"""What a server has open, and what it waits for at its start."""

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.serving import server as server_module
from embedding_pipelines.serving.auth import Keys
from embedding_pipelines.serving.models import ServedModel, ServedReranker
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import NotFound
from embedding_pipelines_tests.chain import copy_home, write_pipeline
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


@pytest.mark.anyio
async def test_a_cross_encoder_that_no_pipeline_names_any_more_is_closed_after_its_last_request(
    built_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: None
) -> None:
    copy_home(built_home, tmp_path)
    files = {name: HASHING + f"search: {{rerank: {name}}}\n" for name in ("tiny", "little")}
    for name, text in files.items():
        write_pipeline(tmp_path, f"with_{name}", text)
    monkeypatch.setattr(server_module, "REFRESH_SECONDS", 0.0)
    server, closed = Server(tmp_path, Keys(None)), list[str]()
    monkeypatch.setattr(ServedReranker, "_free", lambda self: closed.append(self.name))
    await server.open()
    await server.wait_until_ready()
    little, tiny = sorted(await server.rerankers(), key=lambda each: each.name)
    with tiny.in_use():
        for name in files:
            write_pipeline(tmp_path, f"with_{name}", HASHING)
        assert await server.rerankers() == []
        assert closed == ["little"]
        assert (await tiny.score("a", ["bc"])).scores.tolist() == [2.0]
    await server.served()
    assert closed == ["little", "tiny"]
    assert little not in server.workers
    await server.close()
    assert closed == ["little", "tiny"]


@pytest.mark.anyio
async def test_what_was_released_since_the_last_look_is_found(
    built_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REFRESH_SECONDS", 60.0)
    monkeypatch.setattr(server_module, "UNKNOWN_SECONDS", 0.0)
    server = Server(tmp_path, Keys(None))
    await server.open()
    await server.wait_until_ready()
    with pytest.raises(NotFound, match="There is no model 'things' here"):
        await server.find("things")
    copy_home(built_home, tmp_path)
    assert (await server.find("things")).name == "things"
    await server.close()


@pytest.mark.anyio
async def test_a_model_stays_open_for_work_that_its_request_gave_up(
    built_home: Path, tmp_path: Path
) -> None:
    copy_home(built_home, tmp_path)
    server, ends = Server(tmp_path, Keys(None)), threading.Event()
    await server.open()
    model = (await server.find("things")).model
    work = asyncio.create_task(model.in_thread(ends.wait, 60))
    await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert model.users == 1
    ends.set()
    async with asyncio.timeout(60):
        while model.users:
            await asyncio.sleep(0.01)
    await server.close()
