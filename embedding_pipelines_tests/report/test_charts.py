"""The charts: what can be drawn is drawn, and what cannot is left to a sentence."""

import json
from typing import Any

import numpy as np
import pytest
from plotly.graph_objects import Figure

from embedding_pipelines.report.charts import (
    ABSENT,
    COST,
    DRIFT,
    LATENCY,
    LINES,
    MODELS,
    RECALL,
    SIZE,
    THROUGHPUT,
    VARIANCE,
    charts,
)

SPECTRUM = np.array([0.6, 0.3, 0.1], np.float32)


def line(release: int, space: str = "a", usd: float = 0.01, **metrics: float) -> dict[str, Any]:
    """A release as the history tells of it."""
    return {
        "release": release,
        "released_at": f"2026-01-0{release}T00:00:00+00:00",
        "space": space,
        "codec": "c",
        "rows": 10,
        "metrics": {
            "recall_at_10": 0.99,
            "search_p50_ms": 5.0,
            "search_p95_ms": 8.0,
            "mean_shift": 0.01,
            **metrics,
        },
        "checks": {"nonzero": True},
        "embedded_tokens": 1_000 * release,  # of the pipeline's life, as the other two
        "provider_seconds": 0.5 * release,
        "usd": usd * release,
    }


def point(size: int, recall: float, **statistics: Any) -> dict[str, Any]:
    """A measured candidate of `optimize`."""
    chain = [{"kind": "pca", "dimensions": size}, {"kind": "int8"}]
    return {
        "compression": chain,
        "index": "sq",
        "refine": 2,
        "bytes_per_vector": size,
        "recall_at_10": recall,
        "lower_bound": recall - 0.01,
        "on_front": True,
        "chosen": False,
        **statistics,
    }


HISTORY = [line(1), line(2), line(3, space="b")]
OPTIMIZATION = {
    "floor": 0.98,
    "points": [point(64, 0.9), point(128, 0.99, chosen=True), point(128, 0.8, on_front=False)],
}


def lines(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """The points of each line or group of points, by the name of it."""
    return {
        trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data if trace.name
    }


def words(figure: Figure) -> set[str]:
    """What stands in a chart, but for its axes and its legend."""
    texts = [text for trace in figure.data for text in trace.text or ()]
    return {*texts, *(note.text for note in figure.layout.annotations)} - {""}


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return charts(HISTORY, OPTIMIZATION, SPECTRUM, 2)


def test_everything_there_is_becomes_one_chart_each(figures: dict[str, Figure]) -> None:
    assert list(figures) == [VARIANCE, SIZE, RECALL, LATENCY, DRIFT, THROUGHPUT, COST]
    for figure in figures.values():
        assert json.dumps(figure.to_dict(), allow_nan=False)
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_the_charts_say_what_was_chosen_kept_and_changed(figures: dict[str, Figure]) -> None:
    assert words(figures[VARIANCE]) == {"2 dimensions keep 90.0%"}
    assert figures[VARIANCE].data[0].y == pytest.approx((0, 0.6, 0.9, 1))
    assert words(figures[SIZE]) == {
        "pca 64, int8 · sq ×2",
        "pca 128, int8 · sq ×2",
        "floor 0.98",
    }
    assert lines(figures[SIZE]) == {
        "measured": [(128, 0.8)],
        "on the Pareto front": [(64, 0.9), (128, 0.99)],
        "chosen": [(128, 0.99)],
    }
    assert figures[SIZE].data[1].error_y.arrayminus == pytest.approx([0.01, 0.01])
    assert words(figures[RECALL]) == {"new model"}
    assert figures[RECALL].layout.shapes[0].x0 == 2.5


def test_a_release_is_charged_with_what_it_took_itself(figures: dict[str, Figure]) -> None:
    assert lines(figures[COST])["USD"] == [(n, pytest.approx(0.01)) for n in (1, 2, 3)]
    assert lines(figures[THROUGHPUT])["tokens a second"] == [(n, 2_000) for n in (1, 2, 3)]


def test_labels_that_would_cover_one_another_are_left_out() -> None:
    near = [point(64 + n, 0.9 + n / 1_000, chosen=n == 3) for n in range(6)]
    figure = charts([], {"points": [*near, point(32, 0.5)]}, None)[SIZE]
    assert words(figure) == {"pca 67, int8 · sq ×2", "pca 32, int8 · sq ×2"}


def test_a_change_is_marked_only_between_releases_that_are_drawn() -> None:
    history = [line(1, "a"), line(2, "b"), line(3, "b"), line(4, "c")]
    for release in (0, 3):
        del history[release]["metrics"]["mean_shift"]
    assert words(charts(history, None, None)[DRIFT]) == set()
    assert len(charts(history, None, None)[RECALL].layout.shapes) == 2


def test_models_that_were_compared_stand_below_one_another_with_their_intervals() -> None:
    values = {"mean": 0.7, "low": 0.6, "high": 0.9}
    own = {"model": "hf:<b>", "figures": {"ndcg_at_10": values, "known_item_mrr": values}}
    other = {"model": "hashing", "figures": {"known_item_mrr": values | {"mean": 0.65}}}
    figure = charts([], None, None, comparison={"models": [own, other]})[MODELS]
    judged, items = figure.data
    assert (list(judged.y), list(judged.x)) == (["hf:&lt;b&gt;"], [0.7])
    assert (list(items.y), list(items.x)) == (["hf:&lt;b&gt;", "hashing"], [0.7, 0.65])
    assert list(items.error_x.array) == pytest.approx([0.2, 0.25])
    assert list(items.error_x.arrayminus) == pytest.approx([0.1, 0.05])
    assert json.dumps(figure.to_dict(), allow_nan=False)


def test_what_would_like_to_be_markup_is_text() -> None:
    hostile = point(64, 0.9, index="<a href='javascript:alert(1)'>")
    figure = charts([], {"points": [hostile]}, None)[SIZE]
    assert words(figure) == {"pca 64, int8 · &lt;a href='javascript:alert(1)'&gt; ×2"}


def test_what_cannot_be_drawn_is_left_out_and_has_a_sentence() -> None:
    assert charts([], None, None) == {}
    assert set(ABSENT) == {MODELS, VARIANCE, SIZE, *LINES}
    assert charts([line(1)], {"points": []}, np.empty(0, np.float32)) == {}
    assert COST not in charts([line(1, usd=0.0), line(2, usd=0.0)], None, None)


def test_a_metric_that_some_releases_lack_or_that_is_no_number_is_skipped() -> None:
    history = [line(1), line(2, recall_at_10=float("nan"))]
    del history[0]["metrics"]["search_p50_ms"]
    figures = charts(history, None, None)
    assert RECALL not in figures
    assert list(lines(figures[LATENCY])) == ["95th percentile"]


def test_the_last_line_of_a_release_counts_and_the_order_of_lines_does_not() -> None:
    history = [line(2, recall_at_10=0.1), line(2, recall_at_10=0.5), line(1)]
    values = lines(charts(history, None, None)[RECALL])
    assert values["recall@10 against exact search"] == [(1, 0.99), (2, 0.5)]


def test_a_single_candidate_without_bounds_is_drawn() -> None:
    lone = point(128, 0.9, lower_bound=None, index="none", refine=None, compression=[])
    figure = charts([], {"points": [lone, point(64, 0.5, recall_at_10=None)]}, None)[SIZE]
    assert words(figure) == {"float32 · no index"}
