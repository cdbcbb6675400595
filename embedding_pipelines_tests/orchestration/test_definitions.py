"""What Dagster is told of the pipelines of a home folder."""

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from embedding_pipelines.orchestration.build import home_definitions
from embedding_pipelines_tests.orchestration.support import (
    NOTES,
    command,
    environment,
    notes,
    write_notes,
    write_pipeline,
)

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
