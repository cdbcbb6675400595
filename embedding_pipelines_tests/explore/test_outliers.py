"""Outliers of a live table: the documents that are about nothing like the others."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.compression.base import unit
from embedding_pipelines.errors import ConfigError, ReleaseError
from embedding_pipelines.explore import outliers as explore
from embedding_pipelines.explore.outliers import find_outliers, isolation
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.explore.topics import (
    COMPRESSED,
    HEADER,
    ODD,
    PIPELINE,
    write_topics,
)


@pytest.mark.parametrize("pipeline", [PIPELINE, COMPRESSED])
@pytest.mark.parametrize("reference_rows", [20_000, 100])
def test_what_was_planted_comes_first(
    home: Path, pipeline: str, reference_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore, "REFERENCE_ROWS", reference_rows)
    write_topics(home, pipeline=pipeline)
    result = find_outliers(home, "p", 10)
    frame = result.to_pandas()
    assert (result.pipeline, result.release, result.rows, len(frame)) == ("p", 1, 123, 10)
    assert list(frame) == ["score", "chunk_id", "document_id", "start", "end", "text"]
    assert sorted(frame["text"][:3]) == sorted(ODD)
    assert frame["score"].is_monotonic_decreasing
    assert frame["score"][2] > 2 * frame["score"][3] > 0
    assert result.typical < frame["score"][9]


@pytest.mark.parametrize(("share", "rows"), [(0.1, 12), (1.0, 123), (1e-9, 1)])
def test_a_share_of_all_rows(home: Path, share: float, rows: int) -> None:
    write_topics(home)
    assert len(find_outliers(home, "p", share=share).table) == rows


def test_texts_that_come_often_are_no_outliers_and_few_rows_will_do(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    rows = [(number, "the same text", "", "", "") for number in range(5)]
    write_csv(home, "a.csv", [*rows, (9, "zebra", "", "", "")], HEADER)
    run_steps(home, "p")
    frame = find_outliers(home, "p").to_pandas()
    assert len(frame) == 6
    assert frame["text"][0] == "zebra"
    write_csv(home, "a.csv", [(9, "zebra", "", "", "")], HEADER)
    run_steps(home, "p")
    with pytest.raises(ConfigError, match="has 1 rows: none can be an outlier"):
        find_outliers(home, "p")


def test_what_cannot_be_is_a_readable_error(home: Path) -> None:
    for options, words in (
        ({"number": 0}, "is 0; it must be 1"),
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"number": 5, "share": 0.1}, "not both"),
    ):
        with pytest.raises(ConfigError, match=words):
            find_outliers(home, "p", **options)
    with pytest.raises(ConfigError, match="There is no pipeline 'p'"):
        find_outliers(home, "p")
    write_pipeline(home, "p", PIPELINE)
    with pytest.raises(ReleaseError, match="no release yet"):
        find_outliers(home, "p")


@pytest.mark.parametrize("at_once", [1, 250, 8_000_000])
def test_it_is_the_distance_that_a_full_sort_gives(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explore, "COSINES_AT_ONCE", at_once)
    random = np.random.default_rng(0)
    units = unit(random.normal(size=(60, 8)).astype(np.float32))
    units[7] = 0
    chosen = np.sort(random.choice(60, 25, replace=False))
    own = np.isin(np.arange(60), chosen)
    for k in (1, 5, 24):
        expected = []
        for row, vector in enumerate(units):
            others = units[[other for other in chosen if other != row]]
            expected.append(np.sort(1 - others @ vector)[k - 1])
        assert isolation(units, units[chosen], own, k) == pytest.approx(expected, abs=1e-6)


def test_equal_rows_are_at_no_distance_and_odd_ones_at_a_large_one() -> None:
    units = unit(np.array([[1, 0]] * 30 + [[0, 1]] * 3 + [[-1, 0]], np.float32))
    scores = isolation(units, units, np.ones(34, np.bool_), 20)
    assert scores[:30].tolist() == [0] * 30
    assert scores[30:].tolist() == [1, 1, 1, 2]
