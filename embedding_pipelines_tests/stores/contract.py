"""What every store must keep; each kind's test calls it, then adds what is special to it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.errors import StoreError
from embedding_pipelines.schemas import (
    DIGEST,
    RESCORING_VECTOR,
    SPACE_ID_KEY,
    VECTOR,
    digest,
    table_schema,
)
from embedding_pipelines.stores.base import Store
from embedding_pipelines.vectors import unit

WIDTH = 8
SCHEMA = table_schema(
    {"cat": "string", "year": "int"}, pa.list_(pa.float32(), WIDTH), "space-of-the-test"
)
SCHEMA = SCHEMA.append(pa.field(RESCORING_VECTOR, pa.list_(pa.int8(), WIDTH)))


def vectors_of(names: list[str]) -> np.ndarray:
    if not names:
        return np.empty((0, WIDTH), np.float32)
    seeds = [int.from_bytes(digest(name.encode())[:4], "little") for name in names]
    vectors = np.stack([np.random.default_rng(seed).normal(size=WIDTH) for seed in seeds])
    return unit(vectors).astype(np.float32)


def rescoring_of(names: list[str]) -> np.ndarray:
    return np.rint(vectors_of(names) * 100).astype(np.int8)


def batch(names: list[str], text: str = "text") -> pa.RecordBatch:
    """Rows named `names`; each one's vector follows from its name."""
    count = len(names)
    columns = {
        "chunk_id": pa.array(names, pa.string()),
        "document_id": pa.array(names, pa.string()),
        "start": pa.array([0] * count, pa.int64()),
        "end": pa.array([len(text)] * count, pa.int64()),
        "text": pa.array([f"{text} {name}" for name in names], pa.string()),
        "chunk_digest": pa.array([digest(name.encode(), text.encode()) for name in names], DIGEST),
        "partition": pa.array([f"b0{len(name) % 2}" for name in names], pa.string()),
        "vector_checksum": pa.array([0] * count, pa.int64()),
        "cat": pa.array([name[-1] for name in names], pa.string()),
        "year": pa.array([2000 + len(name) for name in names], pa.int64()),
        VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors_of(names).ravel()), WIDTH),
        RESCORING_VECTOR: pa.FixedSizeListArray.from_arrays(
            pa.array(rescoring_of(names).ravel()), WIDTH
        ),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def check_store(store: Store, folder: Path) -> None:
    """Asserts the contract in an empty folder."""
    table = store.table(folder, "pipeline-1")
    assert table.version is None
    assert store.names(folder) == []

    table.apply(SCHEMA, [], [])
    assert table.rows() == 0
    assert table.schema().metadata[SPACE_ID_KEY] == b"space-of-the-test"
    table.apply(SCHEMA, [], iter([batch(["a", "bb"]), batch([]), batch(["it's", 'say "c"'])]))
    table.index("cosine", 0)
    first = table.version
    assert first is not None
    assert table.rows() == 4
    assert table.size_bytes() > 0
    assert store.names(folder) == ["pipeline-1"]

    table.tag({"release-1": first})
    table.apply(SCHEMA, ["it's", "no such id"], [batch(["d"])])
    table.apply(SCHEMA, ["bb"], [batch(["bb"], "other")])
    table.index("cosine", 0)
    second = table.version
    assert second is not None
    assert second > first
    newest = pa.Table.from_batches(table.scan(SCHEMA.names)).to_pylist()
    everything = {row["chunk_id"]: row for row in newest}
    assert sorted(everything) == ["a", "bb", "d", 'say "c"']
    assert everything["bb"]["text"] == "other bb"
    assert table.rows(first) == 4  # an old version stays as it was
    old = pa.Table.from_batches(table.scan(["chunk_id"], version=first))["chunk_id"].to_pylist()
    assert sorted(old) == ["a", "bb", "it's", 'say "c"']
    part = pa.Table.from_batches(table.scan(["chunk_id"], "b01"))["chunk_id"].to_pylist()
    assert sorted(part) == sorted(name for name in everything if len(name) % 2)

    query = vectors_of(["d"])[0]
    rows = table.search(query, 3, "cosine", None, second).to_pylist()
    assert rows[0]["chunk_id"] == "d"
    assert rows[0]["_distance"] == pytest.approx(0, abs=1e-5)
    assert [row["_distance"] for row in rows] == sorted(row["_distance"] for row in rows)
    assert not {VECTOR, RESCORING_VECTOR} & rows[0].keys()
    wider = table.search(query, 3, "cosine", None, second, rescoring=True).to_pylist()
    expected = rescoring_of([row["chunk_id"] for row in rows])
    assert [row.pop(RESCORING_VECTOR) for row in wider] == expected.tolist()
    assert wider == rows
    queries = np.stack([*vectors_of(["bb", "d"]), query])
    for each, many in zip(queries, table.search_many(queries, 3, "cosine", second), strict=True):
        assert many.to_pylist() == table.search(each, 3, "cosine", None, second).to_pylist()
    assert list(table.search_many(queries[:0], 3, "cosine", second)) == []
    (one,) = table.search_many(queries[2:], 3, "cosine", second, rescoring=True)
    assert RESCORING_VECTOR in one.column_names
    older = table.search(query, 10, "cosine", None, first)
    assert "d" not in older["chunk_id"].to_pylist()
    assert len(table.search(query, 100, "cosine", None, second)) == 4
    match = table.search(query, 10, "cosine", "cat = 'b' AND year = 2002", second)
    assert match["chunk_id"].to_pylist() == ["bb"]
    for wrong in ("nocolumn = 1", "cat = ", "year = 'x' AND", "'"):
        with pytest.raises(StoreError, match=r"(?s)filter.*cannot be used.*cat") as caught:
            table.search(query, 1, "cosine", wrong, second)
        assert ".rs" not in str(caught.value)

    table.tag({"release-1": first, "release-2": second})
    table.tag({"release-2": second})
    assert table.version == second
    assert table.rows(second) == 4
    store.table(folder, "pipeline-2").apply(SCHEMA, [], [batch(["x"])])
    store.drop(folder, "pipeline-1")
    store.drop(folder, "pipeline-1")
    assert store.names(folder) == ["pipeline-2"]
    assert store.table(folder, "pipeline-1").version is None
    with pytest.raises(StoreError, match=r"'pipeline-1'.*cannot be opened"):
        store.table(folder, "pipeline-1").rows()
