"""Searches by words before the first release."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import ReleaseError, StoreError
from embedding_pipelines.search import search
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines_tests.chain import run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.search.test_searcher import PIPELINE, ROWS


def test_texts_are_searchable_by_words_as_soon_as_they_are_cut(home: Path) -> None:
    """No vector exists and nothing is written; the first release then answers."""
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", ROWS, "id,title,Cat,year")
    with pytest.raises(ReleaseError, match="has no release yet"):
        search(home, "p", "animal7", mode="text")
    with run_of(home, "p") as run:
        for step in steps_of(run.spec)[:2]:
            list(step.work(run, run.spec.partition_names))
    before = sorted(path for path in home.rglob("*"))
    result = search(home, "p", "rooms animal7", 3, mode="text")
    assert sorted(path for path in home.rglob("*")) == before
    assert (result.release, result.mode, result.hits[0].document_id) == (0, "text", "id-7")
    assert result.hits[0].metadata == {"Cat": "odd", "year": 7}
    assert "'p' has no release yet" in result.notes[0]
    assert "4 of 4 partitions" in result.notes[0]
    assert result.to_pandas()["year"][0] == 7
    few = search(home, "p", "animal7 animal8", 3, {"Cat": "even"}, mode="text")
    assert [hit.document_id for hit in few.hits] == ["id-8"]
    with pytest.raises(StoreError, match="cannot be used"):
        search(home, "p", "x", 3, "year =", mode="text")
    for mode in (None, "vector", "hybrid"):
        with pytest.raises(ReleaseError, match="has no release yet"):
            search(home, "p", "animal7", mode=mode)  # type: ignore[call-overload]
    run_steps(home, "p")
    assert search(home, "p", "animal7", mode="text").release == 1
