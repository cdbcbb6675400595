"""The files of the search page and the data that only it asks for; `test_page_in_browser.py` uses
it as people do."""

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.serving.maps import Maps
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_steps, write_csv
from embedding_pipelines_tests.serving.homes import KEY, build, client_of


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/", "text/html"), ("/page/page.css", "text/css"), ("/page/page.js", "text/javascript")],
)
def test_the_page_needs_no_key_and_loads_nothing_from_elsewhere(
    path: str, media_type: str, built_home: Path
) -> None:
    with client_of(built_home, KEY) as client:
        reply = client.get(path, headers={"Authorization": ""})
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith(media_type)
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in reply.text
    assert "https://" not in reply.text
    assert "innerHTML" not in reply.text


def test_the_description_of_the_api_is_this_server_s_alone(built_home: Path) -> None:
    with client_of(built_home, KEY) as client:
        client.headers.pop("Authorization")
        page = client.get("/docs")
        names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert {
            "page/docs.js",
            "page/swagger/swagger-ui-bundle.js",
            "page/swagger/swagger-ui.css",
        } < {*names}
        for name in names:
            assert name == "data:," or client.get(f"/{name}").status_code == 200, name
        for text in (page.text, client.get("/page/docs.js").text):
            assert "//" not in text.replace("// No", "").replace("<!doctype", "")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'self'; img-src data: blob:;")
        assert "http" not in policy
        assert client.get("/page/swagger/nothing.js").status_code == 400


def test_its_data_need_a_key(built_home: Path) -> None:
    with client_of(built_home, KEY) as client:
        for path in ("/page/pipelines", "/page/map?pipeline=things"):
            assert client.get(path, headers={"Authorization": ""}).status_code == 401
            assert client.get(path).status_code == 200


def test_pipelines_without_a_release_are_not_offered(client: TestClient, built_home: Path) -> None:
    assert client.get("/page/pipelines").json() == [{"name": "things", "takes_images": False}]


def test_a_map_has_a_place_for_each_chunk_and_follows_the_live_release(tmp_path: Path) -> None:
    home = build(tmp_path)
    with client_of(home) as client:
        before = client.get("/page/map", params={"pipeline": "things"}).json()
        assert (before["release"], before["rows"]) == (1, 2)
        assert before["documents"] == ["1", "2"]
        assert before["texts"] == ["red fox", "blue whale"]
        assert all(len(before[name]) == 2 for name in ("chunks", "x", "y"))
        write_csv(home, "b.csv", [(3, "grey wolf", "animal")])
        run_steps(home, "things")
        now = client.get("/page/map", params={"pipeline": "things"}).json()
        assert (now["release"], sorted(now["documents"])) == (2, ["1", "2", "3"])


def test_a_map_shows_no_document_that_was_deleted_since(tmp_path: Path) -> None:
    home = build(tmp_path)
    with client_of(home) as client:
        for _ in range(2):  # the second from what is kept
            client.post("/api/embedding-pipelines/things/documents/delete", json={"ids": ["1"]})
            now = client.get("/page/map", params={"pipeline": "things"}).json()
            assert (now["documents"], now["texts"], len(now["x"])) == (["2"], ["blue whale"], 1)


def test_a_map_takes_no_thread_that_searches_need(built_home: Path) -> None:
    async def work() -> list[str]:
        loop, is_over = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, is_over.wait)
        maps = Maps(Warehouse(built_home))
        places = await asyncio.wait_for(maps.get("things"), 60)
        is_over.set()
        await busy
        maps.close()
        return places.documents

    assert asyncio.run(work()) == ["1", "2"]


def test_a_map_of_no_pipeline_is_an_error_in_a_sentence(client: TestClient) -> None:
    reply = client.get("/page/map", params={"pipeline": "../things"})
    assert reply.status_code in (400, 404)
    assert "../things" in reply.json()["error"]
