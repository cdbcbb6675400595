"""`--json` has one shape, whatever command is called with whatever goes wrong."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.models import ArgumentInfo

from embedding_pipelines import examples
from embedding_pipelines.cli.common import Output, emit
from embedding_pipelines.cli.main import app
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.examples import list_modules
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command, check_envelope
from embedding_pipelines_tests.conftest import HASHING

COMMANDS = {  # that end by themselves
    str(command.name): command.callback
    for command in app.registered_commands
    if command.name not in ("serve", "mcp")
}
PIPELINES = ["things", "3", "fresh", "broken", "nobody", "99"]
WRONG = ["cat =", "colour = 'red'", "-k", "0", "--filter", "--to", "9", "--force", "--reason", ""]
HELLO = """
import typer

from embedding_pipelines.cli.common import Name, Outcomes, Output, Problem

app = typer.Typer()


@app.command()
def greet(name: Name, loud: bool = False) -> Outcomes:
    '''Greet a pipeline.'''
    yield Output([{"greeting": name}], lambda: print(f"Hello, {name}"))
    if loud:
        yield Problem("Nobody is here.", name)
        raise KeyboardInterrupt("Greet it again.")
"""
START = """
import sys
from embedding_pipelines import cli
cli.__path__.append(sys.argv.pop(1))
from embedding_pipelines.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a pipeline that has a release, one that was never run, and a broken one."""
    home = tmp_path_factory.mktemp("built")
    for name in ("fresh", "things"):
        write_pipeline(home, name, HASHING)
    write_pipeline(home, "broken", "source: {kind: csv}\n")
    write_csv(home, "a.csv", [(1, "red fox", "animal"), (2, "blue whale", "animal")])
    run_steps(home, "things")
    return home


@pytest.fixture
def command(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv(HOME_VARIABLE, str(built))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(built)  # where `bundle` writes
    return Command(monkeypatch, capsys)


def _words(name: str, pipeline: str) -> Iterator[str]:
    """A command with a pipeline and something for every argument and option that it requires."""
    yield name
    function = COMMANDS[name]
    assert function is not None
    for parameter in inspect.signature(function).parameters.values():
        annotation: Any = parameter.annotation
        if parameter.name in ("name", "names"):
            yield pipeline
        elif parameter.default is parameter.empty:
            (kind, info) = get_args(annotation)
            if not isinstance(info, ArgumentInfo):
                yield f"--{parameter.name}"
            yield get_args(kind)[0] if get_origin(kind) is Literal else "fox"


def _check(command: Command, *words: str) -> None:
    ended = command(words[0], "--json", *words[1:])  # an option at the end would take it as value
    if ended.code == 2:
        assert ended.out == ""
        return
    assert ended.err == ""
    assert ended.envelope["command"] == words[0]
    assert ended.code == (0 if ended.envelope["ok"] else 1)
    assert not [error for error in ended.errors if "Traceback" in error]


def _names_a_pipeline(name: str) -> bool:
    function = COMMANDS[name]
    assert function is not None
    return not {"name", "names"}.isdisjoint(inspect.signature(function).parameters)


@pytest.fixture(autouse=True)
def _few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """`example` reads a few modules: the whole standard library takes seconds."""
    monkeypatch.setattr(examples, "list_modules", lambda folder: list_modules(folder)[:20])


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        (name, pipeline)
        for name in COMMANDS
        for pipeline in (PIPELINES if _names_a_pipeline(name) else PIPELINES[:1])
    ],
)
def test_every_command_prints_one_object_of_the_same_shape(
    name: str, pipeline: str, command: Command
) -> None:
    _check(command, *_words(name, pipeline))


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(COMMANDS)), st.lists(st.sampled_from(PIPELINES[2:] + WRONG)))
def test_whatever_is_typed_wrong(command: Command, name: str, words: list[str]) -> None:
    _check(command, name, *words)


def test_bytes_and_numbers_that_are_no_json_are_escaped(
    command: Command, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (error,) = command("status", "\udcff", "--json").envelope["errors"]
    assert error["pipeline"] == "\udcff"
    values = [{"nan": float("nan"), "many": [float("inf")], "path": built, "text": "ä"}]
    assert emit("x", iter([Output(values)]), as_json=True) == 0
    assert check_envelope(capsys.readouterr().out)["results"] == [
        {"nan": None, "many": [None], "path": str(built), "text": "ä"}
    ]


def test_people_and_scripts_get_the_same_errors(command: Command) -> None:
    for words in (["status"], ["validate", "broken", "nobody"], ["search", "things", " "]):
        said, as_json = command(*words), command(*words, "--json")
        assert said.code == as_json.code == 1
        assert said.err == "".join(f"error: {error}\n" for error in as_json.errors)
        assert said.out == "" or as_json.results


def test_an_error_names_its_pipeline(command: Command) -> None:
    errors = command("validate", "broken", "nobody", "--json").envelope["errors"]
    assert {error["pipeline"] for error in errors} == {"broken", "nobody"}
    (error,) = command("search", "things", "x", "--filter", "cat =", "--json").envelope["errors"]
    assert error["pipeline"] == "things"


def test_a_word_that_looks_like_the_option_is_none(command: Command) -> None:
    assert command("search", "things", "--", "--json").out.endswith(" s\n")


def _greet(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    (folder / "hello.py").write_text(HELLO)
    arguments = [sys.executable, "-W", "error", "-c", START, str(folder), *words]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


def test_a_command_is_one_file(tmp_path: Path) -> None:
    assert "  greet     Greet a pipeline.\n" in _greet(tmp_path, "--help").stdout
    assert _greet(tmp_path, "greet", "things").stdout == "Hello, things\n"
    loud = _greet(tmp_path, "greet", "things", "--loud")
    assert (loud.returncode, loud.stdout) == (130, "Hello, things\n")
    assert loud.stderr == "error: Nobody is here.\nStopped. Greet it again.\n"
    as_json = _greet(tmp_path, "greet", "things", "--loud", "--json")
    assert (as_json.returncode, as_json.stderr) == (130, "")
    assert check_envelope(as_json.stdout) == {
        "command": "greet",
        "ok": False,
        "results": [{"greeting": "things"}],
        "errors": [
            {"error": "Nobody is here.", "pipeline": "things"},
            {"error": "Stopped. Greet it again.", "pipeline": None},
        ],
    }
