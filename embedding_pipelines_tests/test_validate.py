"""validate: what a pipeline file names is looked at, all of it at once, and nothing is spent."""

import json
import socket
from pathlib import Path

import pytest

from embedding_pipelines.spec.load import read_draft
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.validate import check_file
from embedding_pipelines_tests.chain import write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command

SOURCE = "source: {kind: csv, path: data/a.csv, id: id, text: [title], metadata: [cat]}\n"
MINILM = "model: {provider: hf, model: models/mine}\n"


@pytest.fixture(autouse=True)
def _alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table, a model's folder without weights, and no network."""
    write_csv(home, "a.csv", [(1, "a tale", "x")])
    (home / "data" / "a.json").write_text('{"rows": [{"title": "a tale"}]}')
    folder = home / "models" / "mine"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 384}')
    module = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    (folder / "modules.json").write_text(json.dumps([module]))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))

    def refuse(*given: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def check(home: Path, text: str) -> tuple[list[str], list[str]]:
    before = sorted(home.rglob("*"))
    path = write_pipeline(home, "p", text)
    result = check_file(read_draft(path), Warehouse(home))
    assert sorted(home.rglob("*")) == sorted({*before, path, path.parent})
    return result


def test_a_file_that_is_right_is_valid(home: Path) -> None:
    assert check(home, SOURCE + MINILM) == ([], [])
    assert check(home, SOURCE + "model: hashing\n") == ([], [])


MISTAKES = {
    "no file": (
        SOURCE.replace("a.csv", "b.csv") + MINILM,
        ["1: source.path 'data/b.csv' matches no file"],
    ),
    "in the user's folder": (
        SOURCE.replace("data/a.csv", "~/no/such.csv") + MINILM,
        ["1: source.path '~/no/such.csv' matches no file"],
    ),
    "columns": (
        "source:\n  kind: csv\n  path: data/a.csv\n  id: sku\n  text: [titel]\n  metadata: [price]\n"
        + MINILM,
        ["4: data/a.csv: column 'sku' is missing", "5: data/a.csv: column 'titel' is missing",
         "6: data/a.csv: column 'price' is missing"],
    ),
    "a delimiter": (
        "source: {kind: csv, path: data/a.csv, delimiter: ';', id: id, text: [title]}\n" + MINILM,
        ["1: data/a.csv:1: column 'id' is missing; found 'id,title,cat'. Set source.id to one of "
         "them. Is the delimiter ','? Then set source.delimiter."],
    ),
    "an object around the records": (
        "source: {kind: json, path: data/a.json, text: [title]}\n" + MINILM,
        ["1: data/a.json: column 'title' is missing; found 'rows'. Set source.text to one of them. "
         "The file is one object; are 'rows' its records?"],
    ),
    "an address": (
        SOURCE.replace("data/a.csv", "'https://bucket/a.csv'") + MINILM,
        ["1: source.path 'https://bucket/a.csv' is an address of a kind that is not read"],
    ),
    "a model without its provider": (
        SOURCE + "model: text-embedding-3-small\n",
        ["2: model: 'text-embedding-3-small' needs its provider: write 'openai:text-emb"],
    ),
    "an order": (
        SOURCE + MINILM + "compression: [int8, {kind: pca, dimensions: 8}]\n",
        ["3: compression: int8, pca cannot follow one another"],
    ),
    "more than there is": (
        SOURCE + MINILM + "compression: [{kind: pca, dimensions: 1000}]\n",
        ["3: compression.pca: 1000 dimensions cannot be made of 384"],
    ),
    "another number": (
        SOURCE + MINILM + "compression: [{kind: pca, dimensions: 96}]\noutput_dim: 384\n",
        ["4: output_dim is 384, but model and compression give 96"],
    ),
    "a service's number": (
        SOURCE + "model: {provider: hashing, dimensions: 32}\noutput_dim: 384\n",
        ["3: output_dim is 384, but model and compression give 32"],
    ),
    "an index": (
        SOURCE + "model: {provider: hashing, dimensions: 33}\nstore: {kind: lancedb, index: rq}\n",
        ["3: store.index: 'rq' needs dimensions that"],
    ),
    "a model of few tokens": (
        SOURCE + "model: {provider: hashing, max_tokens: 32}\n",
        ["2: preprocessing.chunk.overlap: 32 tokens are more than half of a chunk of 32, and the model "
         "takes 32. Set it to 16 or less."],
    ),
    "an overlap": (
        SOURCE + "model: {provider: hashing, max_tokens: 32}\npreprocessing:\n  chunk:\n    overlap: 20\n",
        ["5: preprocessing.chunk.overlap: 20 tokens are more than half of a chunk of 32"],
    ),
    "no key": (
        SOURCE + "model: openai-small\n",
        ["2: the environment variable OPENAI_API_KEY is not set"],
    ),
    "no folder": (
        SOURCE + "model: hf:./models/yours\n",
        ["2: there is no folder"],
    ),
    "a short name": (SOURCE + "model: hf:minilm\n", ["2: 'minilm' is a short name: write"]),
    "a typo": (SOURCE + "model: minilmm\n", ["2: model: 'minilmm' is no known alias. Did you mean 'minilm'?"]),
    "a typo of a service's model": (
        SOURCE + "model: openai:text-embedding-3-smal\n",
        ["2: model: openai model 'text-embedding-3-smal' is not in the table of published models: "
         "set `dimensions` to the length of its vectors. Did you mean 'text-embedding-3-small'?"],
    ),
    "no vectors": (SOURCE + "model: {provider: word2vec, vectors: w.bin}\n", ["2: vectors: there is no file"]),
    "no calibration": (
        SOURCE + "model: {provider: hf, model: models/mine, precision: int8, calibration: c.txt}\n",
        ["2: calibration: there is no file"],
    ),
    "pairs to train on": (
        SOURCE + "model: {provider: hf, model: models/mine, finetune: {pairs: data/a.csv}}\n",
        ["2: finetune.pairs: "],
    ),
    "judgements": (
        SOURCE + MINILM + "evaluation: {pairs: p.csv}\n",
        ["3: evaluation.pairs: "],
    ),
    "all at once, beside a wrong kind": (
        "source: {kind: cvs, path: data/a.csv}\nmodel: openai-small\noutput_dim: 5\n"
        "compression: [int8, {kind: pca, dimensions: 8}]\n",
        ["1: source: 'cvs' is not known", "2: the environment variable OPENAI_API_KEY is not set",
         "4: compression: int8, pca cannot"],
    ),
    "all at once, beside a wrong model": (
        SOURCE.replace("a.csv", "b.csv") + "model: {model: x}\n"
        "compression: [int8, {kind: pca, dimensions: 8}]\nevaluation: {pairs: p.csv}\n",
        ["2: model: needs a `provider`", "1: source.path 'data/b.csv' matches no file",
         "3: compression: int8, pca cannot", "4: evaluation.pairs"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_right_is_told_with_its_line(home: Path, case: str) -> None:
    text, expected = MISTAKES[case]
    lines, doubts = check(home, text)
    assert (len(lines), doubts) == (len(expected), [])
    for line, words in zip(lines, expected, strict=True):
        assert line.startswith(f"p.yaml:{words}"), line


def test_what_may_be_right_is_a_doubt(home: Path) -> None:
    lines, doubts = check(home, SOURCE + "model: hf:sentence-transformers/all-MiniLM-L6-v3\n")
    assert lines == []
    assert doubts == [
        "p.yaml:2: 'sentence-transformers/all-MiniLM-L6-v3' is not on this machine: the first run "
        "downloads it from the Hugging Face hub. Did you mean "
        "'sentence-transformers/all-MiniLM-L6-v2'?"
    ]


def test_an_optional_column_is_no_mistake(home: Path) -> None:
    (home / "data" / "b.csv").write_text("id,title\n2,another\n")
    assert check(home, SOURCE.replace("a.csv", "*.csv") + MINILM) == ([], [])


def test_code_of_the_users_own_is_not_imported(home: Path) -> None:
    (home / "mine.py").write_text(f"open({str(home / 'ran')!r}, 'w')\nclass Mine: dimensions = 3\n")
    text = SOURCE + "model: {provider: custom, cls: 'mine:Mine'}\noutput_dim: 4\n"
    assert check(home, text) == ([], [])


def test_a_path_is_as_good_as_a_name(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(monkeypatch, capsys)
    path = write_pipeline(home, "p", SOURCE + MINILM)
    other = home / "elsewhere" / "q.yaml"
    other.parent.mkdir()
    other.write_text(SOURCE + MINILM)
    for name in ("p", "1", str(path), "pipelines/p.yaml", "p.yaml"):
        assert command("validate", name).out == "p: valid\n"
    assert command("validate", str(other)).out == "q: valid\n"
    assert "no file 'r.yaml'" in command("validate", "r.yaml").err
    assert command("status", "pipelines/p.yaml").code == 0
