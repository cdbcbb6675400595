"""Queries from texts of many kinds: what is asked is short, is not in the rest, and is always the
same."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.metrics.known_items import MAX_WORDS, known_item

ABSTRACT = "White matter changes in the newborn brain. We scanned 24 infants at term. The mean was 1.78 μm2/ms."
COPY = "shutil.copy2\nCopy data and metadata. Return the file's destination."
PEP = "PEP: 8\nTitle: Style Guide for Python Code\nAuthor: Guido van Rossum\n\n\nIntroduction\n====\n\nThis is it."


@pytest.mark.parametrize(
    ("text", "title", "query", "target"),
    [
        (
            ABSTRACT,
            "Diffusion imaging of the newborn",
            "Diffusion imaging of the newborn",
            ABSTRACT,
        ),
        (
            f"Diffusion imaging of the newborn\n{ABSTRACT}",
            "Diffusion imaging of the newborn",
            "Diffusion imaging of the newborn",
            ABSTRACT,
        ),
        (
            ABSTRACT,
            None,
            "White matter changes in the newborn brain.",
            "We scanned 24 infants at term. The mean was 1.78 μm2/ms.",
        ),
        (COPY, None, "Copy data and metadata.", "shutil.copy2\n Return the file's destination."),
        (
            COPY,
            "shutil.copy2",
            "Copy data and metadata.",
            "shutil.copy2\n Return the file's destination.",
        ),
        (
            "Two young guys with shaggy hair look at their hands while hanging out.",
            None,
            "young guys shaggy look their hanging out.",
            "Two young guys with shaggy hair look at their hands while hanging out.",
        ),
        (
            PEP,
            None,
            "Title: Style Guide for Python Code",
            PEP.replace("Title: Style Guide for Python Code\n", ""),
        ),
        (
            "Hi all,\nmy disk is full of files! What can I do?",
            None,
            "Hi all, my disk is full of files!",  # a line that goes on with a small letter
            "What can I do?",
        ),
        (
            "https://example.org/a?b=1 The new release is out. It mends many bugs.",
            None,
            "The new release is out.",
            "It mends many bugs.",
        ),
        (
            "1. Introduction to the subject. We begin.\n2. The end of it.",
            None,
            "Introduction to the subject.",
            None,
        ),
        (
            "# Installing the package\n\nRun pip now, please.",
            None,
            "Installing the package",
            "Run pip now, please.",
        ),
        (
            "**Warning:** do not do this.\n===\nIt breaks the thing.",
            None,
            "Warning:** do not do this.",
            None,
        ),
        (
            "We compare, e.g. Java by J. Doe (i.e. old) v. 2. It is fast now.",
            None,
            None,
            "It is fast now.",
        ),
        (
            "我喜欢在公园里散步。今天的天气非常好，所以我们去了海边。",
            None,
            "我喜欢在公园里散步。",
            "今天的天气非常好，所以我们去了海边。",
        ),
        (
            "私は東京に住んでいます！「はい。」と言いました。",
            None,
            "私は東京に住んでいます！",
            None,
        ),
        ("我喜欢在公园里散步", None, "我喜 公园 步", "我喜欢在公园里散步"),
        (
            "Так было всегда и везде. Потом стало иначе, чем раньше.",
            None,
            "Так было всегда и везде.",
            None,
        ),
        (
            "क्या यह सही है अभी। हाँ यह सही है और अच्छा है।",
            None,
            "क्या यह सही है अभी।",
            "हाँ यह सही है और अच्छा है।",
        ),
        ("The end of it all. The end of it all.", None, "The of all. end all.", None),
        ("One for all here. Yes.", None, "One here. Yes.", None),
    ],
)
def test_the_query_is_what_a_text_begins_with(
    text: str, title: str | None, query: str | None, target: str | None
) -> None:
    item = known_item(text, title)
    assert item is not None
    assert query in (None, item.query)
    assert target in (None, item.target)


@pytest.mark.parametrize(
    "text",
    ["", " \n ", "42", "... --- ...", "shutil.copy2", "Yes, it is.", "一二三", "https://a.org/b c"],
)
def test_a_text_without_words_enough_gives_none(text: str) -> None:
    assert known_item(text) is None
    assert known_item("", text) is None


def test_a_title_that_comes_again_is_passed_over() -> None:
    text = "Pythons of South Asia are large. Here we count the pythons of south asia by hand."
    item = known_item(text, "Pythons of South\n Asia")
    assert item is not None
    assert item.query == "Pythons of South Asia are large."


def test_a_query_has_64_words_at_most() -> None:
    for text in (
        " ".join(f"word{number}" for number in range(900)),
        " ".join(f"word{number}" for number in range(900)) + ". And then it ends here.",
        "".join(chr(0x4E00 + number) for number in range(900)) + "。今天的天气非常好",
    ):
        item = known_item(text)
        assert item is not None
        assert len(item.query.split()) <= MAX_WORDS
        assert len(item.query) <= MAX_WORDS * 8


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
def test_a_query_is_never_empty_and_a_part_that_was_taken_is_not_in_the_rest(
    text: str, title: str | None
) -> None:
    item = known_item(text, title)
    assert item == known_item(text, title)
    if item is None:
        return
    assert any(map(str.isalnum, item.query))
    assert item.query == " ".join(item.query.split())
    assert item.target == item.target.strip() != ""
    if item.target != text.strip():
        assert item.query.casefold() not in " ".join(item.target.split()).casefold()


@pytest.mark.parametrize(
    "text", ["1\n" * 200_000, "a b c.\n" * 50_000, "x" * 1_000_000, "a." * 300_000, "# " * 300_000]
)
def test_no_text_takes_long(text: str) -> None:
    began = time.monotonic()
    known_item(text)
    assert time.monotonic() - began < 2
