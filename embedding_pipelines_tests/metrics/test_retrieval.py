"""Measures of judged queries against figures worked out by hand."""

import math

import pytest

from embedding_pipelines.metrics.evidence import Evidence
from embedding_pipelines.metrics.registry import METRICS
from embedding_pipelines.metrics.retrieval import NAMES, values_by_query
from embedding_pipelines_tests.rankings import mean_ndcg


@pytest.mark.parametrize(
    ("ranking", "gains", "wanted"),
    [
        (["a"], {"a": 1}, 1.0),
        (["x", "a"], {"a": 1}, 1 / math.log2(3)),
        (["a", "x", "b"], {"a": 1, "b": 1}, (1 + 1 / 2) / (1 + 1 / math.log2(3))),
        (["b", "a"], {"a": 2, "b": 1}, (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))),
        ([f"x{place}" for place in range(10)] + ["a"], {"a": 1}, 0.0),
        (
            [f"a{place}" for place in range(10)],
            {f"a{place}": 1 for place in range(20)},
            1.0,
        ),  # ten places can be won
        ([], {"a": 1}, 0.0),
        (["x"], {"a": 1}, 0.0),
        (["x", "x", "x", "a"], {"a": 1}, 1 / math.log2(3)),  # a document's chunks take one place
        (["a"], {"a": 1, "b": 0}, 1.0),
        (["b", "a"], {"a": 1.0, "b": 0.0}, 1 / math.log2(3)),
    ],
)
def test_ndcg_is_that_of_trec_eval(
    ranking: list[str], gains: dict[str, float], wanted: float
) -> None:
    assert mean_ndcg({"q": ranking}, {"q": gains}) == pytest.approx(wanted)


def test_the_mean_counts_queries_without_a_ranking() -> None:
    assert mean_ndcg({"q": ["a"], "unjudged": ["b"]}, {"q": {"a": 1}, "r": {"b": 1}}) == 0.5


def test_each_judged_query_has_its_metrics() -> None:
    run = {
        "q": {f"x{place}": 1 - place / 1_000 for place in range(50)} | {"a": 0.9985, "b": 0.5},
        "u": {"a": 1.0},
    }
    assert values_by_query(
        run, {"q": {"a": 1, "b": 1, "c": 2, "d": 0}, "r": {"a": 1}, "empty": {}, "none": {"a": 0}}
    ) == {
        "q": {
            "ndcg_at_10": pytest.approx((1 / math.log2(4)) / (2 + 1 / math.log2(3) + 1 / 2)),
            "judged_recall_at_10": pytest.approx(1 / 3),
            "judged_recall_at_100": pytest.approx(2 / 3),
            "mrr_at_10": pytest.approx(1 / 3),
        },
        "r": dict.fromkeys(NAMES, 0.0),
    }


def test_the_metrics_are_means_over_the_queries_with_judgements() -> None:
    evidence = Evidence(
        rankings={"q": {"a": 1.0}},
        qrels={"q": {"a": 1}, "r": {"a": 1}},
        query_ids={"q": "Q", "r": "R"},
    )
    assert [METRICS[name].measure(evidence) for name in NAMES] == [0.5] * 4
    assert [METRICS[name].measure(Evidence()) for name in NAMES] == [None] * 4
    ndcg = METRICS["ndcg_at_10"]
    assert ndcg.by_query is not None
    assert ndcg.by_query(evidence) == {"Q": 1.0, "R": 0.0}


def test_what_cannot_be_measured_is_refused() -> None:
    for qrels in ({}, {"q": {}}, {"q": {"a": 0}}):
        with pytest.raises(ValueError, match="no query has a relevant document"):
            values_by_query({}, qrels)
    with pytest.raises(ValueError, match="whole number"):
        values_by_query({}, {"q": {"a": 0.5}})
