"""`hf`: any sentence-transformers text model, from a folder, an installed package or the Hugging
Face hub."""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from embedding_pipelines.home import home
from embedding_pipelines.inference.backend import Precision
from embedding_pipelines.providers.base import InputType, Limits, Provider, Vectors
from embedding_pipelines.providers.common.prompts import prompts_of
from embedding_pipelines.space import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedding_pipelines.inference.encoder import Engine

REQUEST_TEXTS = 4_096  # short texts: 90,000 tokens of image captions
CONCURRENT_REQUESTS = 2  # one is computed while the other is tokenized, and none waits for the last batch of the other

_ONE_AT_A_TIME = threading.Lock()  # threads that ask first at the same time get the same engine


class Hf(Provider):
    """A local model. Pooling, truncation, normalization and, unless given, prompts are what its own
    files say."""

    kind: Literal["hf"] = "hf"
    model: str
    revision: str | None = None  # a commit of the hub's repository; None: what the hub calls main
    precision: Precision = "auto"
    """auto: bfloat16 on processors that have it and on CUDA (float16 on older GPUs), else float32.
    Its vectors are one space on all machines: MiniLM's in bfloat16 are within a cosine of 0.999 of
    those in float32."""

    calibration: str | None = None
    """With int8: a text file below the home folder, one of your texts a line, that scales are
    fitted on."""

    prompts: dict[InputType, str] | None = None
    """What stands before a text, by input type ("query", "document"); a input type left out gets
    none. Default: what the model's own files name, else what its family's cards ask for."""

    @model_validator(mode="after")
    def _int8_is_calibrated(self) -> Self:
        if self.precision == "int8" and self.calibration is None:
            raise ValueError(
                "precision 'int8' is calibrated on your own texts: name a file with calibration, one text a line"
            )
        if self.precision != "int8" and self.calibration is not None:
            raise ValueError(
                f"calibration belongs to precision 'int8', and precision is {self.precision!r}"
            )
        return self

    @property
    def space(self) -> Space:
        facts = self._engine.facts
        return Space(
            provider=self.kind,
            model=self.model,
            revision=facts.revision,
            dimensions=facts.dimensions,
            pooling=facts.pooling,
            prompts=facts.prompts,
            max_tokens=facts.max_tokens,
            normalized=facts.normalized,
            dtype=self._engine.dtype,
        )

    @property
    def limits(self) -> Limits:
        return Limits(
            max_tokens=self._engine.facts.max_document_tokens,
            request_tokens=self._engine.request_tokens,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=CONCURRENT_REQUESTS,
        )

    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def tokenizer_digest(self) -> str:
        return self._engine.facts.tokenizer

    @property
    def computed_by(self) -> str:
        backend = self._engine.backend
        return f"{backend.name}, {backend.precision}"

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        return self._engine.embed(inputs, input_type)

    def pinned(self, folder: Path) -> Self:
        if self.calibration is None:
            return self
        kept = folder / f"{self._engine.dtype}.txt"
        if not kept.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix=".", dir=folder
            ) as apart:  # another pipeline may pin the same
                draft = Path(apart) / kept.name
                draft.write_text("\n".join(self._engine.samples) + "\n", encoding="utf-8")
                draft.replace(kept)
        return self.model_copy(update={"calibration": kept.relative_to(home()).as_posix()})

    @property
    def _engine(self) -> Engine:
        with _ONE_AT_A_TIME:
            prompts = (
                None
                if self.prompts is None
                else tuple(
                    sorted((str(input_type), text) for input_type, text in self.prompts.items())
                )
            )
            return _engine(
                self.model, self.revision, home(), self.precision, self.calibration, prompts
            )


@functools.lru_cache(maxsize=4)
def _engine(
    model: str,
    revision: str | None,
    home: Path,
    precision: Precision,
    calibration: str | None,
    prompts: tuple[tuple[str, str], ...] | None,
) -> Engine:
    """One engine per model, precision, prompts and process, however many pipelines use it."""
    from embedding_pipelines.inference.encoder import Engine
    from embedding_pipelines.inference.openvino import load
    from embedding_pipelines.inference.weights import model_folder

    load()  # before a model is downloaded that nothing here could run
    texts = home / calibration if calibration else None
    own = None if prompts is None else dict(prompts)
    return Engine(model_folder(model, revision, home), precision, texts, own, prompts_of(model))
