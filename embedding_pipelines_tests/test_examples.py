"""The shipped pipelines and the README are run, not believed: every file, every block."""

import re
import shlex
import shutil
from itertools import islice
from pathlib import Path

import pytest
import typer.main

from embedding_pipelines.cli.main import app
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.examples import write_examples
from embedding_pipelines.search import Searcher
from embedding_pipelines.sources.base import SourceFile
from embedding_pipelines.spec.load import parse_pipeline, pipeline_files, read_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_pipeline
from embedding_pipelines_tests.runs import run_whole

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHIPPED = pipeline_files(ROOT)
SLICE_LINES = 60  # of each data file, for the quick run
MODEL = "hf:sentence-transformers/all-MiniLM-L6-v2"
# Modules of the standard library near the query in name or kind: shutil, os, tarfile.
SLOW_FILES = ("s.jsonl", "o.jsonl", "t.jsonl")
FACES = range(0x1F600, 0x1F650)  # of the characters, the emoticons and their surroundings


@pytest.fixture(scope="module")
def example_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("examples")
    write_examples(home)
    return home


@pytest.fixture
def own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return home


def _blocks(*languages: str) -> list[str]:
    return [text for language, text in BLOCKS if language in languages]


def _commands(program: str) -> list[list[str]]:
    """The words of every line of the README's shell blocks that calls a program."""
    lines = [line for text in _blocks("sh", "console") for line in text.splitlines()]
    commands = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words for words in commands if words and Path(words[0]).name == program]


def test_two_pipelines_are_shipped() -> None:
    assert [path.name for path in SHIPPED] == ["stdlib.yaml", "unicode.yaml"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_pipeline_loads_strictly(path: Path) -> None:
    spec = read_pipeline(path)
    assert spec.name == path.stem
    assert spec.source.id is not None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_pipeline_runs_from_files_to_search(
    path: Path, example_home: Path, own_home: Path
) -> None:
    for file in read_pipeline(path).source.files(example_home):
        _copy_slice(file, example_home, own_home)
    text = path.read_text(encoding="utf-8")
    assert MODEL in text
    write_pipeline(own_home, path.stem, text.replace(MODEL, "{provider: hashing}"))
    reports = run_whole(own_home, path.stem).reports
    assert reports["documents"].statistics["rejected"] == 0
    assert reports["release"].statistics["rows"] >= SLICE_LINES - 1
    searcher = Searcher(Warehouse(own_home), path.stem)
    first = searcher.search("python", 1).hits[0]
    assert searcher.search(first.text, 3).hits[0].score > 0.99


def _copy_slice(file: SourceFile, source: Path, target: Path) -> None:
    copy = target / file.path.relative_to(source)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with file.path.open(encoding="utf-8") as lines:
        copy.write_text("".join(islice(lines, SLICE_LINES)), encoding="utf-8")


@pytest.mark.slow
def test_the_standard_library_is_found_by_what_a_function_does(
    example_home: Path, own_home: Path
) -> None:
    (own_home / "data" / "stdlib").mkdir(parents=True)
    for name in SLOW_FILES:
        shutil.copy(example_home / "data" / "stdlib" / name, own_home / "data" / "stdlib" / name)
    shutil.copytree(example_home / "pipelines", own_home / "pipelines")
    run_whole(own_home, "stdlib")
    searcher = Searcher(Warehouse(own_home), "stdlib")
    hits = searcher.search("copy a file and keep its timestamps", 3).hits
    assert "shutil.copy2" in [hit.document_id for hit in hits]
    only = searcher.search("copy a file", 10, "module = 'shutil'").hits
    assert {hit.metadata["module"] for hit in only} == {"shutil"}


@pytest.mark.slow
def test_a_character_is_found_by_what_it_shows(example_home: Path, own_home: Path) -> None:
    path = example_home / "data" / "unicode" / "characters.csv"
    lines = path.read_text(encoding="utf-8").split("\n")
    faces = [
        line
        for line in lines[1:-1]
        if int(line.split(",")[0].removeprefix("U+"), 16) in FACES or "CAT" in line
    ]
    folder = own_home / "data" / "unicode"
    folder.mkdir(parents=True)
    (folder / "characters.csv").write_text(
        "\n".join([lines[0], *dict.fromkeys([*lines[1:1000], *faces]), ""]), encoding="utf-8"
    )
    shutil.copytree(example_home / "pipelines", own_home / "pipelines")
    run_whole(own_home, "unicode")
    hits = Searcher(Warehouse(own_home), "unicode").search("smiling cat", 5).hits
    assert all("CAT FACE" in hit.text for hit in hits[:3])


def test_the_readme_has_blocks_of_every_kind() -> None:
    assert {language for language, _ in BLOCKS} >= {"sh", "yaml"}
    assert README.count("```") == 2 * len(
        re.findall(r"^```\w*\n.*?^```$", README, re.MULTILINE | re.DOTALL)
    )


@pytest.mark.parametrize(
    "text", _blocks("yaml", "json"), ids=lambda text: text.splitlines()[0][:40]
)
def test_a_pipeline_in_the_readme_loads_strictly(text: str) -> None:
    assert parse_pipeline(text, "readme", "README.md").name == "readme"


@pytest.mark.parametrize("words", _commands("embedding-pipelines"), ids=" ".join)
def test_a_command_in_the_readme_is_one_that_there_is(words: list[str]) -> None:
    group = typer.main.get_command(app)
    with group.make_context(
        "embedding-pipelines", list(words[1:]), resilient_parsing=False
    ) as context:
        name, command, rest = group.resolve_command(
            context, [*context._protected_args, *context.args]
        )  # type: ignore[attr-defined]
        assert name is not None
        command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("words", _commands("make"), ids=" ".join)
def test_a_make_target_in_the_readme_is_one_that_there_is(words: list[str]) -> None:
    targets = re.findall(
        r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(words[1:]) <= set(targets)


def test_the_readme_shows_every_command() -> None:
    names = {words[1] for words in _commands("embedding-pipelines") if len(words) > 1}
    commands = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    assert commands - {"version"} <= names


@pytest.mark.parametrize("text", _blocks("python"), ids=lambda text: text.splitlines()[-1][:40])
def test_a_python_block_in_the_readme_imports_what_there_is(text: str) -> None:
    imports = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    exec(compile("\n".join(imports), "README.md", "exec"), {})  # noqa: S102
    compile(text, "README.md", "exec")


@pytest.mark.parametrize(
    "text", _blocks("sh", "console"), ids=lambda text: text.splitlines()[0][:40]
)
def test_a_shell_block_in_the_readme_calls_what_this_project_installs(text: str) -> None:
    programs = {
        Path(shlex.split(line.removeprefix("$ "), comments=True)[0]).name
        for line in text.splitlines()
        if line
    }
    assert programs <= {"make", "embedding-pipelines", "dagster", "export"}


def test_the_home_of_the_readme_is_the_variable_that_is_read() -> None:
    assert f"`{HOME_VARIABLE}`" in README
