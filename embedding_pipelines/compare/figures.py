"""How well a model answers the sample's queries, with intervals, and beside another model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedding_pipelines.compare.sample import Sample
from embedding_pipelines.metrics.confidence import lower_bound
from embedding_pipelines.metrics.neighbours import ExactSearch, K
from embedding_pipelines.metrics.retrieval import values_by_query
from embedding_pipelines.quality.queries import has_vector
from embedding_pipelines.vectors import Vectors

DEPTH = 100  # documents that a query ranks, of which R@100 is measured
CHUNKS_OF_A_DOCUMENT = 4  # so many times DEPTH chunks are searched, as a document may have several
SIDE = 0.975  # each side of an interval of 95%


@dataclass(frozen=True)
class Figure:
    """A mean over queries, with bounds that hold with 95% confidence for any values in [0, 1] (see
    `metrics/confidence.py`); of a difference in [-1, 1]."""

    mean: float
    low: float
    high: float
    queries: int


def query_values(sample: Sample, vectors: Vectors, queries: Vectors) -> dict[str, dict[str, float]]:
    """By metric, the value of each query in [0, 1]. A query without a vector finds nothing."""
    sound, is_query = has_vector(vectors), has_vector(queries)
    search = ExactSearch(np.where(is_query[:, None], queries, 0), CHUNKS_OF_A_DOCUMENT * DEPTH)
    search.add([sample.documents[row] for row in np.flatnonzero(sound)], vectors[sound])
    names, cosines = search.result()
    rankings = [
        dict(reversed(list(zip(hits, map(float, scores), strict=False))))  # its best chunk counts
        for hits, scores in zip(names, cosines, strict=True)
    ]
    result: dict[str, dict[str, float]] = {}
    if sample.judged is not None:
        ids, present = sample.judged_ids, set(sample.documents)
        judged = dict(zip(ids, (_best(ranking, DEPTH) for ranking in rankings), strict=False))
        qrels = {
            name: sample.judged.relevance[name]
            for name in ids
            if not present.isdisjoint(sample.judged.answers(name))
        }
        for name, row in (values_by_query(judged, qrels) if qrels else {}).items():
            for metric, value in row.items():
                result.setdefault(metric, {})[name] = value
    same: dict[str, set[str]] = {}
    for name, text in zip(sample.documents, sample.texts, strict=True):
        same.setdefault(text, set()).add(name)
    for item, ranking in zip(sample.items, rankings[len(sample.judged_ids) :], strict=True):
        answers = {item.document_id} | same.get(item.text, set())
        places = (place for place, name in enumerate(_best(ranking, K), 1) if name in answers)
        place = next(places, 0)
        result.setdefault("known_item_mrr", {})[item.id] = 1 / place if place else 0.0
        result.setdefault("known_item_recall", {})[item.id] = float(place > 0)
    return result


def _best(ranking: Mapping[str, float], most: int) -> dict[str, float]:
    """The best documents, best first."""
    ordered = sorted(ranking.items(), key=lambda entry: -entry[1])
    return dict(ordered[:most])


def figure(values: Sequence[float]) -> Figure:
    shares = np.asarray(values)
    low, high = lower_bound(shares, SIDE), 1 - lower_bound(1 - shares, SIDE)
    return Figure(float(shares.mean()), low, high, len(shares))


def differences(
    other: Mapping[str, Mapping[str, float]], own: Mapping[str, Mapping[str, float]]
) -> dict[str, Figure]:
    """By metric, the model less the pipeline's own, over the same queries."""
    result = {}
    for name, values in own.items():
        half = figure([(other[name][query] - values[query] + 1) / 2 for query in values])
        mean, low, high = (2 * value - 1 for value in (half.mean, half.low, half.high))
        result[name] = Figure(mean, low, high, half.queries)
    return result
