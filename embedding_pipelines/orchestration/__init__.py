"""Orchestration: the only place that knows Dagster. Its modules bear the names of Dagster's own
concepts; `dg` finds the components here."""

from embedding_pipelines.orchestration.component import (
    EmbeddingPipelineComponent,
    PipelineFolderComponent,
)

__all__ = ["EmbeddingPipelineComponent", "PipelineFolderComponent"]
