"""Who may import whom, and what every module and folder must look like. DESIGN.md and
ARCHITECTURE.md say why."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_pipelines.compression.base import Compressor
from embedding_pipelines.plugins import Choice, choices
from embedding_pipelines.providers.base import Provider
from embedding_pipelines.sources.base import Source
from embedding_pipelines.stores.base import Store

PACKAGE = Path(__file__).parent.parent / "embedding_pipelines"
MAX_LINES = 300

LEAVES = {
    "__init__",
    "vectors",
    "files",
    "schemas",
    "plugins",
    "errors",
    "space",
    "home",
    "progress",
}
STAGES = {"sources", "preprocessing", "providers", "compression", "stores", "evaluation"}
COMPOSITION = {
    "pipeline", "pipeline_files", "pipeline_edit", "pipeline_ids", "warehouse", "embedding", "steps", "search",
    "status", "examples", "catalogue",
}  # fmt: skip
ADAPTERS = {
    "cli", "cli_support", "cli_optimize", "cli_report", "cli_diff", "cli_release", "terminal", "agents", "service",
    "serving", "orchestration", "definitions",
}  # fmt: skip
DAGSTER = {"orchestration", "definitions"}
FOLDERS = STAGES | {"embedding", "steps", "orchestration", "agents"}
HEAVY = {
    "torch",
    "lancedb",
    "openvino",
    "sentence_transformers",
    "transformers",
    "pandas",
    "sklearn",
    "dagster",
}
PLUGINS: dict[str, type[Choice]] = {
    "sources": Source,
    "providers": Provider,
    "compression": Compressor,
    "stores": Store,
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def _part(path: Path) -> str:
    """The top-level module or folder of the package that a file belongs to."""
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
    """The parts of this package that a file imports; `embedding_pipelines.__version__` belongs to
    no part."""
    parts = {
        name.split(".")[1] for name in _imports(path) if name.startswith("embedding_pipelines.")
    }
    return parts - {"__version__"}


def _allowed(part: str) -> set[str]:
    if part in LEAVES:
        return LEAVES
    if part in STAGES:
        return LEAVES | {part}
    if part in COMPOSITION:
        return LEAVES | STAGES | COMPOSITION
    return LEAVES | STAGES | COMPOSITION | ADAPTERS


def test_every_part_of_the_package_has_its_place() -> None:
    assert {_part(path) for path in MODULES} <= LEAVES | STAGES | COMPOSITION | ADAPTERS
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders == FOLDERS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_nothing_above_or_beside_it(path: Path) -> None:
    assert _own_imports(path) <= _allowed(_part(path))


def test_only_orchestration_and_definitions_import_dagster() -> None:
    users = {
        _part(path)
        for path in MODULES
        for name in _imports(path)
        if name.split(".")[0].startswith("dagster")
    }
    assert users <= DAGSTER


def test_the_pipeline_is_not_changed_by_how_it_is_searched_or_run() -> None:
    assert not _own_imports(PACKAGE / "pipeline.py") & COMPOSITION
    assert _own_imports(PACKAGE / "pipeline_files.py") & COMPOSITION == {"pipeline"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_for_and_stays_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("stage", PLUGINS)
def test_a_choice_is_called_as_its_file(stage: str) -> None:
    found = choices(stage, PLUGINS[stage])
    here = {
        kind: cls
        for kind, cls in found.items()
        if cls.__module__.startswith("embedding_pipelines.")
    }
    assert {kind: cls.__module__.rsplit(".", 1)[1] for kind, cls in here.items()} == {
        kind: kind for kind in here
    }
    modules = {path.stem for path in (PACKAGE / stage).glob("*.py")}
    assert here.keys() <= modules


@pytest.mark.parametrize("module", ["pipeline_files", "search", "status", "terminal", "cli"])
def test_importing_a_light_module_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, embedding_pipelines.{module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not HEAVY & set(loaded)


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
