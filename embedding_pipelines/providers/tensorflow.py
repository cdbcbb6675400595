"""`tensorflow`: a SavedModel folder whose signature turns strings into vectors, such as Universal
Sentence Encoder."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embedding_pipelines.errors import ConfigError, ProviderError, error_lines
from embedding_pipelines.extras import need
from embedding_pipelines.inference.weights import files_sha256
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.providers.common.plain import PlainModel, PlainOptions
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors


class TensorflowModel(PlainModel):
    options: "Tensorflow"
    resources = ("_signature",)

    @functools.cached_property
    def space(self) -> Space:
        options, signature = self.options, self._signature
        model = f"{Path(options.model).name} {options.signature}:{signature.output}"
        return self.make_space(model, signature.sha256, signature.dimensions)

    @property
    def computed_by(self) -> str:
        return f"tensorflow {_tensorflow().__version__}"

    def compute(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        return self._signature.run(inputs)

    @once
    def _signature(self) -> "_Signature":
        folder = self.home / self.options.model
        if not (folder / "saved_model.pb").is_file():
            raise ProviderError(
                f"{folder}: not a SavedModel folder, which holds a file saved_model.pb. Name one "
                "that tf.saved_model.save wrote."
            )
        return _load(folder, self.options.signature, self.options.output)


class Tensorflow(PlainOptions):
    """A local model in TensorFlow's own format."""

    model_class = TensorflowModel

    kind: Literal["tensorflow"] = "tensorflow"
    model: str
    """The SavedModel's folder, below the home folder."""

    signature: str = "serving_default"
    output: str | None = None
    """The output that holds the vectors, if there are several."""

    def mistakes(self, home: Path) -> Iterator[str]:
        if not (home / self.model).is_dir():
            yield f"there is no folder {str(home / self.model)!r}. Correct the path."


@dataclass(frozen=True)
class _Signature:
    """A signature of a SavedModel. Its variables live as long as `model`."""

    sha256: str  # of the folder
    model: Any
    call: Callable[..., Any]
    input: str
    output: str
    dimensions: int = 0

    def run(self, inputs: Sequence[str]) -> Vectors:
        """float32[n, dimensions]. Raises ProviderError if the graph fails."""
        tf = _tensorflow()
        texts = tf.constant([text.encode() for text in inputs])  # bytes, since texts may hold NUL
        try:
            vectors = self.call(**{self.input: texts})[self.output].numpy()
        except tf.errors.OpError as error:
            raise ProviderError(
                f"tensorflow: the model failed on {len(inputs)} texts: {_reason(error)}."
            ) from error
        return np.asarray(vectors, np.float32)


def _load(folder: Path, name: str, output: str | None) -> _Signature:
    tf, sha256 = _tensorflow(), files_sha256(folder, folder.rglob("*"))
    try:
        model = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises many kinds for a damaged folder
        raise ProviderError(
            f"{folder}: TensorFlow cannot load this SavedModel ({_reason(error)}). Save it "
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
    shape = signature.run(["one", "another"]).shape  # the graph may not name the dimensions
    if len(shape) != 2 or shape[0] != 2:
        raise ConfigError(
            f"{folder}: the output {output!r} has the shape {shape} for two texts, not one vector "
            "each. Set `output` to another one."
        )
    return replace(signature, dimensions=shape[1])


def _choose(folder: Path, option: str, name: str | None, names: Iterable[str]) -> str:
    choices = ", ".join(repr(choice) for choice in names) or "none"
    problem = f"several: {choices}" if name is None else f"no {option} {name!r}; it has {choices}"
    return f"{folder}: the model has {problem}. Set `{option}` to the one that gives vectors."


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no greeting on stderr
    return need("tensorflow", "tensorflow")


def _reason(error: Exception) -> str:
    return error_lines(error)[0][:300].rstrip(".")
