"""int8 codes without an index: one byte a number on disk, and an exact search by this project's own
scan."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.errors import StoreError
from embedding_pipelines.ranking import encode_queries, nearest
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.stores.lancedb import LanceTable
from embedding_pipelines.vectors import unit
from embedding_pipelines_tests.compression.contract import clustered
from embedding_pipelines_tests.stores.tables import DIMENSIONS, add, build, fit_chain

ROWS = 3_000


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(ROWS, DIMENSIONS)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> LanceTable:
    """In several files, and with rows that were removed."""
    codec = fit_chain("[int8]", vectors)
    table = build(tmp_path_factory.mktemp("int8"), codec, index="none")
    add(table, codec, np.concatenate([vectors[:1_000], vectors[:9]]), 5_000, [])
    add(table, codec, vectors[:2_500], 0, [f"{n}" for n in range(5_000, 6_009)])
    add(table, codec, vectors[2_500:], 2_500, [])
    return table


def expected(
    vectors: np.ndarray, query: np.ndarray, among: Sequence[int], k: int
) -> tuple[list[str], np.ndarray]:
    codec = fit_chain("[int8]", vectors)
    cosines = unit(codec.encode(vectors[list(among)]).astype(np.float32)) @ query
    best = np.argsort(-cosines, kind="stable")[:k]
    return [f"{among[row]}" for row in best], cosines[best]


@pytest.mark.parametrize("k", [1, 10, 700, ROWS, 10_000])
def test_a_scan_finds_just_the_nearest_codes_in_their_order(
    table: LanceTable, vectors: np.ndarray, k: int
) -> None:
    codec, version = fit_chain("[int8]", vectors), table.version
    assert version is not None
    for query in clustered(3, DIMENSIONS, seed=5):
        rows = nearest(table, codec, query, k, None, version)
        names, cosines = expected(vectors, query, range(ROWS), k)
        np.testing.assert_allclose(rows["score"].to_numpy(), cosines, atol=1e-5)
        common = set(rows["chunk_id"].to_pylist()) & set(names)
        assert len(common) >= len(names) - 1  # two may be equally near
        assert all(row["text"] == row["chunk_id"] for row in rows.to_pylist())  # each row is whole


def test_a_filter_is_kept_by_a_scan_and_loses_no_rows(
    table: LanceTable, vectors: np.ndarray
) -> None:
    codec, version = fit_chain("[int8]", vectors), table.version
    query = clustered(1, DIMENSIONS, seed=5)[0]
    assert version is not None
    rows = nearest(table, codec, query, ROWS, "cat = 'c7'", version)
    names, _ = expected(vectors, query, range(7, ROWS, 20), ROWS)
    assert sorted(rows["chunk_id"].to_pylist()) == sorted(names)
    assert rows["chunk_id"][0].as_py() == names[0]
    empty = nearest(table, codec, query, 10, "cat = 'nothing'", version)
    assert (len(empty), empty.schema) == (0, rows.schema)
    with pytest.raises(StoreError, match=r"'nocolumn = 1' cannot be used.*Columns: .*cat"):
        nearest(table, codec, query, 10, "nocolumn = 1", version)


def test_an_older_version_is_scanned_as_it_was(tmp_path: Path, vectors: np.ndarray) -> None:
    codec = fit_chain("[int8]", vectors)
    table = build(tmp_path, codec, index="none")
    add(table, codec, vectors[:500], 0, [])
    first = table.version
    add(table, codec, vectors[500:600], 500, [f"{n}" for n in range(100)])
    second = table.version
    assert first is not None
    assert second is not None
    assert nearest(table, codec, vectors[3], 1, None, first)["chunk_id"].to_pylist() == ["3"]
    assert nearest(table, codec, vectors[550], 1, None, second)["chunk_id"].to_pylist() == ["550"]
    assert len(nearest(table, codec, vectors[3], 1_000, None, first)) == 500
    assert nearest(table, codec, vectors[3], 1_000, "cat = 'c3'", second)[
        "cat"
    ].unique().to_pylist() == ["c3"]


def test_codes_of_zeros_match_nothing_and_a_query_of_zeros_matches_nothing_well(
    tmp_path: Path, vectors: np.ndarray
) -> None:
    codec = fit_chain("[int8]", vectors)
    for index in ("none", "sq"):  # as lancedb has it
        table = build(tmp_path / index, codec, index=index)
        zeros = np.zeros((5, DIMENSIONS), np.float32)
        add(table, codec, np.concatenate([zeros, vectors[:100]]), 0, [])
        version = table.version
        assert version is not None
        assert len(nearest(table, codec, vectors[0], 200, None, version)) == 100


def test_a_query_is_not_rounded_so_that_scores_are_nearer_to_the_cosines(
    table: LanceTable, vectors: np.ndarray
) -> None:
    codec, version = fit_chain("[int8]", vectors), table.version
    plain = clustered(10, DIMENSIONS, seed=5)
    assert version is not None

    def error(codes: np.ndarray) -> float:
        differences = []
        for code, query in zip(codes, plain, strict=True):
            rows = table.search(code, ROWS, "cosine", None, version)
            cosines = vectors[rows["chunk_id"].to_numpy().astype(int)] @ query
            differences.append(np.abs(1 - rows["_distance"].to_numpy() - cosines).mean())
        return float(np.mean(differences))

    assert error(encode_queries(codec, plain)) < 0.8 * error(codec.encode(plain).astype(np.float32))


@pytest.mark.parametrize(
    ("compression", "index", "bytes_per_vector"),
    [
        ("[]", "none", 4 * 384),
        ("[float16]", "none", 2 * 384),
        ("[int8]", "none", 384),
        ("[int8]", "sq", 2 * 384),
        ("[binary]", "none", 384 / 8 + 384),
        ("[{kind: binary, rescore: none}]", "none", 384 / 8),
        ("[{kind: pca, dimensions: 128}, int8]", "none", 128),
    ],
)
def test_a_table_takes_the_bytes_of_its_codes_on_disk(
    tmp_path: Path, compression: str, index: str, bytes_per_vector: float
) -> None:
    """Beside the same table without vectors' worth of numbers: what the rest of a row takes is left
    out."""
    vectors = clustered(5_000, 384)
    codec = fit_chain(compression, vectors)
    least = fit_chain("[{kind: truncate, dimensions: 1}]", vectors)
    table = build(tmp_path / "table", codec, 10_000, index=index)
    rest = build(tmp_path / "rest", least, 10_000)
    add(table, codec, vectors, 0, [])
    add(rest, least, vectors, 0, [])
    assert (table.index(codec.metric, 0), rest.index("cosine", 0)) == (0, 0)
    size = (table.size_bytes() - rest.size_bytes()) / len(vectors) + 4
    assert size == pytest.approx(bytes_per_vector, rel=0.03, abs=3)
    if index == "none":
        assert codec.bytes_per_vector == bytes_per_vector
    column = table.schema().field(VECTOR).type
    assert column.value_type.bit_width // 8 * column.list_size <= bytes_per_vector


def test_a_scan_of_many_documents_finds_what_naming_them_finds(
    table: LanceTable, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, version = fit_chain("[int8]", vectors), table.version
    assert version is not None
    code, only = encode_queries(codec, vectors[:1])[0], [f"{n}" for n in range(1, ROWS, 2)]
    named = table.search(code, 30, codec.metric, None, version, only=only)
    monkeypatch.setattr("embedding_pipelines.stores.lancedb.MOST_NAMED", 10)
    assert table.search(code, 30, codec.metric, None, version, only=only) == named
    nothing = table.search(code, 30, codec.metric, None, version, only=["none"] * 11)
    assert nothing.schema == named.schema
    assert nothing.num_rows == 0
