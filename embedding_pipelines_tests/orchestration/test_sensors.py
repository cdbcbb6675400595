"""When a sensor asks for a run: `decide` alone, and the sensor around it, after every way in which a
run can end."""

import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.objects import open_bucket
from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.orchestration.sensors import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    TICK_SECONDS,
    decide,
)
from embedding_pipelines.plan import plan
from embedding_pipelines.releases import rollback
from embedding_pipelines.run import Run
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import Budget, PipelineSpec
from embedding_pipelines.steps.pending import Pending
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.buckets import Exchange, Proxy, TestBucket
from embedding_pipelines_tests.chain import run_steps
from embedding_pipelines_tests.orchestration.support import (
    NOTES,
    Failing,
    environment,
    live_rows,
    notes,
    run,
    tick,
    unmeasured,
    write_notes,
    write_pipeline,
)

STATES = st.one_of(
    st.builds(Pending, new=st.tuples(st.sampled_from("abcd"))),
    st.builds(Pending, step=st.sampled_from(["documents", "chunks", "embeddings", "vector_store"])),
    st.builds(Pending, step=st.just("release"), held_back_by=st.sampled_from([(), ("a_check",)])),
)
VERSIONS = st.sampled_from(["one", "two"])
ENOUGH = LONGEST_WAIT_SECONDS + TICK_SECONDS


@given(STATES, VERSIONS)
def test_what_is_pending_asks_at_once_and_then_waits(state: Pending, version: str) -> None:
    first = decide(state, version, False, None, 1e9)
    assert first.run_key
    soon = decide(state, version, False, first.cursor, 1e9 + TICK_SECONDS)
    assert soon.run_key is None
    assert "a run is asked for again at" in soon.reason
    late = decide(state, version, False, soon.cursor, 1e9 + ENOUGH)
    assert late.run_key


@given(
    st.lists(st.tuples(STATES, st.booleans()), min_size=1, max_size=60),
    st.lists(st.floats(-1e6, 1e6), min_size=60, max_size=60),
)
def test_no_sequence_of_ticks_makes_it_blind_and_no_key_comes_twice(
    ticks: list[tuple[Pending, bool]], steps: list[float]
) -> None:
    now, cursor, keys = 1e9, None, []
    for (state, is_under_way), step in zip(ticks, steps, strict=False):
        now += step or 1.0
        decision = decide(state, "one", is_under_way, cursor, now)
        assert not (is_under_way and decision.run_key)
        keys += [(decision.run_key, now)] if decision.run_key else []
        cursor = decision.cursor
    assert len({key for key, _ in keys}) == len({now for _, now in keys})
    assert decide(ticks[-1][0], "one", False, cursor, now + ENOUGH).run_key


def test_waits_grow_up_to_a_day() -> None:
    state, cursor, asked_at = Pending(step="embeddings"), None, list[float]()
    for second in range(0, 400_000, TICK_SECONDS):
        decision = decide(state, "one", False, cursor, 1e9 + second)
        cursor = decision.cursor
        asked_at += [second] if decision.run_key else []
    waits = [after - before for before, after in itertools.pairwise(asked_at)]
    assert waits[:3] == [FIRST_WAIT_SECONDS, 2 * FIRST_WAIT_SECONDS, 4 * FIRST_WAIT_SECONDS]
    assert max(waits) == LONGEST_WAIT_SECONDS
    assert len(asked_at) < 12


@given(STATES)
def test_new_files_and_a_mended_pipeline_file_ask_at_once(state: Pending) -> None:
    cursor = decide(state, "broken", False, None, 1e9).cursor
    new = Pending(new=("a",))
    assert decide(new, "mended", False, cursor, 1e9 + 1).run_key


def test_a_candidate_that_is_held_back_after_somebodys_own_run_asks_for_no_second_one() -> None:
    quiet = decide(Pending(), "one", False, None, 1e9)
    held = Pending(step="release", held_back_by=("counts_add_up",))
    decision = decide(held, "one", False, quiet.cursor, 1e9 + 30)
    assert decision.run_key is None
    assert "held back by counts_add_up" in decision.reason
    assert decide(held, "one", False, decision.cursor, 1e9 + 30 + ENOUGH).run_key


def test_a_corrected_pipeline_file_asks_at_once_for_what_was_held_back() -> None:
    held = Pending(step="release", held_back_by=("not_worse_than_live",))
    waiting = decide(held, "one", False, decide(held, "one", False, None, 1e9).cursor, 1e9 + 30)
    assert waiting.run_key is None
    assert decide(held, "corrected", False, waiting.cursor, 1e9 + 60).run_key


@given(st.text() | st.sampled_from(['{"version": 1}', "[null, 3]", '{"version":"x","times":{}}']))
def test_any_cursor_that_is_not_its_own_counts_as_a_reset(cursor: str) -> None:
    assert decide(Pending(new=("a",)), "one", False, cursor, 1e9).run_key


def test_what_waits_for_batch_jobs_is_left_to_their_own_sensor() -> None:
    state = Pending(step="embeddings", in_batch_jobs=True)
    assert decide(state, "one", False, None, 1e9).run_key is None


def later(cursor: str | None, seconds: float = ENOUGH) -> str:
    """The cursor as it would be some time later."""
    values = json.loads(cursor or "")
    return json.dumps({**values, "at": values["at"] - seconds})


def quiet(result: dg.SensorResult) -> str:
    """Why a tick asked for nothing."""
    assert not result.run_requests
    assert result.skip_reason is not None
    return result.skip_reason.skip_message or ""


def one_asset(spec: PipelineSpec, instance: dg.DagsterInstance) -> None:
    job = pipeline_definitions([spec], Path(os.environ["EMBEDDING_PIPELINES_HOME"]))
    whole = job.resolve_implicit_global_asset_job_def()
    selection = [dg.AssetKey(["notes", "documents"])]
    assert whole.execute_in_process(instance=instance, asset_selection=selection).success


def model_down(spec: PipelineSpec, instance: dg.DagsterInstance) -> None:
    assert not run(spec, instance, Failing(dimensions=16, calls=1)).success


def budget_spent(spec: PipelineSpec, instance: dg.DagsterInstance) -> None:
    poor = spec.model_copy(update={"budget": Budget(tokens=20)})
    assert not run(poor, instance).success


def planned(spec: PipelineSpec, instance: dg.DagsterInstance) -> None:
    with Run(spec, Warehouse(Path(os.environ["EMBEDDING_PIPELINES_HOME"]))) as planning:
        plan(planning)


def killed(spec: PipelineSpec, instance: dg.DagsterInstance) -> None:
    """A process that dies where it writes the table."""
    code = (
        "import os, sys\nfrom embedding_pipelines.steps import vector_store as v\n"
        "v.update_vector_store = lambda run: os._exit(9)\n"
        "sys.argv[1:] = ['run', 'notes']\n"
        "from embedding_pipelines.cli.main import main\nmain()"
    )
    home = Path(os.environ["EMBEDDING_PIPELINES_HOME"])
    done = subprocess.run([sys.executable, "-c", code], env=environment(home), check=False)
    assert done.returncode == 9


@pytest.mark.parametrize("end", [model_down, budget_spent, planned, one_asset, killed])
def test_a_run_that_ends_before_its_release_is_asked_for_again(
    end: Callable[[PipelineSpec, dg.DagsterInstance], None],
    home: Path,
    instance: dg.DagsterInstance,
) -> None:
    spec = notes(home)
    first = tick(spec, instance, "source")
    end(spec, instance)
    soon = tick(spec, instance, "source", first.cursor)
    assert "a run is asked for again at" in quiet(soon)
    again = asked(tick(spec, instance, "source", later(soon.cursor)))
    reset = asked(tick(spec, instance, "source"))
    assert len({asked(first).run_key, again.run_key, reset.run_key}) == 3
    assert run(spec, instance).success
    assert quiet(tick(spec, instance, "source", soon.cursor)) == "no file has changed"
    assert live_rows(home) == 40


def test_a_candidate_that_checks_hold_back_is_told_and_asked_for_once_a_day(
    home: Path, instance: dg.DagsterInstance
) -> None:
    notes(home)
    blocking = "known_items: 0, checks: {data_has_not_drifted: block}"
    write_pipeline(home, text=NOTES.replace("known_items: 8", blocking))
    spec = find_pipeline("notes", home)
    assert run(spec, instance).success
    write_notes(home, rows=range(0))
    cursor = asked_cursor(tick(spec, instance, "source", "null"))
    assert not run(spec, instance).success
    message = quiet(tick(spec, instance, "source", later(cursor, LONGEST_WAIT_SECONDS - 60)))
    assert "the newest table is held back by" in message
    assert "a run is asked for again at" in message
    asked(tick(spec, instance, "source", later(cursor)))
    write_notes(home)
    asked(tick(spec, instance, "source", cursor))
    assert run(spec, instance).success
    assert quiet(tick(spec, instance, "source", cursor)) == "no file has changed"


def test_a_rollback_asks_for_nothing(home: Path, ran: dg.DagsterInstance) -> None:
    spec = find_pipeline("notes", home)
    write_notes(home, rows=range(41))
    assert run(spec, ran).success
    rollback(Warehouse(home).pipeline("notes"), None)
    assert quiet(tick(spec, ran, "source")) == "no file has changed"


def test_while_a_run_waits_or_works_no_other_one_is_asked_for(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    with Warehouse(home).pipeline("notes").lock("run"):
        assert "a run is under way" in quiet(tick(spec, instance, "source"))
    job = pipeline_definitions([spec], home).resolve_job_def("notes")
    waiting = instance.create_run_for_job(job, tags=all_partitions(spec))
    assert "a run is under way" in quiet(tick(spec, instance, "source"))
    instance.report_run_failed(waiting)
    asked(tick(spec, instance, "source"))


def asked(result: dg.SensorResult) -> dg.RunRequest:
    assert result.run_requests is not None
    (request,) = result.run_requests
    return request


def test_a_tick_asks_for_one_run_over_all_partitions_and_that_run_works(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    result = tick(spec, instance, "source")
    job = pipeline_definitions([spec], home).resolve_job_def("notes")
    assert asked(result).tags["why"] == "1 new"
    assert job.execute_in_process(instance=instance, tags=dict(asked(result).tags)).success
    assert live_rows(home) == 40
    assert quiet(tick(spec, instance, "source", result.cursor)) == "no file has changed"


def test_new_changed_and_deleted_files_are_seen(home: Path, instance: dg.DagsterInstance) -> None:
    spec = notes(home)
    write_notes(home, "b", range(40, 50))
    run(spec, instance)
    cursor = tick(spec, instance, "source").cursor
    write_notes(home, "c", range(50, 60))
    cursor = asked_cursor(tick(spec, instance, "source", cursor))
    write_notes(home, "b", range(40, 49))
    cursor = asked_cursor(tick(spec, instance, "source", cursor))
    (home / "data/notes/a.jsonl").unlink()
    asked_cursor(tick(spec, instance, "source", cursor))
    assert run(spec, instance).success
    assert live_rows(home) == 19


def test_a_tick_that_asks_for_a_run_observes_the_source(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec, source = notes(home), dg.AssetKey(["notes", "source"])
    documents = dg.AssetKey(["notes", "documents"])
    versions = []
    cursor: str | None = None
    for rows in (range(40), range(41)):
        write_notes(home, rows=rows)
        result = tick(spec, instance, "source", cursor)
        (observation,) = result.asset_events
        assert isinstance(observation, dg.AssetObservation)
        assert observation.asset_key == source
        assert observation.metadata["files"] == dg.IntMetadataValue(1)
        instance.report_runless_asset_event(observation)  # as the daemon does
        versions.append(observation.tags["dagster/data_version"])
        cursor = result.cursor
        run(spec, instance)
        event = instance.get_latest_materialization_event(documents)
        assert event is not None
        assert event.asset_materialization is not None
        tags = event.asset_materialization.tags or {}
        assert tags["dagster/input_data_version/notes/source"] == versions[-1]
        assert not tick(spec, instance, "source", cursor).asset_events
    assert versions[0] != versions[1]
    job = pipeline_definitions([spec], home).resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance, asset_selection=[source]).success
    (record,) = instance.fetch_observations(source, limit=1).records
    seen = record.event_log_entry.asset_observation
    assert seen is not None
    assert (seen.tags or {})["dagster/data_version"] == versions[-1]  # as somebody asks for it


def asked_cursor(result: dg.SensorResult) -> str | None:
    assert asked(result).run_key
    return result.cursor


def test_a_run_that_cannot_read_its_source_waits_until_files_change(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    cursor = asked_cursor(tick(spec, instance, "source"))
    (home / "data/notes/a.jsonl").write_text('{"id": "n1"}\n')
    cursor = asked_cursor(tick(spec, instance, "source", cursor))
    assert not run(spec, instance).success
    message = quiet(tick(spec, instance, "source", cursor))
    assert message.startswith("1 new: data/notes/a.jsonl; a run is asked for again at 20")
    write_notes(home)
    asked_cursor(tick(spec, instance, "source", cursor))


def test_two_pipelines_do_not_ask_for_one_another(home: Path, instance: dg.DagsterInstance) -> None:
    first = notes(home)
    write_pipeline(home, "other", NOTES.replace("data/notes", "data/other"))
    second = find_pipeline("other", home)
    (home / "data" / "other").mkdir()
    (home / "data" / "other" / "a.jsonl").write_bytes(
        (home / "data" / "notes" / "a.jsonl").read_bytes()
    )
    run(first, instance)
    run(second, instance, Failing(dimensions=16, calls=99))
    write_notes(home, "b", range(40, 41))
    assert tick(first, instance, "source").run_requests
    assert not tick(second, instance, "source").run_requests


def test_a_missing_folder_is_a_reason_to_skip(home: Path, instance: dg.DagsterInstance) -> None:
    write_pipeline(home)
    result = tick(find_pipeline("notes", home), instance, "source")
    assert not result.run_requests
    assert result.skip_reason is not None
    assert result.skip_reason.skip_message is not None
    assert "data/notes/*.jsonl" in result.skip_reason.skip_message


def test_each_change_of_a_bucket_asks_for_one_run(
    home: Path, instance: dg.DagsterInstance, bucket: TestBucket
) -> None:
    """All within a second or two: no date tells what is new."""
    write_pipeline(home, text=NOTES.replace("data/notes/*.jsonl", f"{bucket.uri}/notes"))
    spec, cursor = find_pipeline("notes", home), None

    def put(name: str, rows: range) -> None:
        bucket.put(f"notes/{name}.jsonl", write_notes(home, "local", rows).read_bytes())

    def rename(name: str, to: str) -> None:
        bucket.copy(f"notes/{name}.jsonl", f"notes/{to}.jsonl")
        bucket.delete(f"notes/{name}.jsonl")

    result = tick(spec, instance, "source")
    assert not result.run_requests
    assert f"no object; looked in '{bucket.uri}/'" in quiet(result)
    put("a", range(40))
    for change, why in (
        (lambda: put("b", range(40, 50)), "2 new"),
        (lambda: put("b", range(40, 49)), "1 changed"),
        (lambda: rename("b", "c"), "1 new, 1 deleted"),
        (lambda: put("d", range(50, 60)), "1 new"),
        (lambda: bucket.delete("notes/d.jsonl"), "1 deleted"),
    ):
        change()
        result = tick(spec, instance, "source", cursor)
        assert asked(result).tags["why"] == why
        assert quiet(tick(spec, instance, "source", result.cursor))  # not twice
        run_steps(home, "notes")
        cursor = result.cursor
        assert quiet(tick(spec, instance, "source", cursor)) == "no file has changed"
    assert live_rows(home) == 49


def test_503s_among_the_requests_of_a_look_hide_no_object_and_invent_no_deletion(
    home: Path,
    instance: dg.DagsterInstance,
    bucket: TestBucket,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = [f"in{number}" for number in range(4)]
    paths = ", ".join(f"'{bucket.uri}/{folder}/*.jsonl'" for folder in folders)
    write_pipeline(home, text=NOTES.replace("data/notes/*.jsonl", f"[{paths}]"))
    spec = find_pipeline("notes", home)
    for number, folder in enumerate(folders):
        rows = write_notes(home, "local", range(number * 10, number * 10 + 10))
        bucket.put(f"{folder}/a.jsonl", rows.read_bytes())

    def slow_down(exchange: Exchange) -> bool:
        return exchange.answer(503, b"<Error><Code>SlowDown</Code></Error>")

    proxy.fault = lambda exchange: exchange.number % 2 == 0 and slow_down(exchange)
    first = tick(spec, instance, "source")
    assert asked(first).tags["why"] == "4 new"
    assert len(proxy.paths) >= 8  # each folder is listed twice
    proxy.fault = lambda _: False
    run_steps(home, "notes")
    assert quiet(tick(spec, instance, "source", first.cursor)) == "no file has changed"
    # The third folder is answered with nothing else: what was listed before it counts for nothing.
    monkeypatch.setattr("embedding_pipelines.objects.RETRIES", 1)
    monkeypatch.setattr("embedding_pipelines.objects.LONGEST_WAIT_SECONDS", 0.1)
    bucket.put("in0/b.jsonl", write_notes(home, "local", range(40, 50)).read_bytes())
    proxy.fault = lambda exchange: "in2" in exchange.path and slow_down(exchange)
    failed = tick(spec, instance, "source", first.cursor)
    assert "503" in quiet(failed)
    assert failed.cursor is None  # as it was
    proxy.fault = lambda _: False
    assert asked(tick(spec, instance, "source", first.cursor)).tags["why"] == "1 new"
    assert live_rows(home) == 40


def test_a_damaged_list_of_files_is_a_reason_to_skip(home: Path, ran: dg.DagsterInstance) -> None:
    spec = find_pipeline("notes", home)
    Warehouse(home).pipeline("notes").files.write_text("{")
    result = tick(spec, ran, "source")
    assert not result.run_requests
    assert result.skip_reason is not None
    assert result.skip_reason.skip_message is not None
    assert "files.json is damaged" in result.skip_reason.skip_message


def test_a_schedule_asks_for_all_partitions(home: Path, instance: dg.DagsterInstance) -> None:
    spec = notes(home)
    schedule = pipeline_definitions([spec], home).resolve_schedule_def("notes_schedule")
    due = datetime(2026, 1, 1, 2, tzinfo=UTC)
    data = schedule.evaluate_tick(dg.build_schedule_context(instance, scheduled_execution_time=due))
    assert data.run_requests is not None
    (request,) = data.run_requests
    job = pipeline_definitions([spec], home).resolve_job_def("notes")
    assert job.execute_in_process(instance=instance, tags=dict(request.tags)).success


def test_from_a_bucket_to_a_bucket(
    home: Path, bucket: TestBucket, instance: dg.DagsterInstance
) -> None:
    """Upload, rename and delete: the sensor asks, and what is live stands in the output bucket."""
    text = NOTES.replace("data/notes/*.jsonl", f"{bucket.uri}/in/")
    write_pipeline(home, text=text.replace("known_items: 8", "known_items: 0"))
    with (home / "pipelines" / "notes.yaml").open("a") as file:
        file.write(f"output: {bucket.uri}/out/\n")
    spec, cursor = unmeasured(find_pipeline("notes", home)), None

    def round() -> tuple[int, set[str]]:
        """Texts that the run embedded, and the objects that are delivered then."""
        nonlocal cursor
        look = tick(spec, instance, "source", cursor)
        assert len(look.run_requests or ()) == 1
        cursor = look.cursor
        result = run(spec, instance)
        assert result.success
        values = result.asset_materializations_for_node("notes__embeddings")
        embedded = sum(int(value.metadata["embedded"].value) for value in values)
        look = tick(spec, instance, "source", cursor)
        assert not look.run_requests
        assert "no file has changed" in quiet(look)
        cursor = look.cursor
        rows = delivered(bucket.uri + "/out")
        with Searcher(Warehouse(home), "notes") as searcher:
            found = searcher.search("note 3 on animal 3", k=100).hits
        assert {row["document_id"] for row in rows} == {hit.document_id for hit in found}
        assert {row["embedding_model"] for row in rows} == {"hashing:words"}
        return embedded, {row["source_uri"] for row in rows}

    for name, first in (("a", 0), ("b", 6)):
        path = write_notes(home, name, range(first, first + 6))
        bucket.put(f"in/{name}.jsonl", path.read_bytes())
    assert round() == (12, {f"{bucket.uri}/in/{name}.jsonl" for name in "ab"})
    bucket.copy("in/a.jsonl", "in/renamed.jsonl")
    bucket.delete("in/a.jsonl")
    assert round() == (0, {f"{bucket.uri}/in/{name}.jsonl" for name in ("b", "renamed")})
    bucket.delete("in/renamed.jsonl")
    assert round() == (0, {f"{bucket.uri}/in/b.jsonl"})
    assert live_rows(home) == 6


def delivered(uri: str) -> list[dict[str, object]]:
    """The rows that an output's index names."""
    bucket, folder = open_bucket(uri)
    index = json.loads(bucket.read(f"{folder}/index.json") or b"")
    contents = (bucket.read(f"{folder}/{file['name']}") for file in index["files"].values())
    return [row for data in contents for row in pq.read_table(io.BytesIO(data or b"")).to_pylist()]
