"""Keys: none, a wrong one, the right one."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from embedding_pipelines.serving.auth import Keys
from embedding_pipelines.serving.wire import Unauthorized
from embedding_pipelines_tests.serving.homes import client_of


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


def test_keys_are_kept_as_hashes() -> None:
    keys = Keys("secret words")
    assert "secret" not in repr(vars(keys))
    with pytest.raises(Unauthorized, match="The key is wrong"):
        keys.check("secret word", "read")
    keys.check("secret words", "read")
