"""nDCG against figures worked out by hand."""

import math

import pytest

from embedding_pipelines.evaluation.retrieval import mean_ndcg, ndcg


@pytest.mark.parametrize(
    ("ranking", "judged", "k", "wanted"),
    [
        (["a"], {"a": 1}, 10, 1.0),
        (["x", "a"], {"a": 1}, 10, 1 / math.log2(3)),
        (["a", "x", "b"], {"a": 1, "b": 1}, 10, (1 + 1 / 2) / (1 + 1 / math.log2(3))),
        (["b", "a"], {"a": 2, "b": 1}, 10, (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))),
        (["x", "a"], {"a": 1}, 1, 0.0),
        (["a", "b"], {"a": 1, "b": 1, "c": 1}, 2, 1.0),  # no more than k places can be won
        ([], {"a": 1}, 10, 0.0),
        (["x"], {"a": 1}, 10, 0.0),  # what was missed is not found in the places that are left
        (["x", "x", "x", "a"], {"a": 1}, 2, 1 / math.log2(3)),  # a document's chunks take one place
        (["a"], {"a": 1, "b": 0}, 10, 1.0),
        (["b", "a"], {"a": 1, "b": 0}, 10, 1 / math.log2(3)),
    ],
)
def test_ndcg_is_that_of_trec_eval(ranking: list[str], judged: dict[str, float], k: int, wanted: float) -> None:
    assert ndcg(ranking, judged, k) == pytest.approx(wanted)


def test_the_mean_counts_queries_without_a_ranking() -> None:
    assert mean_ndcg({"q": ["a"], "unjudged": ["b"]}, {"q": {"a": 1}, "r": {"b": 1}}) == 0.5


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no judgements"):
        mean_ndcg({}, {})
    with pytest.raises(ValueError, match="positive gain"):
        ndcg(["a"], {"a": 0})
