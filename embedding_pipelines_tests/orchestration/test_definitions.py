"""What Dagster is told of the pipelines of a home folder."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml

from embedding_pipelines.environment import instance_folder
from embedding_pipelines.orchestration.build import home_definitions
from embedding_pipelines.schemas import (
    CHUNK_COLUMNS,
    DESCRIPTIONS,
    DOCUMENT_COLUMNS,
    TABLE_COLUMNS,
)
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.orchestration.support import (
    NOTES,
    command,
    environment,
    notes,
    write_notes,
    write_pipeline,
)
from embedding_pipelines_tests.spec.test_load import odd_files

HEAVY = {
    "torch",
    "lancedb",
    "sentence_transformers",
    "transformers",
    "openvino",
    "sklearn",
    "openai",
    "pandas",
    "ftfy",
}
ROOT = Path(__file__).parents[2]


def specs_of(definitions: dg.Definitions) -> dict[str, dg.AssetSpec]:
    return {spec.key.path[-1]: spec for spec in definitions.resolve_all_asset_specs()}


def test_every_asset_says_what_it_is_and_whose(home: Path) -> None:
    notes(home)
    definitions = home_definitions(home)
    dg.Definitions.validate_loadable(definitions)
    specs = specs_of(definitions)
    assert set(specs) == {
        "source",
        "documents",
        "chunks",
        "embeddings",
        "codec",
        "vector_store",
        "release",
    }
    for spec in specs.values():
        assert spec.group_name == "notes"
        assert list(spec.owners) == ["team:search", "ada@example.org"]
        assert spec.kinds
        assert spec.description is not None
        assert spec.description.endswith("Notes of a zoo.")
    assert specs["documents"].kinds == {"jsonl", "parquet"}
    assert specs["embeddings"].kinds == {"hashing", "parquet"}


def test_columns_are_shown_before_anything_ran(home: Path) -> None:
    notes(home)
    specs = specs_of(home_definitions(home))
    columns = {
        name: [column.name for column in specs[name].metadata["dagster/column_schema"].columns]
        for name in ("documents", "chunks")
    }
    assert {"document_id", "text", "keeper"} <= set(columns["documents"])
    assert {"chunk_id", "tokens", "keeper"} <= set(columns["chunks"])
    for name in ("documents", "chunks", "embeddings", "vector_store"):
        for column in specs[name].metadata["dagster/column_schema"].columns:
            assert column.description, (name, column.name)
            assert column.type
            assert (column.type == "vector") == (column.name == "vector")


def test_every_column_of_ours_says_what_it_holds() -> None:
    assert {*DOCUMENT_COLUMNS, *CHUNK_COLUMNS, *TABLE_COLUMNS} <= set(DESCRIPTIONS)


def test_an_asset_leads_to_its_pipeline_file(home: Path) -> None:
    notes(home)
    references = specs_of(home_definitions(home))["chunks"].metadata["dagster/code_references"]
    (reference,) = references.code_references
    assert reference.file_path == str(home / "pipelines" / "notes.yaml")


def test_columns_lead_back_to_the_columns_they_come_from(home: Path) -> None:
    notes(home)
    specs = specs_of(home_definitions(home))

    def origins(asset: str, column: str) -> set[tuple[str, str]]:
        lineage = specs[asset].metadata["dagster/column_lineage"].deps_by_column
        return {(dep.asset_key.path[-1], dep.column_name) for dep in lineage[column]}

    assert origins("documents", "text") == set()
    assert origins("chunks", "keeper") == {("documents", "keeper")}
    assert origins("chunks", "start") == {("documents", "text")}
    assert origins("embeddings", "vector") == {("chunks", "text")}
    assert origins("vector_store", "vector") == {("embeddings", "vector")}
    assert origins("vector_store", "keeper") == {("chunks", "keeper")}
    chunk_id = {("chunks", "chunk_id"), ("embeddings", "chunk_id")}
    assert origins("vector_store", "chunk_id") == chunk_id


def test_the_source_is_upstream_and_no_run_makes_it(home: Path) -> None:
    notes(home)
    definitions = home_definitions(home)
    graph = definitions.resolve_asset_graph()
    source, documents = dg.AssetKey(["notes", "source"]), dg.AssetKey(["notes", "documents"])
    assert graph.get(documents).parent_keys == {source}
    assert (graph.get(source).is_observable, graph.get(source).is_materializable) == (True, False)
    assert source not in definitions.resolve_job_def("notes").asset_layer.executable_asset_keys


def test_a_changed_option_changes_the_code_version_of_the_steps_that_it_decides(home: Path) -> None:
    notes(home)
    before = {name: spec.code_version for name, spec in specs_of(home_definitions(home)).items()}
    write_pipeline(home, text=NOTES + "compression: [{kind: int8}]\n")
    after = {name: spec.code_version for name, spec in specs_of(home_definitions(home)).items()}
    assert {name for name in before if before[name] != after[name]} == {"codec"}
    assert all(after[name] for name in after if name != "source")


@pytest.mark.parametrize(
    ("schedule", "warn", "fail"),
    [
        ("*/5 * * * *", timedelta(hours=1.5), timedelta(hours=2.5)),
        ("0 2 * * *", timedelta(hours=36), timedelta(hours=60)),
        ("@daily", timedelta(hours=36), timedelta(hours=60)),
        ("0 2 * * 1-5", timedelta(days=10.5), timedelta(days=17.5)),
        ("0 2 1 * *", timedelta(days=46.5), timedelta(days=77.5)),
    ],
)
def test_a_release_is_stale_when_scheduled_runs_did_not_release(
    home: Path, schedule: str, warn: timedelta, fail: timedelta
) -> None:
    notes(home)
    write_pipeline(home, text=NOTES.replace("0 2 * * *", schedule))
    specs = specs_of(home_definitions(home))
    assert specs["release"].freshness_policy == dg.FreshnessPolicy.time_window(fail, warn)
    assert [name for name, spec in specs.items() if spec.freshness_policy] == ["release"]


def test_without_a_schedule_nothing_is_stale(home: Path) -> None:
    notes(home)
    write_pipeline(home, text=NOTES.replace('schedule: "0 2 * * *"\n', ""))
    assert not any(spec.freshness_policy for spec in specs_of(home_definitions(home)).values())


def test_each_pipeline_is_a_pool_of_one_run(home: Path, instance: dg.DagsterInstance) -> None:
    notes(home)
    job = home_definitions(home).resolve_job_def("notes")
    assert {node.definition.pools.pop() for node in job.nodes} == {"notes"}
    settings = yaml.safe_load((instance_folder(home) / "dagster.yaml").read_text())
    assert settings["concurrency"]["pools"] == {"granularity": "run", "default_limit": 1}


def test_each_pipeline_has_a_job_a_sensor_and_the_schedule_it_asks_for(home: Path) -> None:
    notes(home)
    write_pipeline(home, "other", NOTES.replace('schedule: "0 2 * * *"\n', ""))
    repository = home_definitions(home).get_repository_def()
    assert {"notes", "other"} <= set(repository.job_names)
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "notes_source_sensor",
        "other_source_sensor",
    }
    (schedule,) = repository.schedule_defs
    assert (schedule.name, schedule.cron_schedule) == ("notes_schedule", "0 2 * * *")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_a_broken_file_stands_in_the_graph_with_its_error_and_the_others_are_up(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes(home)
    write_pipeline(home, "wrong-name", "source: {kind: jsonl}\nmodel: nothing\n")
    definitions = home_definitions(home)
    dg.Definitions.validate_loadable(definitions)
    specs = specs_of(definitions)
    assert "release" in specs
    placeholder = specs["pipeline_file"]
    assert placeholder.group_name == "wrong_name"
    assert placeholder.description is not None
    assert "wrong-name.yaml:1: source.path: is missing." in placeholder.description
    assert "'nothing' is no known alias" in placeholder.description
    check = dg.AssetCheckKey(placeholder.key, "is_valid")
    job = dg.define_asset_job("check_file", dg.AssetSelection.checks(check))
    both = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
    result = both.resolve_job_def("check_file").execute_in_process()
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert "wrong-name.yaml:1: source.path: is missing." in (evaluation.description or "")


def test_whatever_lies_in_the_folder_the_good_pipelines_are_up(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of all kinds, and what Dagster alone refuses."""
    notes(home)
    odd_files(home / "pipelines")
    for name in ("my_pipe", "refused"):
        (home / "pipelines" / f"{name}.yaml").write_text(HASHING)

    def refuse(spec: PipelineSpec, home: Path) -> None:
        if spec.name == "refused":
            raise dg.DagsterInvalidDefinitionError("a rule of tomorrow")

    monkeypatch.setattr("embedding_pipelines.orchestration.build.pipeline_schedule", refuse)
    definitions = home_definitions(home)
    dg.Definitions.validate_loadable(definitions)
    repository = definitions.get_repository_def()
    specs = repository.asset_graph.get_all_asset_keys()
    broken = {key.path[0] for key in specs if key.path[-1] == "pipeline_file"}
    assert len(broken) == len([key for key in specs if key.path[-1] == "pipeline_file"]) == 17
    assert {"my_pipe_2", "my_pipe_3", "_", "__2", "refused"} <= broken
    valid = {key.path[0] for key in specs if key.path[-1] == "release"}
    assert {"notes", "my_pipe", "good"} == valid
    key = dg.AssetKey(["refused", "pipeline_file"])
    assert "a rule of tomorrow" in (repository.asset_graph.get(key).description or "")


def test_an_empty_home_has_no_assets_and_no_error(home: Path) -> None:
    assert specs_of(home_definitions(home)) == {}


def test_loading_the_definitions_imports_nothing_heavy(home: Path) -> None:
    notes(home)
    code = (
        "import json, sys, embedding_pipelines.definitions as found\n"
        "found.definitions().get_repository_def()\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home),
        text=True,
        capture_output=True,
        check=True,
    )
    assert not HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def test_the_workspace_file_is_valid_for_dagster(home: Path) -> None:
    write_notes(home)
    write_pipeline(home)
    done = command(home, "dagster", "definitions", "validate", "-w", str(ROOT / "workspace.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "Validation successful for code location embedding_pipelines" in done.stdout + done.stderr
    )
