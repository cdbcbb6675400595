"""Queries from texts of many kinds: what is asked is short and always the same; and where the
document that it is of stands among the hits."""

import time
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.metrics.evidence import Evidence, Search
from embedding_pipelines.metrics.known_items import (
    MAX_WORDS,
    known_item,
    known_item_mrr,
    known_item_recall,
    reciprocal_rank,
)

ABSTRACT = "White matter changes in the newborn brain. We scanned 24 infants at term. The mean was 1.78 μm2/ms."
DIFFUSION = "Diffusion imaging of the newborn"
COPY = "shutil.copy2\nCopy data and metadata. Return the file's destination."
PEP = "PEP: 8\nTitle: Style Guide for Python Code\nAuthor: Guido van Rossum\n\n\nIntroduction\n====\n\nThis is it."


@pytest.mark.parametrize(
    ("text", "title", "query"),
    [
        (ABSTRACT, DIFFUSION, DIFFUSION),
        (f"{DIFFUSION}\n{ABSTRACT}", DIFFUSION, DIFFUSION),
        (ABSTRACT, None, "White matter changes in the newborn brain."),
        (COPY, None, "Copy data and metadata."),
        (COPY, "shutil.copy2", "Copy data and metadata."),
        (
            "Two young guys with shaggy hair look at their hands while hanging out.",
            None,
            "young guys shaggy look their hanging out.",
        ),
        (PEP, None, "Title: Style Guide for Python Code"),
        (
            "Hi all,\nmy disk is full of files! What can I do?",
            None,
            "Hi all, my disk is full of files!",  # a line that goes on with a small letter
        ),
        (
            "https://example.org/a?b=1 The new release is out. It mends many bugs.",
            None,
            "The new release is out.",
        ),
        (
            "1. Introduction to the subject. We begin.\n2. The end of it.",
            None,
            "Introduction to the subject.",
        ),
        ("# Installing the package\n\nRun pip now, please.", None, "Installing the package"),
        (
            "**Warning:** do not do this.\n===\nIt breaks the thing.",
            None,
            "Warning:** do not do this.",
        ),
        (
            "We compare, e.g. Java by J. Doe (i.e. old) v. 2. It is fast now.",
            None,
            "We compare, e.g. Java by J. Doe (i.e. old) v. 2.",
        ),
        ("我喜欢在公园里散步。今天的天气非常好，所以我们去了海边。", None, "我喜欢在公园里散步。"),
        ("私は東京に住んでいます！「はい。」と言いました。", None, "私は東京に住んでいます！"),
        ("我喜欢在公园里散步", None, "我喜 公园 步"),
        (
            "Так было всегда и везде. Потом стало иначе, чем раньше.",
            None,
            "Так было всегда и везде.",
        ),
        ("क्या यह सही है अभी। हाँ यह सही है और अच्छा है।", None, "क्या यह सही है अभी।"),
        ("The end of it all. The end of it all.", None, "The of all. end all."),
        ("One for all here. Yes.", None, "One here. Yes."),
    ],
)
def test_the_query_is_what_a_text_begins_with(text: str, title: str | None, query: str) -> None:
    assert known_item(text, title) == query


@pytest.mark.parametrize(
    "text",
    ["", " \n ", "42", "... --- ...", "shutil.copy2", "Yes, it is.", "一二三", "https://a.org/b c"],
)
def test_a_text_without_words_enough_gives_none(text: str) -> None:
    assert known_item(text) is None
    assert known_item("", text) is None


def test_a_title_that_comes_again_is_passed_over() -> None:
    text = "Pythons of South Asia are large. Here we count the pythons of south asia by hand."
    query = known_item(text, "Pythons of South\n Asia")
    assert query == "Pythons of South Asia are large."


def test_a_query_has_64_words_at_most() -> None:
    for text in (
        " ".join(f"word{number}" for number in range(900)),
        " ".join(f"word{number}" for number in range(900)) + ". And then it ends here.",
        "".join(chr(0x4E00 + number) for number in range(900)) + "。今天的天气非常好",
    ):
        query = known_item(text)
        assert query is not None
        assert len(query.split()) <= MAX_WORDS
        assert len(query) <= MAX_WORDS * 8


words = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    [
        "the",
        "Word",
        "e.g.",
        "end.",
        "End!",
        "\n",
        "\n\n",
        "# ",
        "。",
        "我们",
        "3.1",
        "https://x.org",
        "ไทย",
        "İ",
        "ß",
    ]
)
texts = st.lists(words, max_size=40).map(" ".join) | st.text()


@given(texts, st.none() | texts)
def test_a_query_is_never_empty_and_always_the_same(text: str, title: str | None) -> None:
    query = known_item(text, title)
    assert query == known_item(text, title)
    assert query is None or any(map(str.isalnum, query))
    assert query is None or query == " ".join(query.split())


@pytest.mark.parametrize(
    "text", ["1\n" * 200_000, "a b c.\n" * 50_000, "x" * 1_000_000, "a." * 300_000, "# " * 300_000]
)
def test_no_text_takes_long(text: str) -> None:
    began = time.thread_time()
    known_item(text)
    assert time.thread_time() - began < 2


# --- how they are ranked


def search(ranking: Sequence[str], copies: Iterable[str] = (), name: str = "") -> Search:
    """A search for document "a" whose hits are chunks of these documents, nearest first."""
    hits = [(f"{name}#{at}", name, 1 - at / 100) for at, name in enumerate(ranking)]
    return Search(name, "a", hits, 1.0, [], frozenset(copies))


def evidence_of(rankings: Sequence[Sequence[str]]) -> Evidence:
    numbered = enumerate(rankings)
    return Evidence(searches=[search(ranking, name=f"{number}") for number, ranking in numbered])


@pytest.mark.parametrize(
    ("ranking", "copies", "rank"),
    [
        ("abcdefghij", "", 1),
        ("bacdefghij", "", 2),
        ("bcdefghija", "", 10),
        ("bcdefghijk", "", None),  # behind the ten hits
        ("bcdefghijka", "", None),
        ("bbbcccaddd", "", 3),  # several chunks of one document are one place
        ("bcaaaaaaaa", "", 3),
        ("bcdefghijk", "d", 3),  # the same text, under another id
        ("dcba", "db", 1),
        ("", "", None),
    ],
)
def test_a_document_stands_where_a_search_shows_it(
    ranking: str, copies: str, rank: int | None
) -> None:
    assert reciprocal_rank(search(ranking, copies)) == (1 / rank if rank else 0)


def test_both_figures_are_of_the_same_ranking() -> None:
    rankings = ["abcd", "bacd", "bcdefghijk", "bcdefghija", "dcab"]
    evidence = evidence_of(rankings)
    assert known_item_recall.measure(evidence) == 4 / 5
    assert known_item_mrr.measure(evidence) == pytest.approx((1 + 1 / 2 + 0 + 1 / 10 + 1 / 3) / 5)


@given(st.lists(st.permutations("abcdefghijkl"), min_size=1, max_size=20))
def test_the_mean_reciprocal_rank_lies_between_a_tenth_of_the_recall_and_the_recall(
    rankings: list[list[str]],
) -> None:
    evidence = evidence_of(rankings)
    recall, mean = known_item_recall.measure(evidence), known_item_mrr.measure(evidence)
    assert recall is not None
    assert mean is not None
    assert recall == sum("a" in ranking[:10] for ranking in rankings) / len(rankings)
    assert recall / 10 - 1e-9 <= mean <= recall + 1e-9
