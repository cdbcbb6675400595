"""When a sensor asks for a run: `changed` alone, and the sensor around it."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.sensors import Listing, changed
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.orchestration.support import (
    NOTES,
    Failing,
    live_rows,
    notes,
    run,
    tick,
    write_notes,
    write_pipeline,
)

LISTINGS = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(0, 2), st.integers(0, 2)))
SETTINGS = st.sampled_from(["one", "two"])


@given(LISTINGS, LISTINGS, SETTINGS)
def test_a_difference_asks_once_even_if_its_run_fails(
    listing: Listing, read: Listing, settings: str
) -> None:
    first, cursor = changed(listing, read, settings, None)
    assert (first.run_key is not None) == (listing != read)
    again, cursor = changed(listing, read, settings, cursor)
    assert again.run_key is None
    assert changed(listing, read, settings, cursor)[1] == cursor


@given(LISTINGS, LISTINGS, SETTINGS)
def test_every_name_is_told_as_what_happened_to_it(
    listing: Listing, read: Listing, settings: str
) -> None:
    changes, _ = changed(listing, read, settings, None)
    assert set(changes.new) == listing.keys() - read.keys()
    assert set(changes.deleted) == read.keys() - listing.keys()
    same = {name for name in listing.keys() & read.keys() if listing[name] == read[name]}
    assert set(changes.changed) == (listing.keys() & read.keys()) - same


@given(LISTINGS, st.lists(LISTINGS, min_size=2, max_size=8), SETTINGS)
def test_each_new_listing_asks_anew_and_no_key_comes_twice(
    read: Listing, listings: list[Listing], settings: str
) -> None:
    cursor, keys, before = None, [], None
    for listing in listings:
        changes, cursor = changed(listing, read, settings, cursor)
        assert (changes.run_key is not None) == (listing not in (read, before))
        keys += [changes.run_key] if changes.run_key else []
        before = listing
    assert len(set(keys)) == len(keys)


@given(LISTINGS, LISTINGS)
def test_a_mended_pipeline_file_asks_again(listing: Listing, read: Listing) -> None:
    _, cursor = changed(listing, read, "broken", None)
    changes, _ = changed(listing, read, "mended", cursor)
    assert (changes.run_key is not None) == (listing != read)


@given(LISTINGS, LISTINGS, SETTINGS)
def test_what_was_read_asks_for_nothing(listing: Listing, other: Listing, settings: str) -> None:
    _, cursor = changed(listing, other, settings, None)
    changes, _ = changed(listing, listing, settings, cursor)
    assert changes.run_key is None
    assert str(changes) == "no file has changed"


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
    assert job.execute_in_process(instance=instance, tags=dict(asked(result).tags)).success
    assert live_rows(home) == 40
    quiet = tick(spec, instance, "source", result.cursor)
    assert not quiet.run_requests
    assert quiet.skip_reason is not None
    assert quiet.skip_reason.skip_message == "no file has changed"


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


def test_a_failing_run_is_not_asked_for_again_until_files_change(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    cursor = asked_cursor(tick(spec, instance, "source"))
    (home / "data/notes/a.jsonl").write_text('{"id": "n1"}\n')
    cursor = asked_cursor(tick(spec, instance, "source", cursor))
    assert not run(spec, instance).success
    quiet = tick(spec, instance, "source", cursor)
    assert not quiet.run_requests
    assert quiet.skip_reason is not None
    assert (
        quiet.skip_reason.skip_message == "1 new: data/notes/a.jsonl; a run was asked for already"
    )
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


def test_a_damaged_list_of_files_is_a_reason_to_skip(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    assert run(spec, instance).success
    Warehouse(home).pipeline("notes").files.write_text("{")
    result = tick(spec, instance, "source")
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
