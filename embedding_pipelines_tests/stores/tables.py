"""Tables of clustered vectors in every code, and how well searches find the nearest in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_pipelines.codes import encoded, vector_columns
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.ranking import encode_queries
from embedding_pipelines.schemas import DIGEST, digest, table_schema
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.stores._lance import call
from embedding_pipelines.stores.lancedb import Lancedb, LanceTable
from embedding_pipelines.vectors import unit

DIMENSIONS = 64


def fit_chain(compression: str, vectors: np.ndarray) -> CodecChain:
    """The chain that a pipeline file names so, fitted to `vectors` float32[n, d]."""
    file = "source: {kind: csv, path: x.csv}\nmodel: {provider: hashing}\n"
    file += f"compression: {compression}\n"
    compressors = parse_pipeline(file, "p", "p.yaml").compression
    return CodecChain.fit(compressors, lambda: [vectors], vectors.shape[1])


def build(folder: Path, codec: CodecChain, index_rows: int = 1_000, **options: Any) -> LanceTable:
    return LanceTable(folder, f"p-{codec.id[:8]}", Lancedb(index_rows=index_rows, **options))


def add(
    table: LanceTable, codec: CodecChain, vectors: np.ndarray, first: int, remove: list[str]
) -> None:
    codes, *rescoring = vector_columns(table.options, codec)
    schema = table_schema({"cat": "string"}, codes.type, "space")
    for column in rescoring:
        schema = schema.append(column)
    count = len(vectors)
    names = [f"{n}" for n in range(first, first + count)]
    columns = {
        "chunk_id": pa.array(names),
        "document_id": pa.array(names),
        "start": pa.array([0] * count, pa.int64()),
        "end": pa.array([0] * count, pa.int64()),
        "text": pa.array(names),
        "chunk_digest": pa.array([digest(name.encode()) for name in names], DIGEST),
        "partition": pa.repeat("b00", count),
        "vector_checksum": pa.array([0] * count, pa.int64()),
        "cat": pa.array([f"c{n % 20}" for n in range(first, first + count)]),
        **encoded(table.options, codec, vectors),
    }
    rows = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    table.apply(schema, remove, [rows])


def recall(
    table: LanceTable, codec: CodecChain, vectors: np.ndarray, names: list[int], queries: np.ndarray
) -> float:
    """Share of the 10 nearest by the codec's own codes, computed exactly, that searches return;
    asserts that searches in one call find rows as near."""
    codes, query_codes = codec.encode(vectors), encode_queries(codec, queries)
    if codec.metric == "hamming":
        bits, query_bits = np.unpackbits(codes, axis=1), np.unpackbits(query_codes, axis=1)
        scores = -np.array([(bits != row).sum(axis=1) for row in query_bits]).astype(np.float32)
    else:
        scores = unit(query_codes.astype(np.float32)) @ unit(codes.astype(np.float32)).T
    version, shares = table.version, []
    assert version is not None
    position = {name: at for at, name in enumerate(names)}
    at_once = table.search_many(query_codes, 10, codec.metric, version)
    for query, row, other in zip(query_codes, scores, at_once, strict=True):
        rows = table.search(query, 10, codec.metric, None, version)
        assert other.column_names == rows.column_names
        distances = [entry["_distance"].to_numpy() for entry in (rows, other)]
        np.testing.assert_allclose(*distances, atol=1e-5)
        places = [position[int(name)] for name in rows["chunk_id"].to_pylist()]
        worst = np.sort(row)[-10] - 1e-4  # equally near rows are equally right
        shares.append(np.mean(row[places] >= worst) if len(places) == 10 else 0.0)
    return float(np.mean(shares))


def list_indexed_columns(table: LanceTable) -> list[list[str]]:
    return [list(index.columns) for index in call(table._open().list_indices)]


def token_files(folder: Path) -> set[bytes]:
    """The dictionaries of all full-text indices on the disk: same words, same bytes."""
    return {path.read_bytes() for path in folder.rglob("*_tokens.lance")}
