"""The pipeline as a component in another project's `defs.yaml`."""

from pathlib import Path

import dagster as dg
import pytest
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.testing import create_defs_folder_sandbox

from embedding_pipelines.orchestration import EmbeddingPipelineComponent, PipelineFolderComponent
from embedding_pipelines.orchestration.partitions import all_partitions
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines_tests.orchestration.support import live_rows, write_notes, write_pipeline

# What Dagster 1.13 itself does when it reads a `defs.yaml`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]

COMPONENT = "embedding_pipelines.orchestration.EmbeddingPipelineComponent"
FOLDER = "embedding_pipelines.orchestration.PipelineFolderComponent"
STEPS = ("source", "documents", "chunks", "embeddings", "codec", "vector_store", "release")
ATTRIBUTES = {
    "name": "notes",
    "source": {"kind": "jsonl", "path": "data/notes/*.jsonl", "id": "id", "text": ["text"]},
    "model": {"provider": "hashing"},
    "compression": [{"kind": "pca", "dimensions": 8}, {"kind": "int8"}],
    "partitions": 2,
}


def test_a_defs_file_becomes_the_chain_of_assets() -> None:
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            EmbeddingPipelineComponent,
            defs_path="notes",
            defs_yaml_contents={
                "type": COMPONENT,
                "attributes": ATTRIBUTES,
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=folder) as (component, definitions):
            assert isinstance(component, EmbeddingPipelineComponent)
            dg.Definitions.validate_loadable(definitions)
            keys = {
                key.to_user_string()
                for key in definitions.resolve_asset_graph().get_all_asset_keys()
            }
    assert keys == {f"notes/{name}" for name in STEPS}


def test_two_pipelines_live_in_one_project_that_has_an_executor_of_its_own(
    home: Path, instance: dg.DagsterInstance
) -> None:
    write_notes(home)
    with create_defs_folder_sandbox() as sandbox:
        for name in ("notes", "others"):
            sandbox.scaffold_component(
                EmbeddingPipelineComponent,
                defs_path=name,
                defs_yaml_contents={"type": COMPONENT, "attributes": {**ATTRIBUTES, "name": name}},
            )
        with sandbox.build_all_defs() as definitions:
            assert definitions.executor is None
            own = dg.Definitions(executor=dg.multiprocess_executor)
            both = dg.Definitions.merge(definitions, own)
            dg.Definitions.validate_loadable(both)
            for name in ("notes", "others"):
                job = both.resolve_job_def(name)
                assert job.executor_def is dg.in_process_executor
                tags = all_partitions(PipelineSpec.model_validate({**ATTRIBUTES, "name": name}))
                assert job.execute_in_process(instance=instance, tags=tags).success
                assert live_rows(home, name) == 40


def test_two_components_may_have_a_home_each(instance: dg.DagsterInstance) -> None:
    with create_defs_folder_sandbox() as sandbox:
        for name in ("notes", "others"):
            write_notes(sandbox.project_root / name)
            attributes = {**ATTRIBUTES, "name": name, "home": name}
            sandbox.scaffold_component(
                EmbeddingPipelineComponent,
                defs_path=name,
                defs_yaml_contents={"type": COMPONENT, "attributes": attributes},
            )
        with sandbox.build_all_defs() as definitions:
            for name in ("notes", "others"):
                tags = all_partitions(PipelineSpec.model_validate({**ATTRIBUTES, "name": name}))
                job = definitions.resolve_job_def(name)
                assert job.execute_in_process(instance=instance, tags=tags).success
                assert live_rows(sandbox.project_root / name, name) == 40


def test_a_folder_of_pipeline_files_is_one_component(tmp_path: Path) -> None:
    with create_defs_folder_sandbox() as sandbox:
        home = sandbox.project_root / "zoo"
        write_pipeline(home, "a")
        write_pipeline(home, "b")
        write_pipeline(home, "broken", "model: nothing\n")
        sandbox.scaffold_component(
            PipelineFolderComponent,
            defs_path="zoo",
            defs_yaml_contents={"type": FOLDER, "attributes": {"home": "zoo"}},
        )
        with sandbox.build_all_defs() as definitions:
            dg.Definitions.validate_loadable(definitions)
            keys = {
                key.to_user_string()
                for key in definitions.resolve_asset_graph().get_all_asset_keys()
            }
    pipelines = {f"{name}/{step}" for name in "ab" for step in STEPS}
    assert keys == {*pipelines, "broken/pipeline_file"}


def test_five_mistakes_are_told_at_once_with_their_lines() -> None:
    wrong = {
        "name": "Not A Name",
        "source": {"kind": "jsonl", "text": ["text"], "colour": "red"},
        "model": "nothing",
        "schedule": "sometimes",
        "partitions": 0,
    }
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            EmbeddingPipelineComponent,
            defs_path="notes",
            defs_yaml_contents={
                "type": COMPONENT,
                "attributes": wrong,
            },
        )
        with (
            pytest.raises(ComponentTreeException) as caught,
            sandbox.load_component_and_build_defs(defs_path=folder),
        ):
            pass
    told = f"{caught.value} {caught.value.__cause__}"
    for part in (
        "cannot name a pipeline",
        "colour",
        "is no known alias",
        "is no cron schedule",
        "partitions",
    ):
        assert part in told
    assert "defs.yaml:" in told
