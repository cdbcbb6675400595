"""Keys: none, a wrong one, several with scopes and rates; and pages of other sites."""

import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.serving import auth
from embedding_pipelines.serving.api import create_app
from embedding_pipelines.serving.auth import Key, Keys, add_key, keys_file, read_keys, remove_key
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import Forbidden, TooManyRequests, Unauthorized
from embedding_pipelines_tests.serving.homes import client_of


def name_of(key: Key | None) -> str:
    return "" if key is None else key.name


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic YTpi"])
def test_without_the_right_key_a_request_is_401(client: TestClient, header: str | None) -> None:
    del client.headers["Authorization"]
    headers = {} if header is None else {"Authorization": header}
    reply = client.get("/v1/models", headers=headers)
    assert reply.status_code == 401
    assert "EMBEDDING_API_KEY" in reply.json()["error"]
    assert reply.headers["WWW-Authenticate"] == "Bearer"


def test_a_server_without_a_key_asks_for_none(built_home: Path) -> None:
    with client_of(built_home) as client:
        assert client.get("/v1/models").status_code == 200


def test_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    keys = Keys("secret words")
    assert "secret" not in repr(vars(keys))
    with pytest.raises(Unauthorized, match="The key is wrong"):
        keys.check("secret word", "read")
    keys.check("secret words", "read")
    token = add_key(tmp_path, "search-page", "read")
    assert token.removeprefix("ep_") not in keys_file(tmp_path).read_text()
    assert [key.name for key in read_keys(tmp_path)] == ["search-page"]


def test_each_scope_has_those_before_it(tmp_path: Path) -> None:
    tokens = {scope: add_key(tmp_path, scope, scope) for scope in auth.SCOPES}
    keys = Keys("own", tmp_path)
    assert name_of(keys.check("own", "admin")) == "EMBEDDING_API_KEY"
    assert name_of(keys.check(tokens["admin"], "admin")) == "admin"
    assert name_of(keys.check(tokens["write"], "read")) == "write"
    with pytest.raises(Forbidden, match="'read' may read; this takes write"):
        keys.check(tokens["read"], "write")
    with pytest.raises(Forbidden):
        keys.check(tokens["write"], "admin")


def test_a_key_counts_from_when_it_is_added_until_it_is_removed(tmp_path: Path) -> None:
    keys = Keys(None, tmp_path)
    assert keys.is_open
    first = add_key(tmp_path, "first", "read")
    assert not keys.is_open
    second = add_key(tmp_path, "second", "write")
    assert name_of(keys.check(second, "write")) == "second"
    remove_key(tmp_path, "second")
    with pytest.raises(Unauthorized):
        keys.check(second, "read")
    keys.check(first, "read")


def test_removing_the_last_key_lets_nobody_in(tmp_path: Path) -> None:
    token, keys = add_key(tmp_path, "only", "admin"), Keys(None, tmp_path)
    keys.check(token, "admin")
    remove_key(tmp_path, "only")
    for given in (None, token):
        with pytest.raises(Unauthorized):
            keys.check(given, "read")
    assert not keys.is_open


def test_a_damaged_file_of_keys_lets_nobody_in(tmp_path: Path) -> None:
    keys = Keys(None, tmp_path)
    add_key(tmp_path, "only", "admin")
    path = keys_file(tmp_path)
    path.write_text(path.read_text().replace('"admin"', '"emperor"'))
    with pytest.raises(StoreError, match="keys"):
        keys.check(None, "read")


@pytest.mark.parametrize(
    ("name", "scope", "rate", "words"),
    [
        ("a b", "read", None, "name of a key: use letters"),
        ("../a", "read", None, "name of a key"),
        ("a\r\nX: y", "read", None, "name of a key"),
        ("", "read", None, "name of a key"),
        ("a", "root", None, "scope is 'root': write one of read, write, admin"),
        ("a", "read", 0, "write a number of requests, from 1"),
        ("twice", "read", None, "There is a key 'twice'"),
    ],
)
def test_a_key_that_cannot_be_is_refused(
    tmp_path: Path, name: str, scope: str, rate: int | None, words: str
) -> None:
    add_key(tmp_path, "twice", "read")
    with pytest.raises(ConfigError, match=words):
        add_key(tmp_path, name, scope, rate)
    with pytest.raises(ConfigError, match=r"There is no key 'nobody'\. There are: twice"):
        remove_key(tmp_path, "nobody")
    assert len(read_keys(tmp_path)) == 1


def test_a_rate_is_kept_and_says_when_to_come_back(tmp_path: Path) -> None:
    token, now = add_key(tmp_path, "page", "read", per_minute=60), [0.0]
    keys = Keys("own", tmp_path, clock=lambda: now[0])
    for _ in range(60):
        keys.check(token, "read")
    with pytest.raises(TooManyRequests, match="'page' may send 60 requests a minute") as refused:
        keys.check(token, "read")
    assert refused.value.retry_after_seconds == pytest.approx(1.0)
    keys.check("own", "read")  # which has none
    now[0] = 1.0
    keys.check(token, "read")
    with pytest.raises(TooManyRequests):
        keys.check(token, "read")
    now[0] = 1000.0  # a rest of an hour saves up no more than a minute
    for _ in range(60):
        keys.check(token, "read")
    with pytest.raises(TooManyRequests):
        keys.check(token, "read")


def test_over_http_a_scope_is_403_and_a_rate_is_429(tmp_path: Path) -> None:
    token = add_key(tmp_path, "page", "read", per_minute=2)
    with TestClient(create_app(Server(tmp_path, Keys(None, tmp_path)))) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        reply = client.delete("/api/embedding-pipelines/1")
        assert (reply.status_code, "takes admin" in reply.json()["error"]) == (403, True)
        assert client.get("/api/embedding-pipelines").status_code == 200
        assert client.get("/api/embedding-pipelines").status_code == 200
        reply = client.get("/api/embedding-pipelines")
        assert reply.status_code == 429
        assert 1 <= int(reply.headers["Retry-After"]) <= 30


def test_every_key_is_compared_whole_wherever_the_right_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a comparison says nothing: all hashes, each by `compare_digest`."""
    tokens = [add_key(tmp_path, f"key-{number}", "read") for number in range(5)]
    compared, digest = list[tuple[bytes, bytes]](), hmac.compare_digest

    def compare(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return digest(given, known)

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    keys = Keys(None, tmp_path)
    for token in (tokens[0], tokens[4]):
        keys.check(token, "read")
    with pytest.raises(Unauthorized):
        keys.check("wrong", "read")
    assert len(compared) == 15
    assert all(len(given) == len(known) == 32 for given, known in compared)


@pytest.fixture
def open_client(built_home: Path) -> Iterator[TestClient]:
    with client_of(built_home) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "localhost:8080", "Origin": "http://localhost:8080"}, 200),
        ({"Host": "evil.example:8080"}, 403),  # a name that was made to mean this machine
        ({"Host": "10.0.0.7"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "localhost:8080", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost:8080", "Origin": "null"}, 403),
        ({"Host": "localhost:8080", "Origin": "http://[bad"}, 403),
    ],
)
def test_a_server_without_keys_answers_no_page_of_another_site(
    open_client: TestClient, headers: dict[str, str], status: int
) -> None:
    reply = open_client.get("/v1/models", headers=headers)
    assert reply.status_code == status, reply.text
    if status == 403:
        assert "without keys" in reply.json()["error"]


def test_the_file_of_keys_is_whole_json_for_its_owner(tmp_path: Path) -> None:
    add_key(tmp_path, "a", "read")
    (kept,) = json.loads(keys_file(tmp_path).read_text())["keys"]
    names = {"name", "scope", "sha256", "per_minute", "principals", "acts_for_others", "created_at"}
    assert kept.keys() == names


def test_where_the_network_is_trusted_any_name_will_do(built_home: Path) -> None:
    app = create_app(Server(built_home, Keys(trusts_network=True)))
    with TestClient(app) as client:
        headers = {"Host": "runtime.sagemaker.eu-central-1.amazonaws.com"}
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_a_key_that_is_bound_to_principals_only_reads(tmp_path: Path) -> None:
    add_key(tmp_path, "ann", "read", principals=["ann", "sales"])
    assert read_keys(tmp_path)[0].principals == ("ann", "sales")
    for scope, acts in (("write", False), ("admin", False), ("read", True)):
        with pytest.raises(ConfigError, match="its scope is read, and it acts for nobody else"):
            add_key(tmp_path, "x", scope, principals=["ann"], acts_for_others=acts)
    with pytest.raises(ConfigError, match="a name is empty"):
        add_key(tmp_path, "x", "read", principals=[" "])
