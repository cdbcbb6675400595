"""Who may import whom, and what every module and folder must look like: ARCHITECTURE.md's picture.

A part is a top-level module or folder of the package. It may import parts of the groups below its
own, and nothing beside or above it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

from embedding_pipelines.compression.base import Compressor
from embedding_pipelines.engines.base import Engine
from embedding_pipelines.plugins import Choice, choices
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.sources.base import Source
from embedding_pipelines.stores.base import Store

PACKAGE = Path(__file__).parent.parent / "embedding_pipelines"

PICTURE = PACKAGE.with_name("ARCHITECTURE.md").read_text(encoding="utf-8")
STAGES = {"sources", "preprocessing", "providers", "compression", "stores", "metrics", "engines"}


def _groups() -> tuple[frozenset[str], ...]:
    """The lines of ARCHITECTURE.md's picture, from the bottom; what follows a # is a comment."""
    _, _, picture = PICTURE.partition("Who may import whom.")
    lines = picture.split("```")[1].strip().splitlines()
    return tuple(frozenset(line.partition("#")[0].split()) for line in reversed(lines))


GROUPS = _groups()
LEAVES = GROUPS[0] | {"__init__"}
BELOW_STAGES = {"providers": {"inference"}}  # a stage imports leaves alone, but for this
DAGSTER = {"orchestration", "definitions"}
READS_THE_ENVIRONMENT = {"cli", "orchestration", "definitions", "service", "agents"}
HEAVY = {
    *("torch", "lancedb", "openvino", "sentence_transformers", "transformers"),
    *("openvino._pyopenvino", "pandas", "sklearn", "dagster", "asyncio"),
}
PLUGINS: dict[str, type[Choice]] = {
    "sources": Source,
    "providers": ProviderOptions,
    "compression": Compressor,
    "stores": Store,
    "engines": Engine,
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own_imports(path: Path) -> set[str]:
    """The other parts that a file imports; `embedding_pipelines.__version__` belongs to no part."""
    parts = {
        name.split(".")[1] for name in _imports(path) if name.startswith("embedding_pipelines.")
    }
    return parts - {"__version__", _part(path)}


def _allowed(part: str) -> AbstractSet[str]:
    if part == "__init__":  # the names of every part, for programs; loaded when they are used
        return set[str]().union(*GROUPS)
    if part in LEAVES:
        return LEAVES
    if part in STAGES:
        return LEAVES | BELOW_STAGES.get(part, set())
    height = next(height for height, group in enumerate(GROUPS) if part in group)
    return set[str](LEAVES).union(*GROUPS[:height])


def test_every_part_of_the_package_has_its_place() -> None:
    placed = ["__init__", *(part for group in GROUPS for part in group)]
    assert len(placed) == len(set(placed))
    assert {_part(path) for path in MODULES} == set(placed)
    assert STAGES in GROUPS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    assert _own_imports(path) <= _allowed(_part(path))


def test_no_two_modules_import_each_other_at_their_top() -> None:
    """Within a part too: a module that is being imported is never imported again on the way."""
    names = {
        ".".join(("embedding_pipelines", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in MODULES
    }
    edges: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        edges[name] = {
            target
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module
            for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            if target in names and target != name
        }
    import graphlib

    graphlib.TopologicalSorter(edges).prepare()  # raises CycleError, which names the cycle


def test_only_orchestration_and_definitions_import_dagster_by_its_public_names() -> None:
    """But for its storages, which others extend by the addresses that dagster.yaml has for them."""
    for path in MODULES:
        for name in _imports(path):
            top = name.split(".")[0]
            assert not top.startswith("dagster") or _part(path) in DAGSTER, path
            if path != PACKAGE / "orchestration" / "storage.py":
                assert not name.startswith(("dagster_shared", "dagster._")), f"{path}: {name}"


def test_only_the_front_reads_the_environment_for_the_home() -> None:
    readers = {_part(path) for path in MODULES if "environment" in _own_imports(path)}
    assert readers <= READS_THE_ENVIRONMENT


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("stage", PLUGINS)
def test_a_choice_is_called_as_its_file(stage: str) -> None:
    own = {
        kind: cls.__module__.rsplit(".", 1)[1]
        for kind, cls in choices(stage, PLUGINS[stage]).items()
        if cls.__module__.startswith("embedding_pipelines.")
    }
    assert own
    assert own == {kind: kind for kind in own}
    assert own.keys() <= {path.stem for path in (PACKAGE / stage).glob("*.py")}


def test_importing_light_modules_loads_nothing_heavy() -> None:
    """One after another: what none of them loads, no one alone does."""
    modules = ["spec.load", "search", "status", "steps.chain", "cli.main"]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module("embedding_pipelines." + module)
    print(module, *sorted({HEAVY} & sys.modules.keys()))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout.splitlines() == modules


def test_openvino_is_loaded_without_its_telemetry() -> None:
    code = (
        "import sys; from embedding_pipelines.inference.openvino import load; load();"
        "print(sys.modules['openvino_telemetry'], *sys.modules)"
    )
    first, *loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert first == "None"
    assert "openvino.tools.ovc.telemetry_stub" in loaded
