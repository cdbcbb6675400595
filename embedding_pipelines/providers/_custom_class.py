"""A user's own class: found by its import path, made once, asked, and believed only as far as its
answer is checked."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.providers.base import InputType, Provider
from embedding_pipelines.schemas import digest
from embedding_pipelines.vectors import Vectors


@dataclass(frozen=True)
class Loaded:
    """An instance of a user's class, and what it says of itself."""

    name: str  # "my_package.my_module:MyModel", for errors
    dimensions: int
    revision: str
    call: Callable[[list[str], InputType], Any]
    one_at_a_time: threading.Lock

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        """float32[n, dimensions]; ProviderError if the class fails or answers anything else."""
        try:
            answer = self.call(list(inputs), input_type)
        except ProviderError:
            raise
        except Exception as error:
            raise ProviderError(
                f"{self.name} failed on {len(inputs)} texts: {_said(error)}. Mend the class."
            ) from error
        wanted = (len(inputs), self.dimensions)
        vectors = self._array(answer, wanted)
        if vectors.shape != wanted:
            raise ProviderError(
                f"{self.name} returned an array of shape {vectors.shape} for {len(inputs)} texts of {self.dimensions} "
                "dimensions. Return one row for each text, and set `dimensions` to the length of a row."
            )
        with np.errstate(over="ignore"):  # becomes infinity, which is refused where it is used
            return vectors.astype(np.float32)

    def _array(self, answer: Any, wanted: tuple[int, int]) -> NDArray[Any]:
        remedy = f"Return a list of {wanted[0]} rows of {wanted[1]} numbers, or such an array."
        try:
            vectors: NDArray[Any] = np.asarray(answer)
        except Exception as error:  # ragged lists; tensors of a GPU
            found = f"a {type(answer).__name__} that is no table of numbers"
            raise ProviderError(
                f"{self.name} returned {found} ({_said(error)}). {remedy}"
            ) from error
        if vectors.dtype.kind not in "fiu":
            raise ProviderError(
                f"{self.name} returned a {type(answer).__name__}, not numbers. {remedy}"
            )
        return vectors


def load(home: Path, cls: str, options: str) -> Loaded:
    """An instance of `cls` made with `options`, a JSON object. Raises ConfigError saying what it
    lacks."""
    with _importable(home, cls.partition(".")[0].partition(":")[0]) as own:
        found = _class(home, cls, own)
        try:
            instance = found(**json.loads(options))
        except Exception as error:
            raise ConfigError(
                f"custom: {cls} cannot be made with options {_names(options)}: {_said(error)}. Mend the options or the "
                "class."
            ) from error
    return Loaded(
        cls,
        _dimensions(instance, cls),
        _revision(instance, cls),
        _call(instance, cls),
        threading.Lock(),
    )


def _class(home: Path, cls: str, own: str | None) -> type:
    """The class itself; `own` is the file of its package where that lies in the home folder."""
    module_name, _, class_name = cls.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        where = f"neither below {home} nor installed"
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        )
        reason = (
            f"there is no such module, {where}. Mend `cls`"
            if missing
            else f"{_said(error)}. Mend the module"
        )
        raise ConfigError(f"custom: the module of {cls} cannot be imported: {reason}.") from error
    top = module_name.partition(".")[0]
    loaded = getattr(sys.modules[top], "__file__", None) or "Python itself"
    if own and not (Path(loaded).exists() and Path(loaded).samefile(own)):
        raise ConfigError(
            f"custom: {own} is not what Python knows as {top!r}, which is already loaded from {loaded}. "
            "Give yours another name."
        )
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ConfigError(
            f"custom: {getattr(module, '__file__', None) or module_name} has no class {class_name!r}. Mend `cls`."
        )
    if issubclass(found, Provider):
        raise ConfigError(
            f"custom: {cls} is a provider of its own. Register it in your package's pyproject.toml under "
            '[project.entry-points."embedding_pipelines.providers"], and choose it by its kind.'
        )
    return found


@contextlib.contextmanager
def _importable(home: Path, package: str) -> Iterator[str | None]:
    """The file of `package` if that lies in the home folder; inside the block it is imported from
    there.

    No byte code is written there: it is told from its source by the second, so a quick edit could
    go unseen.
    """
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(package, [str(home)])
    if spec is None:
        yield None
        return
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(home))
    try:
        yield spec.origin
    finally:
        sys.path.remove(str(home))
        sys.dont_write_bytecode = written


def _dimensions(instance: object, cls: str) -> int:
    found = getattr(instance, "dimensions", getattr(instance, "dims", None))
    if not isinstance(found, int | np.integer) or isinstance(found, bool) or found < 1:
        said = "says nothing of" if found is None else f"says {found!r} of"
        raise ConfigError(
            f"custom: {cls} {said} the length of its vectors. Give it an attribute `dimensions` (or `dims`), a number."
        )
    return int(found)


def _revision(instance: object, cls: str) -> str:
    """What the class says, else the digest of the file that it is written in."""
    found = getattr(instance, "revision", None)
    if isinstance(found, str | int):
        return str(found)
    if found is not None:
        raise ConfigError(
            f"custom: the `revision` of {cls} is a {type(found).__name__}, not a string. Mend the class."
        )
    try:
        file = Path(inspect.getfile(type(instance)))
        return digest(file.read_bytes()).hex()
    except (TypeError, OSError) as error:
        raise ConfigError(
            f"custom: the source of {cls} cannot be read ({_said(error)}). Give the class an attribute `revision` that "
            "changes when its vectors change."
        ) from error


def _call(instance: object, cls: str) -> Callable[[list[str], InputType], Any]:
    embed, generate_batch = (
        getattr(instance, "embed", None),
        getattr(instance, "generate_batch", None),
    )
    if callable(embed):
        return lambda texts, input_type: embed(texts, input_type)
    if callable(generate_batch):
        return lambda texts, _: generate_batch(texts)
    raise ConfigError(
        f"custom: {cls} has no method embed(texts, input_type) -> float32[n, d], nor generate_batch(texts). Add one."
    )


def _names(options: str) -> str:
    return ", ".join(repr(name) for name in json.loads(options)) or "(none)"


def _said(error: BaseException) -> str:
    words = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
