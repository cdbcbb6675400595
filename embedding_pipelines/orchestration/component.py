"""The pipeline as a Dagster component, for projects that keep `defs.yaml` files.

Its attributes are a pipeline file's, plus `name`.
"""

import dagster as dg
from pydantic import BaseModel

from embedding_pipelines.orchestration.build import pipeline_definitions
from embedding_pipelines.spec.pipeline import PipelineSpec


class EmbeddingPipelineComponent(dg.Component):
    """A YAML block that becomes the chain of assets from a source to a released vector store."""

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
        return pipeline_definitions([self.spec])
