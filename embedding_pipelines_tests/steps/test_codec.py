"""codec and embeddings: fitted once and kept, the same for the same seed; wrong sizes and orders are told."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import CompressionError, ConfigError, StoreError
from embedding_pipelines.steps.chunks import write_chunks
from embedding_pipelines.steps.codec import codec_path, load_codec
from embedding_pipelines.steps.vector_store import update_vector_store
from embedding_pipelines_tests.chain import context_of, report, run_steps, top, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING

PCA = HASHING + "compression: [{kind: pca, dimensions: 8}, int8]\n"
ROWS = [(n, f"text number {n} about subject{n % 7}", "c") for n in range(80)]


def test_new_data_does_not_move_the_space_under_stored_vectors(home: Path) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    facts = report(run_steps(home, "p"), "codec").facts
    assert (facts["dimensions"], facts["dtype"], facts["bytes_per_vector"]) == (8, "int8", 8)
    write_csv(home, "b.csv", [("new", "entirely other words", "c")])
    again = report(run_steps(home, "p"), "codec")
    assert not again.changed
    assert again.facts["codec"] == facts["codec"]
    assert top(home, "p", "entirely other words") == ["new"]


def test_two_homes_fit_the_same_codec_to_the_same_data(home: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    for folder in (home, other):
        write_pipeline(folder, "p", PCA)
        write_csv(folder, "a.csv", ROWS)
        run_steps(folder, "p")
    assert load_id(home) == load_id(other)


def load_id(home: Path) -> str:
    context = context_of(home, "p")
    return load_codec(context, context.spec.model.space).id


def test_a_damaged_codec_is_told(home: Path) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    context = context_of(home, "p")
    codec_path(context, context.spec.model.space).write_bytes(b"half a file")
    with pytest.raises(CompressionError, match="no codec that can be read"):
        run_steps(home, "p")


@pytest.mark.parametrize("rows", [[], [(1, "", "c")]])
def test_a_codec_without_any_text_is_told_in_one_sentence(home: Path, rows: list[tuple[object, ...]]) -> None:
    write_pipeline(home, "p", PCA)
    write_csv(home, "a.csv", rows)
    with pytest.raises(CompressionError, match="'p': there is no text to fit the compression on"):
        run_steps(home, "p")


def test_output_dim_is_checked_and_never_cut_to(home: Path) -> None:
    write_csv(home, "a.csv", ROWS)
    write_pipeline(home, "p", HASHING + "output_dim: 768\n")
    with pytest.raises(ConfigError, match=r"output_dim is 768, but .* gives 64\. Set output_dim to 64\.$"):
        run_steps(home, "p")
    short = "source: {kind: csv, path: 'data/*.csv', id: id, text: [title]}\noutput_dim: 500\nbuckets: 4\n"
    write_pipeline(home, "p", short + "model: {provider: voyage, model: voyage-4, dimensions: 512}\n")
    with pytest.raises(ConfigError, match=r"output_dim is 500.* can give 256 or 512 or 1024 or 2048: say which with"):
        run_steps(home, "p")
    write_pipeline(home, "p", PCA + "output_dim: 8\n")
    run_steps(home, "p")


def test_steps_out_of_order_say_which_one_is_missing(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    context = context_of(home, "p")
    with pytest.raises(StoreError, match="'b00' of 'p' has no documents: materialize them first"):
        write_chunks(context, "b00", context.spec.model)
    run_steps(home, "p")
    (context.folder.embeddings.folder / "b01.json").unlink()
    with pytest.raises(StoreError, match="bucket 'b01' has never been embedded"):
        update_vector_store(context, context.spec.model.space)
