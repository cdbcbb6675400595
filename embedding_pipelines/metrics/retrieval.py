"""How well a search finds what people judged relevant: the figures of trec_eval, BEIR and MTEB, by
ir-measures (MacAvaney, Macdonald and Ounis, "Streamlining evaluation with ir-measures", 2022)."""

from collections.abc import Mapping

import numpy as np

from embedding_pipelines.extras import need
from embedding_pipelines.metrics.base import ByQuery, Metric
from embedding_pipelines.metrics.evidence import Evidence

Qrels = Mapping[str, Mapping[str, float]]  # relevance by document, by query

NAMES = {  # as this project calls them; as ir-measures does, and what they say
    "ndcg_at_10": ("nDCG@10", "nDCG@10 of the queries with relevance judgements."),
    "judged_recall_at_10": ("R@10", "Share of the relevant documents among the first 10."),
    "judged_recall_at_100": ("R@100", "Share of the relevant documents among the first 100."),
    "mrr_at_10": ("RR@10", "Mean reciprocal rank (first 10) of the first relevant document."),
}


def values_by_query(
    rankings: Mapping[str, Mapping[str, float]], qrels: Qrels
) -> dict[str, dict[str, float]]:
    """By query with a relevant document, the four keys of NAMES, each in [0, 1].

    `rankings` have the score of each document that a query's search returned; equal scores are
    ordered by document id, as trec_eval does. `qrels` have each judged document's relevance: 1 and
    more is relevant, and nDCG's gain is the number itself. A query without a ranking counts 0; one
    that no document answers is left out. Raises ValueError if no query is left, or a relevance is
    no whole number.
    """
    ir_measures = need("ir_measures", "evaluation")
    answerable: dict[str, dict[str, int]] = {}
    for query, relevance in qrels.items():
        if max(relevance.values(), default=0) > 0:
            if any(grade != int(grade) for grade in relevance.values()):
                raise ValueError(
                    f"Query {query!r}: a relevance is a whole number, as in trec_eval; found "
                    f"{dict(relevance)!r}."
                )
            answerable[query] = {document: int(grade) for document, grade in relevance.items()}
    if not answerable:
        raise ValueError("qrels: no query has a relevant document, so there is nothing to measure.")
    names = {ir_measures.parse_measure(theirs): ours for ours, (theirs, _) in NAMES.items()}
    runs = {query: dict(rankings.get(query, {})) for query in answerable}
    values = {query: dict.fromkeys(NAMES, 0.0) for query in answerable}
    for value in ir_measures.iter_calc(list(names), answerable, runs):
        values[value.query_id][names[value.measure]] = float(value.value)
    return values


def _values(evidence: Evidence) -> dict[str, dict[str, float]]:
    return values_by_query(evidence.rankings, evidence.qrels) if evidence.qrels else {}


def _ndcg_by_query(evidence: Evidence) -> dict[str, float]:
    values = evidence.once(_values)
    return {evidence.query_ids[query]: value["ndcg_at_10"] for query, value in values.items()}


def _mean_metric(name: str, by_query: ByQuery | None = None) -> Metric:
    """The metric that is the mean over the queries of a measure, a key of NAMES."""

    def measure(evidence: Evidence) -> float | None:
        values = [value[name] for value in evidence.once(_values).values()]
        return float(np.mean(values)) if values else None

    return Metric(name, "higher", "share", NAMES[name][1], measure, by_query)


ndcg_at_10 = _mean_metric("ndcg_at_10", _ndcg_by_query)
judged_recall_at_10 = _mean_metric("judged_recall_at_10")
judged_recall_at_100 = _mean_metric("judged_recall_at_100")
mrr_at_10 = _mean_metric("mrr_at_10")
