"""Fine-tunes a sentence-transformers model on pairs of a query and its text, by the library's own
trainer.

A training that was cut off goes on from its last checkpoint, and comes to the same weights.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from embedding_pipelines.extras import need, require
from embedding_pipelines.files import fill_folder
from embedding_pipelines.inference import torch as _torch

OWN_PAIRS = ("known_items", "receipts")
MARKER = "modules.json"  # of a folder that holds a whole model
LORA_ALPHA = 2  # times the rank, as LoRA's paper and peft's examples have it
WARMUP = 0.1  # of all steps, as the library's own examples
CHECKPOINTS, MOST_STEPS = 10, 500  # of a training, and steps between two: what a kill costs


class Finetuning(BaseModel):
    """How a model is fine-tuned: MultipleNegativesRankingLoss over pairs and mined negatives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: str
    """`known_items`: queries taken from the documents themselves. `receipts`: queries that people
    searched for, with the results that they rated. Else a file below the home folder, JSON Lines,
    CSV or tab-separated: a query with a document's id, or with a text (`positive`)."""

    queries: str | None = None
    """With a file of judgements by query id, as BEIR's qrels: the file with the queries' texts."""

    epochs: int = Field(1, ge=1, le=1_000)
    batch_size: int = Field(32, ge=2, le=65_536)
    """Pairs of a step. The other texts of a batch are negatives too, so larger ones teach more."""

    learning_rate: float = Field(2e-5, gt=0, le=1)
    hard_negatives: int = Field(1, ge=0, le=16)
    """Texts for each pair that the base takes for near and that are no answer."""

    matryoshka: tuple[int, ...] = ()
    """Dimensions to which vectors shall be cut well (`compression: truncate`), beside all."""

    lora: int | None = Field(None, ge=1, le=1_024)
    """Train two thin matrices of this rank beside each layer in place of the layer: less memory."""

    seed: int = Field(0, ge=0, lt=2**32)

    @field_validator("matryoshka")
    @classmethod
    def _check_dimensions(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in sizes):
            raise ValueError("dimensions are whole numbers from 1")
        return sizes

    @model_validator(mode="after")
    def _check_queries(self) -> Self:
        if self.queries is not None and self.pairs in OWN_PAIRS:
            raise ValueError(f"queries are for a file of pairs; leave them out with {self.pairs}")
        return self

    @property
    def files(self) -> list[str]:
        """The files that pairs are read from; none where they come from the pipeline itself."""
        own = [] if self.pairs in OWN_PAIRS else [self.pairs]
        return own + ([self.queries] if self.queries else [])


@dataclass(frozen=True)
class Example:
    """A query, a text that answers it, and texts that do not; of all examples as many."""

    query: str
    text: str
    negatives: tuple[str, ...] = ()


def require_finetuning(options: Finetuning) -> None:
    """Raise ConfigError without the packages that training needs; imports nothing."""
    require("accelerate", "finetune")
    require("datasets", "finetune")
    require("ir_measures", "finetune")
    if options.lora:
        require("peft", "finetune")


def finetune(
    base: Path,
    target: Path,
    examples: Sequence[Example],
    options: Finetuning,
    *,
    prompts: Mapping[str, str],
    device: str,
    checkpoints: Path,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train the model of the folder `base`, and save it in the folder `target`.

    `prompts` by input type stand before queries and texts. `checkpoints` is a folder of this
    training alone, of the same examples and options: with one in it, training goes on from there.
    It stays; the caller deletes it. `advance` is given steps and all steps. Weights are the same
    for the same examples, options, machine and number of threads.
    """
    require_finetuning(options)
    transformers, library = need("transformers", "local"), need("sentence_transformers", "local")
    losses = need("sentence_transformers.sentence_transformer.losses", "local")
    arguments = need("sentence_transformers.base.training_args", "local")

    class Callback(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            advance(state.global_step, state.max_steps)

    class Trainer(library.SentenceTransformerTrainer):  # type: ignore[misc, name-defined]
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """None: its card would quote texts, which `forget` could not take out of it."""

    transformers.set_seed(options.seed)
    model = _torch.load(base)
    if options.lora:
        peft = need("peft", "finetune")
        model.add_adapter(
            peft.LoraConfig(
                task_type=peft.TaskType.FEATURE_EXTRACTION,
                r=options.lora,
                lora_alpha=LORA_ALPHA * options.lora,
                target_modules="all-linear",
            )
        )
    loss: Any = losses.MultipleNegativesRankingLoss(model)
    if options.matryoshka:
        size = int(model.get_embedding_dimension() or 0)
        sizes = sorted({size, *(part for part in options.matryoshka if part < size)}, reverse=True)
        loss = losses.MatryoshkaLoss(model, loss, sizes)
    steps = options.epochs * math.ceil(len(examples) / options.batch_size)
    trainer = Trainer(
        model=model,
        args=library.SentenceTransformerTrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=WARMUP,
            seed=options.seed,
            batch_sampler=arguments.BatchSamplers.NO_DUPLICATES,
            prompts=_column_prompts(prompts, examples) or None,
            save_strategy="steps",
            save_steps=max(1, min(MOST_STEPS, steps // CHECKPOINTS)),
            save_total_limit=2,  # the last may be half written
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=_torch.choose_device(device, base.name) is None,
            dataloader_pin_memory=False,
        ),
        train_dataset=_dataset(examples),
        loss=loss,
        callbacks=[Callback()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    last = _last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    with fill_folder(target, MARKER) as draft:
        _without_adapters(model, base, options).save_pretrained(str(draft), create_model_card=False)


def _dataset(examples: Sequence[Example]) -> Any:
    columns: dict[str, list[str]] = {
        "anchor": [each.query for each in examples],
        "positive": [each.text for each in examples],
    }
    for number, texts in enumerate(zip(*(each.negatives for each in examples), strict=True)):
        columns[f"negative_{number}"] = list(texts)
    return need("datasets", "finetune").Dataset.from_dict(columns)


def _column_prompts(prompts: Mapping[str, str], examples: Sequence[Example]) -> dict[str, str]:
    """The prompt of each column of the data set that has one."""
    texts = ["positive", *(f"negative_{number}" for number in range(len(examples[0].negatives)))]
    columns = {"anchor": prompts.get("query", "")}
    columns |= dict.fromkeys(texts, prompts.get("document", ""))
    return {name: prompt for name, prompt in columns.items() if prompt}


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: the trainer's state is written last. Others are removed."""
    steps = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*/")}
    for path in sorted(steps, key=lambda each: -int(steps[each])):
        if _is_whole(path):
            return path
        shutil.rmtree(path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())


def _without_adapters(model: Any, base: Path, options: Finetuning) -> Any:
    """The model with what adapters have learned in its own weights, as any other."""
    if not options.lora:
        return model
    layers = need("peft.tuners.tuners_utils", "finetune")
    plain = _torch.load(base)
    for name, module in model.named_modules():
        if isinstance(module, layers.BaseTunerLayer):
            module.merge()
            plain.get_submodule(name).load_state_dict(module.get_base_layer().state_dict())
    return plain
