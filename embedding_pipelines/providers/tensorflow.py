"""`tensorflow`: a SavedModel folder whose signature turns strings into vectors, as Universal
Sentence Encoder."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.extras import need
from embedding_pipelines.home import home
from embedding_pipelines.inference.weights import file_sha256
from embedding_pipelines.providers.base import InputType, Limits, Provider, Vectors
from embedding_pipelines.providers.common.replies import unit
from embedding_pipelines.providers.common.tokenizers import load_tokenizer
from embedding_pipelines.space import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ONE_AT_A_TIME = threading.Lock()  # threads that ask first at the same time get the same model


class Tensorflow(Provider):
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

    @property
    def space(self) -> Space:
        model = self._model
        return Space(
            provider=self.kind,
            model=f"{Path(self.model).name} {self.signature}:{model.output}",
            revision=_folder_sha256(self._folder),
            dimensions=model.dimensions,
            pooling="own",
            prompts={},
            max_tokens=self.max_tokens,
            normalized=self.normalize,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        return Limits(
            max_tokens=self.max_tokens,
            request_tokens=self.max_tokens * self.request_texts,
            request_texts=self.request_texts,
        )

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_of)

    @property
    def computed_by(self) -> str:
        return f"tensorflow {_tensorflow().__version__}"

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        model = self._model
        if not inputs:
            return np.empty((0, model.dimensions), np.float32)
        vectors = model.run(inputs)
        return unit(vectors) if self.normalize else vectors

    @property
    def _folder(self) -> Path:
        folder = home() / self.model
        if not (folder / "saved_model.pb").is_file():
            raise ProviderError(
                f"{folder}: this is no SavedModel folder: it holds no saved_model.pb. Name one that "
                "tf.saved_model.save wrote."
            )
        return folder

    @property
    def _model(self) -> _Model:
        with _ONE_AT_A_TIME:
            folder = self._folder
            return _loaded(folder, _folder_sha256(folder), self.signature, self.output)


@dataclass(frozen=True)
class _Model:
    """A signature of a SavedModel. `keeper` is the loaded model, whose variables end with it."""

    call: Callable[..., Any]
    keeper: Any
    input: str
    output: str
    dimensions: int

    def run(self, inputs: Sequence[str]) -> Vectors:
        """float32[n, dimensions]. Raises ProviderError if the graph fails."""
        tf = _tensorflow()
        texts = tf.constant([text.encode() for text in inputs])  # as bytes: a text may hold NUL
        try:
            found = self.call(**{self.input: texts})[self.output].numpy()
        except tf.errors.OpError as error:
            raise ProviderError(
                f"tensorflow: the model failed on {len(inputs)} texts: {_said(error)}."
            ) from error
        return np.asarray(found, np.float32)


@functools.lru_cache(maxsize=4)
def _loaded(folder: Path, content: str, signature: str, output: str | None) -> _Model:
    """One model per folder, content and process, however many pipelines use it."""
    tf = _tensorflow()
    try:
        keeper = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises many kinds for a damaged folder
        raise ProviderError(
            f"{folder}: TensorFlow cannot load this SavedModel ({_said(error)}). Save it again with "
            "tf.saved_model.save."
        ) from error
    if signature not in keeper.signatures:
        raise ConfigError(_choose(folder, "signature", signature, keeper.signatures))
    call = keeper.signatures[signature]
    (_, inputs), outputs = call.structured_input_signature, call.structured_outputs
    if len(inputs) != 1 or next(iter(inputs.values())).dtype != tf.string:
        found = ", ".join(f"{name} ({spec.dtype.name})" for name, spec in inputs.items())
        raise ConfigError(
            f"{folder}: the signature {signature!r} takes {found}; it should take one batch of strings."
        )
    if output is None and len(outputs) == 1:
        output = next(iter(outputs))
    if output is None or output not in outputs:
        raise ConfigError(_choose(folder, "output", output, outputs))
    made = _Model(call, keeper, next(iter(inputs)), output, 0)
    probe = made.run(["probe", "another"])  # the graph need not say how long its vectors are
    if probe.ndim != 2 or len(probe) != 2:
        raise ConfigError(
            f"{folder}: the output {output!r} is of shape {probe.shape} for two texts; it should be one vector each."
        )
    return replace(made, dimensions=probe.shape[1])


def _choose(folder: Path, option: str, wanted: str | None, found: Any) -> str:
    listed = ", ".join(repr(name) for name in found) or "none"
    lacks = (
        f"has several: {listed}"
        if wanted is None
        else f"has no {option} {wanted!r}; it has {listed}"
    )
    return f"{folder}: the model {lacks}. Set `{option}` to the one that gives vectors."


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets on stderr else
    return need("tensorflow", "tensorflow")


def _folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of all files; each is read once per process as long as it
    does not change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = (f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _said(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
