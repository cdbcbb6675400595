"""How a stage finds its choices: the classes in its folder, and those other packages register.

Adding a choice is adding a file: `sources/csv.py` with a `Source` whose `kind` is `"csv"`. Another
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
    """Base of everything a user chooses in a pipeline file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: str


@functools.cache
def choices(stage: str, base: type[Choice]) -> dict[str, type[Choice]]:
    """All concrete subclasses of `base` by kind.

    `stage` is a folder of this package ("sources"); every module in it is imported, so these
    modules import nothing heavy at the top. Entry points of `embedding_pipelines.<stage>` come
    after.
    """
    package = importlib.import_module(f"embedding_pipelines.{stage}")
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    ]
    classes = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    for entry in importlib.metadata.entry_points(group=f"embedding_pipelines.{stage}"):
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


def _loaded(entry: importlib.metadata.EntryPoint, base: type[Choice]) -> type[Choice]:
    where = f"The entry point {entry.name!r} ({entry.value}) of another package"
    try:
        cls = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{where} cannot be loaded: {error}. Mend or uninstall that package."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{where} is no {base.__name__}. Mend or uninstall that package.")
    return cls


def _kind(cls: type[Choice]) -> str | None:
    default = cls.model_fields["kind"].default
    return default if isinstance(default, str) else None
