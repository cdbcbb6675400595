"""Every command with and without --json, and what somebody new to it gets wrong."""

import os
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from embedding_pipelines import __version__
from embedding_pipelines.cli import pipelines
from embedding_pipelines.cli.main import app
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import write_csv, write_pipeline
from embedding_pipelines_tests.commands import EXECUTABLE, Command
from embedding_pipelines_tests.conftest import HASHING, PLAIN
from embedding_pipelines_tests.runs import run_whole

ROWS = [(1, "red fox", "animal"), (2, "blue whale", "animal"), (3, "green tea", "drink")]
COMMANDS = [str(command.name) for command in app.registered_commands]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose pipeline `things` was run twice; only `rollback` changes it."""
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "things", HASHING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        patch.delenv("DAGSTER_HOME", raising=False)
        write_csv(home, "a.csv", ROWS[:2])
        run_whole(home, "things")
        write_csv(home, "a.csv", ROWS)
        run_whole(home, "things")
    return home


@pytest.fixture
def things(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(built))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return built


def test_help_lists_every_command_in_whole_sentences(command: Command) -> None:
    said = command("--help")
    assert said.code == 0
    assert "..." not in said.out.partition("Commands:")[2]
    names = [line.split()[0] for line in said.out.partition("Commands:\n")[2].splitlines()]
    assert names == COMMANDS == sorted(COMMANDS)
    assert {"diff", "list", "run", "search"} < set(names)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_takes_json(name: str, command: Command) -> None:
    said = command(name, "--help")
    assert said.code == 0
    assert "--json" in said.out


def test_version(command: Command, home: Path) -> None:
    assert command("version").out == f"{__version__}\n"
    assert command("version", "--json").envelope == {
        "command": "version",
        "ok": True,
        "results": [{"version": __version__}],
        "errors": [],
    }


@pytest.mark.parametrize(
    "arguments", [["run"], ["status"], ["validate"], ["search", "x", "y"], ["rollback", "x"]]
)
def test_without_pipelines_the_error_says_how_to_get_some(
    arguments: list[str], command: Command, home: Path
) -> None:
    said = command(*arguments)
    assert (said.code, said.out) == (1, "")
    assert "`embedding-pipelines example`" in " ".join(said.err.split())
    as_json = command(*arguments, "--json")
    assert (as_json.code, as_json.err) == (1, "")
    assert "`embedding-pipelines example`" in as_json.errors[0]


def test_a_list_on_a_narrow_terminal_cuts_no_model(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = "hf:sentence-transformers/all-MiniLM-L6-v2"
    write_pipeline(home, "p", f"source: {{kind: csv, path: data/a.csv}}\nmodel: {model}\n")
    for width, line in ((80, f"p: model: {model}"), (200, "model")):
        monkeypatch.setattr(
            pipelines, "make_console", lambda width=width: Console(force_terminal=True, width=width)
        )
        said = command("list")
        assert line in said.out
        assert said.out.count(model) == 1
        assert "…" not in said.out


def test_an_empty_list_is_no_error(command: Command, home: Path) -> None:
    assert command("list").code == 0
    assert command("list", "--json").results == []


@pytest.mark.parametrize(
    "arguments", [["run", "thing"], ["status", "thing"], ["search", "thing", "x"]]
)
def test_a_misspelt_name_is_guessed(arguments: list[str], command: Command, things: Path) -> None:
    said = command(*arguments)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: There is no pipeline 'thing' in ")
    assert "Did you mean 'things'?" in said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run", "--nonsense"],
        ["search", "things"],
        ["search", "things", "x", "-k", "many"],
    ],
)
def test_a_wrong_command_ends_with_2_and_the_way_to_its_help(
    arguments: list[str], command: Command, things: Path
) -> None:
    said = command(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert " --help` shows how it is used." in " ".join(said.err.split())


def test_a_home_that_is_not_there_is_an_error(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    said = command("--home", str(tmp_path / "gone"), "list")
    assert (said.code, said.err) == (
        1,
        f"error: --home: there is no folder {str(tmp_path / 'gone')!r}.\n",
    )
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "gone"))
    assert (
        command("list").err
        == f"error: {HOME_VARIABLE}: there is no folder {str(tmp_path / 'gone')!r}.\n"
    )


def test_home_stands_before_the_command(command: Command, built: Path, home: Path) -> None:
    said = command("--home", str(built), "list", "--json")
    assert [row["pipeline"] for row in said.results] == ["things"]


def test_validate_reads_the_files_of_the_evaluation(command: Command, home: Path) -> None:
    write_csv(home, "a.csv", [(1, "a", "b")])
    write_pipeline(home, "good", HASHING)
    write_pipeline(home, "bad", f"{PLAIN}evaluation: {{queries: q.jsonl, qrels: r.tsv}}\n")
    said = command("validate")
    assert (said.code, said.out) == (1, "good: valid\n")
    assert f"bad.yaml:4: evaluation.qrels: {home / 'r.tsv'} cannot be read" in said.err
    (home / "r.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n")
    (home / "q.jsonl").write_text('{"_id": "1", "text": "what"}\n')
    assert command("validate").code == 0


def test_validate_says_what_is_wrong_beside_other_files_alone(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.validate.faults", lambda *_: [])  # of the bucket
    text = HASHING.replace("path: 'data/*.csv'", "path: 's3://shop/in/*.csv'")
    for name in ("a", "b"):
        write_pipeline(home, name, f"{text}events: https://sqs.eu-central-1.amazonaws.com/1/q\n")
    said = command("validate")
    assert said.code == 1
    assert said.out == "a: valid\n"
    assert "b.yaml: events: a.yaml names this queue too" in said.err


def test_validate_names_every_mistake_of_every_file(command: Command, home: Path) -> None:
    write_csv(home, "a.csv", [(1, "a", "b")])
    write_pipeline(home, "good", HASHING)
    write_pipeline(home, "bad", "source: {kind: csv, pth: x}\nmodl: {provider: hashing}\n")
    write_pipeline(home, "worse", "source: [\n")
    said = command("validate")
    assert (said.code, said.out) == (1, "good: valid\n")
    assert "bad.yaml:1: source.pth: is no option here; did you mean 'path'?" in said.err
    assert "bad.yaml:2: modl: is no option here; did you mean 'model'?" in said.err
    assert "worse.yaml" in said.err
    as_json = command("validate", "--json")
    assert as_json.code == 1
    assert as_json.results == [{"pipeline": "good", "valid": True, "doubts": []}]
    assert [error["pipeline"] for error in as_json.envelope["errors"]] == ["bad", "worse"]
    assert command("validate", "good").code == 0
    assert command("validate", "good", "nobody").out == "good: valid\n"


def test_a_broken_file_stops_a_run_of_all_but_not_of_others(command: Command, home: Path) -> None:
    write_pipeline(home, "bad", "source: {kind: csv}\n")
    write_pipeline(home, "good", HASHING)
    write_csv(home, "a.csv", ROWS)
    assert (command("run").code, command("run", "bad").code) == (1, 1)
    assert command("run", "good").code == 0
    listed = command("list", "--json").results
    assert [(row["pipeline"], row["status"]) for row in listed] == [
        ("bad", "broken"),
        ("good", "active"),
    ]
    assert "bad.yaml:1" in listed[0]["problem"]
    shown = command("status")
    assert shown.code == 1
    assert shown.out.startswith("good\n")
    assert "bad.yaml:1" in shown.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "matches no file"),
        (
            "id,titel\n1,x\n",
            "column 'title' is missing; found 'id', 'titel'. Did you mean 'titel'?",
        ),
        ("id,title,cat\n1,a,b\n1,c,d\n", "document id '1' stands"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_sentence(
    content: str | None, said: str, command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write_pipeline(home, "p", HASHING)
    if content is not None:
        write_csv(home, "a.csv", []).write_text(content)
    ended = command("run", "p")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: p: ")
    assert said in ended.err
    assert "Traceback" not in ended.err
    as_json = command("run", "p", "--json")
    assert said in as_json.errors[0]
    assert as_json.results[0]["pipeline"] == "p"


def test_run_reports_every_step_and_runs_again_without_work(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    first = command("run")
    assert (first.code, first.err) == (0, "")
    steps = ["documents", "chunks", "embeddings", "codec", "vector_store", "checks", "release"]
    lines = [line.split()[:2] for line in first.out.splitlines()]
    finished = [
        line for line in lines if not line[1].endswith(":") or line[0] == "Next:"
    ]  # a slow step says how far
    assert finished[:-2] == [["p", step] for step in steps]
    assert first.out.splitlines()[-2].startswith("p: release 1 is live: 3 rows, ")
    assert first.out.splitlines()[-1] == 'Next: embedding-pipelines search p "…"'
    again = command("run", "p", "p", "--json")
    assert (again.code, again.err) == (0, "")
    (result,) = again.results
    assert [(step["step"], step["changed"]) for step in result["steps"]] == [
        (step, False) for step in steps
    ]


def test_an_empty_source_is_a_success_with_an_empty_table(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [])
    assert command("run", "p").code == 0
    found = command("search", "p", "anything")
    assert found.code == 0
    assert "nothing found" in found.out


def test_a_pipeline_that_is_being_run_is_not_run_twice(command: Command, things: Path) -> None:
    with Warehouse(things).pipeline("things").lock("run"):
        said = command("run", "things")
    assert (said.code, said.out) == (1, "")
    assert "Pipeline 'things' is being run by another process" in said.err


def test_status_shows_how_a_pipeline_stands(command: Command, things: Path) -> None:
    said = command("status", "things")
    assert said.code == 0
    statistics = dict(line.strip().split(maxsplit=1) for line in said.out.splitlines()[1:])
    assert (statistics["documents"], statistics["chunks"], statistics["embeddings"]) == (
        "3",
        "3",
        "3",
    )
    assert statistics["source"] == "no file has changed"
    assert "rejected.parquet" not in said.out
    (row,) = command("status", "--json").results
    assert (row["pipeline"], row["documents"], row["kept_releases"]) == ("things", 3, [1, 2])


def test_search_finds_the_nearest_first(command: Command, things: Path) -> None:
    said = command("search", "things", "fox", "-k", "1")
    assert said.code == 0
    assert said.out.splitlines()[0].split()[2:] == ["1", "cat=animal"]
    (result,) = command(
        "search", "things", "blue whale", "--filter", "cat = 'animal'", "--json"
    ).results
    assert result["hits"][0]["document_id"] == "2"
    assert {hit["metadata"]["cat"] for hit in result["hits"]} == {"animal"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["   "], "The query is empty"),
        (["x", "--filter", "colour = 'red'"], "The filter \"colour = 'red'\" cannot be used"),
        (["x", "--filter", "cat ="], "The filter 'cat =' cannot be used"),
    ],
)
def test_a_search_that_cannot_be_made_says_why(
    arguments: list[str], said: str, command: Command, things: Path
) -> None:
    ended = command("search", "things", *arguments)
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err
    as_json = command("search", "things", *arguments, "--json").envelope
    assert as_json["results"] == []
    assert said in as_json["errors"][0]["error"]
    assert as_json["errors"][0]["pipeline"] == "things"


def test_before_the_first_run_there_is_nothing_to_search_or_roll_back(
    command: Command, home: Path
) -> None:
    write_pipeline(home, "p", HASHING)
    for arguments in (["search", "p", "x"], ["rollback", "p"]):
        said = command(*arguments)
        assert said.code == 1
        assert "Pipeline 'p' has no release yet. Run `embedding-pipelines run p`." in said.err


def test_rollback_moves_the_live_release_there_and_back(command: Command, things: Path) -> None:
    said = command("rollback", "things").out.splitlines()
    assert said[0] == "things: live release 2 -> 1 (2 rows)"
    assert said[1].endswith("embedding-pipelines rollback things --to 2")
    assert "has no release before 1" in command("rollback", "things").err
    assert "has no release 9; it has 1, 2" in command("rollback", "things", "--to", "9").err
    back = command("rollback", "things", "--to", "2", "--json")
    assert back.results == [{"pipeline": "things", "before": 1, "live": 2, "rows": 3}]


def test_a_release_is_searched_without_its_pipeline_file(command: Command, things: Path) -> None:
    path = things / "pipelines" / "things.yaml"
    path.rename(things / "away.yaml")
    try:
        assert command("search", "things", "fox", "-k", "1").code == 0
    finally:
        (things / "away.yaml").rename(path)


def test_a_folder_that_cannot_be_written_is_one_sentence(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pipeline(home, "p", HASHING)
    (home / "data").write_text("a file where a folder belongs")
    said = command("run", "p")
    assert said.code == 1
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err


@pytest.mark.parametrize("arguments", ["list", "search things fox --json"])
def test_a_reader_that_goes_away_is_no_error(arguments: str, things: Path) -> None:
    ended = subprocess.run(
        f"{EXECUTABLE} {arguments} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr == ""
    assert len(ended.stdout.splitlines()) == 1


def test_a_pipe_gets_no_colours_even_where_they_are_forced_off(things: Path) -> None:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "20"}
    ended = subprocess.run(
        [EXECUTABLE, "search", "things", "fox"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert ended.returncode == 0
    assert "\x1b" not in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) > 20
