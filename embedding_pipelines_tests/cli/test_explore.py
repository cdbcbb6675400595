"""The commands `clusters`, `outliers` and `export`: short tables for people, all of it as JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.explore.topics import ODD, PIPELINE, write_topics


def result_of(out: str) -> dict[str, Any]:
    """The one result of a command that was asked for JSON."""
    (result,) = json.loads(out)["results"]
    return dict(result)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built")
    write_topics(home)
    return home


@pytest.fixture
def command(
    built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv(HOME_VARIABLE, str(built))
    return Command(monkeypatch, capsys)


def test_clusters_are_a_table_of_sizes_and_keywords(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    lines = command("clusters", "p", "-k", "3", "--to", str(file)).out.splitlines()
    assert lines[0].split() == ["cluster", "rows", "keywords"]
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]
    assert sum(int(line.split()[1]) for line in lines[1:4]) == 123
    assert lines[4:] == ["p, release 1: 123 rows in 3 clusters", f"rows are in {file}"]
    assert len(pd.read_csv(file)) == 123


def test_clusters_as_json_tell_everything(command: Command) -> None:
    said = command("clusters", "p", "--json")
    value = result_of(said.out)
    assert value.keys() == {"pipeline", "release", "rows", "silhouette", "clusters", "file"}
    assert value["clusters"][0].keys() == {
        *("number", "label", "rows", "share", "cosine", "keywords", "examples")
    }
    assert 0 < value["silhouette"] < 1
    lines = command("clusters", "p").out.splitlines()
    assert lines[-1].endswith(f"clusters, silhouette {value['silhouette']:.3f}")
    assert value["clusters"][0]["keywords"][0] in lines[1]


def test_outliers_are_a_table_of_scores_and_texts(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    lines = command("outliers", "p", "-n", "3", "--to", str(file)).out.splitlines()
    assert lines[0].split() == ["score", "document", "text"]
    assert sorted(line.split(None, 2)[2] for line in lines[1:4]) == sorted(ODD)
    assert lines[4].startswith("p, release 1: 3 of 123 rows; half of all have a score below 0.")
    assert lines[5] == f"rows are in {file}"
    assert sorted(pd.read_parquet(file)["text"]) == sorted(ODD)


def test_outliers_as_json_tell_everything(command: Command) -> None:
    value = result_of(command("outliers", "p", "--share", "0.02", "--json").out)
    assert value.keys() == {"pipeline", "release", "rows", "typical", "outliers", "file"}
    assert value["outliers"][0].keys() == {
        *("score", "chunk_id", "document_id", "start", "end", "text")
    }
    assert len(value["outliers"]) == 2
    assert len(result_of(command("outliers", "p", "--json").out)["outliers"]) == 20


def test_export_tells_which_files_it_wrote(command: Command, built: Path, tmp_path: Path) -> None:
    said = command("export", "p", "--to", "npy")
    folder = built / "data" / "warehouse" / "exports" / "p-npy"
    assert said.out.splitlines()[-3:] == [
        "p, release 1: 123 rows of 64 dimensions, exact vectors",
        str(folder / "rows.parquet"),
        str(folder / "vectors.npy"),
    ]
    out = str(tmp_path / "out")
    value = result_of(
        command("export", "p", "--to", "parquet", "--out", out, "--vectors", "stored", "--json").out
    )
    assert (value["folder"], value["files"], value["vectors"]) == (out, ["table.parquet"], "stored")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["clusters", "q"], 1, "There is no pipeline 'q'"),
        (["clusters", "p", "-k", "1000"], 1, "k is 1000; it must lie between 1 and"),
        (["outliers", "p", "--to", "x.txt"], 2, "Name a file that ends in .csv or"),
        (["export", "p", "--to", "nonsense"], 2, "nonsense"),
        (["export", "p"], 2, "--to"),
        (["export", "p", "--to", "npy", "--out", "/"], 1, "/ is there and is no export"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    arguments: list[str], code: int, words: str, command: Command
) -> None:
    said = command(*arguments)
    assert (said.code, said.out) == (code, "")
    assert words in said.err


def test_search_takes_words_or_a_document(command: Command) -> None:
    lines = command("search", "p", "--like", "drinks-1", "-k", "2").out.splitlines()
    assert [line.split()[2].partition("-")[0] for line in (lines[0], lines[2])] == ["drinks"] * 2
    assert result_of(command("search", "p", "--like", "drinks-1", "--json").out)["hits"]
    both = command("search", "p", "words", "--like", "drinks-1")
    assert (both.code, both.out) == (2, "")
    assert "Give a QUERY, --like and the id of a document" in both.err


# Each takes from a tenth of a second to some, of a processor, at every search.
HEAVY = (
    *("torch", "transformers", "sentence_transformers", "dagster", "sqlalchemy"),
    *("lancedb", "lance_namespace", "pandas", "pyarrow.dataset", "scipy", "sklearn", "matplotlib"),
)


def test_a_search_from_a_cold_process_imports_nothing_heavy(built: Path) -> None:
    code = (
        "import gc, sys\nfrom embedding_pipelines.cli.main import main\ntry: main()\nfinally: "
        f"print(*[name for name in {HEAVY} if name in sys.modules], *gc.get_threshold()[:1], "
        "file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "--home", str(built), "search", "p", "tea", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result_of(process.stdout)["hits"]
    assert process.stderr == "100000\n"  # nothing, and few looks for cycles


def test_classify_is_a_line_for_each_text(command: Command) -> None:
    said = command("classify", "p", "tea beer wine", "roof wall attic cellar", "--label", "topic")
    table = [line.split()[:2] for line in said.out.splitlines()]
    assert table == [["label", "share"], ["drinks", "1.00"], ["houses", "1.00"]]
    said = command("classify", "p", "tea", "--label", "topic", "--json")
    value = result_of(said.out)
    assert value.keys() == {"text", "label", "share", "votes", "neighbours"}
    assert value["label"] == "drinks"


PERMISSIONS = "permissions: {kind: csv, path: acl.csv, id: document}\n"


@pytest.fixture(scope="module")
def permitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("permitted")
    write_topics(home, PIPELINE + PERMISSIONS)
    rows = [f"animals-{number},ann" for number in range(30)] + ["drinks-1,bob"]
    (home / "acl.csv").write_text("\n".join(["document,principals", *rows, ""]))
    return home


def test_what_is_read_is_for_the_principals_that_are_said(
    permitted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(permitted))
    command, file = Command(monkeypatch, capsys), tmp_path / "rows.csv"
    (result,) = command("search", "p", "tea coffee", "-k", "50", "--as", "bob", "--json").results
    assert [hit["document_id"] for hit in result["hits"]] == ["drinks-1"]
    (result,) = command("search", "p", "tea", "-k", "50", "--as-operator", "--json").results
    assert len(result["hits"]) == 50
    (result,) = command(
        *("search", "p", "--like", "animals-1", "-k", "50", "--as", "ann", "--as", "bob", "--json")
    ).results
    assert len(result["hits"]) == 30
    assert (
        "no document 'drinks-2'" in command("search", "p", "--like", "drinks-2", "--as", "ann").err
    )
    for each in (("clusters", "-k", "2", "--to", str(file)), ("outliers", "--to", str(file))):
        assert command(each[0], "p", *each[1:], "--as", "ann").code == 0
        assert set(pd.read_csv(file)["document_id"]) <= {f"animals-{n}" for n in range(30)}
    (result,) = command(
        "classify", "p", "wine", "--label", "topic", "--as", "ann", "--json"
    ).results
    assert (result["label"], result["share"]) == ("animals", 1.0)
    for kind in ("parquet", "npy", "atlas"):
        out = tmp_path / kind
        (about,) = command(
            "export", "p", "--to", kind, "--out", str(out), "--as", "ann", "--json"
        ).results
        assert about["rows"] == 30
    assert set(pd.read_parquet(tmp_path / "atlas" / "atlas.parquet")["document_id"]) == {
        f"animals-{n}" for n in range(30)
    }
    for arguments in (
        ("search", "p", "tea"),
        ("search", "p", "--like", "animals-1"),
        ("clusters", "p"),
        ("outliers", "p"),
        ("classify", "p", "wine", "--label", "topic"),
        ("export", "p", "--to", "npy"),
    ):
        assert "has permissions, so say for whom" in command(*arguments).err, arguments
    assert "not both" in command("search", "p", "tea", "--as", "ann", "--as-operator").err
