"""`lancedb`: the contract, and its indices: recall, filters, codes of every type, growth and unindexed rows."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.pipeline_files import parse_pipeline
from embedding_pipelines.schemas import DIGEST, VECTOR, digest, table_schema
from embedding_pipelines.steps.vector_store import COLUMN_TYPES, encoded
from embedding_pipelines.stores.lancedb import Lancedb, LanceTable
from embedding_pipelines_tests.compression.contract import clustered, overlap
from embedding_pipelines_tests.stores.contract import SCHEMA, batch, check_store

DIMENSIONS = 64


def test_lancedb_keeps_the_contract(tmp_path: Path) -> None:
    check_store(Lancedb(), tmp_path)


def test_clean_up_removes_old_versions_and_keeps_those_of_releases(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", 256)
    versions = []
    for n in range(4):
        table.apply(SCHEMA, [], [batch([f"row{n}"])])
        table.index("cosine", 0)
        versions.append(table.version)
        if n == 1:
            time.sleep(1.2)  # `clean_up` leaves what is less than a second older than the oldest kept version
    table.keep({"release-3": versions[2], "release-4": versions[3]})
    table.clean_up()
    left = [entry["version"] for entry in table._open().list_versions()]
    assert not {versions[0], versions[1]} & set(left)
    assert table.rows(versions[2]) == 3
    assert table.rows(versions[3]) == 4


def build(folder: Path, codec: CodecChain, index_rows: int = 1_000) -> LanceTable:
    return LanceTable(folder, f"p-{codec.id[:8]}", index_rows)


def add(table: LanceTable, codec: CodecChain, vectors: np.ndarray, first: int, remove: list[str]) -> None:
    width = -(-codec.dimensions // 8) if codec.dtype == "binary" else codec.dimensions
    schema = table_schema({"cat": "string"}, pa.list_(COLUMN_TYPES[codec.dtype], width), "space")
    count = len(vectors)
    names = [f"{n}" for n in range(first, first + count)]
    columns = {
        "chunk_id": pa.array(names),
        "document_id": pa.array(names),
        "start": pa.array([0] * count, pa.int64()),
        "end": pa.array([0] * count, pa.int64()),
        "text": pa.array(names),
        "chunk_digest": pa.array([digest(name.encode()) for name in names], DIGEST),
        "bucket": pa.repeat("b00", count),
        "cat": pa.array([f"c{n % 20}" for n in range(first, first + count)]),
        VECTOR: encoded(codec, vectors),
    }
    rows = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    table.apply(schema, remove, [rows])


def recall(table: LanceTable, codec: CodecChain, vectors: np.ndarray, names: list[int], queries: np.ndarray) -> float:
    """Share of the 10 nearest by the codec's own codes, computed exactly, that the search returns."""
    codes, asked = codec.encode(vectors), codec.encode(queries)
    if codec.metric == "hamming":
        bits, wanted = np.unpackbits(codes, axis=1), np.unpackbits(asked, axis=1)
        scores = -np.array([(bits != row).sum(axis=1) for row in wanted]).astype(np.float32)
    else:
        left, right = codes.astype(np.float32), asked.astype(np.float32)
        left /= np.linalg.norm(left, axis=1, keepdims=True)
        right /= np.linalg.norm(right, axis=1, keepdims=True)
        scores = right @ left.T
    version, shares = table.version, []
    assert version is not None
    position = {name: at for at, name in enumerate(names)}
    for query, row in zip(asked, scores, strict=True):
        vector = query.astype(np.float32) if codec.dtype == "int8" else query
        found = [
            position[int(name)]
            for name in table.search(vector, 10, codec.metric, None, version)["chunk_id"].to_pylist()
        ]
        worst = np.sort(row)[-10] - 1e-4  # equally near rows are equally right
        shares.append(np.mean(row[found] >= worst) if len(found) == 10 else 0.0)
    return float(np.mean(shares))


def indexed(table: LanceTable) -> list[list[str]]:
    return [list(index.columns) for index in table._open().list_indices()]


CHAINS = {
    "none": "[]",
    "float16": "[float16]",
    "int8": "[int8]",
    "binary": "[binary]",
    "pca": "[{kind: pca, dimensions: 32}]",
    "pca+int8": "[{kind: pca, dimensions: 32}, int8]",
}


@pytest.mark.parametrize("name", CHAINS)
def test_an_indexed_table_of_every_codec_finds_what_exact_search_finds(tmp_path: Path, name: str) -> None:
    file = f"source: {{kind: csv, path: x.csv}}\nmodel: {{provider: hashing}}\ncompression: {CHAINS[name]}\n"
    vectors, queries = clustered(3_000, DIMENSIONS), clustered(40, DIMENSIONS, seed=5)
    codec = CodecChain.fit(parse_pipeline(file, "p", "p.yaml").compression, vectors, 0)
    table = build(tmp_path, codec)
    add(table, codec, vectors[:900], 0, [])
    assert table.index(codec.metric, 0) == 0
    assert indexed(table) == []
    add(table, codec, vectors[900:2_000], 900, [])
    assert table.index(codec.metric, 0) == 2_000
    assert indexed(table) == [[VECTOR]]
    assert recall(table, codec, vectors[:2_000], list(range(2_000)), queries) >= 0.98

    add(table, codec, vectors[2_000:2_300], 2_000, [f"{n}" for n in range(100)])  # an unindexed tail
    left = list(range(100, 2_300))
    assert recall(table, codec, vectors[100:2_300], left, queries) >= 0.98
    assert table.index(codec.metric, 2_000) == 2_000
    assert recall(table, codec, vectors[100:2_300], left, queries) >= 0.98

    query = codec.encode(queries[:1])[0]
    query = query.astype(np.float32) if codec.dtype == "int8" else query
    version = table.version
    assert version is not None
    found = table.search(query, 50, codec.metric, "cat = 'c7'", version)
    assert set(found["cat"].to_pylist()) == {"c7"}
    assert len(found) == 50
    table.clean_up()
    assert table.version == version
    if name in ("none", "binary"):
        assert overlap(codec, clustered(300, DIMENSIONS, seed=3)) > 0.3


def test_an_index_is_trained_again_when_the_table_has_doubled(tmp_path: Path) -> None:
    codec = CodecChain([], DIMENSIONS)
    table, vectors = build(tmp_path, codec, 300), clustered(1_500, DIMENSIONS)
    add(table, codec, vectors[:400], 0, [])
    trained = table.index("cosine", 0)
    assert trained == 400
    add(table, codec, vectors[400:700], 400, [])
    trained = table.index("cosine", trained)
    assert trained == 400
    add(table, codec, vectors[700:], 700, [])
    assert table.index("cosine", trained) == 1_500
    assert recall(table, codec, vectors, list(range(1_500)), clustered(20, DIMENSIONS, seed=5)) >= 0.98
    add(table, codec, vectors[:1], 2_000, [f"{n}" for n in range(1_400)])  # far below the threshold again
    table.index("cosine", 1_500)
    assert table.rows() == 101


def test_a_table_of_many_rows_is_scanned_whole(tmp_path: Path) -> None:
    codec = CodecChain([], DIMENSIONS)
    table = build(tmp_path, codec, 100_000)
    add(table, codec, clustered(20_000, DIMENSIONS), 0, [])
    assert sum(part.num_rows for part in table.scan(["chunk_id"])) == 20_000
    assert sum(part.num_rows for part in table.scan(["chunk_id"], "b00")) == 20_000
