"""How well a search finds what people judged relevant. The figures are those of trec_eval, BEIR and
MTEB.

They are computed by ir-measures (MacAvaney, Macdonald and Ounis, "Streamlining evaluation with
ir-measures", 2022), which asks trec_eval's own code.
"""

from collections.abc import Mapping

from embedding_pipelines.extras import need

Gains = Mapping[str, Mapping[str, float]]

METRICS = {  # as this project calls them, as ir-measures does
    "ndcg_at_10": "nDCG@10",
    "judged_recall_at_10": "R@10",
    "judged_recall_at_100": "R@100",
    "mrr_at_10": "RR@10",
}


def judged(run: Mapping[str, Mapping[str, float]], qrels: Gains) -> dict[str, dict[str, float]]:
    """By judged query, the four MEASURES, each in [0, 1].

    `run` has the score of each document that was found, by query; equal scores are ordered by
    document id, as trec_eval does. `qrels` has the gain of each judged document, a whole number; 1
    and more is relevant, nDCG takes gains as they are. A query without a ranking counts 0; one that
    no document answers is left out. Raises ValueError if no query is left, or a gain is no whole
    number.
    """
    ir_measures = need("ir_measures", "evaluation")
    answerable = {
        query: _whole(query, gains)
        for query, gains in qrels.items()
        if max(gains.values(), default=0) > 0
    }
    if not answerable:
        raise ValueError(
            "There are no judgements to measure against: no query has a document with a positive gain."
        )
    names = {ir_measures.parse_measure(theirs): ours for ours, theirs in METRICS.items()}
    found = {query: dict(run.get(query, {})) for query in answerable}
    values = {query: dict.fromkeys(METRICS, 0.0) for query in answerable}
    for value in ir_measures.iter_calc(list(names), answerable, found):
        values[value.query_id][names[value.measure]] = float(value.value)
    return values


def _whole(query: str, gains: Mapping[str, float]) -> dict[str, int]:
    if any(gain != int(gain) for gain in gains.values()):
        raise ValueError(
            f"Query {query!r}: a gain is a whole number, as in trec_eval; found {dict(gains)!r}."
        )
    return {document: int(gain) for document, gain in gains.items()}
