"""The README and the pages in docs/ are run, not believed: every pipeline file is read, every block
of Python and of the shell is run, and what it prints is compared with what the page says."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from embedding_pipelines.cli.main import app
from embedding_pipelines.compression.base import Compressor
from embedding_pipelines.engines.base import Engine
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.plugins import Choice, choices
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.sources.base import Source
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.stores.base import Store
from embedding_pipelines.variables import VARIABLE
from embedding_pipelines_tests.page import (
    PAGES,
    ROOT,
    Block,
    agree,
    blocks_of,
    differs,
    is_run,
    normalized,
    run_section,
    steps_of,
    targets,
)

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
BLOCKS = [(page, block) for page, text in TEXTS.items() for block in blocks_of(text)]
SHELL = {"cd", "mkdir", "printf"}  # what a block may use besides
PROGRAMS = {"make", "embedding-pipelines", "dagster", "dg", "export", "pip", "python", "git", "cd"}
# Of the example data, what the searches are about: all of it takes minutes to embed.
MODULES = {"argparse", "copy", "datetime", "optparse", "os", "shutil", "tarfile", "time", "zipfile"}
CHARACTERS = re.compile(r"U\+1F6[0-4].,|U\+[0-9A-F]+,.,[^,]*\b(CAT|FACE)\b|code_point,")
CUT = "python -m embedding_pipelines_tests.test_pages"


def cut_example_data(home: Path) -> None:
    """Leave of the example data what the pages' searches are about."""
    for path in (home / "data" / "stdlib").glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        names = (re.search(r'"module": "(\w+)', line) for line in lines)
        kept = [
            line for line, name in zip(lines, names, strict=True) if name and name[1] in MODULES
        ]
        path.write_text("".join(kept), encoding="utf-8")
    path = home / "data" / "unicode" / "characters.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(filter(CHARACTERS.match, lines)), encoding="utf-8")


def _sections() -> dict[str, list[Block]]:
    """The blocks of every section that has something to run."""
    sections: dict[str, list[Block]] = {}
    for page, block in BLOCKS:
        sections.setdefault(f"{page}: {block.section}", []).append(block)
    runs = ("sh", "console", "python")
    return {
        name: blocks
        for name, blocks in sections.items()
        if any(block.language in runs for block in blocks)
    }


SECTIONS = _sections()
# It makes the example data and runs the pipelines; the others begin where it has ended.
FIRST = next(iter(SECTIONS))


class Ran(NamedTuple):
    """A home folder in which a section has been run, and what differs from the page."""

    home: Path
    problems: list[str]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    home = tmp_path_factory.mktemp("readme")
    (home / ".venv").symlink_to(sys.prefix)
    for name in ("workspace.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, home)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "embedding_pipelines", home / "embedding_pipelines", ignore=ignore)
    # Its source changes: the other sections have a release to compare with, and to go back to.
    change = "sed -i '$d' data/stdlib/z.jsonl && embedding-pipelines run stdlib"
    problems = run_section(SECTIONS[FIRST], home, CUT)
    return Ran(home, problems + run_section([Block("", "sh", change, 0)], home, CUT))


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_does_and_prints_what_it_says(section: str, first: Ran, tmp_path: Path) -> None:
    if section == FIRST:
        assert first.problems == [], "\n".join(first.problems)
        return
    home = tmp_path / "home"
    shutil.copytree(first.home, home, symlinks=True)
    problems = run_section(SECTIONS[section], home, CUT)
    assert problems == [], "\n".join(problems)


def _commands(program: str) -> list[list[str]]:
    """The words of every command of a program."""
    steps = [
        step
        for blocks in SECTIONS.values()
        for step in steps_of([block for block in blocks if block.language != "python"], ROOT)
    ]
    words = [shlex.split(step.command, comments=True) for step in steps]
    return [each for each in words if Path(each[0]).name == program]


def test_a_shell_block_calls_what_this_project_installs() -> None:
    for blocks in SECTIONS.values():
        for step in steps_of([block for block in blocks if block.language != "python"], ROOT):
            assert Path(shlex.split(step.command, comments=True)[0]).name in PROGRAMS | SHELL, step


@pytest.mark.parametrize(
    "each",
    [each for each in BLOCKS if each[1].language in ("yaml", "json")],
    ids=lambda each: f"{each[0]} line {each[1].line}",
)
def test_a_pipeline_of_a_page_loads_strictly(
    each: tuple[str, Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, block = each
    for name in VARIABLE.findall(block.text):
        monkeypatch.setenv(name, "a-value")
    assert parse_pipeline(block.text, "readme", page).name == "readme"


@pytest.mark.parametrize("words", _commands("embedding-pipelines"), ids=" ".join)
def test_a_command_of_a_page_is_one_that_there_is(words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    with group.make_context(
        "embedding-pipelines", list(words[1:]), resilient_parsing=False
    ) as context:
        name, command, rest = group.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert name is not None
        command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("words", _commands("make"), ids=" ".join)
def test_a_make_target_of_a_page_is_one_that_there_is(words: list[str]) -> None:
    assert set(words[1:]) <= targets()


def test_every_command_is_on_a_page() -> None:
    names = {words[1] for words in _commands("embedding-pipelines") if len(words) > 1}
    commands = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    assert commands - {"version"} <= names


def _anchors(text: str, marks: str = "#+") -> set[str]:
    headings = re.findall(rf"(?m)^{marks} (.+)$", re.sub(r"(?ms)^```.*?^```$", "", text))
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in headings}


def _markdown() -> Iterator[Path]:
    """All of the project's, and nothing of what is installed, built or made in its folder."""
    yield from ROOT.glob("*.md")
    for folder in ROOT.glob("[a-z]*"):
        yield from folder.glob("*.md" if folder.name in ("build", "data", "dist") else "**/*.md")


MARKDOWN = {path.relative_to(ROOT).as_posix(): path for path in sorted(_markdown())}


@pytest.mark.parametrize("page", MARKDOWN.values(), ids=list(MARKDOWN))
def test_no_link_leads_nowhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        if not name.startswith("https://"):
            target = page.parent / name if name else page
            assert target.is_file(), link
            assert not anchor or anchor in _anchors(target.read_text(encoding="utf-8")), link


# What pages show users are files of their own; CHANGELOG.md tells of some that were.
@pytest.mark.parametrize("page", sorted(MARKDOWN.keys() - TEXTS.keys() - {"CHANGELOG.md"}))
def test_a_file_that_a_page_for_developers_names_is_there(page: str) -> None:
    folders = (ROOT, ROOT / "embedding_pipelines", ROOT / "embedding_pipelines_tests")
    names = re.findall(
        r"(?<![\w/.~*<{-])((?:\w+/)+\w+\.(?:py|md))\b", MARKDOWN[page].read_text("utf-8")
    )
    assert [n for n in names if not any((folder / n).is_file() for folder in folders)] == []


def test_the_contents_lead_to_every_page_and_section() -> None:
    links = set(re.findall(r"\]\(([^)]+)\)", TEXTS["README.md"]))
    assert TEXTS.keys() - {link.partition("#")[0] for link in links} == {"README.md"}
    own = {f"#{anchor}" for anchor in _anchors(TEXTS["README.md"], "##")}
    assert own - links == {"#more"}


def test_the_home_of_the_pages_is_the_variable_that_is_read() -> None:
    assert any(f"`{HOME_VARIABLE}`" in text for text in TEXTS.values())


# The runner itself.

PAGE = """\
# Title
## One
```console
$ echo three \\
    words
three words
$ printf '%s\\n' 1,234 rows '0.31 s'
…
rows
9 s
```
```python
value = 2  # not output
print(value)
# 3
```
## Two
```python
print("text")
```
```text
text
```
```sh
export NAME=value  # a comment
test "$NAME" = value
make bench
false
```
```
a diagram
```
"""


def test_blocks_have_their_section_language_and_place() -> None:
    blocks = blocks_of(PAGE)
    assert [(block.section, block.language, block.line) for block in blocks] == [
        ("One", "console", 4),
        ("One", "python", 13),
        ("Two", "python", 19),
        ("Two", "text", 22),
        ("Two", "sh", 25),
        ("Two", "", 31),
    ]
    with pytest.raises(ValueError, match="The block at line 1 is not closed"):
        blocks_of("```sh\nmake")


def test_each_command_has_the_lines_below_it(tmp_path: Path) -> None:
    blocks = blocks_of(PAGE)
    one, two = (
        steps_of([b for b in blocks if b.section == name], tmp_path) for name in ("One", "Two")
    )
    assert [step.expected for step in one] == [["three words"], ["…", "rows", "9 s"], ["3"]]
    assert [step.line for step in one] == [4, 7, 13]
    assert [step.expected for step in two] == [["text"], None, None, None, None]
    with pytest.raises(ValueError, match="Line 2 is output of no command: out"):
        steps_of(blocks_of("```console\nout\n```"), tmp_path)


def test_what_differs_from_the_page_is_told_with_its_line(tmp_path: Path) -> None:
    blocks = blocks_of(PAGE)
    (problem,) = run_section([b for b in blocks if b.section == "One"], tmp_path, "true")
    assert problem == "line 13: $ python block_13.py\nThe page says:\n3\nIt printed:\n2"


def test_a_command_that_fails_differs_from_the_page(tmp_path: Path) -> None:
    (problem,) = run_section([b for b in blocks_of(PAGE) if b.section == "Two"], tmp_path, "true")
    assert problem.startswith("line 25: $ false\nIt ended with 1")


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("6,806 chunks   (0.21 s)", "420 chunks (3.4 s)", True),
        ("6,806 chunks", "6,806 texts", False),
        ("recall@10 0.991", "recall@10 1.000", True),
        ("recall@10 0.991", "recall@10 0.951", False),
        ("pca 128, int8", "pca 64, int8", True),
        ("release 1", "release 2", False),
        ("from 2 files", "from 3 files", True),
        ("int8", "int4", False),
        ("since 2026-01-02 03:04", "since 2027-11-12 23:59", True),
        ("U+1F63A", "U+1F638", False),
        ("at 3,644 tokens/s", "at 12 tokens/s", True),
    ],
)
def test_what_may_differ_and_what_may_not(expected: str, printed: str, same: bool) -> None:
    assert agree([normalized(expected)], [normalized(printed)]) == same
    assert bool(differs([expected], [printed])) != same


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a", "…", "d"], ["a", "b", "c", "d"], True),
        (["a", "…", "d"], ["a", "d"], True),
        (["…"], [], True),
        (["a", "…"], ["b"], False),
        (["a"], ["a", "b"], False),
        ([], ["a"], False),
    ],
)
def test_an_ellipsis_stands_for_any_lines(
    expected: list[str], printed: list[str], same: bool
) -> None:
    assert agree(expected, printed) == same


def test_how_far_a_slow_machine_has_come_is_no_difference() -> None:
    assert differs(["one", "two"], ["one", "stdlib checks: 3/128 searches", "two"]) == ""


def test_an_error_that_the_page_shows_is_no_difference() -> None:
    assert differs(["error: No."], ["error: No."], 1) == ""
    assert "It ended with 1" in differs(None, ["error: No."], 1)


@pytest.mark.parametrize(
    ("command", "run"),
    [
        ("make run  # first", True),
        ("make test", False),
        ("pip install 'embedding-pipelines[report]'", False),
        ("dagster dev -w workspace.yaml", False),
        ("dagster definitions validate", True),
        (".venv/bin/embedding-pipelines run stdlib", True),
    ],
)
def test_what_installs_or_never_ends_is_not_run(command: str, run: bool) -> None:
    assert is_run(command) == run


@pytest.mark.parametrize("section", SECTIONS)
def test_every_program_that_prints_shows_what_it_prints(section: str, tmp_path: Path) -> None:
    for step in steps_of(SECTIONS[section], tmp_path):
        if step.command.startswith("python block_"):
            program = tmp_path / step.command.removeprefix("python ")
            shows = step.expected or "print(" not in program.read_text(encoding="utf-8")
            assert shows, f"line {step.line}"


@pytest.mark.parametrize(
    ("stage", "base"),
    [
        ("sources", Source),
        ("providers", ProviderOptions),
        ("compression", Compressor),
        ("stores", Store),
        ("engines", Engine),
    ],
)
def test_every_option_of_a_choice_is_on_a_page(stage: str, base: type[Choice]) -> None:
    pages = "\n".join(TEXTS.values())
    for kind, choice in choices(stage, base).items():
        for option in choice.model_fields:
            assert re.search(rf"\b{option}\b", pages), f"{kind}: {option}"


if __name__ == "__main__":
    cut_example_data(Path.cwd())
