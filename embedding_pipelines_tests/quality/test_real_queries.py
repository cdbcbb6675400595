"""What people searched for and said of it decides with what a candidate is."""

from pathlib import Path

import pytest

from embedding_pipelines.quality.evaluate import CHECKS
from embedding_pipelines.releases import live_release
from embedding_pipelines.search import Searcher
from embedding_pipelines.storage.receipts import Receipts
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    checks_of,
    copy_home,
    run_of,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING

WORDS = (
    "fox",
    "whale",
    "wolf",
    "lynx",
    "otter",
    "heron",
    "raven",
    "viper",
    "bison",
    "moose",
    "crane",
    "gull",
)
ROWS = [(f"id-{word}", f"the {word} lives in its own place", "animal") for word in WORDS]


@pytest.fixture(scope="module")
def searched_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose pipeline was searched, with receipts of what was shown."""
    home = tmp_path_factory.mktemp("searched")
    write_pipeline(home, "p", HASHING + "receipts: {share: 1}\n")
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    receipts = Receipts(Warehouse(home).pipeline("p").folder)
    with Searcher(home, "p") as searcher:
        for word in WORDS:
            result = searcher.search(word, k=3)
            receipts.add(
                word,
                [hit.document_id for hit in result.hits],
                release=result.release,
                mode="vector",
                k=3,
                keeps_text=True,
            )
    return home


@pytest.fixture
def searched(home: Path, searched_once: Path) -> Path:
    return copy_home(searched_once, home)


def outcome(home: Path) -> tuple[bool, str]:
    (check,) = [
        each for each in checks_of(run_of(home, "p")) if each.name == "real_queries_answer_alike"
    ]
    return check.passed, check.sentence


def test_a_candidate_that_answers_alike_passes(searched: Path) -> None:
    write_csv(searched, "b.csv", [("new", "something else entirely", "thing")])
    run_steps(searched, "p")
    passed, sentence = outcome(searched)
    assert passed
    assert sentence.startswith("Of what 12 queries to release 1 were shown, ")


def test_one_that_answers_otherwise_is_told_with_the_queries(searched: Path) -> None:
    write_csv(searched, "a.csv", [(f"other-{name}", text, cat) for name, text, cat in ROWS])
    run_steps(searched, "p")
    passed, sentence = outcome(searched)
    assert not passed
    assert "12 queries to release 1 were shown, 0% is found again" in sentence
    assert "Least of: '" in sentence


def test_what_the_queries_cost_is_known_before(searched: Path) -> None:
    with run_of(searched, "p") as run:
        cost = CHECKS["real_queries_answer_alike"].cost(run)
    assert cost >= len(WORDS)


def test_without_receipts_nothing_is_compared(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    write_csv(home, "b.csv", [("new", "something else entirely", "thing")])
    run_steps(home, "p")
    assert outcome(home) == (True, "Skipped: of release 1 no query is kept, 10 needed.")


def test_ratings_are_relevance_judgements_of_the_next_candidate(searched: Path) -> None:
    receipts = Receipts(Warehouse(searched).pipeline("p").folder)
    for each in receipts.read()[0]:
        assert receipts.rate(each.id, f"id-{each.query}", 3)
    first = receipts.read()[0][0]
    assert receipts.rate(first.id, first.documents[-1], 0)
    write_csv(searched, "b.csv", [("new", "something else entirely", "thing")])
    run_steps(searched, "p")
    metrics = live_release(run_of(searched, "p").folder).metrics
    assert metrics["ndcg_at_10"] > 0.9


def test_ratings_of_documents_that_are_gone_hold_nothing_up(searched: Path) -> None:
    receipts = Receipts(Warehouse(searched).pipeline("p").folder)
    first = receipts.read()[0][0]
    assert receipts.rate(first.id, first.documents[0], 3)
    rows = [row for row in ROWS if row[0] != first.documents[0]]
    write_csv(searched, "a.csv", [*rows, ("new", "something else entirely", "thing")])
    run_steps(searched, "p")
    assert live_release(run_of(searched, "p").folder).number == 2
