"""`hf`: any sentence-transformers model, from a folder, an installed package or the hub, as it is or
fine-tuned on the pipeline's own pairs."""

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import field_validator, model_validator

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import require
from embedding_pipelines.files import read_json, write_atomic
from embedding_pipelines.inference.backend import Precision
from embedding_pipelines.inference.finetuning import MARKER, Example, Finetuning, finetune
from embedding_pipelines.once import forget, once
from embedding_pipelines.providers.base import (
    FinetunedModel,
    InputType,
    Limits,
    ProviderOptions,
    Response,
)
from embedding_pipelines.providers.common.local import check_device, model_doubts, model_mistakes
from embedding_pipelines.providers.common.prices import find_published
from embedding_pipelines.providers.common.prompts import prompts_of
from embedding_pipelines.schemas import digest
from embedding_pipelines.space import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedding_pipelines.inference.encoder import Engine

REQUEST_TEXTS = 4_096  # short texts: 90,000 tokens of image captions
RECORD = "trained.json"  # of the training, in the pipeline's folder of models
CHECKPOINTS = (
    ".checkpoints-"  # before the name of the folder that will hold the model; of this machine alone
)


class HfModel(FinetunedModel):
    options: "Hf"
    resources = ("_engine", "base")

    @functools.cached_property
    def space(self) -> Space:
        config = self._engine.config
        return Space(
            provider=self.options.kind,
            model=self.options.title,
            revision=config.revision,
            dimensions=config.dimensions,
            pooling=config.pooling,
            prompts=config.prompts,
            max_tokens=config.max_tokens,
            normalized=config.normalized,
            dtype=self._engine.dtype,
        )

    @functools.cached_property
    def limits(self) -> Limits:
        engine = self._reader
        return Limits(
            max_tokens=engine.config.max_document_tokens,
            request_tokens=engine.request_tokens,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=engine.concurrent_requests,
        )

    @property
    def batch_tokens(self) -> int:
        return min(self._engine.busy_tokens, self.limits.request_tokens)

    @property
    def tokenizer(self) -> "Tokenizer":
        return self._reader.tokenizer

    @functools.cached_property
    def tokenizer_digest(self) -> str:
        return self._reader.config.tokenizer

    @property
    def computed_by(self) -> str:
        return f"{self._engine.backend.name}, {self.precision}"

    @property
    def precision(self) -> str:
        return self._engine.backend.precision

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        return Response(self._engine.embed(inputs, input_type))

    def release_options(self, folder: Path) -> "Hf":
        """Without the device: vectors of one precision compare on all, and who searches the release
        has a machine of their own."""
        changes: dict[str, str] = {"device": "auto"}
        if self.options.trains:  # into a folder of its own, which no later training changes
            changes["trained"] = self._trained_folder.relative_to(self.home).as_posix()
        options = self.options.model_copy(update=changes)
        if options.calibration is None:
            return options
        copy = folder / f"{self._engine.dtype}.txt"
        if not copy.exists():
            write_atomic(copy, "\n".join(self._engine.samples) + "\n")
        calibration = copy.relative_to(self.home).as_posix()
        return options.model_copy(update={"calibration": calibration})

    @property
    def finetuning(self) -> Finetuning:
        if self.options.finetune is None:
            raise ConfigError("hf: only a model with `finetune` is trained.")
        return self.options.finetune

    @once
    def base(self) -> "HfModel":
        return HfModel(self.options.model_copy(update={"finetune": None}), self.home)

    def finetune(
        self, name: str, examples: Sequence[Example], advance: Callable[[int, int], None]
    ) -> Path:
        from embedding_pipelines.inference.weights import model_folder

        options = self.options
        target = self._models / f"{options.recipe}-{name}"
        checkpoints = self._models / f"{CHECKPOINTS}{target.name}"
        for other in self._models.glob(f"{CHECKPOINTS}*/"):
            if other != checkpoints:
                shutil.rmtree(other)
        if not (target / MARKER).exists():
            finetune(
                model_folder(options.model, options.revision, self.home),
                target,
                examples,
                self.finetuning,
                prompts=self.base.space.prompts,
                device=options.device,
                checkpoints=checkpoints,
                advance=advance,
            )
        shutil.rmtree(checkpoints, ignore_errors=True)
        return target

    def open_trained(self, folder: Path) -> "HfModel":
        trained = folder.relative_to(self.home).as_posix()
        return HfModel(self.options.model_copy(update={"trained": trained}), self.home)

    def drop_trained(self) -> None:
        """Open what training has written at the next use."""
        forget(self, "_engine", "space")

    @property
    def _models(self) -> Path:
        if self.folder is None:
            raise ConfigError("hf: only a pipeline's model can be fine-tuned.")
        return self.folder

    @property
    def _trained_folder(self) -> Path:
        """Raises ConfigError if the model is not trained yet, or was by other options."""
        record = read_json(self._models / RECORD) or {}
        name = str(record.get("folder", ""))
        if not name.startswith(f"{self.options.recipe}-"):
            raise ConfigError(
                f"hf: {self.options.model} is not fine-tuned yet as the pipeline file says. Run the "
                "pipeline's `train` step."
            )
        return self._models / name

    @property
    def _reader(self) -> "Engine":
        """What counts and cuts texts, which training does not change."""
        return self.base._engine if self.options.trains else self._engine

    @once
    def _engine(self) -> "Engine":
        from embedding_pipelines.inference.encoder import Engine
        from embedding_pipelines.inference.torch import accelerator
        from embedding_pipelines.inference.weights import model_folder

        # Before a download that nothing here could run.
        require("sentence_transformers", "local")
        if accelerator() is None:
            require("openvino", "local")
        options, prompts = self.options, self.options.prompts
        if options.trains:
            folder = self._trained_folder
        elif options.trained is not None:
            folder = self.home / options.trained
        else:
            folder = model_folder(options.model, options.revision, self.home)
        return Engine(
            folder,
            options.precision,
            self.home / options.calibration if options.calibration else None,
            None if prompts is None else {str(name): text for name, text in prompts.items()},
            prompts_of(options.model),
            options.device,
            self.fixed_precision,
            self.cores,
        )


class Hf(ProviderOptions):
    """A local model. Pooling, truncation, normalization and, by default, prompts come from its own
    files."""

    model_class = HfModel

    kind: Literal["hf"] = "hf"
    model: str
    revision: str | None = None  # a commit of the hub's repository; None: its main branch
    precision: Precision = "auto"
    """auto: bfloat16 on processors that have it; on CUDA float16 for BERT and its kin, bfloat16 for
    others (float16 on older GPUs) and where float16 overflows; else float32.
    Its vectors are one space on all machines: MiniLM's in bfloat16 are within a cosine of 0.999 of
    those in float32."""

    device: str = "auto"
    """auto: the best of the machine, cuda before mps before cpu. Else one of these, or cuda:1; a
    run ends where there is none. It is no part of the vectors' space."""

    calibration: str | None = None
    """With int8: a file below the home folder with your own texts, one a line, to fit scales on."""

    prompts: dict[InputType, str] | None = None
    """The text before each input, by input type; none for one that is left out. Default: what the
    model's own files name, else what its family needs."""

    finetune: Finetuning | None = None
    """Train the model on pairs of a query and what answers it, such as `{pairs: known_items}`, before
    it embeds: once, and again when this or the file of the pairs changes."""

    trained: str | None = None
    """In a release: the folder that training filled, below the home folder."""

    _device = field_validator("device")(check_device)

    @model_validator(mode="after")
    def _check_calibration(self) -> Self:
        if self.precision == "int8" and self.calibration is None:
            raise ValueError(
                "precision 'int8' needs calibration, the name of a file with your own texts, one a "
                "line"
            )
        if self.trained is not None and self.finetune is None:
            raise ValueError(
                "trained is for releases of models with `finetune`: name it as `model`"
            )
        if self.precision != "int8" and self.calibration is not None:
            raise ValueError(
                f"calibration is for precision 'int8'; leave it out with {self.precision!r}"
            )
        return self

    @property
    def trains(self) -> bool:
        return self.finetune is not None and self.trained is None

    @property
    def training(self) -> "Hf":
        return self.model_copy(
            update={"precision": "auto", "device": "auto", "calibration": None, "trained": None}
        )

    @property
    def recipe(self) -> str:
        """Names what is trained, and how."""
        return digest(self.training.model_dump_json().encode()).hex()[:12]

    @property
    def title(self) -> str:
        """The model's name, for people and for the identity of its vectors."""
        return self.model if self.finetune is None else f"{self.model} fine-tuned"

    def known_dimensions(self, home: Path) -> int | None:
        """Those of the table of models, or of the model's own files where they are on this
        machine."""
        from embedding_pipelines.inference.weights import declared_dimensions, local_folder

        entry = find_published(self.kind, self.model)
        folder = local_folder(self.model, self.revision, home)
        declared = declared_dimensions(folder) if folder else None
        return declared or (entry.dimensions if entry else None)

    def known_context(self, home: Path) -> int | None:
        """From where `known_dimensions` are."""
        from embedding_pipelines.inference.weights import declared_context, local_folder

        entry = find_published(self.kind, self.model)
        folder = local_folder(self.model, self.revision, home)
        declared = declared_context(folder) if folder else None
        return declared or (entry.max_tokens if entry else None)

    def known_special_tokens(self, home: Path) -> int:
        """Those of its tokenizer, where that is on this machine."""
        from embedding_pipelines.inference.weights import declared_special_tokens, local_folder

        folder = local_folder(self.model, self.revision, home)
        return declared_special_tokens(folder) if folder else 0

    def mistakes(self, home: Path) -> Iterator[str]:
        if self.calibration and not (home / self.calibration).is_file():
            yield f"calibration: there is no file {str(home / self.calibration)!r}. Correct it."
        if self.trained is not None:
            if not (home / self.trained).is_dir():
                yield f"trained: there is no folder {str(home / self.trained)!r}. Run the pipeline."
            return
        yield from model_mistakes(self.kind, self.model, self.revision, home)
        for name in self.finetune.files if self.finetune else ():
            if not (home / name).is_file():
                yield f"finetune: there is no file {str(home / name)!r}. Correct it."

    def doubts(self, home: Path) -> Iterator[str]:
        if self.trained is not None:
            return
        yield from model_doubts(self.kind, self.model, self.revision, home)
