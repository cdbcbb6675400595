"""How well a search finds what people judged relevant. The figures are those of trec_eval, BEIR and MTEB."""

from collections.abc import Mapping, Sequence


def mean_ndcg(
    rankings: Mapping[str, Sequence[str]], judgements: Mapping[str, Mapping[str, float]], k: int = 10
) -> float:
    """nDCG@k, averaged over all judged queries; in [0, 1].

    `rankings` has document ids per query, nearest first; `judgements` the gain of each relevant document,
    linear as in trec_eval. A document that comes again (another chunk of it) counts where it came first.
    A query without a ranking counts 0. Raises ValueError if a query has no document with a positive gain.
    """
    if not judgements:
        raise ValueError("There are no judgements to measure against.")
    return sum(ndcg(rankings.get(query, ()), judged, k) for query, judged in judgements.items()) / len(judgements)


def ndcg(ranking: Sequence[str], judged: Mapping[str, float], k: int = 10) -> float:
    """nDCG@k of one query; see `mean_ndcg`."""
    from sklearn.metrics import ndcg_score

    if not any(gain > 0 for gain in judged.values()):
        raise ValueError("A query needs at least one document with a positive gain.")
    found = list(dict.fromkeys(ranking))[:k]
    missed = [document for document in judged if document not in found]
    # scikit-learn ranks every document it is given: empty places keep the missed ones out of the first k.
    gains = [judged.get(document, 0.0) for document in found] + [0.0] * (k - len(found))
    gains += [judged[document] for document in missed] + [0.0]  # it refuses to rank a single one
    return float(ndcg_score([gains], [[-place for place in range(len(gains))]], k=k, ignore_ties=True))
