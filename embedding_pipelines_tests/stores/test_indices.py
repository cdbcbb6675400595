"""The indices of `lancedb`: recall, growth, unindexed rows, changes of kind, and which codes can
have which."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.ranking import encode_queries
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.stores._lance import call
from embedding_pipelines.stores._lance_index import (
    INDICES,
    MAX_SEGMENTS,
    MAX_SMALL_FILES,
    PARAMETERS,
    parameters,
    statistics,
)
from embedding_pipelines.stores._lance_search import Snapshot
from embedding_pipelines.stores.base import NUMBER_TYPES
from embedding_pipelines.stores.lancedb import Lancedb, LanceTable
from embedding_pipelines.vectors import unit
from embedding_pipelines_tests.compression.contract import clustered, overlap
from embedding_pipelines_tests.stores.tables import (
    DIMENSIONS,
    add,
    build,
    fit_chain,
    list_indexed_columns,
    recall,
)

CHAINS = {
    "none": "[]",
    "float16": "[float16]",
    "int8": "[int8]",
    "binary": "[binary]",
    "pca": "[{kind: pca, dimensions: 32}]",
    "pca+int8": "[{kind: pca, dimensions: 32}, int8]",
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_the_compiled_module_is_told_what_lancedb_would_tell_it(kind: str) -> None:
    from lancedb import index

    theirs = {field.name: field.default for field in fields(getattr(index, kind))}
    theirs.pop("accelerator", None)  # for the package itself, which then calls another one
    assert PARAMETERS[kind] == theirs
    assert type(parameters(kind)).__name__ == kind


def kinds(table: LanceTable) -> list[str]:
    return [str(index.index_type) for index in call(table._open().list_indices)]


@pytest.mark.parametrize("name", CHAINS)
def test_an_indexed_table_of_every_codec_finds_what_exact_search_finds(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = clustered(3_000, DIMENSIONS), clustered(40, DIMENSIONS, seed=5)
    codec = fit_chain(CHAINS[name], vectors)
    table = build(tmp_path, codec)
    add(table, codec, vectors[:900], 0, [])
    assert table.index(codec.metric, 0) == 0
    assert list_indexed_columns(table) == []
    add(table, codec, vectors[900:2_000], 900, [])
    assert table.index(codec.metric, 0) == 2_000
    assert list_indexed_columns(table) == [[VECTOR]]
    assert recall(table, codec, vectors[:2_000], list(range(2_000)), queries) >= 0.98

    first_names = [f"{n}" for n in range(100)]
    add(table, codec, vectors[2_000:2_300], 2_000, first_names)  # an unindexed tail
    left = list(range(100, 2_300))
    assert recall(table, codec, vectors[100:2_300], left, queries) >= 0.98
    assert table.index(codec.metric, 2_000) == 2_000
    assert recall(table, codec, vectors[100:2_300], left, queries) >= 0.98

    query = encode_queries(codec, queries[:1])[0]
    version = table.version
    assert version is not None
    rows = table.search(query, 50, codec.metric, "cat = 'c7'", version)
    assert set(rows["cat"].to_pylist()) == {"c7"}
    assert len(rows) == 50
    only = [f"{n}" for n in left[::3]]
    named = table.search(query, 20, codec.metric, "cat <> 'c7'", version, only=only)
    with monkeypatch.context() as patch:
        patch.setattr("embedding_pipelines.stores.lancedb.MOST_NAMED", 10)
        rows = table.search(query, 20, codec.metric, "cat <> 'c7'", version, only=only)
    assert rows.schema == named.schema
    assert set(rows["document_id"].to_pylist()) <= set(only)
    assert "c7" not in rows["cat"].to_pylist()
    distances, others = (each["_distance"].to_numpy() for each in (rows, named))
    assert len(distances) == 20
    assert (np.diff(distances) >= -1e-6).all()
    assert (distances <= others + 1e-3).all()  # no index, so none is missed
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
    queries = clustered(20, DIMENSIONS, seed=5)
    assert recall(table, codec, vectors, list(range(1_500)), queries) >= 0.98
    # Far below the threshold again.
    add(table, codec, vectors[:1], 2_000, [f"{n}" for n in range(1_400)])
    table.index("cosine", 1_500)
    assert table.rows() == 101


@pytest.mark.parametrize("index_rows", [300, 100_000])
@pytest.mark.parametrize("small_files", [MAX_SMALL_FILES, 0])
def test_many_small_updates_leave_few_files_and_few_parts_of_an_index(
    tmp_path: Path, index_rows: int, small_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each update is folded into the index, and adds a segment to it."""
    monkeypatch.setattr("embedding_pipelines.stores._lance_index.MAX_SMALL_FILES", small_files)
    codec = CodecChain([], DIMENSIONS)
    table, vectors = build(tmp_path, codec, index_rows), clustered(1_000, DIMENSIONS)
    add(table, codec, vectors[:800], 0, [])
    trained = table.index("cosine", 0)
    for n in range(800, 820):
        add(table, codec, vectors[n : n + 1], n, [f"{n - 800}"])
        trained = table.index("cosine", trained)
        parts = [index.num_segments or 0 for index in call(table._open().list_indices)]
        assert sum(parts) <= MAX_SEGMENTS
        assert statistics(table._open())["fragment_stats"]["num_fragments"] <= MAX_SMALL_FILES
    assert trained == (0 if index_rows > 1_000 else 800)
    assert recall(table, codec, vectors[20:820], list(range(20, 820)), vectors[:20]) >= 0.98


def test_a_table_that_has_shrunk_to_less_than_half_of_what_an_index_needs_loses_it(
    tmp_path: Path,
) -> None:
    codec = CodecChain([], DIMENSIONS)
    table, vectors = build(tmp_path, codec, 300), clustered(600, DIMENSIONS)
    add(table, codec, vectors[:500], 0, [])
    trained = table.index("cosine", 0)
    add(table, codec, vectors[500:501], 500, [f"{n}" for n in range(300)])
    trained = table.index("cosine", trained)
    assert (list_indexed_columns(table), trained) == ([[VECTOR]], 500)
    add(table, codec, vectors[501:502], 501, [f"{n}" for n in range(300, 400)])
    assert (table.index("cosine", trained), list_indexed_columns(table)) == (0, [])
    rows = list(range(400, 502))
    assert recall(table, codec, vectors[rows], rows, vectors[400:420]) == 1


@pytest.mark.slow
def test_every_kind_of_index_finds_what_exact_search_finds_and_is_made_anew_when_another_is_wanted(
    tmp_path: Path,
) -> None:
    """With the refine factor that suits it; 2,000 of the 12,000 vectors came after its training."""
    codec, vectors = CodecChain([], DIMENSIONS), clustered(12_000, DIMENSIONS)
    queries = clustered(40, DIMENSIONS, 5)
    trained = 0
    for kind, options in INDICES.items():
        table = build(tmp_path, codec, 10_000, index=kind)
        if table.version is None:
            add(table, codec, vectors[:10_000], 0, [])
        else:
            add(table, codec, vectors[:0], 0, [f"{n}" for n in range(10_000, 12_000)])
        trained = table.index("cosine", trained)
        assert trained == 10_000
        assert kinds(table) == [options.lance]
        version = table.version
        assert table.index("cosine", trained) == trained
        assert table.version == version  # nothing was left to do
        add(table, codec, vectors[10_000:], 10_000, [])
        assert recall(table, codec, vectors, list(range(12_000)), queries) >= 0.95
    exact = build(tmp_path, codec, 10_000, index="none")
    assert exact.index("cosine", trained) == 0
    assert kinds(exact) == []
    assert recall(exact, codec, vectors, list(range(12_000)), queries) == 1


def test_an_index_of_another_kind_goes_from_a_table_too_small_for_a_new_one(tmp_path: Path) -> None:
    codec, vectors = CodecChain([], DIMENSIONS), clustered(600, DIMENSIONS)
    table = build(tmp_path, codec, 500)
    add(table, codec, vectors, 0, [])
    assert table.index("cosine", 0) == 600
    assert build(tmp_path, codec, 700).index("cosine", 600) == 600  # it would be kept
    assert build(tmp_path, codec, 700, index="rq").index("cosine", 600) == 0
    assert kinds(table) == []


def test_more_refining_finds_more(tmp_path: Path) -> None:
    codec, vectors = CodecChain([], DIMENSIONS), clustered(12_000, DIMENSIONS)
    queries, everything = clustered(40, DIMENSIONS, seed=5), list(range(12_000))
    add(build(tmp_path, codec), codec, vectors, 0, [])
    build(tmp_path, codec, index="rq").index("cosine", 0)
    recalls = []
    for refine in (1, 3, 10):
        table = build(tmp_path, codec, index="rq", refine=refine)
        recalls.append(recall(table, codec, vectors, everything, queries))
    assert recalls[0] < recalls[1] < recalls[2]


def test_more_probes_find_more(tmp_path: Path) -> None:
    rows = 40_000  # with 12,000 LanceDB makes an index of one part
    codec, vectors = CodecChain([], DIMENSIONS), clustered(rows, DIMENSIONS)
    everything = list(range(rows))
    # Queries from anywhere: their neighbours lie in several parts of the index.
    queries = unit(np.random.default_rng(7).standard_normal((40, DIMENSIONS), dtype=np.float32))
    add(build(tmp_path, codec), codec, vectors, 0, [])
    build(tmp_path, codec).index("cosine", 0)
    recalls = []
    for probes in (1, 20):
        table = build(tmp_path, codec, nprobes=probes)
        recalls.append(recall(table, codec, vectors, everything, queries))
    assert recalls[0] < 0.9 < 0.99 < recalls[1]


@pytest.mark.parametrize(
    ("index", "dtype", "dimensions", "message"),
    [
        (
            "rq",
            "float32",
            100,
            "'rq' needs dimensions that 8 divides, and the vectors have 100.*reduce them to 96",
        ),
        (
            "pq",
            "int8",
            50,
            "'pq' needs dimensions that 4 divides, and the vectors have 50.*reduce them to 48",
        ),
        (
            "rq",
            "binary",
            384,
            "'rq' is for numbers, and binary codes are bits.*Leave store.index out",
        ),
        ("hnsw", "binary", 384, "'hnsw' is for numbers"),
    ],
)
def test_an_index_that_cannot_be_is_refused_before_anything_is_built(
    index: Any, dtype: str, dimensions: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Lancedb(index=index).check(dtype, dimensions)


@pytest.mark.parametrize("index", ["sq", "none"])
@pytest.mark.parametrize("dtype", NUMBER_TYPES)
def test_the_usual_index_and_none_suit_all_codes_of_all_widths(index: Any, dtype: str) -> None:
    for dimensions in (1, 7, 384):
        Lancedb(index=index).check(dtype, dimensions)


@pytest.mark.parametrize("index", ["sq", "rq", "pq", "hnsw"])
@pytest.mark.parametrize("dimensions", [24, 44])
def test_an_index_that_is_not_refused_can_be_built(
    tmp_path: Path, index: str, dimensions: int
) -> None:
    codec, vectors = CodecChain([], dimensions), clustered(600, dimensions)
    table = build(tmp_path, codec, 256, index=index)
    if index == "rq" and dimensions == 44:
        with pytest.raises(ConfigError):
            table.options.check(codec.dtype, dimensions)
        return
    table.options.check(codec.dtype, dimensions)
    add(table, codec, vectors, 0, [])
    assert table.index("cosine", 0) == 600
    assert recall(table, codec, vectors, list(range(600)), vectors[:20]) >= 0.95


def test_only_what_changes_a_table_is_in_its_layout() -> None:
    own = Lancedb().layout
    assert Lancedb(refine=7, nprobes=3).layout == own
    for other in (Lancedb(index="rq"), Lancedb(index_rows=500), Lancedb(keep_releases=2)):
        assert other.layout != own


def test_an_index_that_may_not_stay_in_memory_finds_the_same_by_fewer_searches_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = clustered(2_000, DIMENSIONS), clustered(10, DIMENSIONS, seed=5)
    codec = fit_chain("[float16]", vectors)
    table = build(tmp_path, codec)
    add(table, codec, vectors, 0, [])
    assert table.index(codec.metric, 0) == 2_000
    codes, version = encode_queries(codec, queries), table.version
    assert version is not None
    every = list(table.search_many(codes, 5, codec.metric, version))
    sizes = list[int]()
    search = Snapshot.through_index_at_once

    def count(self: Snapshot, part: Any, *arguments: Any) -> list[pa.Table]:
        sizes.append(len(part))
        return search(self, part, *arguments)

    monkeypatch.setattr(Snapshot, "through_index_at_once", count)
    for memory, parts in ((2_000 * DIMENSIONS, [10]), (2_000 * DIMENSIONS - 1, [4, 4, 2])):
        sizes.clear()
        limited = table.options.table(table.folder, table.name, memory)
        assert list(limited.search_many(codes, 5, codec.metric, version)) == every
        assert sizes == parts
