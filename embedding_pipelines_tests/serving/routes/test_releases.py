"""Routes that change which release is live, and the plan of a run: who may ask, and for what."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.releases import Releases, read_releases, write_releases
from embedding_pipelines.serving.api import create_app
from embedding_pipelines.serving.auth import SCOPES, Keys, add_key
from embedding_pipelines.serving.runs import Runs
from embedding_pipelines.serving.server import Server
from embedding_pipelines.spec.load import read_pipeline
from embedding_pipelines_tests.chain import copy_home, write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.test_runs import STUB, until

PATH = "/api/embedding-pipelines"


@pytest.fixture
def server(built_home: Path, tmp_path: Path) -> Server:
    """Its pipeline `things` has a release, `new` has none; long work is a stub's."""
    copy_home(built_home, tmp_path)
    write_pipeline(tmp_path, "new", HASHING)
    server = Server(tmp_path, Keys("key", tmp_path))
    server.runs = Runs(tmp_path, (sys.executable, "-c", STUB))
    return server


@pytest.fixture
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(create_app(server)) as client:
        client.headers["Authorization"] = "Bearer key"
        yield client
    (server.home / "end").write_text("")


@pytest.mark.parametrize(
    ("path", "body", "scope", "options"),
    [
        ("plan", None, "write", {}),
        ("rollback", {}, "write", {"to": None}),
        ("release", {"reason": " It is so. "}, "admin", {"reason": "It is so."}),
        ("forget", {"ids": ["1"]}, "admin", {"ids": ["1"], "sources": [], "undo": False}),
    ],
)
def test_it_is_a_run_that_a_key_of_its_scope_starts(
    client: TestClient, server: Server, path: str, body: Any, scope: str, options: dict[str, Any]
) -> None:
    for each in SCOPES[: SCOPES.index(scope)]:
        headers = {"Authorization": f"Bearer {add_key(server.home, each, each)}"}
        refused = client.post(f"{PATH}/things/{path}", json=body, headers=headers)
        assert (refused.status_code, f"this takes {scope}" in refused.text) == (403, True)
    headers = {"Authorization": f"Bearer {add_key(server.home, 'enough', scope)}"}
    reply = client.post(f"{PATH}/things/{path}", json=body, headers=headers)
    assert (reply.status_code, reply.json()["kind"]) == (202, path), reply.text
    assert reply.headers["Location"] == f"{PATH}/runs/{reply.json()['run_id']}"
    assert server.runs.read(reply.json()["run_id"]).options == options


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("nothing/plan", None, 404, "There is no pipeline 'nothing'"),
        ("nothing/rollback", {}, 404, "There is no pipeline 'nothing'"),
        ("new/rollback", {}, 409, "has no release yet"),
        ("things/rollback", {"to": 0}, 400, "to: "),
        ("things/rollback", {"from": 1}, 400, "from: "),
        ("things/release", {}, 400, "reason: "),
        ("things/release", {"reason": "  "}, 400, "reason: "),
        ("things/forget", {}, 400, "name documents by ids, or source files by sources"),
        ("things/forget", {"ids": [""]}, 400, "ids[0]: "),
        ("things/forget", {"ids": "1"}, 400, "ids: "),
    ],
)
def test_what_cannot_be_is_said_and_starts_nothing(
    client: TestClient, server: Server, path: str, body: Any, status: int, words: str
) -> None:
    reply = client.post(f"{PATH}/{path}", json=body)
    assert (reply.status_code, words in reply.json()["error"]) == (status, True), reply.text
    assert not list(server.runs.folder.glob("*.json"))


def test_a_rollback_waits_for_no_run_and_a_release_for_the_end_of_one(client: TestClient) -> None:
    run = client.post(f"{PATH}/things/run").json()
    for path, body in (("release", {"reason": "x"}), ("forget", {"ids": ["1"]})):
        refused = client.post(f"{PATH}/things/{path}", json=body)
        assert (refused.status_code, run["run_id"] in refused.text) == (409, True)
    assert client.post(f"{PATH}/things/rollback", json={}).status_code == 202
    assert client.post(f"{PATH}/things/plan").status_code == 202


@pytest.mark.parametrize("path", ["plan", "rollback"])
def test_a_pipeline_at_work_is_not_deleted(client: TestClient, server: Server, path: str) -> None:
    run = client.post(f"{PATH}/things/{path}", json={}).json()
    refused = client.delete(f"{PATH}/things")
    assert (refused.status_code, run["run_id"] in refused.text) == (409, True)
    (server.home / "end").write_text("")
    until(lambda: client.get(f"{PATH}/runs/{run['run_id']}").json()["status"] != "running")
    assert client.delete(f"{PATH}/things").status_code == 200


def test_what_forgets_does_not_count_as_building(client: TestClient) -> None:
    assert client.post(f"{PATH}/things/forget", json={"ids": ["1"]}).status_code == 202
    things = client.get(f"{PATH}/things").json()
    assert (things["status"], things["states"]) == ("forgetting", ["active"])
    assert client.get(PATH, params={"filter": "building"}).json()["pipelines"] == []


def test_whoever_sees_what_does_not_change_by_a_rollback(
    client: TestClient, server: Server
) -> None:
    """Without its file a pipeline has the permissions of its live release, which another may lack."""
    permissions = "permissions: {kind: csv, path: acl.csv, id: document, principals: who}\n"
    spec = read_pipeline(write_pipeline(server.home, "things", f"{HASHING}{permissions}"))
    folder = server.warehouse.pipeline("things")
    (live,) = read_releases(folder).releases
    write_releases(folder, Releases(live=1, releases=[live.model_copy(update={"spec": spec})]))
    for status in (202, 409):
        reply = client.post(f"{PATH}/things/rollback", json={})
        assert (reply.status_code, "Put the file back" in reply.text) == (status, status == 409)
        (server.home / "end").write_text("")
        (server.home / "pipelines" / "things.yaml").unlink(missing_ok=True)


def test_why_it_failed_says_nothing_of_where_the_home_is(
    client: TestClient, server: Server
) -> None:
    (server.home / "end").write_text(f"{server.home}/pipelines/things.yaml:1: no such key.")
    place = client.post(f"{PATH}/things/plan").headers["Location"]
    until(lambda: client.get(place).json()["status"] == "failed")
    assert client.get(place).json()["error"] == "pipelines/things.yaml:1: no such key."
