"""train: a model that is trained on the pipeline's own texts, once, and again when its options
change.

New data does not train it again: all vectors would change, and every text would have to be embedded
again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from embedding_pipelines.errors import EmbeddingPipelinesError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import TrainableModel
from embedding_pipelines.run import Run
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Options, Reports, Step


class TrainStep(Step):
    name = "train"
    inputs = ("chunks",)
    description = "Trained once on the pipeline's own chunks, and again when its options change."
    technologies = ("{spec.model.kind}",)
    sentence = "trained on {texts:,} texts, {dimensions:,} dimensions"
    identity = ("revision",)

    def applies(self, spec: PipelineSpec) -> bool:
        return spec.model.trains

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.model)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        record = read_json(run.folder.model)
        if record is None or record["configuration"] != fingerprint(run.spec.model):
            return None
        try:
            statistics = _statistics(run, record["texts"])
        except EmbeddingPipelinesError:  # the trained file is lost or damaged
            return None
        if statistics["revision"] != record["revision"]:
            return None
        return StepReport(self.name, False, statistics)

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """Raises SourceError if there are too few texts to train on."""
        yield self.current(run) or self._train(run)

    def _train(self, run: Run) -> StepReport:
        texts, model = 0, run.model
        assert isinstance(model, TrainableModel)

        def read() -> Iterator[str]:
            nonlocal texts
            for partition in run.spec.partition_names:
                run.folder.chunks.required(partition)
                for batch in run.folder.chunks.read(partition, ["text"]):
                    texts += batch.num_rows
                    yield from batch["text"].to_pylist()

        model.train(read())
        statistics = _statistics(run, texts)
        write_json(run.folder.model, {"configuration": fingerprint(run.spec.model), **statistics})
        return StepReport(self.name, True, statistics)


def _statistics(run: Run, texts: int) -> dict[str, Any]:
    space = run.model.space
    return {"texts": texts, "dimensions": space.dimensions, "revision": space.revision}
