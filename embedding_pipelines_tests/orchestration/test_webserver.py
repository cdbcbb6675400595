"""What the web interface gets to see, and backfills that are launched from it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from starlette.testclient import TestClient

from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines_tests.orchestration.dev import (
    WORKSPACE,
    Ask,
    dagster_dev,
    have_ended,
    launch_run,
    runs,
    wait,
)
from embedding_pipelines_tests.orchestration.support import (
    PARTITIONS,
    live_rows,
    notes,
    run,
    tick,
    write_notes,
    write_pipeline,
)

STEPS = ("documents", "chunks", "embeddings", "codec", "vector_store", "release")
ASSETS = (
    "{assetNodes{assetKey{path} groupName kinds description staleStatus"
    " owners{... on TeamAssetOwner{team}}}}"
)
LAUNCH = """mutation($what: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $what)
{__typename ... on LaunchBackfillSuccess{backfillId} ... on PythonError{message}}}"""
STATUS = """query($id: String!) {partitionBackfillOrError(backfillId: $id)
{... on PartitionBackfill{status error{message} runs(limit: 9){status}}}}"""

ENDED = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED")


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


def launch(ask: Ask, assets: Sequence[str], partitions: Sequence[int]) -> str:
    """Launch a backfill as the web interface does; its id."""
    keys = [{"path": ["notes", name]} for name in assets]
    what = {"assetSelection": keys, "partitionNames": [f"b{number:02d}" for number in partitions]}
    launched = ask(LAUNCH, what=what)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    return str(launched["backfillId"])


@pytest.mark.slow  # the daemon looks at backfills every 30 seconds, and no setting changes that
def test_runs_wait_for_one_another_in_the_queue_and_backfills_end_in_a_release(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    log = home / "dev.log"
    with dagster_dev(home) as ask:
        # Dagster's queue knows a pool's limit from the pool's first run on (ARCHITECTURE.md).
        launched = {launch_run(ask, "notes", all_partitions(spec))}
        wait(lambda: have_ended(ask), 300, log)
        launched |= {launch_run(ask, "notes", all_partitions(spec)) for _ in range(2)}
        wait(lambda: have_ended(ask), 300, log)
        assert {entry["runId"] for entry in runs(ask)} == launched
        assert {entry["status"] for entry in runs(ask)} == {"SUCCESS"}
        for before, after in itertools.pairwise(runs(ask)):
            assert before["endTime"] <= after["startTime"]

        write_notes(home, "b", range(40, 60))  # of all and of some partitions
        backfills = [
            launch(ask, STEPS, range(PARTITIONS)),
            launch(ask, ("chunks", "embeddings"), [1, 2]),
        ]

        def states() -> list[dict[str, Any]]:
            return [ask(STATUS, id=name)["partitionBackfillOrError"] for name in backfills]

        wait(lambda: all(state["status"] in ENDED for state in states()), 300, log)
        for state in states():
            assert state["status"] == "COMPLETED_SUCCESS", log.read_text()
            assert {found["status"] for found in state["runs"]} == {"SUCCESS"}
            assert len(state["runs"]) < PARTITIONS
    assert live_rows(home) == 60
