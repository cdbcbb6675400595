"""Every chunk fits the model, and no text is lost between chunks."""

import base64
import contextlib
import gc
import itertools
import random
import re
import time
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import AddedToken, Tokenizer

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.preprocessing.chunk import Chunk, Cutter
from embedding_pipelines_tests.preprocessing.tokenizers_for_tests import (
    ALL,
    WORDS,
    bytes_,
    check_pieces,
    count,
    is_blank,
    unigram,
    wordpiece,
)

PARAGRAPHS = "\n\n".join(
    " ".join(
        f"The quick brown fox jumped over the lazy dog, and sentence {number} ended."
        for number in range(at, at + 6)
    )
    for at in range(0, 60, 6)
)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
prose = st.lists(
    st.sampled_from([*WORDS, ".", ",", "\n", "\n\n", "Ünwörd", "你好世界", "🙂", "x" * 25, " "]),
    max_size=80,
)
kinds = pytest.mark.parametrize("build", ALL.values(), ids=ALL)


@kinds
@given(data=st.data(), text=anything | prose.map(" ".join) | prose.map("".join))
def test_any_text_is_covered_by_chunks_within_any_limit(
    build: Callable[[], Tokenizer], data: st.DataObject, text: str
) -> None:
    tokenizer = build()
    limit = data.draw(st.integers(tokenizer.num_special_tokens_to_add(False) + 1, 40))
    chunk = Chunk(overlap=data.draw(st.integers(0, limit // 2)))
    cutter = Cutter(tokenizer, limit, chunk)
    largest = max((count(tokenizer, each) for each in text), default=0)
    if largest > limit:  # one character of the text has more tokens than so small a limit
        with contextlib.suppress(ConfigError):
            cutter.cut([text])
        return
    pieces = cutter.cut([text])[0]
    check_pieces(text, pieces, tokenizer, limit)
    assert bool(pieces) == (not is_blank(text, tokenizer))


@kinds
@given(text=anything | prose.map(" ".join), limit=st.integers(22, 40))
def test_one_piece_per_text_is_its_beginning_within_the_limit(
    build: Callable[[], Tokenizer], text: str, limit: int
) -> None:
    tokenizer = build()
    pieces = Cutter(tokenizer, limit, None).cut([text])[0]
    assert len(pieces) == (not is_blank(text, tokenizer))
    for piece in pieces:
        assert piece.start == 0
        assert piece.tokens == count(tokenizer, text[: piece.end]) <= limit
        assert piece.end == len(text) or count(tokenizer, text) > limit
        assert piece.unseen == count(tokenizer, text) - piece.tokens or piece.end == len(text)


@kinds
@pytest.mark.parametrize("chunk", [Chunk(overlap=8), Chunk(overlap=0), None])
@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(random.Random(0).randbytes(75_000)).decode(),
        "x" * 100_000,
        "🙂" * 3_000,
        "👨‍👩‍👧" * 1_000,
        "你好世界今天天气很好" * 500,
        "e\u0301\u0327" * 2_000,
        "a " * 10_000,
        "\u200d" * 5_000 + "word",
        " ".join("x" * (15 + 7 * number % 45) for number in range(300)),
        "ﷺ" * 200,
    ],
    ids=[
        "base64",
        "one letter",
        "emoji",
        "families",
        "chinese",
        "accents",
        "letters",
        "joiners",
        "unknown words",
        "wide forms",
    ],
)
def test_texts_without_words_are_cut_too(
    build: Callable[[], Tokenizer], chunk: Chunk | None, text: str
) -> None:
    tokenizer = build()
    pieces = Cutter(tokenizer, 32, chunk).cut([text])[0]
    if chunk is None:
        assert [piece.start for piece in pieces] == [0]
        assert pieces[0].tokens == count(tokenizer, text[: pieces[0].end]) <= 32
    else:
        check_pieces(text, pieces, tokenizer, 32)


def test_an_added_token_that_takes_the_white_space_before_it_is_counted_once() -> None:
    tokenizer = Tokenizer.from_str(wordpiece().to_str())
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True, normalized=True)])
    text = "fox \u00ad <x> " * 20  # a soft hyphen is taken out first, so it is among white space
    check_pieces(text, Cutter(tokenizer, 3, Chunk(overlap=0)).cut([text])[0], tokenizer, 3)


def test_a_cutter_that_nobody_uses_is_freed() -> None:
    cutter = Cutter(wordpiece(), 64, Chunk())
    cutter.cut([PARAGRAPHS])
    reference = weakref.ref(cutter)
    del cutter
    gc.collect()
    assert reference() is None


@kinds
def test_cuts_fall_between_sentences_and_neighbours_share_some_tokens(
    build: Callable[[], Tokenizer],
) -> None:
    tokenizer = build()
    limit = 3 * count(tokenizer, PARAGRAPHS) // 10 // 6  # three sentences
    pieces = Cutter(tokenizer, limit, Chunk(overlap=limit // 2)).cut([PARAGRAPHS])[0]
    check_pieces(PARAGRAPHS, pieces, tokenizer, limit)
    assert all(PARAGRAPHS[piece.start : piece.end].startswith("The quick") for piece in pieces)
    assert all(PARAGRAPHS[piece.start : piece.end].endswith("ended.") for piece in pieces)
    assert sum(after.start < before.end for before, after in itertools.pairwise(pieces)) > 5


def paragraph(name: str, sentences: int = 4) -> str:
    """Sentences that stand in no other paragraph."""
    return " ".join(
        f"{name} {number} fox jumped over the lazy dog of {name}." for number in range(sentences)
    )


def changed(cutter: Cutter, before: str, after: str) -> int:
    """How many chunks of the second text are not in the first: those are embedded."""
    old, new = cutter.cut([before, after])
    texts = {before[piece.start : piece.end] for piece in old}
    return sum(after[piece.start : piece.end] not in texts for piece in new)


@pytest.mark.parametrize("place", [0, 150, 299])
def test_a_paragraph_more_or_less_in_a_text_of_10_000_words_changes_three_chunks_at_most(
    place: int,
) -> None:
    paragraphs = [paragraph(f"W{number}") for number in range(300)]
    text = "\n\n".join(paragraphs)
    assert len(text.split()) > 10_000
    cutter = Cutter(bytes_(), 1024, Chunk())
    assert len(cutter.cut([text])[0]) > 60
    inserted = [*paragraphs[:place], paragraph("Another"), *paragraphs[place:]]
    assert 1 <= changed(cutter, text, "\n\n".join(inserted)) <= 3
    assert changed(cutter, "\n\n".join(inserted), text) <= 3  # taken out again
    edited = [*paragraphs[:place], f"{paragraphs[place]} More.", *paragraphs[place + 1 :]]
    assert 1 <= changed(cutter, text, "\n\n".join(edited)) <= 3


@settings(max_examples=40)
@given(data=st.data())
def test_after_any_edit_chunks_are_the_same_again_before_and_behind_it(data: st.DataObject) -> None:
    """However a text is edited in one place, the cuts are the old ones three chunks from it."""
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=20, max_size=60))
    joints = data.draw(st.lists(st.sampled_from([" ", "\n", "\n\n"]), min_size=60, max_size=60))
    parts = [paragraph(f"W{number}", count) for number, count in enumerate(lengths)]
    text = "".join(part + joint for part, joint in zip(parts, joints, strict=False)).strip()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 300, len(text))))
    edited = text[:start] + data.draw(st.text("ab .\n", max_size=300)) + text[end:]
    limit, overlap = 512, data.draw(st.sampled_from([0, 64]))
    before, after = Cutter(bytes_(), limit, Chunk(overlap=overlap)).cut([text, edited])
    check_pieces(edited, after, bytes_(), limit)
    reach, moved = 3 * limit, len(edited) - len(text)
    ends = {piece.end for piece in before}
    assert {at for at in ends if at < start - reach} == {
        piece.end for piece in after if piece.end < start - reach
    }
    assert {at + moved for at in ends if at > end + reach} == {
        piece.end for piece in after if piece.end > end + moved + reach
    }


def test_a_text_that_repeats_itself_is_cut_in_the_middle() -> None:
    text = "the quick brown fox jumped over the lazy dog. " * 64
    tokens = [piece.tokens for piece in Cutter(wordpiece(), 64, Chunk(overlap=0)).cut([text])[0]]
    assert min(tokens) > 20
    assert sum(tokens) - 2 * len(tokens) == count(wordpiece(), text) - 2


def test_chunks_share_whole_sentences_or_whole_words() -> None:
    text = " ".join(paragraph(f"W{number}", 3) for number in range(20))
    pieces = Cutter(wordpiece(), 128, Chunk(overlap=40)).cut([text])[0]
    shared = [text[after.start : before.end] for before, after in itertools.pairwise(pieces)]
    assert sum(map(bool, shared)) > len(shared) / 2  # others have too long a sentence before them
    assert all(re.fullmatch(r"(W.*\.)?", part) for part in shared)
    assert all(count(wordpiece(), part) - 2 <= 40 for part in shared)
    words = " ".join(WORDS[number % len(WORDS)] for number in range(1_000))
    pieces = Cutter(wordpiece(), 128, Chunk(overlap=40)).cut([words])[0]
    for before, after in itertools.pairwise(pieces):
        part = words[after.start : before.end]
        assert len(part.split()) == 40
        assert not part.startswith(" ")


def test_time_grows_with_the_text_and_not_with_its_square() -> None:
    text = "你好世界今天天气很好" * 20_000
    cutter = Cutter(bytes_(), 512, Chunk())
    started = time.process_time()
    pieces = cutter.cut([text])[0]
    assert time.process_time() - started < 40
    assert pieces[-1].end == len(text)


def test_a_text_that_fits_is_one_chunk_and_an_empty_one_is_none() -> None:
    pieces = Cutter(wordpiece(), 8, Chunk(overlap=0)).cut(["the quick fox", "", " \n ", "dog"])
    assert pieces == [[(0, 13, 5, 0, 0)], [], [], [(0, 3, 3, 0, 0)]]


def test_special_tokens_count() -> None:
    text = "the quick brown fox"
    assert len(Cutter(wordpiece(), 6, Chunk(overlap=0)).cut([text])[0]) == 1
    assert len(Cutter(wordpiece(), 5, Chunk(overlap=0)).cut([text])[0]) == 2


def test_max_tokens_is_capped_by_the_model() -> None:
    text = "the quick brown fox " * 20
    for max_tokens, limit in ((10, 512), (512, 10), (None, 10)):
        pieces = Cutter(wordpiece(), limit, Chunk(max_tokens=max_tokens, overlap=2)).cut([text])[0]
        check_pieces(text, pieces, wordpiece(), 10)
        assert max(piece.tokens for piece in pieces) > 5


def test_padding_and_truncation_of_the_given_tokenizer_do_not_count_and_stay_on() -> None:
    tokenizer = Tokenizer.from_str(wordpiece().to_str())
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(8)
    text = "the quick brown fox " * 20
    pieces = Cutter(tokenizer, 16, Chunk(overlap=4)).cut([text, "dog"])
    check_pieces(text, pieces[0], wordpiece(), 16)
    assert pieces[1] == [(0, 3, 3, 0, 0)]
    assert len(tokenizer.encode("dog").ids) == 64


def test_one_piece_ends_with_a_whole_word() -> None:
    text = "the quick brown foxes jumped over"
    for limit in range(4, 12):
        piece = Cutter(wordpiece(), limit, None).cut([text])[0][0]
        assert text[: piece.end].split() == text.split()[: len(text[: piece.end].split())]


def test_a_limit_without_room_for_text_is_a_config_error() -> None:
    with pytest.raises(
        ConfigError, match=r"adds 2 of its own\. Set it to 3 or more; the model takes 512"
    ):
        Cutter(wordpiece(), 512, Chunk(max_tokens=2, overlap=0))


def test_an_overlap_beyond_half_of_the_models_limit_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"the model takes 32\. Set it to 16 or less"):
        Cutter(wordpiece(), 32, Chunk(max_tokens=256, overlap=17))


def test_a_character_that_no_chunk_can_hold_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="'🙂' alone takes 6 tokens, and a chunk may hold 4"):
        Cutter(bytes_(), 4, Chunk(overlap=0)).cut(["🙂 and 🙂"])
    with pytest.raises(ConfigError, match="alone takes"):
        Cutter(unigram(), 4, None).cut(["\ufdfa" * 3])


def test_an_overlap_of_more_than_half_is_refused_with_the_largest_that_goes() -> None:
    with pytest.raises(ValidationError, match="set overlap to 8 or less"):
        Chunk(max_tokens=16, overlap=9)


def test_the_version_names_the_options() -> None:
    assert Chunk(max_tokens=256).version == "chunk/3:max_tokens=256,overlap=32"


@kinds
@pytest.mark.parametrize("chunk", [Chunk(overlap=4), None])
def test_a_very_long_text_is_cut_part_by_part(
    build: Callable[[], Tokenizer], chunk: Chunk | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.preprocessing.chunk._PART", 300)
    tokenizer = build()
    texts = [PARAGRAPHS, "short", "", "x" * 1_000]
    pieces = Cutter(tokenizer, 30, chunk).cut(texts)
    assert [bool(cuts) for cuts in pieces] == [True, True, False, True]
    for text, cuts in zip(texts, pieces, strict=True):
        if chunk is not None:
            check_pieces(text, cuts, tokenizer, 30)
        else:
            assert len(cuts) <= 1
            seen = sum(piece.tokens + piece.unseen for piece in cuts)
            assert seen >= count(tokenizer, text) or not cuts  # a seam may add a token
