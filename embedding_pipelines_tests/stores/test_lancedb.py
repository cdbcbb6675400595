"""`lancedb`: the contract, and its indices: recall, filters, codes of every type, growth and unindexed rows."""

import asyncio
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import StoreError
from embedding_pipelines.pipeline_files import parse_pipeline
from embedding_pipelines.schemas import DIGEST, VECTOR, digest, table_schema
from embedding_pipelines.steps.vector_store import COLUMN_TYPES, encoded
from embedding_pipelines.stores.lancedb import MAX_SEGMENTS, MAX_SMALL_FILES, Lancedb, LanceTable
from embedding_pipelines_tests.compression.contract import clustered, overlap
from embedding_pipelines_tests.stores.contract import SCHEMA, batch, check_store, vectors_of

DIMENSIONS = 64


def test_lancedb_keeps_the_contract(tmp_path: Path) -> None:
    check_store(Lancedb(), tmp_path)


def test_small_updates_wait_for_their_compaction_and_it_removes_what_no_release_keeps(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", 256)
    table.apply(SCHEMA, [], [batch([f"row{n}" for n in range(2_000)])])
    table.index("cosine", 0)
    whole, first = table.size_bytes(), table.version
    kept: dict[str, int] = {}
    for n in range(MAX_SMALL_FILES + 1):
        if n == 2:
            time.sleep(1.2)  # what is less than a second older than the oldest kept version stays
        grown = table.size_bytes()
        table.apply(SCHEMA, [f"row{n}"], [batch([f"new{n}"])])
        table.index("cosine", 2_000)
        version = table.version
        assert version is not None
        kept = {**{tag: older for tag, older in kept.items() if tag != f"release-{n - 2}"}, f"release-{n}": version}
        table.keep(kept)
        if n < MAX_SMALL_FILES - 1:
            assert table.size_bytes() - grown < 0.1 * whole
    versions = {entry["version"] for entry in table._open().list_versions()}
    assert first not in versions  # the compaction of the last but one update took it away
    assert set(kept.values()) <= versions
    assert table._open().stats()["fragment_stats"]["num_fragments"] < 4
    assert all(table.rows(version) == 2_000 for version in kept.values())


def test_a_table_of_dead_rows_is_written_anew(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", 10_000)
    table.apply(SCHEMA, [], [batch([f"row{n}" for n in range(1_000)])])
    table.apply(SCHEMA, [f"row{n}" for n in range(500)], [])
    table.index("cosine", 0)
    assert table._open().stats()["fragment_stats"]["lengths"]["max"] == 500


def test_the_version_is_the_one_lancedb_tells(tmp_path: Path) -> None:
    """It is read from file names: compared after every kind of change that a table here goes through."""
    table = LanceTable(tmp_path, "p-1", 256)

    def agree() -> int:
        told = int(table._open().version)
        assert table.version == LanceTable(tmp_path, "p-1", 256).version == told
        return told

    table.apply(SCHEMA, [], [])
    assert agree() == 1
    names = [f"row{n}" for n in range(300)]
    table.apply(SCHEMA, [], [batch(names)])
    table.apply(SCHEMA, ["row1", "row2"], [])
    table.apply(SCHEMA, ["row3"], [batch(["row1"])])
    before = agree()
    table.index("cosine", 0)
    first = agree()
    assert first > before
    table.keep({"release-1": first})
    assert agree() == first
    for n in range(12):  # into numbers of two digits, and small files to fold into one
        table.apply(SCHEMA, [], [batch([f"new{n}"])])
        agree()
    table.index("cosine", 300)
    second = agree()
    assert second > 15
    table.keep({"release-2": second})
    agree()
    assert table.rows(second) == 310
    handle = table._open()
    handle.restore(second)
    assert agree() == second + 1


def test_the_version_is_told_without_importing_lancedb(tmp_path: Path) -> None:
    LanceTable(tmp_path, "p-1", 256).apply(SCHEMA, [], [batch(["a"])])
    script = (
        "import sys; from pathlib import Path; from embedding_pipelines.stores.lancedb import LanceTable\n"
        "print(LanceTable(Path(sys.argv[1]), 'p-1', 256).version, 'lancedb' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["2", "False"]


def test_manifests_of_another_naming_are_left_to_lancedb(tmp_path: Path) -> None:
    options = {"new_table_enable_v2_manifest_paths": "false"}
    made = lancedb.connect(tmp_path).create_table("p-1", schema=SCHEMA, storage_options=options)
    made.add(pa.Table.from_batches([batch(["a"])]))
    assert {file.name for file in (tmp_path / "p-1.lance" / "_versions").glob("*.manifest")} == {
        "1.manifest",
        "2.manifest",
    }
    assert LanceTable(tmp_path, "p-1", 256).version == 2


def test_a_manifest_that_is_cut_short_is_no_version(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", 256)
    table.apply(SCHEMA, [], [batch(["a"])])
    newest = min((tmp_path / "p-1.lance" / "_versions").glob("*.manifest"))
    newest.write_bytes(newest.read_bytes()[:-20])
    with pytest.raises(StoreError, match=r"'p-1'.*cannot be opened.*run the pipeline"):
        LanceTable(tmp_path, "p-1", 256).version  # noqa: B018


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
    assert table.version == version
    if name in ("none", "binary"):
        assert overlap(codec, clustered(300, DIMENSIONS, seed=3)) > 0.3


def test_a_filter_finds_its_rows_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may all be in partitions far from the query, as when it is about something else than the filter."""
    monkeypatch.setattr("embedding_pipelines.stores.lancedb.PROBES", 1)
    vectors = np.random.default_rng(0).normal(0, 0.02, (20_000, 16)).astype(np.float32)
    vectors[::2, 0] += 1
    vectors[1::2, 0] -= 1  # two partitions, opposite to each other; the filters pass rows of the second alone
    codec = CodecChain([], 16)
    table = build(tmp_path, codec)
    add(table, codec, vectors, 0, [])
    table.index("cosine", 0)
    version = table.version
    assert version is not None
    found = table.search(vectors[0], 2_000, "cosine", "cat = 'c7'", version)
    assert len(found) == 1_000
    assert len(table.search(vectors[0], 10, "cosine", "document_id = '27'", version)) == 1


def test_searches_work_inside_an_event_loop_and_in_threads(tmp_path: Path) -> None:
    table = LanceTable(tmp_path, "p-1", 256)
    table.apply(SCHEMA, [], [batch(["a", "b", "c"])])
    version = table.version
    assert version is not None

    def nearest(name: str) -> str:
        found = table.search(vectors_of([name])[0], 1, "cosine", None, version)
        return str(found["chunk_id"][0].as_py())

    async def within() -> str:
        return nearest("b")

    assert asyncio.run(within()) == "b"
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(nearest, "abcabc")) == list("abcabc")


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


@pytest.mark.parametrize("index_rows", [300, 100_000])
@pytest.mark.parametrize("small_files", [MAX_SMALL_FILES, 0])
def test_many_small_updates_leave_few_files_and_few_parts_of_an_index(
    tmp_path: Path, index_rows: int, small_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each update is folded into the index, and adds a segment to it."""
    monkeypatch.setattr("embedding_pipelines.stores.lancedb.MAX_SMALL_FILES", small_files)
    codec = CodecChain([], DIMENSIONS)
    table, vectors = build(tmp_path, codec, index_rows), clustered(1_000, DIMENSIONS)
    add(table, codec, vectors[:800], 0, [])
    trained = table.index("cosine", 0)
    for n in range(800, 820):
        add(table, codec, vectors[n : n + 1], n, [f"{n - 800}"])
        trained = table.index("cosine", trained)
        parts = [index.num_segments or 0 for index in table._open().list_indices()]
        assert sum(parts) <= MAX_SEGMENTS
        assert table._open().stats()["fragment_stats"]["num_fragments"] <= MAX_SMALL_FILES
    assert trained == (0 if index_rows > 1_000 else 800)
    assert recall(table, codec, vectors[20:820], list(range(20, 820)), vectors[:20]) >= 0.98


def test_a_table_that_has_shrunk_to_less_than_half_of_what_an_index_needs_loses_it(tmp_path: Path) -> None:
    codec = CodecChain([], DIMENSIONS)
    table, vectors = build(tmp_path, codec, 300), clustered(600, DIMENSIONS)
    add(table, codec, vectors[:500], 0, [])
    trained = table.index("cosine", 0)
    add(table, codec, vectors[500:501], 500, [f"{n}" for n in range(300)])
    trained = table.index("cosine", trained)
    assert (indexed(table), trained) == ([[VECTOR]], 500)
    add(table, codec, vectors[501:502], 501, [f"{n}" for n in range(300, 400)])
    assert (table.index("cosine", trained), indexed(table)) == (0, [])
    rows = list(range(400, 502))
    assert recall(table, codec, vectors[rows], rows, vectors[400:420]) == 1


def test_a_table_of_many_rows_is_scanned_whole(tmp_path: Path) -> None:
    codec = CodecChain([], DIMENSIONS)
    table = build(tmp_path, codec, 100_000)
    add(table, codec, clustered(20_000, DIMENSIONS), 0, [])
    assert sum(part.num_rows for part in table.scan(["chunk_id"])) == 20_000
    assert sum(part.num_rows for part in table.scan(["chunk_id"], "b00")) == 20_000
