"""How the rows of one table version are ranked for a query: by vectors, by words, or by both.

It is what users, checks, `diff` and the report search by.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines.compression.base import CodecChain, Codes
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.schemas import RESCORING_VECTOR, TABLE_KEY
from embedding_pipelines.spec.search import Mode
from embedding_pipelines.stores.base import Filter as Filter
from embedding_pipelines.stores.base import Searchable, Table
from embedding_pipelines.vectors import Vectors, from_numbers, to_matrix, to_numbers

# Reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009): a row at rank r of a list gets
# 1 / (FUSION + r). SciFact's 809 training queries, MiniLM beside BM25 (0.660 and 0.698 alone),
# nDCG@10 with 1, 2, 5, 10, 20, 60: 0.736, 0.731, 0.731, 0.727, 0.726, 0.720. Not the least of them,
# by which the first of either list is first whatever the other says. Other weights than equal ones
# lose (0.45: 0.715, 0.6: 0.729); from 50 rows of each list on, more change nothing.
FUSION = 5
FUSED_ROWS = 100  # of each list, at least


@dataclass(frozen=True)
class Query:
    """What a user looks for, cleaned as documents are, and its vector float32[d] in the model's own
    space; None where words alone are searched."""

    text: str
    vector: Vectors | None = None


def find(
    table: Searchable,
    codec: CodecChain,
    query: Query,
    k: int,
    filter: Filter | None,
    version: int,
    mode: Mode,
    names: Mapping[str, str] | None = None,
    near: pa.Table | None = None,
) -> pa.Table:
    """The `k` best rows of a table version for a query, best first, with `score` float32.

    `vector`: see `nearest`. `text`: by BM25, whose scores compare only within one result. `hybrid`:
    by both, fused; a score of 1 is first in both lists. `near` are the nearest rows, `rows_needed`
    of them, of a caller that has them. Raises as `nearest`.
    """
    if mode == "text":
        return _by_words(table, query.text, k, filter, version, names)
    if query.vector is None:
        raise ConfigError(f"A search by {mode} needs the vector of its query.")
    most = rows_needed(k, mode)
    if near is None:
        near = nearest(table, codec, query.vector, most, filter, version, names)
    if mode == "vector":
        return near
    return fuse(near, _by_words(table, query.text, most, filter, version, names), k)


def rows_needed(k: int, mode: Mode) -> int:
    """How many rows of each list a search for `k` takes."""
    return max(k, FUSED_ROWS) if mode == "hybrid" else k


def fuse(near: pa.Table, worded: pa.Table, k: int) -> pa.Table:
    """The `k` best rows of two lists, best first, by reciprocal rank fusion; of equals, the one
    that is nearer."""
    scores: dict[str, float] = {}
    for rows in (near, worded):
        for rank, name in enumerate(rows[TABLE_KEY].to_pylist(), 1):
            scores[name] = scores.get(name, 0.0) + (FUSION + 1) / (FUSION + rank) / 2
    rows = pa.concat_tables([near, worded.select(near.column_names)])
    place: dict[str, int] = {}
    for at, name in enumerate(rows[TABLE_KEY].to_pylist()):
        place.setdefault(name, at)
    best = sorted(scores, key=lambda name: (-scores[name], place[name]))[:k]
    rows = rows.take(pa.array([place[name] for name in best], pa.int64())).drop_columns("score")
    return rows.append_column("score", pa.array([scores[name] for name in best], pa.float32()))


def take_best(rows: pa.Table, scores: NDArray[np.float32], k: int) -> pa.Table:
    """The `k` best rows by scores float32[n], which become theirs, best first; equal ones stay in
    their order."""
    best = order_of(scores, k)
    rows = rows.take(pa.array(best)).drop_columns("score")
    return rows.append_column("score", pa.array(scores[best], pa.float32()))


def order_of(scores: NDArray[np.float32], k: int | None) -> NDArray[np.int64]:
    """The places int64[k] of the highest scores, highest first; equal ones stay in their order."""
    return np.argsort(-scores, kind="stable")[:k]


def _by_words(
    table: Searchable,
    text: str,
    k: int,
    filter: Filter | None,
    version: int,
    names: Mapping[str, str] | None,
) -> pa.Table:
    rows = table.search_text(text, k, filter, version, names)
    return rows.rename_columns([{"_score": "score"}.get(name, name) for name in rows.column_names])


def nearest(
    table: Searchable,
    codec: CodecChain,
    vector: Vectors,
    k: int,
    filter: Filter | None,
    version: int,
    names: Mapping[str, str] | None = None,
) -> pa.Table:
    """The `k` rows of a table nearest to a vector float32[d] of the model's own space, nearest
    first.

    Their columns are the table's and `score` float32: the cosine, or the share of equal bits for a
    binary codec without rescoring vectors. With rescoring vectors, the codes give `oversample`
    times `k` rows, and these vectors rank them. `names` are as in `Table.search`. Raises
    CompressionError for a vector of another shape or one that is not finite, FilterError for a wrong
    filter.
    """
    code, rescoring = encode_queries(codec, vector[None, :])[0], codec.rescoring_codec is not None
    rows = table.search(code, k * codec.oversample, codec.metric, filter, version, rescoring, names)
    return _scored(rows, codec, vector, k)


def nearest_of_each(
    table: Table, codec: CodecChain, vectors: Vectors, k: int, version: int
) -> Iterator[pa.Table]:
    """What `nearest` gives for each of vectors float32[n, d], in fewer calls of the store."""
    codes, rescoring = encode_queries(codec, vectors), codec.rescoring_codec is not None
    hits = table.search_many(codes, k * codec.oversample, codec.metric, version, rescoring)
    for rows, vector in zip(hits, vectors, strict=True):
        yield _scored(rows, codec, vector, k)


def _scored(rows: pa.Table, codec: CodecChain, vector: Vectors, k: int) -> pa.Table:
    """Rows with `_distance` from a search for a vector float32[d]: the `k` best, with `score`."""
    if codec.rescoring_codec is not None:
        scores = codec.rescore(vector, to_matrix(rows[RESCORING_VECTOR]))
        best = np.argsort(-scores, kind="stable")[:k]  # of equals the one with the nearer code
        rows, scores = rows.drop_columns(RESCORING_VECTOR).take(best), scores[best]
    else:
        distances: Any = from_numbers(rows["_distance"])
        scores = 1 - distances / (codec.dimensions if codec.metric == "hamming" else 1)
    return rows.drop_columns("_distance").append_column(
        "score", to_numbers(np.asarray(scores, np.float32))
    )


def encode_queries(codec: CodecChain, vectors: Vectors) -> Codes:
    """Queries float32[n, d] of the model's own space as a table compares them."""
    return query_codec(codec).encode(vectors)


def query_codec(codec: CodecChain) -> CodecChain:
    """What makes of queries what a table compares with its codes.

    It is the table's codec, but of int8 it gives the numbers before rounding: a cosine with a code
    needs no rounding on both sides. On 100,000 captions (MiniLM, 384 dimensions, 300 queries)
    recall@10 is 0.992 so, and 0.987 with rounded queries.
    """
    codecs = codec.codecs[:-1] if codec.dtype == "int8" else codec.codecs
    return CodecChain(codecs, codec.input_dimensions)


def as_numbers(codec: CodecChain, codes: Vectors) -> Vectors:
    """Codes as vectors whose cosines order them as the table does."""
    if codec.metric == "hamming":
        bits = np.unpackbits(codes.astype(np.uint8), axis=1, count=codec.dimensions)
        return bits.astype(np.float32) * 2 - 1
    return codes.astype(np.float32)
