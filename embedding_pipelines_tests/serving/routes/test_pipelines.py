"""Management over HTTP: what is created, listed, refused; long work is a stub's here."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.deployments import Deployment, write_deployment
from embedding_pipelines.serving.api import create_app
from embedding_pipelines.serving.auth import Keys, add_key
from embedding_pipelines.serving.runs import Runs
from embedding_pipelines.serving.server import Server
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.test_runs import STUB, until

PATH = "/api/embedding-pipelines"
CONFIG = {"model": "hashing", "data_path": "data/texts.csv"}


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A home with data and no pipelines."""
    write_csv(tmp_path, "texts.csv", [(1, "red fox"), (2, "blue whale")], "id,text")
    server = Server(tmp_path, Keys("key", tmp_path))
    server.runs = Runs(tmp_path, (sys.executable, "-c", STUB))
    return server


@pytest.fixture
def client(server: Server) -> Iterator[TestClient]:
    with TestClient(create_app(server)) as client:
        client.headers["Authorization"] = "Bearer key"
        yield client
    (server.home / "end").write_text("")


def add(client: TestClient, **config: Any) -> dict[str, Any]:
    reply = client.post(PATH, json={**CONFIG, **config})
    assert reply.status_code == 201, reply.text
    values: dict[str, Any] = reply.json()
    return values


def test_a_pipeline_is_created_with_a_number_and_a_file(client: TestClient, server: Server) -> None:
    reply = client.post(PATH, json=CONFIG)
    assert reply.status_code == 201
    created = reply.json()
    assert (created["id"], created["pipeline"], created["status"]) == (1, "texts", "new")
    assert reply.headers["Location"] == f"{PATH}/1"
    assert find_pipeline("texts", server.home).model.kind == "hashing"
    for id in (1, "texts"):
        assert client.get(f"{PATH}/{id}").json()["pipeline"] == "texts"


def test_the_same_configuration_is_the_same_pipeline(client: TestClient) -> None:
    first = add(client)
    again = client.post(PATH, json=CONFIG)
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert not again.json()["is_new"]
    other = add(client, partitions=4)  # another one, of the same file
    assert (other["id"], other["pipeline"]) == (2, "texts_2")
    named = client.post(PATH, json={**CONFIG, "name": "texts", "partitions": 8})
    assert named.status_code == 409
    assert "There is another pipeline 'texts', in pipelines/texts.yaml" in named.json()["error"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "source"),
        ({**CONFIG, "model": "no-such-model"}, "'no-such-model' is no known alias"),
        ({**CONFIG, "colour": "red"}, "colour"),
        ({**CONFIG, "data_path": "data/nothing.csv"}, "data/nothing.csv"),
        ({**CONFIG, "output_dim": 7}, "output_dim is 7, but model and compression give"),
        ({**CONFIG, "name": "../texts"}, "cannot name a pipeline"),
        ({**CONFIG, "name": 7}, "name: 7 is no text"),
        ({**CONFIG, "name": "class"}, "cannot name a pipeline"),
        ({**CONFIG, "data_path": "/etc/passwd.csv"}, "outside the server's home folder"),
        ({**CONFIG, "output": "/srv/elsewhere"}, "outside the server's home folder"),
        ({**CONFIG, "output": "s3://mine/../x/"}, "outside the server's home folder"),
        ({**CONFIG, "output": "s3://somewhere/else/"}, "delivers nothing to s3://somewhere/else/"),
        ({**CONFIG, "data_path": "data/../../x.csv"}, "outside the server's home folder"),
        ({**CONFIG, "data_path": "~root/x.csv"}, "outside the server's home folder"),
        (
            {"model": "hashing", "source": {"kind": "sql", "url": "sqlite:////etc/x.db"}},
            "source.url",
        ),
        (
            {"model": "hashing", "source": {"kind": "sql", "url": "sqlite://localhost//etc/x.db"}},
            "source.url",
        ),
        ({**CONFIG, "data_path": "data\n/../../x.csv"}, "outside the server's home folder"),
        ({**CONFIG, "evaluation": {"qrels": "../qrels.tsv"}}, "evaluation.qrels"),
        (
            {"model": {"provider": "hf", "model": "/root/model"}, "data_path": "a.csv"},
            "model.model",
        ),
        ({**CONFIG, "description": "x" * 300_000}, "KiB"),
        ({**CONFIG, "description": "${PATH}"}, "${PATH} is no variable"),
        ({**CONFIG, "model": {"provider": "custom", "cls": "m:M"}}, "--custom-code"),
        (
            {
                **CONFIG,
                "model": {"provider": "cohere", "model": "embed-v4.0", "api_key_env": "HOME"},
            },
            "does not send HOME to https://api.cohere.com",
        ),
    ],
)
def test_a_wrong_configuration_is_400_and_writes_nothing(
    client: TestClient, server: Server, config: dict[str, Any], words: str
) -> None:
    reply = client.post(PATH, json=config)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"].startswith("Invalid config: ")
    assert words in reply.json()["error"]
    assert str(server.home) not in reply.text
    assert not list((server.home / "pipelines").glob("*"))


@pytest.mark.parametrize("body", ["", "{", "[]", '"x"', '{"a": NaN}'])
def test_what_is_no_object_is_400(client: TestClient, body: str) -> None:
    reply = client.post(PATH, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]


def test_a_list_is_narrowed_by_the_words_of_the_contract(
    client: TestClient, server: Server
) -> None:
    home = server.home
    write_csv(home, "a.csv", [(1, "red fox", "animal"), (2, "blue whale", "animal")])
    for name in ("gone", "live", "edited"):
        write_pipeline(home, name, HASHING.replace("*.csv", "a.csv"))
        run_steps(home, name)
    (home / "pipelines" / "gone.yaml").unlink()
    for name in ("broken", "edited"):
        write_pipeline(home, name, "source: {kind: csv}\n")
    add(client)

    def named(word: str) -> list[str]:
        reply = client.get(PATH, params={"filter": word})
        assert reply.status_code == 200
        return [each["pipeline"] for each in reply.json()["pipelines"]]

    assert named("all") == ["broken", "edited", "gone", "live", "texts"]
    assert named("active") == ["edited", "live"]  # whose release is searched
    assert named("failed") == ["broken", "edited"]
    edited = client.get(f"{PATH}/edited").json()
    assert (edited["status"], edited["live_release"], edited["live_rows"]) == ("broken", 1, 2)
    assert named("archived") == ["gone"]
    assert named("deployed") == named("building") == []
    deployment = Deployment(
        endpoint="http://my-server:8080",
        target="server",
        pipeline="live",
        release=1,
        space_id="x",
        deployed_at=datetime.now(UTC),
    )
    write_deployment(server.warehouse.pipeline("live"), deployment)
    assert named("deployed") == ["live"]
    assert len(client.get(PATH).json()["pipelines"]) == 5  # all, if nobody says a word
    assert client.get(f"{PATH}/gone").json()["status"] == "archived"
    assert client.post(f"{PATH}/gone/run").status_code == 404  # there is no file to run by
    reply = client.get(PATH, params={"filter": "activ"})
    assert reply.status_code == 400
    assert (
        "active, building, failed, deployed, archived, all. Did you mean 'active'?"
        in (reply.json()["error"])
    )


def test_long_work_is_202_and_a_run_to_ask_for(client: TestClient, server: Server) -> None:
    add(client)
    reply = client.post(f"{PATH}/1/run")
    assert reply.status_code == 202
    run = reply.json()
    assert (run["status"], run["kind"], run["pipeline"]) == ("running", "run", "texts")
    assert reply.headers["Location"] == f"{PATH}/runs/{run['run_id']}"
    assert client.get(f"{PATH}/1").json()["status"] == "running"
    (building,) = client.get(PATH, params={"filter": "building"}).json()["pipelines"]
    assert building["pipeline"] == "texts"
    for method, path in (("POST", "run"), ("POST", "optimize"), ("DELETE", "")):
        body = {"method": "int8"} if path == "optimize" else None
        refused = client.request(method, f"{PATH}/1/{path}".rstrip("/"), json=body)
        assert refused.status_code == 409, refused.text
        assert run["run_id"] in refused.json()["error"]
    (server.home / "end").write_text("")
    until(lambda: client.get(reply.headers["Location"]).json()["status"] == "succeeded")
    assert [each["run_id"] for each in client.get(f"{PATH}/1/runs").json()["runs"]] == [
        run["run_id"]
    ]
    deleted = client.delete(f"{PATH}/1")
    assert deleted.status_code == 200
    assert deleted.json()["pipeline"] == "texts"
    assert client.get(f"{PATH}/1").status_code == 404
    assert add(client)["id"] == 1  # a number stays its name's


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "method"),
        ({"method": "int9"}, "'int9'"),
        ({"method": "pca", "dimensions": 0}, "dimensions"),
        ({"method": "int8", "dimensions": 8}, "--dimensions is 8"),
        ({"method": ["auto", "pca"], "floor": 0.9}, "stands alone"),
        ({"method": "pca", "dimensions": 8, "speed": 1}, "speed"),
        ({"method": []}, "method"),
    ],
)
def test_a_wrong_goal_is_400_and_starts_nothing(
    client: TestClient, server: Server, body: dict[str, Any], words: str
) -> None:
    add(client)
    reply = client.post(f"{PATH}/1/optimize", json=body)
    assert reply.status_code == 400, reply.text
    assert words in reply.json()["error"]
    assert server.runs.at_work("texts") is None


@pytest.mark.parametrize(
    "id",
    [
        *("2", "0", "-1", "1.0", "%31%00", "none", "..", "..%2Fkeys", "texts%2F..", "Texts"),
        *("9" * 5000, "a" * 5000, "١", "texts%0d%0aX-A:%20b"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("GET", "/runs"), ("POST", "/run"), ("DELETE", "")]
)
def test_an_id_of_no_pipeline_is_404_and_touches_nothing(
    client: TestClient, server: Server, id: str, method: str, path: str
) -> None:
    (server.home / "pipelines").mkdir(exist_ok=True)
    reply = client.request(method, f"{PATH}/{id}{path}")
    assert reply.status_code in (400, 404, 405), reply.text
    assert reply.json()["error"]
    assert "X-A" not in reply.headers
    assert not (server.home / "data" / "warehouse" / "runs").exists() or not list(
        (server.home / "data" / "warehouse" / "runs").glob("*.json")
    )


def test_a_key_of_a_request_that_is_no_uuid_is_400(client: TestClient) -> None:
    add(client)
    reply = client.post(f"{PATH}/1/run", headers={"Idempotency-Key": "../../x"})
    assert reply.status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"id": 1, "endpoint": "http://my-server:8080"}, 409, "release"),  # there is none yet
        ({"id": 9, "endpoint": "http://my-server:8080"}, 404, "There is no pipeline '9'"),
        ({"id": "../a", "endpoint": "http://my-server:8080"}, 404, "There is no pipeline"),
        ({"id": 1}, 400, "endpoint"),
        ({"id": 1, "endpoint": ""}, 400, "endpoint"),
        ({"endpoint": "http://my-server:8080"}, 400, "id"),
        ({"id": None, "endpoint": "x"}, 400, "id"),
    ],
)
def test_what_cannot_be_deployed_is_said(
    client: TestClient, body: dict[str, Any], status: int, words: str
) -> None:
    add(client)
    reply = client.post(f"{PATH}/deploy", json=body)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]


@pytest.mark.parametrize(("name", "sends"), [("key", True), ("other", False)])
def test_no_other_key_than_the_server_s_own_has_that_sent_to_an_endpoint(
    client: TestClient, server: Server, name: str, sends: bool
) -> None:
    add(client)
    run_steps(server.home, "texts")
    token = "key" if sends else add_key(server.home, name, "admin")
    headers = {"Authorization": f"Bearer {token}"}
    body = {"id": 1, "endpoint": "http://localhost:1"}
    reply = client.post(f"{PATH}/deploy", json=body, headers=headers)
    assert reply.status_code == 202, reply.text
    assert server.runs.read(reply.json()["run_id"]).options["sends_key"] is sends


def test_no_pipeline_has_the_server_s_key_sent_anywhere(client: TestClient) -> None:
    service = {"provider": "openai", "model": "m", "base_url": "http://evil.example/v1"}
    for name in ("EMBEDDING_API_KEY", "${EMBEDDING_API_KEY}"):
        config = {**CONFIG, "model": {**service, "api_key_env": name}}
        reply = client.post(PATH, json=config)
        assert reply.status_code == 400
        assert "Invalid config" in reply.json()["error"]


def test_what_is_deployed_nowhere_cannot_be_undeployed(client: TestClient) -> None:
    add(client)
    for body in ({"id": 1}, {"id": 1, "endpoint": "http://my-server:8080"}):
        reply = client.post(f"{PATH}/undeploy", json=body)
        assert reply.status_code == 400
        assert "is deployed to no endpoint" in reply.json()["error"]


@pytest.mark.parametrize("id", ["9" * 5000, "..", "../../p", "%2e%2e", "a\x00b", "Texts"])
def test_no_route_takes_a_path_or_an_endless_number_for_a_pipeline(
    client: TestClient, server: Server, id: str
) -> None:
    """`p` is a whole warehouse's pipeline, but of another home."""
    other = server.home / "data" / "p"
    other.mkdir()
    (other / "releases.json").write_text("{}")
    add(client)
    quoted = quote(id, safe="")
    calls = [
        client.post("/search", json={"query": "fox", "pipeline": id}),
        client.post(f"{PATH}/{quoted}/documents", json={"documents": [{"id": "1", "text": "x"}]}),
        client.post(f"{PATH}/{quoted}/documents/delete", json={"ids": ["1"]}),
        client.post(f"{PATH}/deploy", json={"id": id, "endpoint": "http://localhost:1"}),
        client.post("/v1/embeddings", json={"model": id, "input": "fox"}),
    ]
    for reply in calls:
        assert reply.status_code in (400, 404, 405), f"{reply.url}: {reply.text}"
        assert reply.json()["error"]
    assert [path.name for path in other.iterdir()] == ["releases.json"]
