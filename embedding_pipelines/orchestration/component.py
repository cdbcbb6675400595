"""Components: pipelines in the `defs.yaml` files of a Dagster project, one by one or by the folder."""

import re
from pathlib import Path

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field

from embedding_pipelines.environment import home
from embedding_pipelines.orchestration.build import home_definitions, pipeline_definitions
from embedding_pipelines.spec.pipeline import PipelineSpec


class PipelineScaffolder(dg.Scaffolder[BaseModel]):
    """Writes a `defs.yaml` that loads as it is."""

    def scaffold(self, request: dg.ScaffoldRequest[BaseModel]) -> None:
        name = re.sub(r"[^a-z0-9_]", "_", request.target_path.name.lower())
        source = {"kind": "jsonl", "path": f"data/{name}/*.jsonl", "id": "id", "text": ["text"]}
        dg.scaffold_component(request, {"name": name, "source": source, "model": "minilm"})


@dg.scaffold_with(PipelineScaffolder)
class EmbeddingPipelineComponent(dg.Component):
    """One pipeline: a source, a model, a compression and a store. Its attributes are those of a
    pipeline file, plus `name`."""

    def __init__(self, spec: PipelineSpec) -> None:
        self.spec = spec

    @classmethod
    def get_model_cls(cls) -> type[PipelineSpec]:
        return PipelineSpec

    @classmethod
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> "EmbeddingPipelineComponent":
        assert isinstance(attributes, PipelineSpec)
        return cls(attributes)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return pipeline_definitions([self.spec], home())


class PipelineFolder(BaseModel):
    """Attributes of a PipelineFolderComponent."""

    model_config = ConfigDict(extra="forbid")

    home: Path | None = Field(
        None, description="The folder that holds `pipelines/`, relative to the project's root."
    )


class PipelineFolderComponent(dg.Component):
    """Every pipeline file of a home folder: what `pipelines/*.yaml` says, without a `defs.yaml`
    for each."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def get_model_cls(cls) -> type[PipelineFolder]:
        return PipelineFolder

    @classmethod
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> "PipelineFolderComponent":
        assert isinstance(attributes, PipelineFolder)
        return cls(attributes.home)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        if self.folder is None:
            return home_definitions(home())
        return home_definitions((context.project_root / self.folder).resolve())
