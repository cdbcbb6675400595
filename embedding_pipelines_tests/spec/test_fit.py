"""Sections that do not fit one another, before a model is opened or anything is read."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers.hf import Hf
from embedding_pipelines.spec.fit import misfits
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines_tests.chain import run_of, write_csv, write_pipeline

SOURCE = "source: {kind: csv, path: data/a.csv, id: id, text: [title]}\n"


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("model: {provider: hashing, max_tokens: 64}", None),
        ("model: {provider: hashing, max_tokens: 63}", ("model",)),
        ("model: openai-small", None),
        (
            "model: clip\npreprocessing: {chunk: {overlap: 39}}",
            ("preprocessing", "chunk", "overlap"),
        ),
        ("model: {provider: hashing, max_tokens: 8}\npreprocessing: {chunk: null}", None),
        ("model: minilm\npreprocessing: {chunk: {max_tokens: 3, overlap: 0}}", None),
        (
            "model: minilm\npreprocessing: {chunk: {max_tokens: 2, overlap: 0}}",
            ("preprocessing", "chunk", "max_tokens"),
        ),
        ("model: {provider: tei, base_url: 'http://localhost:1'}", None),  # nobody knows
        (
            "model: {provider: hashing, dimensions: 16}\ncompression: [{kind: pca, dimensions: 16}]",
            None,
        ),
        (
            "model: {provider: hashing, dimensions: 16}\ncompression: [{kind: pca, dimensions: 17}]",
            ("compression",),
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_option(
    tmp_path: Path, text: str, option: tuple[str, ...] | None
) -> None:
    spec = parse_pipeline(SOURCE + text, "p", "p.yaml")
    assert [misfit.option for misfit in misfits(spec, tmp_path)] == ([option] if option else [])


def test_a_model_of_the_table_and_one_in_a_folder_say_how_much_they_read(tmp_path: Path) -> None:
    assert Hf(model="BAAI/bge-small-en-v1.5").known_context(tmp_path) == 512
    assert Hf(model="nobody/knows").known_context(tmp_path) is None
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "modules.json").write_text('[{"path": ""}]')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert Hf(model="mine").known_context(tmp_path) == 32


def test_a_run_ends_before_it_reads_anything(home: Path) -> None:
    write_csv(home, "a.csv", [(1, "a tale", "x")])
    write_pipeline(home, "p", SOURCE + "model: {provider: hashing, max_tokens: 32}\n")
    with run_of(home, "p") as run:
        with pytest.raises(ConfigError, match="Set it to 16 or less"):
            write_documents(run)
        assert not run.folder.files.exists()
        assert run.folder.documents.manifest("b00") is None
