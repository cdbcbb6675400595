"""Markup goes, the text stays, and what only speaks of markup is left alone."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.preprocessing import html
from embedding_pipelines.preprocessing.base import Counts, Preprocessing
from embedding_pipelines_tests.preprocessing.test_base import documents, process

PAGE = """<!DOCTYPE html>
<html><head><title>Chairs &amp; more</title><style>p { color: red }</style></head>
<body><!-- menu --><h1>A <b>bold</b>ly made\n chair</h1><script>track("<p>no</p>")</script>
<p class="lead">Only 5&nbsp;mm, caf&eacute; &lt;new&gt;<br>second line</p>
<ul><li>one<li>two</ul><img src="x.png" alt="A red chair"><table><tr><th>w</th><td>4</td></tr>
</table><pre>a\nb</pre></body></html>"""


def test_a_page_becomes_its_text() -> None:
    assert html.is_markup(PAGE)
    assert html.text_of(PAGE).replace("\xa0", " ").splitlines() == [
        "Chairs & more",
        "A boldly made chair",
        "Only 5 mm, café <new>",
        "second line",
        "one",
        "two",
        "A red chair",
        "w 4",
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    "text",
    [
        '<p class="lead">Rotor, 5 mm</p>',
        "<p>broken <b>markup</p>",
        "Great chair.<br>Light.<br/>Foldable.<BR />White.",
        "<div>\n" + "<p>many words in a long paragraph</p>\n" * 2_000 + "</div>\n",
    ],
)
def test_what_is_mostly_markup_is_told(text: str) -> None:
    assert html.is_markup(text)
    assert "<" not in html.text_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5 < 6 and 7 > 3",
        "AT&amp;T",
        "Use <b> and </b> to write in bold letters.",
        "List<T> of Map<K, V>",
        "<unknown><tags></tags></unknown>",
        "Write to <me@example.org>",
        "A long text of many words, in which one line break <br> is left over.",
    ],
)
def test_what_only_holds_angle_brackets_is_left_alone(text: str) -> None:
    assert not html.is_markup(text)


@given(st.text(st.sampled_from("<>/!-pbr ='\"&;ax\n\x00")), st.booleans())
def test_no_markup_is_too_broken(text: str, deep: bool) -> None:
    text = "<div>" * (600 * deep) + text
    html.is_markup(text)
    assert isinstance(html.text_of(text), str)


def test_elements_that_html_does_not_know_separate_words() -> None:
    text = (
        "<p>x<o:p>one</o:p><a>two</a></p><Item>three</Item><item>four</item>fi<wbr>ve<ins>s</ins>"
    )
    assert html.text_of(text) == "x one two\nthree four fives"


@pytest.mark.parametrize("part", ["<div>", "<b>", "<x>", "<!--", "<a ", "<", "</p>", "<p>a<b>"])
def test_no_markup_takes_long(part: str) -> None:
    text = part * 50_000 + "the end &amp; all</p>"
    started = time.process_time()
    html.is_markup(text)
    assert isinstance(html.text_of(text), str)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("option", "expected", "count"),
    [
        ("auto", ["Rotor, 5 mm", "plain <b>text</b> of many words"], 1),
        (True, ["Rotor, 5 mm", "plain text of many words"], 2),
        (False, ["<p>Rotor, 5 mm</p>", "plain <b>text</b> of many words"], 0),
    ],
)
def test_documents_lose_their_markup(option: html.Html, expected: list[str], count: int) -> None:
    counts = Counts()
    texts = ["<p>Rotor, 5 mm</p>", "plain <b>text</b> of many words", "no markup"]
    batches = process(Preprocessing(html=option, chunk=None), documents(texts), counts=counts)
    rows = [text for batch in batches for text in batch["text"].to_pylist()]
    assert rows == [*expected, "no markup"]
    assert counts.html == count


def test_the_option_is_in_the_version() -> None:
    versions = {Preprocessing(html=option).version for option in ("auto", True, False)}
    assert len(versions) == 3
