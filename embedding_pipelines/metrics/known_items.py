"""Known items: queries taken from the texts themselves, which shall find the document they are of.

How many searches find says what of a text its vectors keep, without relevance judgements
(Azzopardi, de Rijke and Balog, "Building simulated queries for known-item topics", 2007).
"""

import math
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np

from embedding_pipelines.metrics.base import metric
from embedding_pipelines.metrics.evidence import Evidence, Search
from embedding_pipelines.metrics.neighbours import K

MIN_WORDS = 3  # fewer name a thing ("Deep learning", "Hi all,") rather than ask for one text
MAX_WORDS = 64
TRIES = 8  # sentences; behind them a text of nothing but repetitions is given up
LOOKED_AT = 10_000  # characters; what a text is about stands at its beginning

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
_WORD = re.compile(
    rf"[{_UNSPACED}]{{1,2}}|[^\s{_UNSPACED}]+"
)  # two such characters are about a word
_ADDRESS = re.compile(r"\b(?:https?://|www\.)[^\s<>]+")
_MARKS = re.compile(r"^[\s#>*=~`|•–-]+|[\s#*=~`|]+$")  # of Markdown and reStructuredText
_END = re.compile(
    # With a space behind it, but not "e.g. Java", "J. Doe".
    r"(?<![\s.][^\W\d])[.!?…؟।॥։]+[\"'”’»)\]]*(?=\s)"
    r"|[。！？｡]+[」』”’）]*"
    r"|\n"
)


def known_item(text: str, title: str | None = None) -> str | None:
    """A query for `text`: its title; else its first sentence; else half of a single one's words.

    It is on one line, without addresses and marks of headings. A title or sentence of less than
    three words is passed over, and one that leaves less of the text or comes again in the rest.
    Queries are cut at 64 words; two characters of a script without spaces are a word. Half of the
    words are the longer of every two: what is left out is mostly "the" and "of". None if the text
    is too short for a query of three words. The same text always gives the same query.
    """
    for query, start, end in islice(_candidates(text, title), TRIES):
        rest = f"{text[:start]}{text[end:]}"
        if (
            len(_words(rest[:LOOKED_AT])) >= MIN_WORDS
            and query.casefold() not in " ".join(rest.split()).casefold()
        ):
            return query
    words = _words(_clean(text[:LOOKED_AT]))
    halves = [max(words[place : place + 2], key=len) for place in range(0, len(words), 2)]
    return " ".join(halves) if len(halves) >= MIN_WORDS else None


def _candidates(text: str, title: str | None) -> Iterator[tuple[str, int, int]]:
    """Queries of words enough, and where in the text they stand: the title, then the sentences."""
    if title and len(_words(_clean(title))) >= MIN_WORDS:
        start = max(0, text.find(title))
        yield _clean(title), start, start + len(title) * text.startswith(title, start)
    for start, end in _sentences(text[:LOOKED_AT]):
        query = _clean(text[start:end])
        if len(_words(query)) >= MIN_WORDS:
            yield query, start, end


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Where sentences and lines begin and end; a small letter or digit goes on ("e.g. this")."""
    start = 0
    for match in _END.finditer(text):
        behind = text[match.end() : match.end() + 200].lstrip(" \t")[:1].strip()
        blank = match.group() == "\n" and text.startswith("\n", match.end())
        if blank or not (behind.islower() or (behind.isdigit() and match.group() == ".")):
            yield start, match.end()
            start = match.end()
    if start < len(text):
        yield start, len(text)


def _clean(text: str) -> str:
    """On one line, without addresses, without marks around it, cut at MAX_WORDS."""
    line = _MARKS.sub("", " ".join(_ADDRESS.sub(" ", text).split()))
    ends = [word.end() for word in islice(_WORD.finditer(line), MAX_WORDS)]
    return line[: ends[-1]] if ends else ""


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text) if any(map(str.isalnum, word))]


def reciprocal_rank(search: Search) -> float:
    """1 / rank of the query's document among those of the first ten hits, as a user sees them; 0 if
    it is not among them. A document with the same text is as good an answer: nothing but chance
    orders the two."""
    answers = {search.document_id, *search.copies}
    ranking = dict.fromkeys(document for _, document, _ in search.hits[:K])
    places = (place for place, document in enumerate(ranking, 1) if document in answers)
    return 1 / next(places, math.inf)


def _ranks(evidence: Evidence) -> dict[str, float]:
    return {search.id: reciprocal_rank(search) for search in evidence.searches}


@metric("higher", "share", by_query=_ranks)
def known_item_mrr(evidence: Evidence) -> float | None:
    """Mean reciprocal rank (first 10) of the document that a query was taken from."""
    ranks = list(_ranks(evidence).values())
    return float(np.mean(ranks)) if ranks else None


@metric("higher", "share")
def known_item_recall(evidence: Evidence) -> float | None:
    """Share of these documents among the first 10."""
    ranks = _ranks(evidence).values()
    return float(np.mean([rank > 0 for rank in ranks])) if ranks else None


@metric("lower", "ms")
def search_p50_ms(evidence: Evidence) -> float | None:
    """Median time of a search in the table."""
    return _percentile(evidence, 50)


@metric("lower", "ms")
def search_p95_ms(evidence: Evidence) -> float | None:
    """95th percentile of the same."""
    return _percentile(evidence, 95)


def _percentile(evidence: Evidence, percent: int) -> float | None:
    times = [search.milliseconds for search in evidence.searches if search.milliseconds is not None]
    # The first opens the table.
    return float(np.percentile(times[1:] or times, percent)) if times else None
