"""What a search gives: hits with scores, places and metadata, as objects, JSON or a DataFrame."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
from pydantic import BaseModel, PrivateAttr, TypeAdapter

from embedding_pipelines.extras import need
from embedding_pipelines.schemas import CHUNK_COLUMNS, TABLE_TYPES
from embedding_pipelines.spec.search import Mode

if TYPE_CHECKING:
    import pandas as pd

    from embedding_pipelines.memory import Near

HIT_COLUMNS = {
    "score": pa.float32(),
    **{name: CHUNK_COLUMNS[name] for name in ("chunk_id", "document_id", "start", "end", "text")},
}


class Hit(BaseModel, frozen=True):
    """One chunk of a search's results."""

    # By vector: cosine similarity; for binary codecs the share of equal bits. By text: BM25, which
    # compares only within one result. Hybrid: by the ranks in both, 1 for the first of both.
    # Reranked: as the cross-encoder gives it, by most between 0 and 1.
    score: float
    chunk_id: str
    document_id: str
    start: int
    end: int
    text: str
    metadata: dict[str, Any]


HITS = TypeAdapter(list[Hit])


class SearchResult(BaseModel, frozen=True):
    """The results of one query, for command line, API and client alike."""

    pipeline: str
    release: int  # 0: texts of a pipeline that has none yet
    space_id: str
    query: str
    mode: Mode = "vector"  # the path that it took
    hits: list[Hit]
    reranked_by: str = ""  # the cross-encoder whose scores the hits have, if one read them
    milliseconds: float
    notes: list[str] = []
    """Sentences: that the query was cut, that the model does not know its words, or has changed."""
    _types: dict[str, str] = PrivateAttr(default_factory=dict)  # of the release's metadata

    def with_types(self, types: dict[str, str]) -> Self:
        """This result, which learns the types of its release's metadata; they are no part of its
        JSON."""
        self._types = types
        return self

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each hit, nearest first: score float32, ids, offsets, text, metadata.

        Types are those of `as_frame`. Raises ConfigError without pandas.
        """
        return as_frame(_table_of(self.hits, self._types))


class SearchResults(list[SearchResult]):
    """A result for each of many queries, in their order."""

    def __init__(
        self,
        results: Iterable[SearchResult],
        types: Mapping[str, str],
        index: "pd.Index | None" = None,
    ) -> None:
        """`types` are those of the hits' metadata; `index` is the queries'."""
        super().__init__(results)
        self._types, self._index = types, index

    def to_pandas(self) -> "pd.DataFrame":
        """The hits of all queries. The columns are query, rank (from 1) and those of
        `SearchResult.to_pandas`; metadata of the name query or rank gets the prefix `metadata_`.

        The index is the query's, in its column or in the list, so that
        `frame.join(result.drop(columns="query"))` puts hits beside queries. Raises ConfigError
        without pandas.
        """
        numbers = [number for number, result in enumerate(self) for _ in result.hits]
        ranks = [rank for result in self for rank in range(1, len(result.hits) + 1)]
        names = {name: f"metadata_{name}" for name in ("query", "rank")}
        hits = _table_of([hit for result in self for hit in result.hits], self._types)
        hits = hits.rename_columns([names.get(name, name) for name in hits.column_names])
        hits = hits.add_column(0, "rank", pa.array(ranks, pa.int32()))
        queries = pa.array([self[number].query for number in numbers], pa.string())
        frame = as_frame(hits.add_column(0, "query", queries))
        return frame.set_axis(numbers if self._index is None else self._index.take(numbers))


def hits_of(rows: "pa.Table | Near") -> list[Hit]:
    """Rows of `nearest`."""
    metadata = [name for name in rows.column_names if name not in HIT_COLUMNS]
    return HITS.validate_python(  # all in one call, which costs less than one for each
        [{**row, "metadata": {name: row[name] for name in metadata}} for row in rows.to_pylist()]
    )


def as_frame(rows: pa.Table) -> "pd.DataFrame":
    """Arrow rows as a DataFrame, with the same types whether values are missing or not.

    Whole numbers are Int64, booleans boolean, days and times datetime64; a vector is an array
    float32[d]. Raises ConfigError without pandas.
    """
    pandas = need("pandas", "explore")
    types = {pa.int64(): pandas.Int64Dtype(), pa.bool_(): pandas.BooleanDtype()}
    return rows.to_pandas(types_mapper=types.get, date_as_object=False)


def _table_of(hits: Sequence[Hit], types: Mapping[str, str]) -> pa.Table:
    """Hits with metadata of these types; without any, of those that the values have."""
    names = types or dict.fromkeys(name for hit in hits for name in hit.metadata)
    columns = {
        name: pa.array([getattr(hit, name) for hit in hits], kind)
        for name, kind in HIT_COLUMNS.items()
    }
    for name in names:
        kind = types.get(name)
        values = [hit.metadata.get(name) for hit in hits]
        columns[name] = pa.array(values, kind and TABLE_TYPES[kind])
    return pa.table(columns)
