"""Commands that typer refuses: what is wrong is said in our words, with what to write."""

import pytest

from embedding_pipelines_tests.commands import Command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("serch ok x", "There is no command 'serch'. Did you mean 'search'? "),
        ("xyzzy", "There is no command 'xyzzy'. `embedding-pipelines --help` shows"),
        ("search ok x -k x", "`-k` is 'x': write a whole number. `embedding-pipelines search -"),
        ("search ok x -k 1.5", "`-k` is '1.5': write a whole number."),
        ("outliers ok --share x", "`--share` is 'x': write a number."),
        (
            "optimize ok --method int8 --floor 2",
            "`--floor` is '2': write a number that is at most 1.",
        ),
        ("search ok x --lik 3", "`embedding-pipelines search` has no option `--lik`. Did you mean"),
        ("export ok --to foo", "`--to` is 'foo': write one of parquet, npy, torch, atlas."),
        ("export ok", "`--to` is missing: write one of parquet, npy, torch, atlas."),
        ("search", "PIPELINE is missing. `embedding-pipelines search --help` shows how it is used"),
        ("search ok", "Give a QUERY, --like and the id of a document, or --image and a file."),
        ("search ok red big fox", "as `embedding-pipelines search ok 'red big fox'`. "),
        ("list extra words", "'extra words' is too much. "),
        ("run --home", "`--home` needs a value after it."),
        ("list --json=1", "`--json` takes no value."),
    ],
)
def test_a_wrong_command_says_what_to_write(command: Command, line: str, words: str) -> None:
    said = command(*line.split())
    assert (said.code, said.out) == (2, "")
    said_words = " ".join(said.err.split())
    assert words in said_words
    assert said_words.startswith("error: ")
    for jargon in ("Input should", "Usage:", "Value error", "argument(s)", "Invalid value"):
        assert jargon not in said_words


def test_no_command_at_all_shows_the_help(command: Command) -> None:
    said = command()
    assert said.code == 2
    assert "Commands:" in said.err
