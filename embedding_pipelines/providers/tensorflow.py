"""`tensorflow`: a SavedModel folder whose signature turns strings into vectors, as Universal
Sentence Encoder."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.extras import need
from embedding_pipelines.inference.weights import file_sha256
from embedding_pipelines.once import forget, once
from embedding_pipelines.providers.base import (
    NO_SECRETS,
    EmbeddingModel,
    InputType,
    Limits,
    ProviderOptions,
    Response,
)
from embedding_pipelines.providers.common.tokenizers import load_tokenizer
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors, unit

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Tensorflow(ProviderOptions):
    """A local model in TensorFlow's own format; it takes texts as they are and tokenizes them
    itself."""

    kind: Literal["tensorflow"] = "tensorflow"
    model: str
    """The SavedModel's folder, below the home folder."""

    signature: str = "serving_default"
    output: str | None = None
    """Which of several outputs holds the vectors."""

    normalize: bool = False
    """Make the vectors unit length."""

    max_tokens: int = Field(512, ge=4)
    """Longer texts are cut into chunks of this many tokens."""

    tokenizer_of: str | None = None
    """Whose tokenizer counts: a model of the Hugging Face hub, or a `tokenizer.json` below the home
    folder. Default: an estimate from above."""

    request_texts: int = Field(64, ge=1)

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> TensorflowModel:
        return TensorflowModel(self, home)


class TensorflowModel(EmbeddingModel):
    options: Tensorflow

    def __init__(self, options: Tensorflow, home: Path) -> None:
        super().__init__(options)
        self._home, self._folder = home, home / options.model

    @functools.cached_property
    def space(self) -> Space:
        options, signature = self.options, self._signature
        return Space(
            provider=options.kind,
            model=f"{Path(options.model).name} {options.signature}:{signature.output}",
            revision=signature.sha256,
            dimensions=signature.dimensions,
            pooling="own",
            prompts={},
            max_tokens=options.max_tokens,
            normalized=options.normalize,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        most, texts = self.options.max_tokens, self.options.request_texts
        return Limits(max_tokens=most, request_tokens=most * texts, request_texts=texts)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.options.tokenizer_of, self._home)

    @property
    def computed_by(self) -> str:
        return f"tensorflow {_tensorflow().__version__}"

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        signature = self._signature
        if not inputs:
            return Response(np.empty((0, signature.dimensions), np.float32))
        vectors = signature.run(inputs)
        return Response(unit(vectors) if self.options.normalize else vectors)

    def close(self) -> None:
        forget(self, "_signature")

    @once
    def _signature(self) -> _Signature:
        if not (self._folder / "saved_model.pb").is_file():
            raise ProviderError(
                f"{self._folder}: this is no SavedModel folder: it holds no saved_model.pb. Name "
                "one that tf.saved_model.save wrote."
            )
        return _load(self._folder, self.options.signature, self.options.output)


@dataclass(frozen=True)
class _Signature:
    """A signature of a SavedModel. `model` is the whole of it, whose variables end with it."""

    sha256: str  # of the folder
    model: Any
    call: Callable[..., Any]
    input: str
    output: str
    dimensions: int = 0

    def run(self, inputs: Sequence[str]) -> Vectors:
        """float32[n, dimensions]. Raises ProviderError if the graph fails."""
        tf = _tensorflow()
        texts = tf.constant([text.encode() for text in inputs])  # as bytes: a text may hold NUL
        try:
            vectors = self.call(**{self.input: texts})[self.output].numpy()
        except tf.errors.OpError as error:
            raise ProviderError(
                f"tensorflow: the model failed on {len(inputs)} texts: {_first_line(error)}."
            ) from error
        return np.asarray(vectors, np.float32)


def _load(folder: Path, name: str, output: str | None) -> _Signature:
    tf, sha256 = _tensorflow(), _folder_sha256(folder)
    try:
        model = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises many kinds for a damaged folder
        raise ProviderError(
            f"{folder}: TensorFlow cannot load this SavedModel ({_first_line(error)}). Save it "
            "again with tf.saved_model.save."
        ) from error
    if name not in model.signatures:
        raise ConfigError(_choose(folder, "signature", name, model.signatures))
    call = model.signatures[name]
    (_, inputs), outputs = call.structured_input_signature, call.structured_outputs
    if len(inputs) != 1 or next(iter(inputs.values())).dtype != tf.string:
        types = ", ".join(f"{name} ({spec.dtype.name})" for name, spec in inputs.items())
        raise ConfigError(
            f"{folder}: the signature {name!r} takes {types}; it should take one batch of strings."
        )
    if output is None and len(outputs) == 1:
        output = next(iter(outputs))
    if output is None or output not in outputs:
        raise ConfigError(_choose(folder, "output", output, outputs))
    signature = _Signature(sha256, model, call, next(iter(inputs)), output)
    shape = signature.run(["probe", "another"]).shape  # the graph need not say how long vectors are
    if len(shape) != 2 or shape[0] != 2:
        raise ConfigError(
            f"{folder}: the output {output!r} is of shape {shape} for two texts; it should be one "
            "vector each. Set `output` to another one."
        )
    return replace(signature, dimensions=shape[1])


def _choose(folder: Path, option: str, name: str | None, names: Iterable[str]) -> str:
    choices = ", ".join(repr(choice) for choice in names) or "none"
    lack = f"several: {choices}" if name is None else f"no {option} {name!r}; it has {choices}"
    return f"{folder}: the model has {lack}. Set `{option}` to the one that gives vectors."


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets on stderr else
    return need("tensorflow", "tensorflow")


def _folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of all files; each is read once per process as long as it
    does not change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = (f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
