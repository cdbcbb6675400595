"""Imports Dagster's storages without what a run uses none of: its daemon, and Alembic, which writes
databases and migrates them. 226 modules and 0.3 s of processor time, of 2.5 that a run's imports take."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import dagster

ALEMBIC, DAEMON = "alembic", "dagster._daemon"


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Within it modules of Alembic hold names alone, which import the real ones when they are called,
    and those of the daemon come without their package. Afterwards both are imported as ever."""
    finders: dict[str, MetaPathFinder] = {ALEMBIC: _Alembic(), DAEMON: _Daemon()}
    finders = {name: finder for name, finder in finders.items() if name not in sys.modules}
    sys.meta_path[:0] = finders.values()
    try:
        yield
    finally:
        for name, finder in finders.items():
            sys.meta_path.remove(finder)
            for module in [*sys.modules]:
                if module == name or (name == ALEMBIC and module.startswith(f"{ALEMBIC}.")):
                    del sys.modules[module]


class _Alembic(MetaPathFinder, Loader):
    """Finds modules of Alembic that have whatever they are asked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        is_its = f"{fullname}.".startswith(f"{ALEMBIC}.")
        return ModuleSpec(fullname, self, is_package=True) if is_its else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Names(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Names(ModuleType):
    """A module of names."""

    def __getattr__(self, name: str) -> "_Later":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _Later:
    """A class or a function that is imported when it is used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._real()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def _real(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)


class _Daemon(MetaPathFinder):
    """Finds the daemon's package without the code of its own, which imports all of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        real = PathFinder.find_spec(fullname, dagster.__path__) if fullname == DAEMON else None
        if real is None:
            return None
        bare = ModuleSpec(fullname, None, is_package=True)
        bare.submodule_search_locations = real.submodule_search_locations
        return bare
