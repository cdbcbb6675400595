"""How good rankings are, for tests that have documents in order and no scores."""

from collections.abc import Mapping, Sequence

from embedding_pipelines.metrics.retrieval import Qrels, values_by_query


def mean_ndcg(rankings: Mapping[str, Sequence[str]], qrels: Qrels) -> float:
    """nDCG@10, averaged over the queries of `values_by_query`; in [0, 1].

    `rankings` has document ids by query, nearest first; one that comes again (another chunk) counts
    where it was first. Raises ValueError as `values_by_query`.
    """
    run = {
        query: {name: -float(place) for place, name in enumerate(dict.fromkeys(ranking))}
        for query, ranking in rankings.items()
    }
    values = values_by_query(run, qrels)
    return sum(value["ndcg_at_10"] for value in values.values()) / len(values)
