"""What metrics are measured from: arrays and counts of one candidate, which others gather."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from embedding_pipelines.metrics.drift import Sketch
    from embedding_pipelines.metrics.neighbours import Neighbours

T = TypeVar("T")


@dataclass(frozen=True)
class Search:
    """What a search in the table returned for a query that was taken from a document."""

    id: str  # of the query and the text that it was taken from
    document_id: str  # the document that the query was taken from
    hits: list[tuple[str, str, float]]  # chunk id, document id and score, best first
    milliseconds: float | None  # without embedding the query; None: it was not timed
    nearest: list[str]  # ids of the chunks that vectors alone find, nearest first
    copies: frozenset[str] = frozenset()  # other documents among the hits with the same text


@dataclass
class Evidence:
    """Vectors are float32[n, d] of the model's own space. What is None or empty was not gathered:
    there was nothing to gather, or nobody needs it."""

    # All vectors.
    vectors: int = 0
    documents: int = 0  # in the table
    distinct: int = 0  # bit by bit
    short_texts: int = 0  # of `health.SHORT_TOKENS` tokens or fewer
    text_tokens: int = 0  # of all chunks without special ones; 0 if they are only estimated
    unknown_tokens: int = 0  # of these, those that the model's vocabulary lacks
    unseen_tokens: int = 0  # of the texts, those that no vector is of
    sketch: Sketch | None = None
    live_sketch: Sketch | None = None  # of the live release, if it is of the same space
    # A random sample of them.
    sample: Vectors | None = None
    decoded: Vectors | None = None  # the same after compression
    labels: list[str | None] = field(default_factory=list)  # of their chunks; or none at all
    nearest_other: Vectors | None = None  # float32[m], the cosine of some with their nearest other
    # Known items, and what is truly nearest to each query: in the model's own space, and among the
    # codes of the table for the first queries.
    searches: list[Search] = field(default_factory=list)
    exact: Neighbours | None = None
    exact_codes: Neighbours | None = None
    # Relevance judgements: scores by query and document, and the judgements themselves.
    rankings: dict[str, Mapping[str, float]] = field(default_factory=dict)
    qrels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    query_ids: Mapping[str, str] = field(default_factory=dict)  # by query; of text and judgements
    # Pairs of texts after compression, left and right, and the scores that people gave them.
    pairs: tuple[Vectors, Vectors, list[float]] | None = None
    # Cosines float32[n] with what the provider returns today.
    canary_cosines: Vectors | None = None  # of the canaries' first vectors
    stored_cosines: Vectors | None = None  # of some stored vectors
    _results: dict[Callable[[Any], Any], Any] = field(default_factory=dict, repr=False)

    def once(self, compute: Callable[[Evidence], T]) -> T:
        """`compute(self)`, computed at the first call: what several metrics share."""
        if compute not in self._results:
            self._results[compute] = compute(self)
        result: T = self._results[compute]
        return result
