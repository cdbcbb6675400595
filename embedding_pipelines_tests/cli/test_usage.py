"""Commands that typer refuses: what is wrong is said in our words, with what to write."""

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest

from embedding_pipelines.cli.explore import MOST_HITS
from embedding_pipelines.cli.keys import keys
from embedding_pipelines.cli.pipelines import list_pipelines
from embedding_pipelines.search.queries import MAX_K
from embedding_pipelines.serving.auth import SCOPES
from embedding_pipelines.status import FILTERS
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
        ("search ok x -k 0", "`-k` is '0': write a number that is at least 1."),
        ("search ok x -k 10001", "`-k` is '10001': write a number that is at most 10000."),
        ("classify ok x -k 0", "`-k` is '0': write a number"),
        ("clusters ok -k 0", "`-k` is '0': write a number that is at least 1."),
        ("clusters ok --to x.txt", "Name a file that ends in .csv or .parquet, not x.txt."),
        ("outliers ok -n 0", "`-n` is '0': write a number that is at least 1."),
        ("outliers ok -n 1 --share 0.1", "Name the number of outliers or their share, not both."),
        ("outliers ok --share 2", "Share is 2.0; it must lie above 0 and be 1 at most."),
        ("rejected ok -n 0", "`-n` is '0': write a number that is at least 1."),
        ("search ok x --as a --as-operator", "Say --as or --as-operator, not both."),
        ("search ok x --mode words", "`--mode` is 'words': write one of vector, text, hybrid."),
        (
            "list --filter old",
            "`--filter` is 'old': write one of active, building, failed, deployed",
        ),
        ("cache --forget all", "`--forget` is 'all': write one of unused."),
        ("run ok --until half", "`--until` is 'half': write a share from 1% to 99%, as 50%."),
        ("run ok --for soon", "`--for` is 'soon': write seconds, minutes or hours, as 30m."),
        ("run --re-embed", "`--re-embed`: name the pipeline"),
        ("run --server http://x --re-embed", "`--server` takes no other option"),
        ("release ok --force", "`run` releases what passes its checks."),
        ("migrate ok start", "`start` needs --to MODEL"),
        ("push ok", "Name a file of documents, or documents by --delete or --withdraw."),
        ("forget ok", "Name documents by --id, or a source file by --source."),
        ("doctor --model minilm", "`--model` is for --table."),
        ("delete --yes", "Name one pipeline, as PIPELINE or by --pipeline-id."),
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


def test_options_take_what_the_core_takes() -> None:
    """They are written again, since a command is read before the core is loaded."""

    def choices(command: Callable[..., Any], option: str) -> tuple[Any, ...]:
        return get_args(get_type_hints(command)[option])

    assert choices(keys, "scope") == SCOPES
    assert choices(list_pipelines, "filter") == FILTERS
    assert MOST_HITS == MAX_K


def test_no_command_at_all_shows_the_help(command: Command) -> None:
    said = command()
    assert said.code == 2
    assert "Commands:" in said.err
