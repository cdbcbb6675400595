"""What the web interface gets to see, and backfills that are launched from it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from starlette.testclient import TestClient

from embedding_pipelines.orchestration.instance import instance_folder
from embedding_pipelines_tests.orchestration.support import (
    BUCKETS,
    environment,
    live_rows,
    notes,
    write_notes,
    write_pipeline,
)

WORKSPACE = Path(__file__).parents[2] / "workspace.yaml"
STEPS = ("documents", "chunks", "embeddings", "codec", "vector_store", "release")
ASSETS = "{assetNodes{assetKey{path} groupName kinds description owners{... on TeamAssetOwner{team}}}}"
LAUNCH = """mutation($what: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $what)
{__typename ... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}}"""
STATUS = """query($id: String!) {partitionBackfillOrError(backfillId: $id)
{... on PartitionBackfill{status error{message} runs(limit: 9){status}}}}"""

Ask = Callable[..., Any]


@pytest.mark.filterwarnings("ignore:::dagster_webserver", "ignore:::starlette", "ignore:::graphql", "ignore:::graphene")
def test_the_web_interface_sees_good_and_broken_pipelines(home: Path, instance: dg.DagsterInstance) -> None:
    notes(home)
    write_pipeline(home, "broken", "model: nothing\n")
    target = WorkspaceFileTarget([str(WORKSPACE)])
    with WorkspaceProcessContext(instance, target) as context:
        client = TestClient(create_app_from_workspace_process_context(context, ""))
        nodes = client.post("/graphql", json={"query": ASSETS}).json()["data"]["assetNodes"]
    found = {"/".join(node["assetKey"]["path"]): node for node in nodes}
    assert set(found) == {*(f"notes/{name}" for name in STEPS), "broken/broken_pipeline_file"}
    assert found["notes/release"]["groupName"] == "notes"
    assert {"team": "search"} in found["notes/release"]["owners"]
    assert found["notes/vector_store"]["kinds"] == ["lancedb"]
    assert "is no known alias" in found["broken/broken_pipeline_file"]["description"]


@contextmanager
def dagster_dev(home: Path) -> Iterator[Ask]:
    """A real `dagster dev` on a free port of this machine, and a way to ask it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(sys.executable).with_name("dagster"))
    log = home / "dev.log"

    def ask(query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        url, headers = f"http://127.0.0.1:{port}/graphql", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as reply:
            answer = json.load(reply)
        assert "errors" not in answer, answer
        return answer["data"]

    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "dev", "-w", str(WORKSPACE), "-h", "127.0.0.1", "-p", str(port)],
            env=environment(home, DAGSTER_HOME=str(instance_folder(home))),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(lambda: _answers(ask), 120, log)
            yield ask
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=20)


def _answers(ask: Ask) -> bool:
    try:
        return bool(ask("{version}"))
    except urllib.error.URLError:
        return False


def _wait(done: Callable[[], bool], seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.5)


def backfill(ask: Ask, log: Path, buckets: list[str]) -> list[str]:
    """Launch a backfill of the whole chain over some buckets; the statuses of its runs."""
    keys = [{"path": ["notes", name]} for name in STEPS]
    launched = ask(LAUNCH, what={"assetSelection": keys, "partitionNames": buckets})["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    state: dict[str, Any] = {}

    def over() -> bool:
        state.update(ask(STATUS, id=launched["backfillId"])["partitionBackfillOrError"])
        return state["status"] in ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")

    _wait(over, 300, log)
    assert state["status"] == "COMPLETED_SUCCESS", (state, log.read_text())
    return [found["status"] for found in state["runs"]]


@pytest.mark.slow
def test_backfills_from_the_web_interface_end_in_a_release(home: Path, instance: dg.DagsterInstance) -> None:
    notes(home)
    log = home / "dev.log"
    with dagster_dev(home) as ask:
        statuses = backfill(ask, log, [f"b{number:02d}" for number in range(BUCKETS)])
        assert set(statuses) == {"SUCCESS"}
        assert len(statuses) < BUCKETS
        assert live_rows(home) == 40
        write_notes(home)
        backfill(ask, log, ["b01", "b02"])
        assert live_rows(home) == 40
