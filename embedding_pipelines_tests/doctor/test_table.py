"""Tables that this project did not make, with everything wrong that a search stumbles over."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from embedding_pipelines.doctor.examine import Finding
from embedding_pipelines.doctor.table import examine_table
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines_tests.chain import hashing
from embedding_pipelines_tests.cli.test_main import command as command
from embedding_pipelines_tests.commands import Command

SIZE = 64
WORDS = [f"word{number}" for number in range(300)]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts whose words come as those of a language do: some often, most of them seldom."""
    dice = np.random.default_rng(seed)
    chosen = np.minimum(dice.zipf(1.3, (count, 9)), len(WORDS)) - 1
    return [f"{' '.join(WORDS[word] for word in row)} text{at}" for at, row in enumerate(chosen)]


def embedded(texts: Sequence[str]) -> NDArray[np.float32]:
    with hashing(dimensions=SIZE) as model:
        return np.array(model.embed(list(texts), "document").vectors)


def of_another_model(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    turn, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(SIZE, SIZE)))
    return (vectors @ turn).astype(np.float32)


def write(
    folder: Path, ids: Sequence[Any], texts: Sequence[str | None], vectors: Any, name: str = "t"
) -> Any:
    if isinstance(vectors, np.ndarray):
        vectors = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    table = pa.table({"id": list(ids), "content": list(texts), "embedding": vectors})
    return lancedb.connect(folder).create_table(name, table, mode="overwrite")


def look(folder: Path, name: str = "t") -> dict[str, Finding]:
    """The findings by what they are of; nothing is written."""
    path = folder / f"{name}.lance"
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    found = {finding.what: finding for finding in examine_table(path)}
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    return found


def bad(found: dict[str, Finding]) -> set[str]:
    return {what for what, finding in found.items() if not finding.is_well}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return sentences(1_200)


@pytest.fixture(scope="module")
def vectors(texts: list[str]) -> NDArray[np.float32]:
    return embedded(texts)


def test_a_table_of_one_model_is_well(
    tmp_path: Path, texts: list[str], vectors: NDArray[np.float32]
) -> None:
    write(tmp_path, range(-2, 1_198), texts, vectors)
    found = look(tmp_path)
    assert bad(found) == set()
    assert "1,200 rows, version 1; vectors 'embedding', id 'id', text 'content'" in (
        found["table"].sentence
    )
    assert found["model embedding"].figures["share_at_unit_length"] == 1


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_vectors_of_two_models_are_told_apart(
    tmp_path: Path, texts: list[str], vectors: NDArray[np.float32], share: float
) -> None:
    first = int(1_200 * (1 - share))
    mixed = np.concatenate([vectors[:first], of_another_model(vectors[first:])])
    write(tmp_path, range(1_200), texts, mixed)
    found = look(tmp_path)
    assert bad(found) == {"model embedding"}
    sentence = found["model embedding"].sentence
    assert "share hardly any direction with the others" in sentence
    assert "embed all rows again with one of them" in sentence
    figures = found["model embedding"].figures
    assert figures["share_of_second_group"] == pytest.approx(share, abs=0.02)
    assert figures["shared_directions"] < 0.1


def test_vectors_of_unlike_lengths_are_named(
    tmp_path: Path, texts: list[str], vectors: NDArray[np.float32]
) -> None:
    some = vectors.copy()
    some[::3] *= 5
    write(tmp_path, range(1_200), texts, some)
    found = look(tmp_path)
    assert bad(found) == {"model embedding"}
    assert "67% of the vectors have length 1, and the others 5 on average" in (
        found["model embedding"].sentence
    )
    some[1::3] *= 0.5
    some[2::3] *= 0.5
    write(tmp_path, range(1_200), texts, some)
    assert "67% of the vectors are about 0.5 long, the others 5" in (
        look(tmp_path)["model embedding"].sentence
    )


def test_wrong_vectors_ids_and_texts_are_counted_with_examples(
    tmp_path: Path,
    texts: list[str],
    vectors: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # LanceDB's Python client refuses such vectors today; earlier ones and others wrote them.
    monkeypatch.setattr("lancedb.table._handle_bad_vectors", lambda reader, *_, **__: reader)
    wrong = vectors.copy()
    wrong[3], wrong[4, 5], wrong[6, 7] = 0, np.nan, np.inf
    wrong[100:120] = wrong[99]
    mine: list[str | None] = list(texts)
    mine[8], mine[9], mine[10] = None, "", "  "
    ids = [*range(1_190), *range(10)]
    valid = np.ones(1_200, bool)
    valid[11] = False
    column = pa.FixedSizeListArray.from_arrays(wrong.ravel(), SIZE, mask=pa.array(~valid))
    write(tmp_path, ids, mine, column)
    found = look(tmp_path)
    assert bad(found) == {"ids", "texts", "vectors embedding", "repeats embedding"}
    assert found["ids"].figures == {"ids": 1_200, "repeated_ids": 10, "missing_ids": 0}
    assert "merge_insert('id')" in found["ids"].sentence
    assert found["texts"].figures == {"missing_texts": 1, "blank_texts": 3}
    assert "(8, 9, 10)" in found["texts"].sentence
    figures = found["vectors embedding"].figures
    assert figures == {
        "dimensions": {str(SIZE): 1_199},
        "missing_vectors": 1,
        "zero_vectors": 1,
        "vectors_not_finite": 2,
    }
    assert found["repeats embedding"].figures["repeated_vectors_of_unlike_texts"] == 20


def test_vectors_of_unlike_dimensions_are_counted(
    tmp_path: Path, texts: list[str], vectors: NDArray[np.float32]
) -> None:
    rows = [row[:32] if at % 4 == 0 else row for at, row in enumerate(vectors)]
    numbers = pa.array(rows, pa.list_(pa.float32()))
    table = pa.table({"id": range(1_200), "content": texts, "numbers": numbers})
    lancedb.connect(tmp_path).create_table("t", table)
    found = look(tmp_path)
    assert "unlike dimensions (64 in 900, 32 in 300 rows)" in found["vectors numbers"].sentence
    assert found["model numbers"].figures["sample"] == 900


def test_dead_rows_small_files_and_old_versions_are_counted(
    tmp_path: Path, texts: list[str], vectors: NDArray[np.float32]
) -> None:
    table = write(tmp_path, range(600), texts[:600], vectors[:600])
    for first in range(600, 1_200, 20):
        part = slice(first, first + 20)
        more = pa.FixedSizeListArray.from_arrays(vectors[part].ravel(), SIZE)
        table.add(
            pa.table({"id": range(first, first + 20), "content": texts[part], "embedding": more})
        )
    table.delete("id < 400")
    found = look(tmp_path)
    assert bad(found) == {"files"}
    assert found["files"].figures == {"dead_rows": 400, "files": 31, "small_files": 31}
    assert "400 of 1,200 rows in the files are deleted" in found["files"].sentence
    assert found["versions"].figures["old_versions"] == 31
    table.optimize()
    assert bad(look(tmp_path)) == set()


def test_an_index_that_lags_behind_is_named(
    tmp_path: Path, texts: list[str], vectors: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write(tmp_path, range(1_200), texts, vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.create_index(vector_column_name="embedding", index_type="IVF_FLAT", num_partitions=2)
    more = pa.FixedSizeListArray.from_arrays(vectors[:300].ravel(), SIZE)
    table.add(pa.table({"id": range(2_000, 2_300), "content": texts[:300], "embedding": more}))
    found = look(tmp_path)
    (index,) = [finding for what, finding in found.items() if what.startswith("index")]
    assert index.figures == {"indexed_rows": 1_200, "unindexed_rows": 300}
    assert index.is_well  # so few are compared at once
    monkeypatch.setattr("embedding_pipelines.doctor.table.FEW_UNINDEXED", 100)
    assert "and not 300 (20%)" in look(tmp_path)[f"index {index.what.partition(' ')[2]}"].sentence


def test_a_table_without_vectors_ids_or_texts_is_looked_at_all_the_same(tmp_path: Path) -> None:
    lancedb.connect(tmp_path).create_table("t", pa.table({"n": [1, 2, 3]}))
    found = look(tmp_path)
    assert bad(found) == {"table"}
    assert "There is no column of vectors" in found["table"].sentence
    lancedb.connect(tmp_path).create_table("none", pa.table({"id": pa.array([], pa.string())}))
    assert bad(look(tmp_path, "none")) == {"table"}


def test_what_is_no_table_is_an_error_with_the_tables_that_there_are(tmp_path: Path) -> None:
    lancedb.connect(tmp_path).create_table("t", pa.table({"n": [1]}))
    with pytest.raises(ConfigError, match=r"There are t\.lance in it: name one"):
        list(examine_table(tmp_path))
    with pytest.raises(ConfigError, match="is no LanceDB table"):
        list(examine_table(tmp_path / "other.lance"))
    for manifest in (tmp_path / "t.lance" / "_versions").glob("*.manifest"):
        manifest.write_bytes(b"x")
    with pytest.raises(StoreError, match="cannot be opened"):
        list(examine_table(tmp_path / "t.lance"))


def test_the_command_prints_a_line_for_each_finding_and_ends_with_1(
    tmp_path: Path, home: Path, texts: list[str], vectors: NDArray[np.float32], command: Command
) -> None:
    write(tmp_path, [0] * 1_200, texts, vectors)
    said = command("doctor", "--table", str(tmp_path / "t.lance"))
    assert said.code == 1
    assert (
        "t ids       NOT WELL: 1,199 rows of 1,200 have an id that stands in another row"
        in said.out
    )
    assert said.err.endswith("t.lance: not well: ids.\n")
    (result,) = command("doctor", "--table", str(tmp_path / "t.lance"), "--json").results
    assert result["well"] is False
    assert result["findings"][1]["figures"]["repeated_ids"] == 1_199


def test_the_command_compares_models_on_the_table(
    tmp_path: Path, home: Path, texts: list[str], vectors: NDArray[np.float32], command: Command
) -> None:
    write(tmp_path, range(1_200), texts, vectors)
    options = (
        "--table",
        str(tmp_path / "t.lance"),
        "--model",
        "{provider: hashing, dimensions: 64}",
    )
    said = command("doctor", *options)
    assert said.code == 0, said.err
    assert "the table's vectors, asked with hashing is not proven to differ from" in said.out
    _, comparison = command("doctor", *options, "--json").results
    assert [row["dimensions"] for row in comparison["models"]] == [64, 64]
    assert comparison["all_documents"] == 1_200
    assert "`--model` is for --table" in command("doctor", "--model", "minilm").err
