"""How a folder finds its choices, metrics and checks: those of its files, and those that other
packages register.

To add a choice, add a file: `sources/csv.py` with a `Source` whose `kind` is `"csv"`. Another
package registers its own under the entry point group `embedding_pipelines.<folder>`, with a dot
between folders.
"""

import functools
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import core_schema

from embedding_pipelines.errors import ConfigError

T = TypeVar("T")
DUMPING = (  # what whoever dumps a pipeline asks for
    *("mode", "include", "exclude", "by_alias", "round_trip"),
    *("exclude_unset", "exclude_defaults", "exclude_none"),
)


class Choice(BaseModel, frozen=True, extra="forbid"):
    """Base of everything a user chooses in a pipeline file: frozen, and without unknown keys."""

    kind: str


def objects(folder: str, kind: type[T]) -> dict[str, T]:
    """All objects of `kind`, a class with a `name`, by name: those at the top of a folder's files
    and one of each subclass there. Entry points of `embedding_pipelines.<folder>` come after.

    Raises ConfigError for two of one name, and for an entry point that is none or has another name.
    """
    entries = _entry_points(folder)
    members = _members(folder, kind, entries)
    values = [member() if isinstance(member, type) else member for member in members]
    result = _unique(folder, [(value.name, value) for value in values])
    for entry in entries:
        if entry.name not in result:  # a pipeline file names it by its entry point
            raise ConfigError(
                f"The entry point {entry.name!r} ({entry.value}) of another package adds something "
                f"of another name. Name the entry point as the {kind.__name__.lower()} is named."
            )
    return result


def names(folder: str) -> list[str]:
    """The files of a folder, without importing them, and the names of its entry points."""
    path = Path(__file__).parent.joinpath(*folder.split("."))
    files = [module.name for module in pkgutil.iter_modules([str(path)])]
    return files + [entry.name for entry in _entry_points(folder)]


@functools.cache
def choices(stage: str, base: type[Choice]) -> dict[str, type[Choice]]:
    """All concrete subclasses of `base` by kind, those of entry points last.

    `stage` is a folder of this package ("sources"). This imports every module in it, so these
    import nothing heavy at their top.
    """
    members = _members(stage, base, _entry_points(stage))
    classes: list[Any] = [cls for cls in members if isinstance(cls, type)]
    kinds = [(cls.model_fields["kind"].default, cls) for cls in classes]  # of a base class none
    return _unique(stage, [(kind, cls) for kind, cls in kinds if isinstance(kind, str)])


def concrete(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Its choices if it is the base class of a stage, else the model itself."""
    if not issubclass(model, Choice) or isinstance(model.model_fields["kind"].default, str):
        return [model]
    stage = model.__module__.removeprefix("embedding_pipelines.").rpartition(".")[0]
    return [*choices(stage, model).values()]


def choice_type(stage: str, base: type[Choice]) -> Any:
    """One of a stage's choices, for a pydantic field or `parse`: as the discriminated union of all,
    of which only what is named is imported."""
    return Annotated[base, _OneOf(stage, base)]


def parse(stage: str, base: type[Choice], options: dict[str, Any]) -> Any:
    """One choice from its options, e.g. `{"kind": "hf", "model": …}`.

    Raises pydantic.ValidationError for wrong ones.
    """
    return TypeAdapter(choice_type(stage, base)).validate_python(options)


class _OneOf:
    """Validates as the union of a stage's choices, by `kind`. A file is named after its choice, so
    the other files, and the union of all, are for wrong kinds and other packages alone: to build it
    takes a sixth of a second for sources and providers."""

    def __init__(self, stage: str, base: type[Choice]) -> None:
        self._stage, self._base = stage, base
        self._adapters: dict[str | None, TypeAdapter[Any]] = {}

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(self._dump, info_arg=True)
        return core_schema.with_info_plain_validator_function(self._validate, serialization=dump)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(self._adapter(None).core_schema)

    def _validate(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        return self._of(value).validate_python(value, context=info.context)

    def _dump(self, value: Any, info: core_schema.SerializationInfo) -> Any:
        """As the choice of its kind: what a subclass adds is no option of a pipeline file."""
        options: dict[str, Any] = {name: getattr(info, name) for name in DUMPING}
        return self._of(value).dump_python(value, **options)

    def _of(self, value: Any) -> "TypeAdapter[Any]":
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        return self._adapter(kind if isinstance(kind, str) else None)

    def _adapter(self, kind: str | None) -> "TypeAdapter[Any]":
        """Of the choice in the file of that name if it has one, else of all."""
        if kind in self._adapters:
            return self._adapters[kind]
        own = _own(self._stage, self._base, kind)
        key = kind if own else None
        if key not in self._adapters:
            classes = {key: own} if key and own else choices(self._stage, self._base)
            self._adapters[key] = TypeAdapter(Annotated[Any, _Tagged(classes)])
        return self._adapters[key]


class _Tagged:
    """A discriminated union, be it of one class: its faults name the kind as their place."""

    def __init__(self, classes: Mapping[str, type[Choice]]) -> None:
        self._classes = classes

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        schemas = {kind: handler.generate_schema(cls) for kind, cls in self._classes.items()}
        return core_schema.tagged_union_schema(schemas, "kind", from_attributes=True)


def _own(stage: str, base: type[Choice], kind: str | None) -> type[Choice] | None:
    """The choice in the file of its name; None if there is none, or if other packages add to the
    stage, perhaps another of that kind."""
    if kind is None or _entry_points(stage) or kind not in names(stage):
        return None
    module = importlib.import_module(f"embedding_pipelines.{stage}.{kind}")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    own = [cls for cls in classes if issubclass(cls, base) and cls.__module__ == module.__name__]
    return next((cls for cls in own if cls.model_fields["kind"].default == kind), None)


def _members(folder: str, kind: type, entries: importlib.metadata.EntryPoints) -> list[Any]:
    """The objects of `kind` and the subclasses of it in a folder's files, then in entry points."""
    package = importlib.import_module(f"embedding_pipelines.{folder}")
    members: list[Any] = []
    for file in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{file.name}")
        for value in vars(module).values():
            is_imported = isinstance(value, type) and value.__module__ != module.__name__
            if _is_member(value, kind) and not is_imported:
                members.append(value)
    for entry in entries:
        where = f"The entry point {entry.name!r} ({entry.value}) of another package"
        try:
            members.append(entry.load())
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{where} cannot be loaded: {error}. Fix or uninstall that package."
            ) from error
        if not _is_member(members[-1], kind):
            raise ConfigError(f"{where} is no {kind.__name__}. Fix or uninstall that package.")
    return members


def _is_member(value: object, kind: type) -> bool:
    if isinstance(value, type):
        return issubclass(value, kind) and value is not kind
    return isinstance(value, kind)


def _unique(folder: str, members: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in members:
        if result.setdefault(name, value) is not value:
            modules = f"{value.__module__} and {result[name].__module__}"
            raise ConfigError(f"{folder}: {modules} both are {name!r}. Remove one.")
    return result


def _entry_points(folder: str) -> importlib.metadata.EntryPoints:
    entries: importlib.metadata.EntryPoints = _all_entry_points().select(
        group=f"embedding_pipelines.{folder}"
    )
    return entries


@functools.cache
def _all_entry_points() -> Any:  # of another type in Python 3.11, with the same `select`
    """Those of every installed package: finding them takes 5 to 8 ms, whatever the group."""
    return importlib.metadata.entry_points()
