"""Tables of clustered vectors in every code, and how well a search finds in them what is
nearest."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.schemas import DIGEST, digest, table_schema
from embedding_pipelines.search import queries as asked_with
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.steps.vector_store import encoded, vector_columns
from embedding_pipelines.stores.lancedb import Lancedb, LanceTable

DIMENSIONS = 64


def fit_chain(compression: str, vectors: np.ndarray) -> CodecChain:
    """The chain that a pipeline file names so, fitted to `vectors` float32[n, d]."""
    file = f"source: {{kind: csv, path: x.csv}}\nmodel: {{provider: hashing}}\ncompression: {compression}\n"
    return CodecChain.fit(
        parse_pipeline(file, "p", "p.yaml").compression, lambda: [vectors], vectors.shape[1]
    )


def build(folder: Path, codec: CodecChain, index_rows: int = 1_000, **options: Any) -> LanceTable:
    return LanceTable(folder, f"p-{codec.id[:8]}", Lancedb(index_rows=index_rows, **options))


def add(
    table: LanceTable, codec: CodecChain, vectors: np.ndarray, first: int, remove: list[str]
) -> None:
    codes, *copies = vector_columns(table.options, codec)
    schema = table_schema({"cat": "string"}, codes.type, "space")
    for column in copies:
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
        "cat": pa.array([f"c{n % 20}" for n in range(first, first + count)]),
        **encoded(table.options, codec, vectors),
    }
    rows = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    table.apply(schema, remove, [rows])


def recall(
    table: LanceTable, codec: CodecChain, vectors: np.ndarray, names: list[int], queries: np.ndarray
) -> float:
    """Share of the 10 nearest by the codec's own codes, computed exactly, that the search
    returns."""
    codes, asked = codec.encode(vectors), asked_with(codec, queries)
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
        names_found = table.search(query, 10, codec.metric, None, version)["chunk_id"].to_pylist()
        found = [position[int(name)] for name in names_found]
        worst = np.sort(row)[-10] - 1e-4  # equally near rows are equally right
        shares.append(np.mean(row[found] >= worst) if len(found) == 10 else 0.0)
    return float(np.mean(shares))


def indexed(table: LanceTable) -> list[list[str]]:
    return [list(index.columns) for index in table._open().list_indices()]
