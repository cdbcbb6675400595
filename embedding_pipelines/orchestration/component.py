"""Components: pipelines in the `defs.yaml` files of a Dagster project, one by one or by the folder."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler

from embedding_pipelines.environment import home
from embedding_pipelines.orchestration.build import home_definitions, pipeline_definitions
from embedding_pipelines.spec.pipeline import PipelineSpec


class PipelineAttributes(PipelineSpec):
    """Attributes of an EmbeddingPipelineComponent: a pipeline file's, plus `name` and `home`."""

    home: Path | None = Field(
        None, description="The folder that holds `data/`, relative to the project's root."
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """`dg check yaml` holds a file against this schema, which shows the long form of each
        option only: short forms pass it, and loading checks them."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema["properties"] = {
            **{name: {"anyOf": [part, {}]} for name, part in schema["properties"].items()},
            "data_path": {"type": "string"},
            "input_type": {"type": "string"},
        }
        schema["required"] = ["name", "model"]
        return schema


class PipelineScaffolder(dg.Scaffolder[BaseModel]):
    """Writes a `defs.yaml` that loads as it is."""

    def scaffold(self, request: dg.ScaffoldRequest[BaseModel]) -> None:
        name = re.sub(r"[^a-z0-9_]", "_", request.target_path.name.lower())
        source = {"kind": "jsonl", "path": f"data/{name}/*.jsonl", "id": "id", "text": ["text"]}
        dg.scaffold_component(request, {"name": name, "source": source, "model": "minilm"})


@dg.scaffold_with(PipelineScaffolder)
class EmbeddingPipelineComponent(dg.Component):
    """One pipeline: a source, a model, a compression and a store. Its attributes are those of a
    pipeline file, plus `name` and `home`."""

    def __init__(self, spec: PipelineSpec, folder: Path | None) -> None:
        self.spec, self.folder = spec, folder

    @classmethod
    def get_model_cls(cls) -> type[PipelineAttributes]:
        return PipelineAttributes

    @classmethod
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> "EmbeddingPipelineComponent":
        assert isinstance(attributes, PipelineAttributes)
        spec = {name: value for name, value in attributes if name != "home"}
        return cls(PipelineSpec.model_validate(spec), attributes.home)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return pipeline_definitions([self.spec], home_of(self.folder, context))


class PipelineFolderAttributes(BaseModel):
    """Attributes of a PipelineFolderComponent."""

    model_config = ConfigDict(extra="forbid")

    home: Path | None = Field(
        None,
        description="The folder that holds `pipelines/` and `data/`, relative to the project's "
        "root.",
    )


class PipelineFolderComponent(dg.Component):
    """Every pipeline file of a home folder: what `pipelines/*.yaml` says, without a `defs.yaml`
    for each."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def get_model_cls(cls) -> type[PipelineFolderAttributes]:
        return PipelineFolderAttributes

    @classmethod
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> "PipelineFolderComponent":
        return cls(attributes.home if isinstance(attributes, PipelineFolderAttributes) else None)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return home_definitions(home_of(self.folder, context))


def home_of(folder: Path | None, context: dg.ComponentLoadContext) -> Path:
    """The home folder that a `defs.yaml` names; without one, that of the environment."""
    return home() if folder is None else (context.project_root / folder).resolve()
