"""The charts: what can be drawn is drawn, what cannot is left to a sentence, and equal figures make
equal bytes."""

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from embedding_pipelines.report.pareto import described
from embedding_pipelines.report.plots import (
    ABSENT,
    COST,
    DRIFT,
    LATENCY,
    LINES,
    RECALL,
    SIZE,
    THROUGHPUT,
    VARIANCE,
    figures,
)

PNG = b"\x89PNG\r\n\x1a\n"
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
TUNING = {
    "floor": 0.98,
    "points": [point(64, 0.9), point(128, 0.99, chosen=True), point(128, 0.8, on_front=False)],
}


def written(svg: bytes) -> set[str]:
    """What an SVG says: matplotlib draws letters as paths and leaves each text in a comment."""
    return {part.split("-->")[0].strip() for part in svg.decode().split("<!--")[1:]}


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    """All charts as SVG."""
    return figures(HISTORY, TUNING, SPECTRUM, 2, "svg")


def test_everything_there_is_becomes_one_picture_each() -> None:
    found = figures(HISTORY, TUNING, SPECTRUM, 2)
    assert list(found) == [VARIANCE, SIZE, RECALL, LATENCY, DRIFT, THROUGHPUT, COST]
    assert all(picture.startswith(PNG) for picture in found.values())


def test_equal_figures_make_equal_bytes(drawn: dict[str, bytes]) -> None:
    assert figures(HISTORY, TUNING, SPECTRUM, 2, "svg") == drawn
    assert figures([], None, SPECTRUM) == figures([], None, SPECTRUM)


def test_an_svg_is_well_formed_and_says_what_was_chosen(drawn: dict[str, bytes]) -> None:
    for picture in drawn.values():
        assert ET.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert "2 dimensions keep 90.0%" in written(drawn[VARIANCE])
    assert {"pca 128, int8 · sq ×2", "chosen", "floor"} <= written(drawn[SIZE])
    assert "new model" in written(drawn[RECALL])


def test_what_cannot_be_drawn_is_left_out_and_has_a_sentence() -> None:
    assert figures([], None, None) == {}
    assert set(ABSENT) == {VARIANCE, SIZE, *LINES}
    assert figures([line(1)], {"points": []}, np.empty(0, np.float32)) == {}
    assert COST not in figures([line(1, usd=0.0), line(2, usd=0.0)], None, None)


def test_a_measure_that_some_releases_lack_or_that_is_no_number_is_skipped() -> None:
    history = [line(1), line(2, recall_at_10=float("nan"))]
    del history[0]["metrics"]["search_p50_ms"]
    found = figures(history, None, None)
    assert RECALL not in found
    assert LATENCY in found  # by the other percentile


def test_the_last_line_of_a_release_counts_and_the_order_of_lines_does_not() -> None:
    straight = figures([line(1), line(2, recall_at_10=0.5)], None, None, form="svg")
    again = figures(
        [line(2, recall_at_10=0.1), line(2, recall_at_10=0.5), line(1)], None, None, form="svg"
    )
    assert straight == again


def test_a_single_candidate_without_bounds_is_drawn() -> None:
    lone = point(128, 0.9, lower_bound=None, index="none", refine=None, compression=[], floor=None)
    found = figures([], {"points": [lone, point(64, 0.5, recall_at_10=None)]}, None, form="svg")
    assert "float32 · no index" in written(found[SIZE])


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ([], "float32"),
        ([{"kind": "binary", "oversample": 16}], "binary oversample 16"),
        ([{"kind": "pca", "dimensions": 128}, {"kind": "int8"}], "pca 128, int8"),
    ],
)
def test_a_chain_is_described_in_a_few_words(chain: list[dict[str, Any]], words: str) -> None:
    assert described(chain) == words


def test_nothing_is_left_in_the_library_s_own_settings() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures([], None, SPECTRUM)
    assert dict(matplotlib.rcParams) == before
