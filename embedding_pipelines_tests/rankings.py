"""How good rankings are, for tests that have documents in order and no scores."""

from collections.abc import Mapping, Sequence

from embedding_pipelines.metrics.retrieval import Gains, judged


def mean_ndcg(rankings: Mapping[str, Sequence[str]], qrels: Gains) -> float:
    """nDCG@10, averaged over the queries of `judged`; in [0, 1].

    `rankings` has document ids by query, nearest first; one that comes again (another chunk) counts
    where it was first. Raises ValueError as `judged`.
    """
    run = {
        query: {name: -float(place) for place, name in enumerate(dict.fromkeys(ranking))}
        for query, ranking in rankings.items()
    }
    values = judged(run, qrels)
    return sum(value["ndcg_at_10"] for value in values.values()) / len(values)
