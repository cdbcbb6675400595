"""train: a model that is trained on the pipeline's own texts, or fine-tuned on pairs of queries and
documents, once, and again when its options or the file of the pairs change.

New data does not train it again: all vectors would change, and every text would have to be embedded
again.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from embedding_pipelines.errors import EmbeddingPipelinesError, ProviderError, SourceError
from embedding_pipelines.files import read_json, write_atomic, write_json
from embedding_pipelines.inference.finetuning import Example, require_finetuning
from embedding_pipelines.inference.weights import file_sha256, join_sha256, revision_sha256
from embedding_pipelines.metrics.confidence import paired_loss
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import FinetunedModel, TrainableModel
from embedding_pipelines.quality.queries import query_key
from embedding_pipelines.quality.training import (
    LEAST_QUERIES,
    collect,
    examples_of,
    measure,
    model_card,
)
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import digest
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Options, Reports, Step

FIGURES = ("pairs", "held_out", "gain")  # of a fine-tuning, that a report shows


class TrainStep(Step):
    name = "train"
    inputs = ("chunks",)
    description = "Trained once on the pipeline's own chunks, and again when its options change."
    technologies = ("{spec.model.kind}",)
    sentence = "trained on {texts:,} texts, {dimensions:,} dimensions"
    extras: ClassVar[Mapping[str, str]] = {
        "pairs": "{:,} pairs of query and text",
        "held_out": "{:,} held-out queries",
        "gain": "nDCG@10 {:+.4f} to its base",
    }
    identity = ("revision",)

    def applies(self, spec: PipelineSpec) -> bool:
        return spec.model.trains

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.model.training)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        record = read_json(run.folder.model)
        if record is None or record["configuration"] != self.configuration(run.spec):
            return None
        then, now = record.get("files"), _digest_of_files(run)
        if then and now and then != now:
            return None
        try:
            statistics = _statistics(run, record["texts"])
        except EmbeddingPipelinesError:  # the trained file is lost or damaged
            return None
        if statistics["revision"] != record["revision"]:
            return None
        statistics |= {name: record[name] for name in FIGURES if name in record}
        return StepReport(self.name, False, statistics)

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """Raises SourceError if there are too few texts or pairs to train on, ConfigError without
        the packages that training needs."""
        report = self.current(run)
        if report is None:
            record = (
                self._train(run) if isinstance(run.model, TrainableModel) else self._finetune(run)
            )
            write_json(run.folder.model, {"configuration": self.configuration(run.spec), **record})
            report = self.current(run)
            assert report is not None
            report = StepReport(self.name, True, report.statistics)
        yield report

    def _train(self, run: Run) -> dict[str, Any]:
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
        return _statistics(run, texts)

    def _finetune(self, run: Run) -> dict[str, Any]:
        """Train, then let the model and its base rank a sample of the corpus for the queries that
        were held out: the check `not_worse_than_base` compares the two."""
        model = run.model
        assert isinstance(model, FinetunedModel)
        options = model.finetuning
        require_finetuning(options)
        split, corpus = collect(run, options)
        examples = examples_of(run, model.base, split, corpus, options.hard_negatives)
        if len(examples) < LEAST_QUERIES:
            raise SourceError(
                f"finetune.pairs: only {len(examples)} of the pairs of {options.pairs} can be trained on "
                f"with {options.hard_negatives} hard negatives each. Give the pipeline more documents."
            )
        _remove_damaged(run)
        data = _digest_of_data(examples)
        folder = model.finetune(
            data[:12],
            examples,
            lambda done, total: run.progress.update(self.name, done, total, "steps"),
        )
        before = measure(run, model.base, split, corpus)
        with model.open_trained(folder) as trained:
            after = measure(run, trained, split, corpus)
            space = trained.space
        first = next(iter(before))
        loss = paired_loss(after[first], before[first])
        record = {
            "texts": len({text for each in examples for text in (each.text, *each.negatives)}),
            "dimensions": space.dimensions,
            "revision": space.revision,
            "folder": folder.name,
            "data": data,
            "files": _digest_of_files(run),
            "pairs": len(examples),
            "held_out": sum(map(len, before.values())),
            "left_out": split.left_out,
            "gain": round(-loss.mean, 6),
            "queries": sorted(map(query_key, split.train)),
            "base": model.base.space.id,
            "figures": {"base": before, "trained": after},
        }
        write_atomic(folder / "README.md", model_card(run, model, record))
        model.drop_trained()
        return record


def _remove_damaged(run: Run) -> None:
    """Remove the folder of the last training if it is not what training wrote, so that the same
    training fills it again."""
    record = read_json(run.folder.model) or {}
    folder = run.folder.model.parent / record.get("folder", "none")
    if not folder.is_dir():
        return
    try:
        is_whole = revision_sha256(folder) == record["revision"]
    except (ProviderError, OSError, ValueError):  # weights are missing, or JSON is cut off
        is_whole = False
    if not is_whole:
        run.progress.note(f"{folder} is damaged: the model is trained again.")
        shutil.rmtree(folder)


def _statistics(run: Run, texts: int) -> dict[str, Any]:
    space = run.model.space
    return {"texts": texts, "dimensions": space.dimensions, "revision": space.revision}


def _digest_of_files(run: Run) -> str | None:
    """Of the files of pairs; None without any, or where one is missing: what was trained stays."""
    finetuning = getattr(run.spec.model, "finetune", None)
    paths = [run.warehouse.home / name for name in (finetuning.files if finetuning else ())]
    if not paths or not all(path.is_file() for path in paths):
        return None
    return join_sha256(map(file_sha256, paths))


def _digest_of_data(examples: Sequence[Example]) -> str:
    """Of all that is trained on, in its order."""
    parts = (part for each in examples for part in (each.query, each.text, *each.negatives, ""))
    return digest(*(part.encode("utf-8", "surrogatepass") for part in parts)).hex()
