"""What the web interface gets to see, and backfills that are launched from it."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from starlette.testclient import TestClient

from embedding_pipelines.orchestration.instance import ensure_instance_folder
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines_tests.orchestration.support import (
    PARTITIONS,
    environment,
    live_rows,
    notes,
    run,
    tick,
    write_notes,
    write_pipeline,
)

WORKSPACE = Path(__file__).parents[2] / "workspace.yaml"
STEPS = ("documents", "chunks", "embeddings", "codec", "vector_store", "release")
ASSETS = (
    "{assetNodes{assetKey{path} groupName kinds description staleStatus"
    " owners{... on TeamAssetOwner{team}}}}"
)
LAUNCH = """mutation($what: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $what)
{__typename ... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}}"""
STATUS = """query($id: String!) {partitionBackfillOrError(backfillId: $id)
{... on PartitionBackfill{status error{message} runs(limit: 9){status}}}}"""

RUN = """mutation($what: ExecutionParams!) {launchRun(executionParams: $what)
{__typename ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}}"""
RUNS = "{runsOrError{... on Runs{results{runId status startTime endTime}}}}"
ENDED = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")

Ask = Callable[..., Any]


@pytest.mark.filterwarnings(
    "ignore:::dagster_webserver", "ignore:::starlette", "ignore:::graphql", "ignore:::graphene"
)
def test_the_web_interface_sees_good_and_broken_pipelines(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    (observation,) = tick(spec, instance, "source").asset_events
    instance.report_runless_asset_event(observation)
    assert run(spec, instance).success
    write_pipeline(home, "broken", "model: nothing\n")
    target = WorkspaceFileTarget([str(WORKSPACE)])
    with WorkspaceProcessContext(instance, target) as context:
        client = TestClient(create_app_from_workspace_process_context(context, ""))
        nodes = client.post("/graphql", json={"query": ASSETS}).json()["data"]["assetNodes"]
    found = {"/".join(node["assetKey"]["path"]): node for node in nodes}
    assert set(found) == {
        *(f"notes/{name}" for name in ("source", *STEPS)),
        "broken/pipeline_file",
    }
    assert {found[f"notes/{name}"]["staleStatus"] for name in STEPS} == {"FRESH"}
    assert found["notes/release"]["groupName"] == "notes"
    assert {"team": "search"} in found["notes/release"]["owners"]
    assert found["notes/vector_store"]["kinds"] == ["lancedb"]
    assert "is no known alias" in found["broken/pipeline_file"]["description"]


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
        with urllib.request.urlopen(
            urllib.request.Request(url, body, headers), timeout=60
        ) as reply:
            answer = json.load(reply)
        assert "errors" not in answer, answer
        return answer["data"]

    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "dev", "-w", str(WORKSPACE), "-h", "127.0.0.1", "-p", str(port)],
            env=environment(home, DAGSTER_HOME=str(ensure_instance_folder(home))),
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


def launch(ask: Ask, assets: Sequence[str], partitions: Sequence[int]) -> str:
    """Launch a backfill as the web interface does; its id."""
    keys = [{"path": ["notes", name]} for name in assets]
    what = {"assetSelection": keys, "partitionNames": [f"b{number:02d}" for number in partitions]}
    launched = ask(LAUNCH, what=what)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    return str(launched["backfillId"])


def launch_run(ask: Ask, tags: dict[str, str]) -> str:
    """Launch the job `notes` as the web interface does; the run's id."""
    repository = {
        "repositoryLocationName": "embedding_pipelines",
        "repositoryName": "__repository__",
    }
    pairs = [{"key": key, "value": value} for key, value in tags.items()]
    what = {
        "selector": {**repository, "jobName": "notes"},
        "executionMetadata": {"tags": pairs},
    }
    launched = ask(RUN, what=what)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


@pytest.mark.slow  # starts Dagster
def test_runs_of_one_pipeline_wait_for_one_another_in_the_queue(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    log = home / "dev.log"
    with dagster_dev(home) as ask:

        def runs() -> list[dict[str, Any]]:
            return list(ask(RUNS)["runsOrError"]["results"])

        def ended() -> bool:
            return all(entry["status"] in ("SUCCESS", "FAILURE") for entry in runs())

        # Dagster's queue knows a pool's limit from the pool's first run on (ARCHITECTURE.md).
        launched = {launch_run(ask, all_partitions(spec))}
        _wait(ended, 300, log)
        launched |= {launch_run(ask, all_partitions(spec)) for _ in range(2)}
        _wait(ended, 300, log)
        assert {entry["runId"] for entry in runs()} == launched
        assert {entry["status"] for entry in runs()} == {"SUCCESS"}
        in_order = sorted(runs(), key=lambda entry: entry["startTime"])
        for before, after in itertools.pairwise(in_order):
            assert before["endTime"] <= after["startTime"]


@pytest.mark.slow  # the daemon looks at backfills every 30 seconds, and no setting changes that
def test_backfills_of_all_and_of_some_partitions_end_in_a_release(
    home: Path, instance: dg.DagsterInstance
) -> None:
    assert run(notes(home), instance).success
    write_notes(home, "b", range(40, 60))
    log = home / "dev.log"
    with dagster_dev(home) as ask:
        launched = [
            launch(ask, STEPS, range(PARTITIONS)),
            launch(ask, ("chunks", "embeddings"), [1, 2]),
        ]

        def states() -> list[dict[str, Any]]:
            return [ask(STATUS, id=name)["partitionBackfillOrError"] for name in launched]

        _wait(lambda: all(state["status"] in ENDED for state in states()), 300, log)
        for state in states():
            assert state["status"] == "COMPLETED_SUCCESS", log.read_text()
            assert {found["status"] for found in state["runs"]} == {"SUCCESS"}
            assert len(state["runs"]) < PARTITIONS
    assert live_rows(home) == 60
