"""Runs from the command line: what goes wrong is told, and no run stays "started" for ever."""

import errno
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy.exc import OperationalError

from embedding_pipelines.errors import BucketError, BusyError, StoreError
from embedding_pipelines.orchestration import dead_runs
from embedding_pipelines.orchestration.failures import problem_of, readable_records
from embedding_pipelines.orchestration.launch import HOME_TAG, run_pipeline, run_work
from embedding_pipelines.orchestration.records import MACHINE_TAG
from embedding_pipelines.progress import Silent
from embedding_pipelines.remote import is_current, open_remote
from embedding_pipelines.storage.generations import Generations
from embedding_pipelines.storage.lease import Holder, Lease
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.orchestration.support import (
    SLOW,
    environment,
    live_rows,
    notes,
    run,
    tick,
    write_notes,
)


@contextmanager
def started(home: Path, code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process at work on the pipeline, as soon as it has begun to embed."""
    begun = home / "begun"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW + code],
        env=environment(home, BEGUN=str(begun), GO=str(home / "go")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait(timeout=60)


COMMAND = "sys.argv[1:] = ['run', 'notes']\nfrom embedding_pipelines.cli.main import main\nmain()"
AS_SCHEDULED = """
import dagster as dg
from embedding_pipelines.environment import home
from embedding_pipelines.orchestration.instance import open_instance
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines_tests.orchestration.support import run
with open_instance(home()) as instance:
    sys.exit(not run(find_pipeline("notes", home()), instance).success)
"""


def statuses(instance: dg.DagsterInstance) -> list[dg.DagsterRunStatus]:
    return [found.status for found in instance.get_runs()]


def test_a_run_that_does_well_has_no_problem(home: Path, instance: dg.DagsterInstance) -> None:
    outcome = run_pipeline(home, notes(home), Silent())
    assert outcome.problem == ""
    assert instance.get_run_by_id(outcome.run_id) is not None


def test_a_mistake_in_the_source_is_one_sentence(home: Path, instance: dg.DagsterInstance) -> None:
    spec = notes(home)
    (home / "data/notes/a.jsonl").unlink()
    problem = run_pipeline(home, spec, Silent()).problem
    assert "data/notes/*.jsonl" in problem
    assert "\n" not in problem


def test_a_bug_is_told_with_its_type_its_words_and_where_to_look(
    home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr("embedding_pipelines.steps.chunks._write", broken)
    outcome = run_pipeline(home, notes(home), Silent())
    assert "Step 'notes__chunks' failed: ZeroDivisionError: nothing to divide by" in outcome.problem
    assert "test_launch.py" in outcome.problem
    assert f"log of run {outcome.run_id}" in outcome.problem


def test_control_c_reaches_the_command_line_and_the_run_is_ended(
    home: Path, instance: dg.DagsterInstance
) -> None:
    notes(home)
    with started(home, COMMAND) as process:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode == 130
    assert statuses(instance) == [dg.DagsterRunStatus.FAILURE]


def test_a_second_run_is_refused_and_ends_the_first_one_after_it_was_killed(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    with (
        started(home, COMMAND),
        pytest.raises(BusyError, match="'notes' is being run by another process"),
    ):
        run_pipeline(home, spec, Silent())
    assert statuses(instance) == [dg.DagsterRunStatus.STARTED]
    assert run_pipeline(home, spec, Silent()).problem == ""
    assert statuses(instance) == [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    assert live_rows(home) == 40


def test_a_run_of_another_machine_with_the_same_home_is_left_alone(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec, job = notes(home), dg.GraphDefinition(name="notes").to_job()
    tags = {HOME_TAG: str(home), MACHINE_TAG: "another"}
    instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
    assert run_pipeline(home, spec, Silent()).problem == ""
    assert statuses(instance) == [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.STARTED]


def test_a_piece_of_work_says_on_which_machine_it_is_where_others_read_it(
    home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "embedding_pipelines.orchestration.records.keeps_records_elsewhere"
    for is_elsewhere in (False, True):
        monkeypatch.setattr(place, lambda _, answer=is_elsewhere: answer)
        run_id = str(uuid.uuid4())
        assert run_work(home, "notes", "optimize", run_id, lambda _: None).problem == ""
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert (MACHINE_TAG in run.tags) is is_elsewhere


def test_a_run_whose_process_was_killed_is_ended_and_one_that_lives_is_not(
    home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = notes(home)
    with started(home, AS_SCHEDULED):
        monkeypatch.setattr(dead_runs, "SILENT_SECONDS", 0.0)
        assert dead_runs.end_dead_runs(instance, Warehouse(home)) == []
        monkeypatch.setattr(dead_runs, "SILENT_SECONDS", 300.0)
    assert statuses(instance) == [dg.DagsterRunStatus.STARTED]
    tick(spec, instance, "source")  # it may have died a moment ago, or be about to begin
    assert statuses(instance) == [dg.DagsterRunStatus.STARTED]
    monkeypatch.setattr(dead_runs, "SILENT_SECONDS", 0.0)
    assert tick(spec, instance, "source").run_requests
    assert statuses(instance) == [dg.DagsterRunStatus.FAILURE]


@pytest.mark.slow
def test_of_two_runs_at_once_the_second_waits_and_both_end_well(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    with started(home, AS_SCHEDULED) as process:
        write_notes(home, "b", range(40, 60))
        threading.Timer(1, (home / "go").touch).start()
        assert run(spec, instance).success
        process.wait(timeout=60)
    assert process.returncode == 0
    assert live_rows(home) == 60
    assert statuses(instance) == [dg.DagsterRunStatus.SUCCESS] * 2
    told = [
        entry.user_message
        for found in instance.get_runs()
        for entry in instance.all_logs(found.run_id)
    ]
    assert "Waiting for the run of pipeline 'notes' that is under way." in told


def test_a_disk_that_fails_ends_the_run_with_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notes(home)
    spec = notes(home)

    def full(*arguments: object) -> None:
        raise OSError(
            errno.ENOSPC, os.strerror(errno.ENOSPC), str(home / "data" / "warehouse" / "x")
        )

    with monkeypatch.context() as patch:
        patch.setattr("embedding_pipelines.storage.warehouse.move", full)
        problem = run_pipeline(home, spec, Silent()).problem
    assert problem.startswith(
        f"{home / 'data' / 'warehouse' / 'x'}: {os.strerror(errno.ENOSPC)}. Free some "
    )
    assert "\n" not in problem


def test_records_that_fail_between_two_steps_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notes(home)
    handle = dg.DagsterInstance.handle_new_event

    def fail(instance: dg.DagsterInstance, entry: dg.EventLogEntry, **options: Any) -> None:
        if entry.dagster_event and entry.dagster_event_type == dg.DagsterEventType.ENGINE_EVENT:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("disk I/O error"))
        handle(instance, entry, **options)

    monkeypatch.setattr(dg.DagsterInstance, "handle_new_event", fail)
    problem = run_pipeline(home, notes(home), Silent()).problem
    assert re.fullmatch(r"Dagster's records in .* cannot be used: disk I/O error\. .*", problem)


@pytest.mark.parametrize(
    "read", ["checks.table_state", "assets.run_metadata", "assets.data_version"]
)
def test_a_disk_that_fails_after_the_work_of_a_step_is_a_sentence_too(
    home: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    write_notes(home)

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "vector_store.json")

    monkeypatch.setattr(f"embedding_pipelines.orchestration.{read}", fail)
    problem = run_pipeline(home, notes(home), Silent()).problem
    assert problem.startswith(f"vector_store.json: {os.strerror(errno.EIO)}.")


def test_records_that_fail_in_the_middle_of_a_step_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notes(home)
    spec = notes(home)

    def fail(*arguments: object) -> None:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("disk I/O error"))

    monkeypatch.setattr("embedding_pipelines.storage.warehouse.move", fail)
    problem = run_pipeline(home, spec, Silent()).problem
    assert re.fullmatch(r"Dagster's records in .* cannot be used: disk I/O error\. .*", problem)


def test_records_that_cannot_be_written_are_named(home: Path) -> None:
    def fail() -> None:
        try:
            raise sqlite3.OperationalError("database or disk is full")
        except sqlite3.Error as error:
            raise RuntimeError("wrapped") from error

    with (
        pytest.raises(StoreError, match=r"records in .* cannot be used: database or disk is full"),
        readable_records(home),
    ):
        fail()
    with pytest.raises(KeyError), readable_records(home):
        raise KeyError("another")


def test_runs_publish_in_the_bucket_and_wait_for_no_other_machine(
    home: Path, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    (home / "warehouse.yaml").write_text(f"bucket: {(tmp_path / 'bucket').as_uri()}\n")
    spec = notes(home)
    assert run_pipeline(home, spec, Silent()).problem == ""
    remote = open_remote(Warehouse(home), "notes")
    assert remote is not None
    assert remote.newest() == 1
    write_notes(home, rows=range(41))
    result = run(spec, instance)  # as a sensor's
    assert result.success
    assert remote.newest() == 2
    assert is_current(Warehouse(home), "notes")
    other = Holder("elsewhere", "/home", "2", 42, "2026-01-02T03:04:05+00:00")
    folder = f"{remote.generations.folder}/lease"
    write_notes(home, rows=range(42))
    with Lease(remote.bucket, folder, "notes", other).hold():
        with pytest.raises(BusyError, match="run by process 42 on elsewhere"):
            run_pipeline(home, spec, Silent())
        result = run(spec, instance)
        assert not result.success
    assert "run by process 42 on elsewhere" in problem_of(result, home)
    assert live_rows(home) == 41


def test_a_run_that_was_taken_over_delivers_no_output(
    home: Path, tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "warehouse.yaml").write_text(f"bucket: {(tmp_path / 'bucket').as_uri()}\n")
    spec = notes(home).model_copy(update={"output": "results"})
    with monkeypatch.context() as patched:
        patched.setattr(Lease, "renew", lambda _: False)
        assert "was taken over by" in problem_of(run(spec, instance), home)
        with pytest.raises(BusyError, match="was taken over by"):
            run_pipeline(home, spec, Silent())
    assert not (home / "results" / "index.json").exists()
    assert run(spec, instance).success
    assert (home / "results" / "index.json").exists()


def test_a_release_that_cannot_be_published_fails_its_run(
    home: Path, tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "warehouse.yaml").write_text(f"bucket: {(tmp_path / 'bucket').as_uri()}\n")
    spec = notes(home)

    def refuse(*_: object) -> None:
        raise BucketError("file://bucket: access denied. Give these credentials the right to it.")

    monkeypatch.setattr(Generations, "upload", refuse)
    result = run(spec, instance)
    assert "access denied" in problem_of(result, home)
    monkeypatch.undo()
    monkeypatch.setenv("EMBEDDING_PIPELINES_HOME", str(home))
    assert not is_current(Warehouse(home), "notes")
