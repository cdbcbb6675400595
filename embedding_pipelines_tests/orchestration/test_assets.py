"""What runs of the chain do and leave on record."""

from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from embedding_pipelines.errors import (
    BudgetError,
    Busy,
    ConfigError,
    SourceError,
    Unreachable,
)
from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.failures import readable_errors
from embedding_pipelines.orchestration.partitions import RANGE_END, all_partitions
from embedding_pipelines.quality.evaluate import CHECKS
from embedding_pipelines.releases import live_release
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import top
from embedding_pipelines_tests.orchestration.support import (
    PARTITIONS,
    Failing,
    command,
    live_rows,
    materialized,
    notes,
    recorded,
    run,
    unmeasured,
    write_notes,
    write_pipeline,
)

ALL = {
    "documents": 1,
    "chunks": PARTITIONS,
    "embeddings": PARTITIONS,
    "codec": 1,
    "vector_store": 1,
    "release": 1,
}


def test_one_run_takes_all_partitions_from_the_source_to_the_release(
    home: Path, instance: dg.DagsterInstance
) -> None:
    result = run(notes(home), instance)
    assert result.success
    assert live_rows(home) == 40
    assert {asset for asset, _ in materialized(instance, result.run_id)} == set(ALL)
    passed = {check.check_name for check in result.get_asset_check_evaluations() if check.passed}
    assert passed == {*CHECKS, "released_version_is_checked"}


def test_a_model_that_is_learnt_from_the_chunks_is_an_asset_before_the_embeddings(
    home: Path, instance: dg.DagsterInstance
) -> None:
    write_notes(home)
    learnt = "model: {provider: word2vec, train: {dimensions: 16, min_count: 1}}\npartitions: 2\n"
    write_pipeline(
        home,
        "w",
        f"source: {{kind: jsonl, path: data/notes/*.jsonl, id: id, text: [text]}}\n{learnt}",
    )
    spec = find_pipeline("w", home)
    graph = pipeline_definitions([spec], home).resolve_asset_graph()
    assert graph.get(dg.AssetKey(["w", "embeddings"])).parent_keys == {
        dg.AssetKey(["w", "chunks"]),
        dg.AssetKey(["w", "train"]),
    }
    result = run(spec, instance)
    assert result.success
    assert Counter(asset for asset, _ in materialized(instance, result.run_id))["train"] == 1
    assert live_rows(home, "w") == 40


def test_metadata_count_rows_tokens_bytes_and_rates(home: Path, ran: dg.DagsterInstance) -> None:
    (whole,) = ran.get_runs()
    totals: Counter[tuple[str, str]] = Counter()
    seen: set[tuple[str, str | None]] = set()
    for event in recorded(ran, whole.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION):
        assert event.asset_key is not None
        asset = event.asset_key.path[-1]
        values = event.step_materialization_data.materialization.metadata
        assert not [name for name, value in values.items() if "Json" in type(value).__name__]
        if (asset, event.partition) not in seen:
            seen.add((asset, event.partition))
            for name, value in values.items():
                if isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue):
                    totals[asset, name] += value.value or 0
    for asset in ("documents", "vector_store", "release"):
        assert totals[asset, "dagster/row_count"] == 40
    for asset in ("chunks", "embeddings"):  # the rows of all partitions stand at each of them
        assert totals[asset, "dagster/partition_row_count"] == 40
        assert totals[asset, "dagster/row_count"] == 40 * PARTITIONS
    assert totals["chunks", "tokens"] == totals["embeddings", "embedded_tokens"] == 200
    assert totals["embeddings", "tokens_per_second"] > 0
    assert totals["embeddings", "size_bytes"] > 0
    assert totals["vector_store", "size_bytes"] > 0
    assert totals["documents", "seconds"] > 0


def test_each_partition_is_recorded_once(home: Path, ran: dg.DagsterInstance) -> None:
    run(find_pipeline("notes", home), ran)
    for each in ran.get_runs():
        assert Counter(asset for asset, _ in materialized(ran, each.run_id)) == ALL
    assert ran.get_runs_count() == 2


def test_a_run_that_dies_half_way_keeps_the_partitions_it_finished(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = unmeasured(notes(home))
    result = run(spec, instance, Failing(dimensions=16, calls=2))
    assert not result.success
    kept = [
        partition
        for asset, partition in materialized(instance, result.run_id)
        if asset == "embeddings"
    ]
    assert kept == ["b00", "b01"]
    status = instance.get_materialized_partitions(dg.AssetKey(["notes", "embeddings"]))
    assert status == {"b00", "b01"}
    rest = Failing(dimensions=16, calls=2)
    assert run(spec, instance, rest).success
    assert live_rows(home) == 40


def test_a_partition_without_documents_is_recorded_too(
    home: Path, instance: dg.DagsterInstance
) -> None:
    spec = notes(home)
    write_notes(home, rows=range(1))
    assert run(spec, instance).success
    assert (
        len(instance.get_materialized_partitions(dg.AssetKey(["notes", "embeddings"])))
        == PARTITIONS
    )


def test_one_partition_of_a_finished_pipeline_runs_with_what_has_no_partitions(
    home: Path, ran: dg.DagsterInstance
) -> None:
    spec = find_pipeline("notes", home)
    write_notes(home, "b", range(40, 41))
    job = pipeline_definitions([spec], home).resolve_job_def("notes")
    result = job.execute_in_process(instance=ran, partition_key="b03", raise_on_error=False)
    assert {partition for _, partition in materialized(ran, result.run_id)} == {"b03", None}


def test_a_job_without_partitions_takes_all_of_them(
    home: Path, instance: dg.DagsterInstance
) -> None:
    job = pipeline_definitions([notes(home)], home).resolve_job_def("notes")
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert result.success
    assert Counter(asset for asset, _ in materialized(instance, result.run_id)) == ALL
    assert instance.get_materialized_partitions(dg.AssetKey(["notes", "embeddings"])) == {
        f"b{number:02d}" for number in range(PARTITIONS)
    }
    record = instance.get_run_by_id(result.run_id)
    assert record is not None
    assert all_partitions(find_pipeline("notes", home)).items() <= record.tags.items()


def test_one_asset_of_a_job_without_partitions_takes_all_of_them(
    home: Path, ran: dg.DagsterInstance
) -> None:
    spec = find_pipeline("notes", home)
    job = pipeline_definitions([spec], home).resolve_job_def("notes")
    embeddings = dg.AssetKey(["notes", "embeddings"])
    result = job.execute_in_process(instance=ran, asset_selection=[embeddings])
    assert [asset for asset, _ in materialized(ran, result.run_id)] == ["embeddings"] * PARTITIONS


def test_a_range_of_partitions_stays_that_range(home: Path, ran: dg.DagsterInstance) -> None:
    spec = find_pipeline("notes", home)
    write_notes(home, "b", range(40, 44))
    job = pipeline_definitions([spec], home).resolve_job_def("notes")
    tags = {**all_partitions(spec), RANGE_END: "b01"}
    result = job.execute_in_process(instance=ran, tags=tags, raise_on_error=False)
    assert {partition for _, partition in materialized(ran, result.run_id)} <= {
        "b00",
        "b01",
        None,
    }


def test_a_home_that_is_no_folder_is_one_sentence_and_is_not_tried_again(
    home: Path, instance: dg.DagsterInstance
) -> None:
    config = {"resources": {"warehouse": {"config": {"folder": "~nobody-here/x"}}}}
    result = run(notes(home), instance, run_config=config)
    (event,) = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert (failure.description or "").startswith("The run's home folder '~nobody-here/x' is no")


def test_only_what_may_pass_may_be_tried_again() -> None:
    for error, may_pass in (
        (Unreachable("down"), True),
        (Busy("429"), True),
        (BudgetError("spent"), False),
        (ConfigError("wrong"), False),
        (SourceError("damaged"), False),
    ):
        with pytest.raises(dg.Failure) as caught, readable_errors():
            raise error
        assert caught.value.allow_retries is may_pass


def test_a_run_may_take_chunks_alone(home: Path, ran: dg.DagsterInstance) -> None:
    spec = find_pipeline("notes", home)
    job = pipeline_definitions([spec], home).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=ran,
        tags=all_partitions(spec),
        asset_selection=[dg.AssetKey(["notes", "chunks"])],
    )
    assert [asset for asset, _ in materialized(ran, result.run_id)] == ["chunks"] * PARTITIONS


def test_an_error_that_the_user_can_fix_leads_with_its_sentence(
    home: Path, instance: dg.DagsterInstance
) -> None:
    write_notes(home)
    spec = notes(home)
    write_pipeline(home)
    broken = spec.model_copy(update={"source": spec.source.model_copy(update={"id": "sku"})})
    result = run(broken, instance)
    (event,) = [event for event in result.all_events if event.is_step_failure]
    failure, error = event.step_failure_data.user_failure_data, event.step_failure_data.error
    assert failure is not None
    assert failure.description is not None
    assert failure.description.startswith("data/notes/a.jsonl: column 'sku' is missing")
    assert error is not None
    assert failure.description in error.message
    assert error.cause is error.context is None
    assert "/sources/" not in error.to_string()  # where in the core it was raised helps nobody


def with_model(**config: Any) -> dict[str, Any]:
    """Run configuration that names another model, as in the launchpad."""
    return {"resources": {"model": {"config": config}}}


@pytest.mark.parametrize(
    "config",
    [{"kind": "hashing", "options": {"dimensions": 32}}, {"options": {"dimensions": 32}}],
)
def test_a_run_with_another_model_releases_that_model_and_is_searched_with_it(
    home: Path, ran: dg.DagsterInstance, config: dict[str, Any]
) -> None:
    spec = find_pipeline("notes", home)
    for options, dimensions in ((config, 32), ({}, 16)):
        result = run(spec, ran, run_config=with_model(**options))
        assert result.success
        release = live_release(Warehouse(home).pipeline("notes"))
        assert release.space.dimensions == release.spec.model.dimensions == dimensions
        assert top(home, "notes", "note 7 on animal 0") == ["n7"]


def test_a_run_with_a_wrong_model_fails_with_a_sentence(
    home: Path, instance: dg.DagsterInstance
) -> None:
    config = with_model(kind="hashing", options={"dimensions": -1, "colour": "red"})
    result = run(notes(home), instance, run_config=config)
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert failure.description is not None
    for part in ("for pipeline 'notes'", "hashing.dimensions: ", "hashing.colour: "):
        assert part in failure.description


def test_a_warehouse_folder_of_the_launchpad_may_be_relative(
    home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.parent)
    config = {"resources": {"warehouse": {"config": {"folder": home.name}}}}
    assert run(notes(home), instance, run_config=config).success
    assert top(home, "notes", "note 7 on animal 0") == ["n7"]


def test_data_versions_change_with_the_data_alone(home: Path, ran: dg.DagsterInstance) -> None:
    spec = find_pipeline("notes", home)

    def versions() -> dict[str, str | None]:
        events = {
            name: ran.get_latest_materialization_event(dg.AssetKey(["notes", name])) for name in ALL
        }
        return {
            name: (event.asset_materialization.tags or {}).get("dagster/data_version")
            for name, event in events.items()
            if event is not None and event.asset_materialization is not None
        }

    first = versions()
    assert all(first.values())
    assert run(spec, ran).success
    assert versions() == first
    write_notes(home, "b", range(40, 41))
    assert run(spec, ran).success
    changed = {name for name, version in versions().items() if version != first[name]}
    assert changed == set(ALL) - {"codec"}


def test_metadata_names_the_table_and_says_where_data_and_report_are(
    home: Path, instance: dg.DagsterInstance
) -> None:
    run(notes(home), instance)
    warehouse = Warehouse(home)

    def metadata(name: str) -> dict[str, Any]:
        event = instance.get_latest_materialization_event(dg.AssetKey(["notes", name]))
        assert event is not None
        assert event.asset_materialization is not None
        return {key: entry.value for key, entry in event.asset_materialization.metadata.items()}

    chunks = metadata("chunks")["dagster/uri"]
    assert chunks == warehouse.pipeline("notes").chunks.folder.as_uri()
    release = live_release(warehouse.pipeline("notes"))
    for name in ("vector_store", "release"):
        assert metadata(name)["dagster/table_name"] == release.table
        assert metadata(name)["dagster/uri"] == warehouse.tables.as_uri()
    assert "`embedding-pipelines report notes` writes" in metadata("release")["report"]
    page = warehouse.root / "reports" / "notes.html"
    page.parent.mkdir()
    page.touch()
    run(notes(home), instance)
    assert metadata("release")["report"] == "data/warehouse/reports/notes.html"
    assert metadata("chunks")["path"] == "data/warehouse/pipelines/notes/chunks"
    assert metadata("documents")["source"] == "data/notes/*.jsonl"
    assert "rejected_rows" not in metadata("documents")
    assert "| known_items | known_item_recall |" in metadata("release")["metrics"]
    assert metadata("release")["known_items/known_item_recall"] > 0
    for name, kind in (("embeddings", "float32[16]"), ("vector_store", "float32[16]")):
        columns = {
            column.name: column for column in metadata(name)["dagster/column_schema"].columns
        }
        assert columns["vector"].type == kind
        assert columns["chunk_id"].description


@pytest.mark.slow
def test_the_dagster_command_runs_ranges_partitions_and_selections(home: Path) -> None:
    write_notes(home)
    write_pipeline(home)
    base = ("dagster", "asset", "materialize", "-m", "embedding_pipelines.definitions", "--select")

    fresh = command(home, *base, "group:notes", "--partition", "b03")
    assert fresh.returncode == 1
    assert "or run the whole pipeline: `embedding-pipelines run notes`." in fresh.stderr
    assert "Traceback" not in fresh.stderr
    assert "/steps/" not in fresh.stderr

    whole = command(home, *base, "group:notes", "--partition-range", f"b00...b0{PARTITIONS - 1}")
    assert whole.returncode == 0, whole.stderr
    assert live_rows(home) == 40

    write_notes(home, "b", range(40, 60))
    one = command(home, *base, 'key:"notes/documents"')
    assert one.returncode == 0, one.stderr
    chunks = command(
        home, *base, 'key:"notes/chunks"', "--partition-range", f"b00...b0{PARTITIONS - 1}"
    )
    assert chunks.returncode == 0, chunks.stderr
    assert live_rows(home) == 40


def test_assets_that_are_materialized_without_a_partition_say_how_to_name_one(
    home: Path, instance: dg.DagsterInstance
) -> None:
    assets = pipeline_definitions([notes(home)], home).resolve_implicit_global_asset_job_def()
    result = assets.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    (failed,) = recorded(instance, result.run_id, dg.DagsterEventType.STEP_FAILURE)
    assert failed.step_key == "notes__chunks"
    error = failed.step_failure_data.error
    assert error is not None
    said = f"{error.message} {failed.step_failure_data.user_failure_data}"
    assert f"`--partition-range b00...b0{PARTITIONS - 1}`" in said
    assert "Cannot access partition_key" not in said
