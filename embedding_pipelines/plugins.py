"""How a folder finds its choices, metrics and checks: those of its files, and those that other
packages register.

Adding a choice is adding a file: `sources/csv.py` with a `Source` whose `kind` is `"csv"`. Another
package registers its own under the entry point group `embedding_pipelines.<folder>`, with a dot
between folders.
"""

import functools
import importlib
import importlib.metadata
import operator
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from embedding_pipelines.errors import ConfigError

T = TypeVar("T")


class Choice(BaseModel):
    """Base of everything a user chooses in a pipeline file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: str


def objects(folder: str, kind: type[T]) -> dict[str, T]:
    """All objects of `kind`, a class with a `name`, by name: those at the top of a folder's files
    and one of each subclass there, then those of entry points.

    Raises ConfigError for two of one name, and for an entry point that cannot be loaded.
    """
    values = [
        value
        for module in _modules(folder)
        for value in vars(module).values()
        if not isinstance(value, type) or value.__module__ == module.__name__
    ]
    result: dict[str, T] = {}
    for value in [*values, *map(_load, _entry_points(folder))]:
        if isinstance(value, type) and issubclass(value, kind) and value is not kind:
            value = value()
        if isinstance(value, kind):
            name: str = value.name  # type: ignore[attr-defined]
            if result.setdefault(name, value) is not value:
                raise ConfigError(f"{folder}: there are two objects named {name!r}. Rename one.")
    return result


def names(folder: str) -> list[str]:
    """The files of a folder, without importing them, and the names of its entry points."""
    path = Path(__file__).parent.joinpath(*folder.split("."))
    files = [module.name for module in pkgutil.iter_modules([str(path)])]
    return files + [entry.name for entry in _entry_points(folder)]


@functools.cache
def choices(stage: str, base: type[Choice]) -> dict[str, type[Choice]]:
    """All concrete subclasses of `base` by kind.

    `stage` is a folder of this package ("sources"); every module in it is imported, so these
    modules import nothing heavy at the top. Entry points of `embedding_pipelines.<stage>` come
    after.
    """
    classes = [
        value
        for module in _modules(stage)
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    for entry in _entry_points(stage):
        classes.append(_loaded(entry, base))
    found: dict[str, type[Choice]] = {}
    for cls in classes:
        kind = _kind(cls)
        if kind in found:
            raise ConfigError(
                f"{stage}: {cls.__module__} and {found[kind].__module__} both are {kind!r}. Remove one."
            )
        if kind is not None:
            found[kind] = cls
    return found


def choice_type(stage: str, base: type[Choice]) -> Any:
    """The discriminated union of a stage's choices, for a pydantic field or `parse`."""
    found = tuple(choices(stage, base).values())
    union = functools.reduce(operator.or_, found)
    return Annotated[union, Field(discriminator="kind")] if len(found) > 1 else union


def parse(stage: str, base: type[Choice], options: dict[str, Any]) -> Any:
    """One choice from its options, e.g. `{"kind": "hf", "model": …}`; pydantic.ValidationError if
    wrong."""
    return TypeAdapter(choice_type(stage, base)).validate_python(options)


def _modules(folder: str) -> Iterator[ModuleType]:
    package = importlib.import_module(f"embedding_pipelines.{folder}")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(module.name)


def _entry_points(folder: str) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=f"embedding_pipelines.{folder}")


def _loaded(entry: importlib.metadata.EntryPoint, base: type[T]) -> type[T]:
    cls = _load(entry)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{_where(entry)} is no {base.__name__}. Fix or uninstall that package.")
    return cls


def _load(entry: importlib.metadata.EntryPoint) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{_where(entry)} cannot be loaded: {error}. Fix or uninstall that package."
        ) from error


def _where(entry: importlib.metadata.EntryPoint) -> str:
    return f"The entry point {entry.name!r} ({entry.value}) of another package"


def _kind(cls: type[Choice]) -> str | None:
    default = cls.model_fields["kind"].default
    return default if isinstance(default, str) else None
