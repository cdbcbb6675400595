"""Checks block a wrong release, and say why."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import dagster as dg

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.files import write_json
from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.providers.base import NO_SECRETS, InputType, Response
from embedding_pipelines.providers.hashing import Hashing, HashingModel
from embedding_pipelines.run import Run
from embedding_pipelines.space import Space
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.vector_store import table_state
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.orchestration.support import (
    live_rows,
    notes,
    run,
    unmeasured,
    write_notes,
)


def vandalize(home: Path, spec: PipelineSpec) -> None:
    """Take a row out of the table as if the vector store had lost it, unnoticed."""
    context = Run(spec, Warehouse(home))
    state = table_state(context)
    assert state is not None
    table = spec.store.table(context.warehouse.tables, state.table)
    (batch, *_) = table.scan(["chunk_id"])
    table.apply(table.schema(), [batch["chunk_id"][0].as_py()], iter(()))
    assert table.version is not None
    write_json(context.folder.table_state, asdict(replace(state, version=table.version)))


def test_a_vandalized_table_is_not_released_and_the_run_fails(
    home: Path, ran: dg.DagsterInstance
) -> None:
    spec = find_pipeline("notes", home)
    vandalize(home, spec)
    result = run(spec, ran)
    assert not result.success
    found = result.get_asset_check_evaluations()
    failed = [
        check
        for check in found
        if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR
    ]
    assert [check.check_name for check in failed] == ["counts_add_up"]
    assert failed[0].description is not None
    assert failed[0].description.startswith("Counts do not add up: 40 embeddings, but 39 rows")
    assert "39 rows" in failed[0].description
    errors = [entry for entry in ran.all_logs(result.run_id) if entry.level == logging.ERROR]
    sentence = f"notes checks: the release is held back:\n  counts_add_up: {failed[0].description}"
    assert sentence in [entry.user_message for entry in errors]  # in front of Dagster's own
    assert live_rows(home) == 40
    assert not [
        event
        for event in result.get_asset_materialization_events()
        if event.asset_key.path[-1] == "release"
    ]


def test_one_check_can_be_run_alone(home: Path, ran: dg.DagsterInstance) -> None:
    spec = find_pipeline("notes", home)
    definitions = pipeline_definitions([spec], home)
    key = dg.AssetCheckKey(dg.AssetKey(["notes", "vector_store"]), "space_is_one")
    job = dg.define_asset_job("one_check", dg.AssetSelection.checks(key))
    resolved = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])).resolve_job_def(
        "one_check"
    )
    result = resolved.execute_in_process(instance=ran)
    assert [check.check_name for check in result.get_asset_check_evaluations()] == ["space_is_one"]


def test_a_table_that_moved_on_without_a_release_is_told(
    home: Path, ran: dg.DagsterInstance
) -> None:
    spec = find_pipeline("notes", home)
    write_notes(home, "b", range(40, 45))
    path = dg.AssetKey(["notes", "release"])
    definitions = pipeline_definitions([spec], home)
    upstream = definitions.resolve_implicit_global_asset_job_def()
    keys = [
        dg.AssetKey(["notes", name])
        for name in ("documents", "chunks", "embeddings", "vector_store")
    ]
    upstream.execute_in_process(instance=ran, tags=all_partitions(spec), asset_selection=keys)
    job = dg.define_asset_job(
        "released", dg.AssetSelection.checks(dg.AssetCheckKey(path, "released_version_is_checked"))
    )
    resolved = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job])).resolve_job_def(
        "released"
    )
    (check,) = resolved.execute_in_process(instance=ran).get_asset_check_evaluations()
    assert not check.passed
    assert check.description is not None
    assert check.description.endswith("but the table has moved on since release 1")


class Deaf(Hashing):
    """Has input types, and a service that does not answer queries."""

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> "DeafModel":
        return DeafModel(self, home)


class DeafModel(HashingModel):
    @property
    def space(self) -> Space:
        prompts = {"query": "query: ", "document": "passage: "}
        return Space(**{**super().space.model_dump(), "prompts": prompts})

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        if input_type == "query":
            raise ProviderError("queries are not served today")
        return super().embed(inputs, input_type)


def test_input_types_that_cannot_be_told_are_a_warning_and_the_run_goes_on(
    home: Path, instance: dg.DagsterInstance
) -> None:
    result = run(unmeasured(notes(home), "input_types_differ"), instance, Deaf(dimensions=16))
    assert result.success
    (found,) = [
        check
        for check in result.get_asset_check_evaluations()
        if check.check_name == "input_types_differ"
    ]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "queries are not served today" in (found.description or "")
