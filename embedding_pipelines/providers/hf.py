"""`hf`: any sentence-transformers model, from a folder, an installed package or the hub."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import field_validator, model_validator

from embedding_pipelines.extras import require
from embedding_pipelines.files import write_atomic
from embedding_pipelines.inference.backend import Precision
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import (
    EmbeddingModel,
    InputType,
    Limits,
    ProviderOptions,
    Response,
)
from embedding_pipelines.providers.common.local import check_device, model_doubts, model_mistakes
from embedding_pipelines.providers.common.prices import find_published
from embedding_pipelines.providers.common.prompts import prompts_of
from embedding_pipelines.space import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedding_pipelines.inference.encoder import Engine

REQUEST_TEXTS = 4_096  # short texts: 90,000 tokens of image captions


class HfModel(EmbeddingModel):
    options: "Hf"
    resources = ("_engine",)

    @functools.cached_property
    def space(self) -> Space:
        config = self._engine.config
        return Space(
            provider=self.options.kind,
            model=self.options.model,
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
        return Limits(
            max_tokens=self._engine.config.max_document_tokens,
            request_tokens=self._engine.request_tokens,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self._engine.concurrent_requests,
        )

    @property
    def batch_tokens(self) -> int:
        return min(self._engine.batch_tokens * self._engine.in_flight, self.limits.request_tokens)

    @property
    def tokenizer(self) -> "Tokenizer":
        return self._engine.tokenizer

    @functools.cached_property
    def tokenizer_digest(self) -> str:
        return self._engine.config.tokenizer

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
        options = self.options.model_copy(update={"device": "auto"})
        if options.calibration is None:
            return options
        copy = folder / f"{self._engine.dtype}.txt"
        if not copy.exists():
            write_atomic(copy, "\n".join(self._engine.samples) + "\n")
        calibration = copy.relative_to(self.home).as_posix()
        return options.model_copy(update={"calibration": calibration})

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
        return Engine(
            model_folder(options.model, options.revision, self.home),
            options.precision,
            self.home / options.calibration if options.calibration else None,
            None if prompts is None else {str(name): text for name, text in prompts.items()},
            prompts_of(options.model),
            options.device,
            self.fixed_precision,
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

    _device = field_validator("device")(check_device)

    @model_validator(mode="after")
    def _check_calibration(self) -> Self:
        if self.precision == "int8" and self.calibration is None:
            raise ValueError(
                "precision 'int8' needs calibration, the name of a file with your own texts, one a "
                "line"
            )
        if self.precision != "int8" and self.calibration is not None:
            raise ValueError(
                f"calibration is for precision 'int8'; leave it out with {self.precision!r}"
            )
        return self

    def known_dimensions(self, home: Path) -> int | None:
        """Those of the table of models, or of the model's own files where they are on this
        machine."""
        from embedding_pipelines.inference.weights import declared_dimensions, local_folder

        entry = find_published(self.kind, self.model)
        folder = local_folder(self.model, self.revision, home)
        declared = declared_dimensions(folder) if folder else None
        return declared or (entry.dimensions if entry else None)

    def mistakes(self, home: Path) -> Iterator[str]:
        if self.calibration and not (home / self.calibration).is_file():
            yield f"calibration: there is no file {str(home / self.calibration)!r}. Correct it."
        yield from model_mistakes(self.kind, self.model, self.revision, home)

    def doubts(self, home: Path) -> Iterator[str]:
        yield from model_doubts(self.kind, self.model, self.revision, home)
