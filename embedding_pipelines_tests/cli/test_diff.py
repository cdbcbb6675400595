"""The command `diff`, and pipelines called by their numbers."""

from pathlib import Path

import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.files import write_json
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import HASHING

ROWS = [
    (n, f"{colour} fox", "animal") for n, colour in enumerate(("red", "blue", "green", "amber"))
]

SNOW = (9, "purple snow", "weather")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two releases of the pipeline `things`, number 2; nothing changes it."""
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "another", HASHING)
    write_pipeline(home, "things", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "things")
    write_pipeline(home, "things", HASHING + "compression: [int8]\n")
    write_csv(home, "a.csv", [*ROWS[1:3], (3, "amber fox", "bird"), SNOW])
    run_steps(home, "things")
    queries = [{"id": "q", "text": "purple snow", "from": ""}]
    write_json(Warehouse(home).pipeline("things").queries, {"queries": queries})
    return home


@pytest.fixture
def things(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(built))
    return built


def statistics(out: str) -> dict[str, str]:
    """The lines of names and values, by name."""
    return dict(
        parts for line in out.splitlines() if len(parts := line.strip().split("  ", 1)) == 2
    )  # type: ignore[misc]


def test_diff_says_what_changed_between_the_last_two_releases(
    command: Command, things: Path
) -> None:
    said = command("diff", "things")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("things: release 1 -> 2\n")
    found = {name: value.strip() for name, value in statistics(said.out).items()}
    assert found["documents"] == (
        "4 -> 4: 1 new, 1 gone, 0 changed, 1 with other metadata, 0 moved"
    )
    assert (found["rows"], found["new"], found["gone"]) == ("4 -> 4", "9", "0")
    assert found["compression"] == '[] -> [{"kind": "int8"}]'
    assert found["codec"].startswith("none -> ")
    assert "space" not in found
    assert "1 of 1 queries have other first ten documents, mean overlap 0.750" in said.out
    assert "   0.75  purple snow      9        0" in said.out
    assert found["cat"] == "1 document with another value"
    assert [line.split() for line in said.out.splitlines() if "bird" in line] == [
        ["3", "cat", "animal", "bird"]
    ]
    assert "-0.0000" not in said.out


def test_diff_as_json_has_all_of_it(command: Command, things: Path) -> None:
    said = command("diff", "things", "2", "1", "--json")
    assert said.code == 0
    (found,) = said.results
    assert (found["pipeline"], found["before"]["release"], found["after"]["release"]) == (
        "things",
        2,
        1,
    )
    assert found["documents"]["new"] == {"count": 1, "ids": ["0"]}
    assert found["documents"]["moved"] == {"count": 0, "ids": []}
    assert found["options"] == [
        {"option": "compression", "before": [{"kind": "int8"}], "after": []}
    ]
    assert found["queries"]["changed"] == [
        {"id": "q", "text": "purple snow", "overlap": 0.75, "added": ["0"], "removed": ["9"]}
    ]
    assert found["problems"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["things", "1", "9"], "Pipeline 'things' has no release 9; it has 1, 2."),
        (["things", "2"], "release 2 cannot differ from itself"),
        (
            ["another"],
            "Pipeline 'another' has no release yet. Run `embedding-pipelines run another`.",
        ),
        (["thing"], "Did you mean 'things'?"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    arguments: list[str], said: str, command: Command, things: Path
) -> None:
    ended = command("diff", *arguments)
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err


def test_every_command_takes_a_pipelines_number(command: Command, things: Path) -> None:
    listed = command("list", "--json").results
    assert [(row["id"], row["pipeline"]) for row in listed] == [(1, "another"), (2, "things")]
    assert command("list").out.splitlines()[1].split()[:2] == ["1", "another"]
    assert command("status", "2").out.startswith("things\n  id ")
    assert command("diff", "2").out == command("diff", "things").out
    assert command("validate", "2", "things", "1").out == "things: valid\nanother: valid\n"
    assert command("search", "2", "purple snow", "-k", "1").out.split()[2] == "9"
    assert (
        command("rollback", "2", "--to", "2", "--json").out
        == command("rollback", "things", "--to", "2", "--json").out
    )


@pytest.mark.parametrize(
    "arguments", [["status", "3"], ["run", "3"], ["search", "3", "fox"], ["diff", "3"]]
)
def test_a_number_that_nobody_has_is_one_sentence(
    arguments: list[str], command: Command, things: Path
) -> None:
    ended = command(*arguments)
    assert (ended.code, ended.out) == (1, "")
    assert "No pipeline has the number 3: 1 is 'another', 2 is 'things'." in ended.err
