"""Texts that a service embeds later, through Dagster: runs that wait, the sensor that asks for the
next, the CLI."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pytest

from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import UNMEASURED
from embedding_pipelines_tests.orchestration.support import (
    NOTES,
    PARTITIONS,
    live_rows,
    materialized,
    notes,
    recorded,
    run,
    tick,
    write_notes,
    write_pipeline,
)
from embedding_pipelines_tests.providers.batch_service import BatchServer, Fault, serve_batches

KEY = "sk-not-to-be-seen-0123456789"
DIMENSIONS = 16
BEHIND = {"codec", "vector_store", "release"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchServer]:
    monkeypatch.setenv("ZOO_KEY", KEY)
    with serve_batches(DIMENSIONS, KEY) as running:
        yield running


def later(home: Path, server: BatchServer) -> PipelineSpec:
    """The notes, embedded later."""
    options = (
        f"base_url: '{server.url}', model: my-model, dimensions: {DIMENSIONS}, "
        "api_key_env: ZOO_KEY, mode: batch"
    )
    before = f"{{provider: hashing, dimensions: {DIMENSIONS}}}"
    assert before in NOTES
    notes = NOTES.replace(before, f"{{provider: openai, {options}}}").partition("evaluation:")[0]
    write_pipeline(home, text=notes + UNMEASURED)
    write_notes(home)
    return find_pipeline("notes", home)


def skipped(result: dg.SensorResult) -> str:
    """Why a tick asks for nothing."""
    assert not result.run_requests
    assert result.skip_reason is not None
    assert result.skip_reason.skip_message is not None
    return result.skip_reason.skip_message


def asked(result: dg.SensorResult) -> dg.RunRequest:
    assert result.run_requests is not None
    (request,) = result.run_requests
    return request


def made(instance: dg.DagsterInstance, run_id: str) -> set[str]:
    return {asset for asset, _ in materialized(instance, run_id)}


def said(instance: dg.DagsterInstance, run_id: str) -> str:
    return "\n".join(entry.user_message for entry in instance.all_logs(run_id))


def test_a_run_that_has_to_wait_ends_well_and_says_for_what(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    for _ in range(2):
        result = run(spec, instance)
        assert result.success
        assert "40 texts are in 1 batch job since" in said(instance, result.run_id)
        assert made(instance, result.run_id) == {"documents", "chunks"}
        partitions = [
            partition
            for asset, partition in materialized(instance, result.run_id)
            if asset == "chunks"
        ]
        assert len(set(partitions)) == PARTITIONS
        worked = {
            event.step_key
            for event in recorded(instance, result.run_id, dg.DagsterEventType.STEP_SUCCESS)
        }
        assert worked == {f"notes__{asset}" for asset in ("documents", "chunks", "embeddings")}
        left_out = {
            event.step_key
            for event in recorded(instance, result.run_id, dg.DagsterEventType.STEP_SKIPPED)
        }
        assert left_out >= {*(f"notes__{asset}" for asset in BEHIND), "notes_table_checks"}
        assert not recorded(instance, result.run_id, dg.DagsterEventType.STEP_FAILURE)
        assert not recorded(instance, result.run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        assert live_rows(home) == 0
    assert server.asked["create"] == 1


def test_the_run_after_the_end_of_a_batch_releases(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    run(spec, instance)
    server.finish_all()
    result = run(spec, instance)
    assert result.success
    assert made(instance, result.run_id) == {"documents", "chunks", "embeddings", *BEHIND}
    checks = result.get_asset_check_evaluations()
    assert checks
    assert all(check.passed for check in checks)
    assert live_rows(home) == 40
    assert set(server.billed.values()) == {1}
    assert len(server.billed) == 40


def test_a_release_stays_live_while_a_change_is_awaited(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    run(spec, instance)
    server.finish_all()
    assert run(spec, instance).success
    write_notes(home, "b", range(40, 41))
    waiting = run(spec, instance)
    assert waiting.success
    assert made(instance, waiting.run_id) == {"documents", "chunks"}
    assert "1 text is in 1 batch job" in said(instance, waiting.run_id)
    assert live_rows(home) == 40
    server.finish_all()
    assert run(spec, instance).success
    assert live_rows(home) == 41
    assert set(server.billed.values()) == {1}


def test_a_batch_that_failed_fails_the_run_in_the_services_words(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    run(spec, instance)
    server.fail(server.out[0], "Enqueued token limit reached")
    assert asked(tick(spec, instance, "batch")).run_key
    result = run(spec, instance)
    assert not result.success
    (failure,) = recorded(instance, result.run_id, dg.DagsterEventType.STEP_FAILURE)
    assert failure.step_key == "notes__embeddings"
    problem = failure.step_failure_data.user_failure_data
    assert problem is not None
    assert problem.description is not None
    assert (
        "Enqueued token limit reached. The next run submits their texts again."
        in problem.description
    )
    assert asked(tick(spec, instance, "batch")).run_key
    assert run(spec, instance).success
    assert len(server.out) == 1


def test_only_a_pipeline_that_is_answered_later_has_the_sensor_and_it_is_on(
    home: Path, server: BatchServer
) -> None:
    names = {sensor.name for sensor in pipeline_definitions([notes(home)], home).sensors or ()}
    assert names == {"notes_source_sensor"}
    sensors = pipeline_definitions([later(home, server)], home).sensors or ()
    on = {sensor.name: getattr(sensor, "default_status", None) for sensor in sensors}
    assert on.keys() == {"notes_source_sensor", "notes_batch_sensor"}
    assert on["notes_batch_sensor"] is dg.DefaultSensorStatus.RUNNING


def test_the_sensor_watches_the_batches_of_a_model_that_the_pipeline_leaves(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    later(home, server)
    migrate_from_later(home)
    spec = find_pipeline("notes", home)
    names = {sensor.name for sensor in pipeline_definitions([spec], home).sensors or ()}
    assert "notes_batch_sensor" in names
    assert skipped(tick(spec, instance, "batch")) == "No batch job is running."
    assert run(spec, instance).success
    assert skipped(tick(spec, instance, "batch")).startswith("40 texts are in 1 batch job since")
    server.finish_all()
    assert asked(tick(spec, instance, "batch")).tags["why"] == "a batch job has ended"
    assert run(spec, instance).success
    assert skipped(tick(spec, instance, "batch")) == "No batch job is running."


def migrate_from_later(home: Path) -> None:
    """The model that answers later is the one that the pipeline leaves."""
    path = home / "pipelines" / "notes.yaml"
    text = path.read_text()
    before = next(line for line in text.splitlines() if line.startswith("model: "))
    old = before.removeprefix("model: ")
    new = f"model: {{provider: hashing, dimensions: 32}}\nmigration: {{old_model: {old}}}"
    path.write_text(text.replace(before, new))


def test_the_sensor_asks_for_a_run_when_a_batch_has_ended_and_that_run_works(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    assert skipped(tick(spec, instance, "batch")) == "No batch job is running."
    run(spec, instance)
    assert skipped(tick(spec, instance, "batch")).startswith("40 texts are in 1 batch job since")
    server.finish_all()
    request = asked(tick(spec, instance, "batch"))
    assert (
        asked(tick(spec, instance, "batch")).run_key == request.run_key
    )  # so that the daemon starts one run
    assert request.tags == {**all_partitions(spec), "why": "a batch job has ended"}
    job = pipeline_definitions([spec], home).resolve_job_def("notes")
    assert job.execute_in_process(instance=instance, tags=dict(request.tags)).success
    assert live_rows(home) == 40
    assert skipped(tick(spec, instance, "batch")) == "No batch job is running."


def test_another_batch_that_ends_is_another_reason_to_ask(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    run(spec, instance)
    write_notes(home, "b", range(40, 41))
    run(spec, instance)
    first, second = server.out
    server.finish(first)
    key = asked(tick(spec, instance, "batch")).run_key
    server.finish(second)
    assert asked(tick(spec, instance, "batch")).run_key != key


def test_an_error_is_a_reason_to_skip_without_key_or_traceback(
    home: Path, instance: dg.DagsterInstance, server: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = later(home, server)
    run(spec, instance)
    server.key = "another"
    refused = skipped(tick(spec, instance, "batch"))
    assert "answered 401: Incorrect API key provided: ***. Check the key in ZOO_KEY" in refused
    server.key = KEY
    before = server.asked["retrieve"]
    server.faults["retrieve"].append(Fault("status", 500))
    failed = skipped(tick(spec, instance, "batch"))
    assert "answered 500: The server had an error." in failed
    assert server.asked["retrieve"] == before + 1  # the next tick is the next try
    server.faults["retrieve"].append(Fault("reset"))
    unreachable = skipped(tick(spec, instance, "batch"))
    assert "cannot be reached" in unreachable
    monkeypatch.delenv("ZOO_KEY")
    missing = skipped(tick(spec, instance, "batch"))
    assert "ZOO_KEY is not set" in missing
    for reason in (refused, failed, unreachable, missing):
        assert KEY not in reason
        assert "Traceback" not in reason
        assert "\n" not in reason


def test_while_a_run_collects_or_submits_the_sensor_asks_for_none(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    run(spec, instance)
    server.finish_all()
    before = sum(server.asked.values())
    with Warehouse(home).batch_jobs_lock():
        assert (
            skipped(tick(spec, instance, "batch"))
            == "Another process is submitting or collecting batch jobs. Wait for it to end, then try again."
        )
    assert sum(server.asked.values()) == before
    assert asked(tick(spec, instance, "batch")).run_key


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_is_done_before_or_after_the_sensor_holds_the_lock_is_no_error(
    home: Path,
    instance: dg.DagsterInstance,
    server: BatchServer,
    monkeypatch: pytest.MonkeyPatch,
    when: Literal["before", "after"],
) -> None:
    """Its note of what is with the service is then gone."""
    spec = later(home, server)
    run(spec, instance)
    server.finish_all()
    marker, lock = Warehouse(home).pipeline("notes").batch_jobs, Warehouse.batch_jobs_lock

    @contextlib.contextmanager
    def contended(warehouse: Warehouse, **options: Any) -> Iterator[None]:
        if when == "before":
            marker.unlink()
        with lock(warehouse, **options):
            yield
        if when == "after":
            marker.unlink()

    monkeypatch.setattr(Warehouse, "batch_jobs_lock", contended)
    result = tick(spec, instance, "batch")
    assert bool(result.run_requests) == (when == "after")
    assert when == "after" or skipped(result) == "No batch job is running."


def test_what_was_handed_over_before_the_budget_ended_is_waited_for(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    write_pipeline(
        home, text=(home / "pipelines" / "notes.yaml").read_text() + "budget: {tokens: 200}\n"
    )
    spec = find_pipeline("notes", home)
    assert not run(spec, instance).success
    assert len(server.out) == 1
    assert skipped(tick(spec, instance, "batch")).endswith("or run the pipeline again later.")
    server.finish_all()
    assert asked(tick(spec, instance, "batch")).run_key


def test_a_key_in_the_services_words_is_in_no_event(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    server.faults["create"].append(Fault("status", 401, f"The key {KEY} may not do this."))
    result = run(spec, instance)
    assert not result.success
    events = "\n".join(str(entry) for entry in instance.all_logs(result.run_id))
    assert "The key *** may not do this." in events
    assert KEY not in events


def test_the_command_line_waits_in_a_sentence_and_releases_when_the_batch_has_ended(
    home: Path,
    own_instance: Path,
    server: BatchServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    later(home, server)
    command = Command(monkeypatch, capsys)
    waiting = command("run", "notes")
    assert waiting.code == 0, waiting.err
    assert "notes note: 40 texts are in 1 batch job since" in waiting.out
    assert "run the pipeline again later" in waiting.out
    assert "nothing is released by this run" in waiting.out
    assert "Traceback" not in waiting.out + waiting.err
    assert KEY not in waiting.out + waiting.err
    as_json = command("run", "notes", "--json")
    (outcome,) = as_json.results
    assert as_json.code == 0
    assert {step["step"] for step in outcome["steps"]} == {"documents", "chunks"}
    server.finish_all()
    done = command("run", "notes")
    assert done.code == 0, done.err
    assert "release 1, live: 1" in done.out
    assert live_rows(home) == 40
    assert server.asked["create"] == 1
    assert set(server.billed.values()) == {1}


def test_the_sensor_asks_for_a_run_whoever_collected_the_texts_and_again_if_it_failed(
    home: Path, instance: dg.DagsterInstance, server: BatchServer
) -> None:
    spec = later(home, server)
    run(spec, instance)
    write_pipeline(home, "others", (home / "pipelines" / "notes.yaml").read_text())
    run(find_pipeline("others", home), instance)
    server.finish_all()
    assert run(find_pipeline("others", home), instance).success
    first = asked(tick(spec, instance, "batch")).run_key
    marker = Warehouse(home).pipeline("notes").batch_jobs
    os.utime(marker, (time.time() - 1_000, time.time() - 1_000))
    assert asked(tick(spec, instance, "batch")).run_key != first
    assert run(spec, instance).success
    assert live_rows(home) == 40
    assert skipped(tick(spec, instance, "batch")) == "No batch job is running."
