"""What pyproject.toml installs is what is imported, and an error or a page names an extra that
there is and that holds what is missing."""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import FEATURES, need, need_part
from scripts.try_extras import TRIES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "embedding_pipelines"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "Makefile")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "scripts").glob("*.py")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
]
NAMED = re.compile(
    r"embedding-pipelines\[([\w,-]+)\]"  # pip install 'embedding-pipelines[report]'
    r"|pip install -e '?\.\[([\w,-]+)\]"
    r"|\bextras? ['`]([\w-]+)['`]"
)


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """Every file of the package, parsed."""
    return {
        path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    }


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """The packages of a module, by its name."""
    return {
        **packages_distributions(),
        "tensorflow": ["tensorflow"],  # not in development
        "dagster_shared": ["dagster"],
        "pydantic_core": ["pydantic"],
    }


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(requirements: list[str]) -> set[str]:
    """The names of the packages, those of other extras of this project included."""
    names = set()
    for requirement in requirements:
        name, others = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()  # type: ignore[union-attr]
        if canonical(name) == PROJECT["name"]:
            names |= {each for extra in others.split(",") for each in packages(EXTRAS[extra])}
        else:
            names.add(canonical(name))
    return names


CORE = packages(PROJECT["dependencies"])
# `cli/serve.py` needs the extra before it imports anything of this folder.
SERVING, SERVES = Path("embedding_pipelines/serving"), packages(EXTRAS["serving"])


def holds(names: set[str], module: str) -> bool:
    """Whether one of the packages is the module's."""
    top = module.partition(".")[0]
    return bool({canonical(name) for name in distributions().get(top, [top])} & names)


NEEDS = ("need", "need_part", "require")


def needs(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, module and extra of every call that asks for a module of an extra."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in NEEDS:
            module, *_, extra = (ast.literal_eval(argument) for argument in node.args)
            yield node.lineno, module, extra


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import that runs: those for types do not."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.lineno, node.module
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "extras.part":
        yield node.lineno, ast.literal_eval(node.args[0])
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


OURS_OR_PYTHONS = {"embedding_pipelines", "__future__", *sys.stdlib_module_names}


@functools.cache
def third_party() -> list[tuple[Path, int, str]]:
    """File, line and module of every import of somebody else's."""
    return [
        (path.relative_to(ROOT), line, module)
        for path, tree in trees().items()
        for line, module in imports(tree)
        if module.partition(".")[0] not in OURS_OR_PYTHONS
    ]


@functools.cache
def needed() -> list[tuple[Path, int, str, str]]:
    """File, line, module and extra of every call of `need` and `require`."""
    return [
        (path.relative_to(ROOT), *found) for path, tree in trees().items() for found in needs(tree)
    ]


def test_a_plain_import_is_of_a_package_that_every_installation_has() -> None:
    assert [
        f"{path}:{line}: {module}"
        for path, line, module in third_party()
        if not holds(CORE, module) and not (SERVING in path.parents and holds(SERVES, module))
    ] == []  # use need(), or add the package to `dependencies`


def test_every_package_of_the_core_is_imported() -> None:
    modules = {module.partition(".")[0] for _, _, module in third_party()}
    used = {canonical(name) for module in modules for name in distributions().get(module, [])}
    assert CORE - used == set()


def test_a_module_that_is_needed_is_in_the_extra_that_is_named() -> None:
    assert [
        f"{path}:{line}: {module} is not in {extra}"
        for path, line, module, extra in needed()
        if extra not in EXTRAS or not holds(packages(EXTRAS[extra]), module)
    ] == []


def test_every_extra_that_code_needs_says_what_for() -> None:
    assert {extra for *_, extra in needed()} <= FEATURES.keys() <= EXTRAS.keys()


def test_an_extra_in_a_text_is_one_that_there_is() -> None:
    wrong = []
    for path in [*trees(), *PAGES]:
        for match in NAMED.finditer(path.read_text(encoding="utf-8")):
            names = {name for group in match.groups() if group for name in group.split(",")}
            wrong += [f"{path}: {name}" for name in names - EXTRAS.keys() - {"NAME"}]
    assert wrong == []


def test_every_extra_is_tried() -> None:
    tried = {extra for extras, _ in TRIES.values() for extra in extras.split(",")} - {""}
    assert tried == EXTRAS.keys() - {"all", "bench", "dev"}
    assert {name for name in TRIES if name != "core"} == tried


def test_all_is_every_extra_of_a_user() -> None:
    others = {
        name: packages(found) for name, found in EXTRAS.items() if name not in {"dev", "bench"}
    }
    assert others.pop("all") == set().union(*others.values())


def test_what_is_missing_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "plotly.offline", raising=False)
    with pytest.raises(ConfigError) as caught:
        need("plotly.offline", "report")
    assert isinstance(caught.value.__cause__, ImportError)
    assert str(caught.value).startswith("A report needs the package plotly (")
    assert str(caught.value).endswith("; run: pip install 'embedding-pipelines[report]'")


def test_a_part_that_cannot_be_loaded_is_told_as_what_is_missing() -> None:
    for package in ("json", "no_such_package"):
        with pytest.raises(ConfigError, match=f"needs the package {package} .*pip install"):
            need_part(package, "no_such_part", "local")


def test_what_is_installed_is_returned() -> None:
    assert need("json.decoder", "report").JSONDecoder
