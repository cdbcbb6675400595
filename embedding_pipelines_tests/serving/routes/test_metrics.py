"""`/metrics`: what Prometheus reads."""

import re

from fastapi.testclient import TestClient

LINE = re.compile(r'[a-z_]+(\{([a-z_]+="[^"]*",?)*\})? [-+.e\d]+(inf|nan)?', re.IGNORECASE)


def test_each_stage_is_measured_by_lane_and_the_live_release_has_its_figures(
    client: TestClient,
) -> None:
    client.post("/v1/embeddings", json={"model": "things", "input": "some new text"})
    client.get("/nowhere")
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = reply.text.splitlines()
    assert all(line.startswith("# ") or LINE.fullmatch(line) for line in lines)
    for name in ("tokenize", "queue", "infer"):
        labels = '{model="hashing",lane="interactive"}'
        assert f"embedding_pipelines_serving_{name}_seconds_count{labels} 1.0" in lines
    assert 'embedding_pipelines_live_release{pipeline="things"} 1.0' in lines
    assert "embedding_pipelines_release_metric" in reply.text
    for name in ("requests_total", "request_seconds_count"):
        labels = '{path="other",status="404"}'
        assert f"embedding_pipelines_serving_{name}{labels} 1.0" in lines
    assert "embedding_pipelines_serving_tokens_per_second" in reply.text


def test_metrics_need_a_key(client: TestClient) -> None:
    del client.headers["Authorization"]
    assert client.get("/metrics").status_code == 401
