"""`custom`: a class of the user's own, by its import path, installed or in the home folder.

    class MyModel:
        dimensions = 384                                     # or `dims`

        def __init__(self, **options): ...
        def embed(self, texts, input_type):                  # or generate_batch(texts)
            return ...                                       # [n, d]; NaN for a text without vector

The digest of the class's source file is part of the space, so that an edit makes a new one. A class
whose vectors depend on more, such as weights or another module, sets an attribute `revision`. It
imports what it needs from the home folder at the top of its module or in its constructor:
afterwards these modules are no longer in `sys.modules`, so that two home folders may use the same
names.
"""

import contextlib
import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, JsonValue, field_validator

from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import InputType, Limits, ProviderOptions
from embedding_pipelines.providers.common.http import MAX_PRICE
from embedding_pipelines.providers.common.plain import PlainModel, PlainOptions
from embedding_pipelines.schemas import digest
from embedding_pipelines.space import Space
from embedding_pipelines.variables import expand_options, identity
from embedding_pipelines.vectors import Vectors

# sys.path and sys.modules belong to the process, and so does this lock: one import at a time.
IMPORTING = threading.RLock()
# The ends of options' names.
SECRET_NAMES = ("api_key", "apikey", "password", "secret", "access_token", "auth_token")


class CustomModel(PlainModel):
    options: "Custom"
    resources = ("_instance",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        is_alone = self.options.concurrent_requests == 1
        self._slot = threading.Lock() if is_alone else contextlib.nullcontext()

    @functools.cached_property
    def space(self) -> Space:
        cls, options, instance = self.options.cls, self.options.options, self._instance
        if options:
            cls = f"{cls} {identity(options)}"
        return self.make_space(cls, instance.revision, instance.dimensions)

    @property
    def limits(self) -> Limits:
        return replace(super().limits, concurrent_requests=self.options.concurrent_requests)

    def compute(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        instance = self._instance
        with self._slot:
            return instance.embed(inputs, input_type)

    @once
    def _instance(self) -> "Instance":
        options = expand_options(self.options.options)  # a copy, which the class may change
        return _load(self.home, self.options.cls, options, self.options.trusted)


class Custom(PlainOptions):
    """A user's class, called once per open model with `options` as keyword arguments."""

    model_config = ConfigDict(hide_input_in_errors=True)
    model_class = CustomModel

    kind: Literal["custom"] = "custom"
    cls: str
    """`my_package.my_module:MyModel`"""

    trusted: bool = False
    """Import the class from an installed package too, and for `plan`; else it is imported from the
    home folder alone, and by runs and searches alone."""

    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments. `${NAME}` in them is replaced when the class is called, and stored as it
    is written."""

    concurrent_requests: int = Field(1, ge=1, le=256)
    """From how many threads the class may be called at once."""

    usd_per_million_tokens: float | None = Field(None, ge=0, le=MAX_PRICE)
    """The price of the service that the class calls; 0 if it runs on this machine."""

    @field_validator("cls")
    @classmethod
    def _check_path(cls, path: str) -> str:
        module, colon, name = path.partition(":")
        if not colon or not all(part.isidentifier() for part in [*module.split("."), name]):
            raise ValueError(
                "write the module and the class with a colon, e.g. my_package.my_module:MyModel"
            )
        return path

    @field_validator("options")
    @classmethod
    def _refuse_secrets(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in _names(options):
            if name.lower().endswith(SECRET_NAMES) or name.lower() == "token":
                raise ValueError(
                    f"{name!r} looks like a secret, and a pipeline file holds none: "
                    "let the class read it from an environment variable"
                )
        return options

    @property
    def price(self) -> float | None:
        return self.usd_per_million_tokens

    @property
    def is_trusted(self) -> bool:
        return self.trusted


def _names(value: JsonValue) -> list[str]:
    """The keys of nested options."""
    if isinstance(value, dict):
        return [*value, *(name for part in value.values() for name in _names(part))]
    return [name for part in value for name in _names(part)] if isinstance(value, list) else []


@dataclass(frozen=True)
class Instance:
    """An instance of a user's class, with its own description."""

    name: str  # "my_package.my_module:MyModel", for errors
    dimensions: int
    revision: str
    call: Callable[[list[str], InputType], Any]

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        """float32[n, dimensions]; ProviderError if the class fails or returns anything else."""
        try:
            reply = self.call(list(inputs), input_type)
        except ProviderError:
            raise
        except Exception as error:
            raise ProviderError(
                f"{self.name} failed on {len(inputs)} texts: {_describe(error)}. Correct the class."
            ) from error
        rows, kind = len(inputs), type(reply).__name__
        remedy = f"Return a list of {rows} rows of {self.dimensions} numbers, or such an array."
        try:
            vectors: NDArray[Any] = np.asarray(reply)
        except Exception as error:  # ragged lists; tensors on a GPU
            raise ProviderError(
                f"{self.name} returned a {kind} that is not a table of numbers "
                f"({_describe(error)}). {remedy}"
            ) from error
        if vectors.dtype.kind not in "fiu":
            raise ProviderError(f"{self.name} returned a {kind}, not numbers. {remedy}")
        if vectors.shape != (rows, self.dimensions):
            raise ProviderError(
                f"{self.name} returned an array of shape {vectors.shape} for {rows} texts "
                f"of {self.dimensions} dimensions. Return one row for each text, and set "
                "`dimensions` to the length of a row."
            )
        with np.errstate(over="ignore"):  # becomes infinity, which `check_reply` rejects
            return vectors.astype(np.float32)


def _load(home: Path, cls: str, options: Mapping[str, Any], trusted: bool) -> Instance:
    """An instance of `cls`, called with `options`. Raises ConfigError if it lacks something."""
    with IMPORTING, _importable(home):
        user_class = _class(home, cls, trusted)
        try:
            instance = user_class(**options)
        except Exception as error:
            names = ", ".join(map(repr, options)) or "(none)"
            raise ConfigError(
                f"custom: {cls} failed with options {names}: {_describe(error)}. Correct the "
                "options or the class."
            ) from error
        revision = _revision(instance, cls)
    return Instance(cls, _dimensions(instance, cls), revision, _call(instance))


def _class(home: Path, cls: str, trusted: bool) -> type:
    """The class, looked at before it is made: a class that cannot embed is never called."""
    module_name, _, class_name = cls.partition(":")
    top = module_name.partition(".")[0]
    own = PathFinder.find_spec(top, [str(home)])
    if own is None and not trusted and find_spec(top) is not None:
        raise ConfigError(
            f"custom: {top!r} is not below {home} but installed. Set `trusted: true` if its code "
            "may run, or copy the class into the home folder."
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{_describe(error)}. Correct the module"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            reason = f"the module is neither below {home} nor installed. Correct `cls`"
        raise ConfigError(f"custom: the module of {cls} cannot be imported: {reason}.") from error
    if own is not None and own.origin and not _is_of(sys.modules[top], own):
        loaded_from = getattr(sys.modules[top], "__file__", None) or "Python itself"
        raise ConfigError(
            f"custom: {own.origin} has the name of a module that is already loaded from "
            f"{loaded_from}, {top!r}. Give yours another name."
        )
    value = getattr(module, class_name, None)
    if not isinstance(value, type):
        raise ConfigError(
            f"custom: {getattr(module, '__file__', None) or module_name} has no class "
            f"{class_name!r}. Correct `cls`."
        )
    if issubclass(value, ProviderOptions):
        raise ConfigError(
            f"custom: {cls} is a provider itself. Register it in your package's pyproject.toml "
            'under [project.entry-points."embedding_pipelines.providers"], and choose it by its '
            "kind."
        )
    if not any(callable(getattr(value, name, None)) for name in ("embed", "generate_batch")):
        raise ConfigError(
            f"custom: {cls} has no method embed(texts, input_type) -> float32[n, d], nor "
            "generate_batch(texts). Add one."
        )
    return value


@contextlib.contextmanager
def _importable(home: Path) -> Iterator[None]:
    """Import modules from the home folder inside the block; afterwards take those that came from
    there out of `sys.modules`.

    Write no byte code there: Python compares times in seconds, so a quick edit could have no
    effect.
    """
    importlib.invalidate_caches()
    before, write_none = set(sys.modules), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(home))
    try:
        yield
    finally:
        sys.path.remove(str(home))
        sys.dont_write_bytecode = write_none
        names = sys.modules.keys() - before
        for top in {name.partition(".")[0] for name in names} - before:
            spec = PathFinder.find_spec(top, [str(home)])
            if spec is None or not _is_of(sys.modules.get(top), spec):
                continue
            for name in names:
                if name.partition(".")[0] == top:
                    del sys.modules[name]


def _is_of(module: ModuleType | None, spec: ModuleSpec) -> bool:
    """Whether `spec` is a module's own: of the same file, or of the same folder."""
    if spec.origin is None:
        return list(getattr(module, "__path__", ())) == list(spec.submodule_search_locations or ())
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).exists() and Path(file).samefile(spec.origin)


def _dimensions(instance: object, cls: str) -> int:
    value = getattr(instance, "dimensions", getattr(instance, "dims", None))
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        problem = "has no attribute `dimensions`" if value is None else f"has {value!r} dimensions"
        raise ConfigError(
            f"custom: {cls} {problem}. Set `dimensions` (or `dims`) to the length of its vectors, "
            "a number."
        )
    return int(value)


def _revision(instance: object, cls: str) -> str:
    """The class's own revision, else the digest of its source file."""
    value = getattr(instance, "revision", None)
    if isinstance(value, str | int):
        return str(value)
    if value is not None:
        raise ConfigError(
            f"custom: the `revision` of {cls} is a {type(value).__name__}, not a string. Correct "
            "the class."
        )
    try:
        file = Path(inspect.getfile(type(instance)))
        return digest(file.read_bytes()).hex()
    except (TypeError, OSError) as error:
        raise ConfigError(
            f"custom: the source of {cls} is unreadable ({_describe(error)}). Give the class an "
            "attribute `revision` that changes when its vectors change."
        ) from error


def _call(instance: object) -> Callable[[list[str], InputType], Any]:
    embed: Any = getattr(instance, "embed", None)
    generate_batch: Any = getattr(instance, "generate_batch", None)
    if callable(embed):
        return lambda texts, input_type: embed(texts, input_type)
    return lambda texts, _: generate_batch(texts)


def _describe(error: BaseException) -> str:
    words = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
