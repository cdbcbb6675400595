"""The command `create`: what it writes, and what it says of what it does not."""

import json
from pathlib import Path

import pytest

from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines_tests.chain import write_csv
from embedding_pipelines_tests.commands import Command

CONFIG = "# ours\nmodel: hashing   # free\ndata_path: data/texts.csv\n"


@pytest.fixture
def command(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    write_csv(home, "texts.csv", [("red fox",), ("blue whale",)], "text")
    monkeypatch.chdir(home)
    (home / "products.yaml").write_text(CONFIG)
    return Command(monkeypatch, capsys)


def test_a_pipeline_file_is_written_as_it_stands(command: Command, home: Path) -> None:
    said = command("create", "--config", "products.yaml")
    assert said.code == 0, said.err
    assert "products: pipeline 1 is created" in said.out
    assert (home / "pipelines" / "products.yaml").read_text() == CONFIG
    again = command("create", "--config", "products.yaml", "--json")
    (result,) = again.results
    assert (result["id"], result["is_new"]) == (1, False)


def test_another_model_and_another_name(command: Command, home: Path) -> None:
    said = command("create", "--config", "products.yaml", "--model", "bert", "--name", "b")
    assert said.code == 0, said.err
    assert "google-bert/bert-base-uncased" in said.out  # is not on this machine
    assert find_pipeline("b", home).model.kind == "hf"
    assert "# ours" in (home / "pipelines" / "b.yaml").read_text()


def test_the_same_name_for_another_gets_a_number_unless_it_is_given(
    command: Command, home: Path
) -> None:
    command("create", "--config", "products.yaml")
    (home / "products.yaml").write_text(json.dumps({"model": "hashing", "seed": 3} | _path()))
    said = command("create", "--config", "products.yaml")
    assert "products_2: pipeline 2 is created" in said.out
    said = command("create", "--config", "products.yaml", "--name", "products")
    assert said.code == 1
    assert "There is another pipeline 'products'" in said.err


def _path() -> dict[str, str]:
    return {"data_path": "data/texts.csv"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: no-such\ndata_path: data/texts.csv\n", "Invalid config: products.yaml:1: model"),
        ("model: hashing\ndata_path: data/none.csv\n", "Invalid config"),
        ("model: [", "Invalid config"),
        ("- a\n", "Invalid config: it holds no options"),
        ("", "Invalid config: it holds no options"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    command: Command, home: Path, content: str, words: str
) -> None:
    (home / "products.yaml").write_text(content)
    said = command("create", "--config", "products.yaml")
    assert said.code == 1
    assert words in said.err
    assert not (home / "pipelines").exists()
    said = command("create", "--config", "nothing.yaml")
    assert (said.code, "nothing.yaml: cannot be read" in said.err) == (1, True)
