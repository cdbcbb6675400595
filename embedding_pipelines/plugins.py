"""Finds a stage's choices: the classes in its folder, and those that other packages register.

To add a choice, add a file: `sources/csv.py` with a `Source` whose `kind` is `"csv"`. Another
package registers its own under the entry point group `embedding_pipelines.<stage>`.
"""

import functools
import importlib
import importlib.metadata
import operator
import pkgutil
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from embedding_pipelines.errors import ConfigError


class Choice(BaseModel):
    """Base of everything a user chooses in a pipeline file: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: str


@functools.cache
def choices(stage: str, base: type[Choice]) -> dict[str, type[Choice]]:
    """All concrete subclasses of `base` by kind, those of entry points last.

    `stage` is a folder of this package ("sources"). This imports every module in it, so these
    import nothing heavy at their top.
    """
    package = importlib.import_module(f"embedding_pipelines.{stage}")
    classes: list[type[Choice]] = []
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        own = [cls for cls in vars(module).values() if isinstance(cls, type)]
        classes += [
            cls for cls in own if issubclass(cls, base) and cls.__module__ == module.__name__
        ]
    for entry in importlib.metadata.entry_points(group=f"embedding_pipelines.{stage}"):
        classes.append(_load(entry, base))
    by_kind: dict[str, type[Choice]] = {}
    for cls in classes:
        kind = cls.model_fields["kind"].default
        if not isinstance(kind, str):  # a base class
            continue
        if kind in by_kind:
            modules = f"{cls.__module__} and {by_kind[kind].__module__}"
            raise ConfigError(f"{stage}: {modules} both are {kind!r}. Remove one.")
        by_kind[kind] = cls
    return by_kind


def choice_type(stage: str, base: type[Choice]) -> Any:
    """The discriminated union of a stage's choices, for a pydantic field or `parse`."""
    classes = tuple(choices(stage, base).values())
    union = functools.reduce(operator.or_, classes)
    return Annotated[union, Field(discriminator="kind")] if len(classes) > 1 else union


def parse(stage: str, base: type[Choice], options: dict[str, Any]) -> Any:
    """One choice from its options, e.g. `{"kind": "hf", "model": …}`.

    Raises pydantic.ValidationError for wrong ones.
    """
    return TypeAdapter(choice_type(stage, base)).validate_python(options)


def _load(entry: importlib.metadata.EntryPoint, base: type[Choice]) -> type[Choice]:
    where = f"The entry point {entry.name!r} ({entry.value}) of another package"
    try:
        cls = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{where} cannot be loaded: {error}. Fix or uninstall that package."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{where} is no {base.__name__}. Fix or uninstall that package.")
    return cls
