"""What every step is given."""

from dataclasses import dataclass, field

from embedding_pipelines.progress import Progress, Silent
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import PipelineFolder, Warehouse


@dataclass(frozen=True)
class StepContext:
    """One pipeline at work in one warehouse."""

    spec: PipelineSpec
    warehouse: Warehouse
    progress: Progress = field(default_factory=Silent)

    @property
    def folder(self) -> PipelineFolder:
        return self.warehouse.pipeline(self.spec.name)
