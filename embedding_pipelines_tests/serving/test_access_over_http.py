"""Permissions over HTTP: every reply that holds documents, by the key that asks and whom it names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines import EmbeddingPipelines
from embedding_pipelines.files import write_json
from embedding_pipelines.serving.api import create_app
from embedding_pipelines.serving.auth import Keys, add_key
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import (
    PRINCIPALS_HEADER,
    BadRequest,
    Forbidden,
    principals_header,
    principals_in,
)
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.serving.homes import KEY, build, client_of
from embedding_pipelines_tests.serving.live import live

TABLE = "permissions: {kind: csv, path: acl.csv, id: document, principals: who}\n"
ROWS = ((1, "red fox", "animal"), (2, "blue whale", "animal"), (3, "secret fox", "animal"))
ACL = "document,who\n1,ann\n2,ann\n2,Béla, Zs.\n".replace("Béla, Zs.", '"Béla, Zs."')
MANAGEMENT = "/api/embedding-pipelines"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = build(tmp_path_factory.mktemp("http"), HASHING, ROWS)
    build(home, HASHING, ROWS, "open_to_all")
    write_pipeline(home, "things", HASHING + TABLE + "receipts: {share: 1}\n")
    for name, more in (("held_back", ""), ("words", "search: {mode: text}\n")):
        write_pipeline(home, name, HASHING + TABLE + more)
        folder = Warehouse(home).pipeline(name)
        folder.activity.parent.mkdir(parents=True)
        write_json(folder.activity, {"problem": "'secret fox' cannot be embedded."})
    (home / "acl.csv").write_text(ACL)
    return home


@pytest.fixture(scope="module")
def tokens(home: Path) -> dict[str, str]:
    return {
        "bound": add_key(home, "bound", "read", principals=["ann", "sales"]),
        "app": add_key(home, "app", "read", acts_for_others=True),
        "plain": add_key(home, "plain", "read"),
        "own": KEY,
    }


@pytest.fixture(scope="module")
def client(home: Path, tokens: dict[str, str]) -> Iterator[TestClient]:
    with TestClient(create_app(Server(home, Keys(KEY, home)))) as client:
        yield client


class Asking:
    """Requests of one key, for these principals."""

    def __init__(self, client: TestClient, token: str, *principals: str) -> None:
        self.client = client
        self.headers = {"Authorization": f"Bearer {token}"}
        if principals:
            self.headers[PRINCIPALS_HEADER] = principals_header(principals)

    def search(self, **body: Any) -> Any:
        body = {"pipeline": "things", "query": "fox", "k": 9} | body
        return self.client.post("/search", json=body, headers=self.headers)

    def get(self, path: str) -> Any:
        return self.client.get(path, headers=self.headers)

    def ids(self, **body: Any) -> list[str]:
        reply = self.search(**body)
        assert reply.status_code == 200, reply.text
        answers = reply.json().get("results", [reply.json()])
        return sorted({hit["document_id"] for answer in answers for hit in answer["hits"]})


@pytest.mark.parametrize(
    ("key", "principals", "expected"),
    [
        ("bound", (), ["1", "2"]),
        ("bound", ("ann",), ["1", "2"]),
        ("bound", ("sales",), []),
        ("bound", ("Béla, Zs.",), 403),
        ("app", ("Béla, Zs.",), ["2"]),
        ("app", ("nobody",), []),
        ("app", (), 403),
        ("own", ("ann",), ["1", "2"]),
        ("own", (), 403),
        ("plain", (), 403),
        ("plain", ("ann",), 403),
    ],
)
def test_a_key_finds_what_it_may(
    client: TestClient, tokens: dict[str, str], key: str, principals: tuple[str, ...], expected: Any
) -> None:
    asking = Asking(client, tokens[key], *principals)
    if isinstance(expected, int):
        reply = asking.search()
        assert reply.status_code == expected
        assert PRINCIPALS_HEADER in reply.json()["error"]
        assert "fox" not in reply.text
        return
    for mode in ("vector", "text", "hybrid"):
        found = [name for name in expected if mode != "text" or name == "1"]
        assert asking.ids(mode=mode) == found
    assert asking.ids(query=["fox", "whale"]) == expected


def test_a_pipeline_without_permissions_is_for_every_key(
    client: TestClient, tokens: dict[str, str]
) -> None:
    for key in ("bound", "app", "plain", "own"):
        assert Asking(client, tokens[key]).ids(pipeline="open_to_all") == ["1", "2", "3"]


def test_a_map_and_a_thumbnail_are_of_what_may_be_seen(
    client: TestClient, tokens: dict[str, str]
) -> None:
    bound, plain = Asking(client, tokens["bound"]), Asking(client, tokens["plain"])
    reply = bound.get("/page/map?pipeline=things")
    assert sorted(reply.json()["documents"]) == ["1", "2"]
    assert (reply.json()["rows"], len(reply.json()["x"])) == (2, 2)
    assert "secret" not in reply.text
    assert plain.get("/page/map?pipeline=things").status_code == 403
    thumbnail = "/page/thumbnail?pipeline=things&document="
    assert plain.get(f"{thumbnail}1").status_code == 403
    replies = [bound.get(f"{thumbnail}{name}") for name in ("3", "none")]
    assert [reply.status_code for reply in replies] == [404, 404]
    assert replies[0].text.replace("'3'", "'none'") == replies[1].text


def test_what_failed_before_the_first_release_is_quoted_to_nobody(
    client: TestClient, tokens: dict[str, str]
) -> None:
    bound = Asking(client, tokens["bound"])
    for name in ("held_back", "words"):
        replies = [
            bound.search(pipeline=name),
            bound.get(f"/page/map?pipeline={name}"),
            bound.get(f"/page/thumbnail?pipeline={name}&document=1"),
        ]
        for reply in replies:
            assert reply.status_code == 409
            assert reply.json()["error"] == f"Pipeline {name!r} has no release yet."


def test_a_header_that_stands_twice_is_refused(client: TestClient, tokens: dict[str, str]) -> None:
    """A proxy that adds one leaves that of its client where it is."""
    headers = [("Authorization", f"Bearer {tokens['app']}")]
    for name in ("ann", "nobody"):
        headers.append((PRINCIPALS_HEADER, name))
    body = {"pipeline": "things", "query": "fox"}
    reply = client.post("/search", json=body, headers=headers)
    assert reply.status_code == 400
    assert reply.json() == {"error": "X-Principals: it stands 2 times. Send it once."}


def test_feedback_says_nothing_of_what_may_not_be_seen(
    client: TestClient, tokens: dict[str, str]
) -> None:
    receipt = Asking(client, tokens["own"], "ann").search().json()["receipt_id"]
    path = f"{MANAGEMENT}/things/feedback"
    for key, document, status in (
        ("bound", "1", 200),
        ("bound", "3", 404),
        ("plain", "1", 403),
    ):
        body = {"receipt_id": receipt, "document_id": document}
        reply = client.post(path, json=body, headers=Asking(client, tokens[key]).headers)
        assert reply.status_code == status, (key, reply.text)


def test_status_and_runs_quote_nothing_to_a_key_that_only_reads(
    client: TestClient, tokens: dict[str, str]
) -> None:
    for key, quotes in (("bound", False), ("plain", False), ("own", True), ("app", True)):
        asking = Asking(client, tokens[key])
        for name, is_shown in (("things", quotes), ("open_to_all", True)):
            for row in (
                asking.get(f"{MANAGEMENT}/{name}").json(),
                *(
                    each
                    for each in asking.get(MANAGEMENT).json()["pipelines"]
                    if each["pipeline"] == name
                ),
            ):
                assert (row["freshness"] is not None) == is_shown, key
                assert row["live_rows"] == 3


def test_permissions_that_are_gone_answer_nothing_and_those_of_now_count(
    home: Path, client: TestClient, tokens: dict[str, str]
) -> None:
    bound = Asking(client, tokens["bound"])
    try:
        (home / "acl.csv").write_text("document,who\n2,ann\n")
        assert bound.ids() == ["2"]
        (home / "acl.csv").unlink()
        for reply in (bound.search(), bound.get("/page/map?pipeline=things")):
            assert reply.status_code == 503
            assert "'things' answers nothing, since its permissions" in reply.json()["error"]
            assert "acl" not in reply.text
            assert str(home) not in reply.text
        assert bound.ids(pipeline="open_to_all") == ["1", "2", "3"]
    finally:
        (home / "acl.csv").write_text(ACL)
    assert bound.ids() == ["1", "2"]


def test_a_server_without_keys_reads_for_whom_the_header_says(home: Path) -> None:
    with client_of(home) as client:
        body = {"pipeline": "things", "query": "fox"}
        assert client.post("/search", json=body).status_code == 403
        reply = client.post("/search", json=body, headers={PRINCIPALS_HEADER: "ann"})
        assert {hit["document_id"] for hit in reply.json()["hits"]} == {"1", "2"}


def test_the_client_says_for_whom(home: Path) -> None:
    key = "own"
    with live(home, key) as (address, _, _):
        with EmbeddingPipelines(key, address, principals=["Béla, Zs."]) as client:
            assert [hit.document_id for hit in client.search("things", "fox").hits] == ["2"]  # type: ignore[union-attr]
            hits = client.search("things", "fox", principals=["ann", "x"]).hits  # type: ignore[union-attr]
            assert {hit.document_id for hit in hits} == {"1", "2"}
        with EmbeddingPipelines(key, address, retries=0) as client, pytest.raises(Forbidden):
            client.search("things", "fox")
    wrong: list[Any] = ["ann", [], ["a", " "], [1]]
    for principals in wrong:
        with pytest.raises(BadRequest, match="Give a list of names"):
            EmbeddingPipelines(key, address, principals=principals)


@pytest.mark.parametrize("names", [["ann"], ["Béla, Zs.", "a%2Cb", "group:x@y.org/z"], ["中"]])
def test_names_come_through_the_header(names: list[str]) -> None:
    header = principals_header(names)
    assert header.isascii()
    assert list(principals_in(header)) == names
