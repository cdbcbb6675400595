"""The pipeline as a component in another project's `defs.yaml`."""

import dagster as dg
import pytest
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.testing import create_defs_folder_sandbox

from embedding_pipelines.orchestration.component import EmbeddingPipelineComponent

# What Dagster 1.13 itself does when it reads a `defs.yaml`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]

ATTRIBUTES = {
    "name": "notes",
    "source": {"kind": "jsonl", "path": "data/notes/*.jsonl", "id": "id", "text": ["text"]},
    "model": {"provider": "hashing"},
    "compression": [{"kind": "pca", "dimensions": 8}, {"kind": "int8"}],
}


def test_a_defs_file_becomes_the_chain_of_assets() -> None:
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            EmbeddingPipelineComponent,
            defs_path="notes",
            defs_yaml_contents={
                "type": "embedding_pipelines.orchestration.component.EmbeddingPipelineComponent",
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
    assert keys == {
        f"notes/{name}"
        for name in (
            "source",
            "documents",
            "chunks",
            "embeddings",
            "codec",
            "vector_store",
            "release",
        )
    }


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
                "type": "embedding_pipelines.orchestration.component.EmbeddingPipelineComponent",
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
