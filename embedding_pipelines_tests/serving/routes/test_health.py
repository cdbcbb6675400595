"""`/health` and `/ready`."""

from fastapi.testclient import TestClient

from embedding_pipelines.serving.server import Server


def test_health_and_readiness_need_no_key(client: TestClient) -> None:
    del client.headers["Authorization"]
    assert client.get("/health").json()["status"] == "ok"


def test_a_server_that_is_about_to_end_is_not_ready(client: TestClient) -> None:
    server: Server = client.app.state.server  # type: ignore[attr-defined]
    assert client.portal is not None
    client.portal.call(server.wait_until_ready)
    assert client.get("/ready").status_code == 200
    server.is_draining = True
    reply = client.get("/ready")
    assert (reply.status_code, reply.json()["status"]) == (503, "draining")
    assert client.get("/health").status_code == 200
