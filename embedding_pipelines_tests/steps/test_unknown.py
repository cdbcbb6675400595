"""Texts of a script that the model has no tokens for: the run says so when it cuts them, a metric
counts them, a check holds back what is nothing else, and whoever searches is told."""

import logging
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.errors import ConfigError, ReleaseError
from embedding_pipelines.progress import Silent
from embedding_pipelines.run import Run
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import report, steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.embedding.test_texts import THAI, with_vocabulary


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(home: Path, titles: list[str]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The statistics of `chunks`, the checks by name, and the notes of a run over these titles."""
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(str(n), title, "x") for n, title in enumerate(titles)])
    progress = Notes()
    with Run(find_pipeline("p", home), Warehouse(home), progress, with_vocabulary()) as opened:
        results = list(steps(opened))
    reports = [result for name, result in results if name == "chunks"]
    sums = {
        name: sum(entry.statistics[name] for entry in reports)
        for name in ("tokens", "unknown_tokens", "chunks")
    }
    (checks,) = [result for name, result in results if name == "checks"]
    assert report([result for name, result in results if name == "release"], "release").changed
    return sums, {check.name: check for check in checks}, progress.notes


def test_a_corpus_that_the_model_knows_is_passed_over(home: Path) -> None:
    counts, checks, notes = run(home, [f"the quick fox {n}" for n in range(20)])
    assert counts["unknown_tokens"] == 0
    check = checks["model_knows_the_texts"]
    assert check.passed
    assert check.statistics == {"unknown_token_share": 0}
    assert notes == []


def test_some_unknown_tokens_are_told_at_first_sight_and_warn(home: Path) -> None:
    counts, checks, notes = run(home, [*["the quick brown fox"] * 3, THAI])
    assert (counts["tokens"], counts["unknown_tokens"], counts["chunks"]) == (22, 2, 4)
    (note,) = notes
    assert note.startswith(
        "14% of the tokens are unknown to the model: hashing:words reads nothing"
    )
    assert repr(THAI) in note
    check = checks["model_knows_the_texts"]
    assert (check.passed, check.effect) == (False, "warn")
    assert "14.3% of the tokens are unknown" in check.sentence
    assert check.statistics == {"unknown_token_share": pytest.approx(2 / 14, abs=1e-6)}
    counts, _, notes = run(home, [*["the quick brown fox"] * 3, THAI, "a dog"])
    assert counts["unknown_tokens"] == 2  # also of what was not cut again
    assert notes == []


def test_a_corpus_that_the_model_reads_nothing_of_is_held_back(home: Path) -> None:
    with pytest.raises(ReleaseError, match="model_knows_the_texts"):
        run(home, [f"{THAI} {'ก' * n}" for n in range(1, 9)])


def test_a_query_is_never_cut_unseen_and_its_unknown_words_are_told(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(home, ["the quick brown fox", "a lazy dog"])
    with Searcher(home, "p", with_vocabulary()) as searcher:
        long = "fox " * 300 + "dog"
        for search in (searcher.search, lambda query: searcher.search_many([query])):
            with pytest.raises(
                ConfigError, match=r"has 303 tokens; of a query, .* reads 256\. Sho"
            ):
                search(long)
        caplog.set_level(logging.WARNING)
        for query in (long, [long]):
            assert len(searcher.search(query, 1, too_long="cut").to_pandas()) == 1
            (message,) = caplog.messages
            assert "reads 256, and it was cut there." in message
            caplog.clear()
        (note,) = searcher.search(f"fox {THAI}").notes
        assert note.startswith("67% of the tokens are unknown")
        assert caplog.messages == [note]
        assert searcher.search("fox").notes == []
