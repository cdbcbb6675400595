"""Every chunk fits the model, and no text is lost between chunks."""

import base64
import contextlib
import gc
import itertools
import random
import time
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer

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


def test_the_quick_way_cuts_where_the_library_itself_cuts() -> None:
    from semantic_text_splitter import TextSplitter

    text = "\n\n".join([PARAGRAPHS] * 10)  # several windows
    pieces = Cutter(wordpiece(), 64, Chunk(overlap=16)).cut([text])[0]
    expected = TextSplitter.from_huggingface_tokenizer(wordpiece(), 62, 16).chunk_indices(text)
    assert [(piece.start, text[piece.start : piece.end]) for piece in pieces] == expected


def test_time_grows_with_the_text_and_not_with_its_square() -> None:
    """The library alone takes minutes for this text: without windows its time grows with the
    square."""
    text = "你好世界今天天气很好" * 20_000
    cutter = Cutter(bytes_(), 512, Chunk())
    started = time.process_time()
    pieces = cutter.cut([text])[0]
    assert time.process_time() - started < 40
    assert pieces[-1].end == len(text)


def test_a_text_that_fits_is_one_chunk_and_an_empty_one_is_none() -> None:
    pieces = Cutter(wordpiece(), 8, Chunk(overlap=0)).cut(["the quick fox", "", " \n ", "dog"])
    assert pieces == [[(0, 13, 5, 0)], [], [], [(0, 3, 3, 0)]]


def test_special_tokens_count() -> None:
    text = "the quick brown fox"
    assert len(Cutter(wordpiece(), 6, Chunk(overlap=0)).cut([text])[0]) == 1
    assert len(Cutter(wordpiece(), 5, Chunk(overlap=0)).cut([text])[0]) == 2


def test_max_tokens_is_capped_by_the_model() -> None:
    text = "the quick brown fox " * 20
    for max_tokens, limit in ((10, 512), (512, 10), (None, 10)):
        pieces = Cutter(wordpiece(), limit, Chunk(max_tokens=max_tokens, overlap=2)).cut([text])[0]
        check_pieces(text, pieces, wordpiece(), 10)
        assert max(piece.tokens for piece in pieces) == 10


def test_padding_and_truncation_of_the_given_tokenizer_do_not_count_and_stay_on() -> None:
    tokenizer = Tokenizer.from_str(wordpiece().to_str())
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(8)
    text = "the quick brown fox " * 20
    pieces = Cutter(tokenizer, 16, Chunk(overlap=4)).cut([text, "dog"])
    check_pieces(text, pieces[0], wordpiece(), 16)
    assert pieces[1] == [(0, 3, 3, 0)]
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


def test_the_recipe_names_options_and_the_splitters_version() -> None:
    version = Chunk(max_tokens=256).version
    assert version.startswith("chunk/2:max_tokens=256,overlap=32;semantic-text-splitter=")
    assert version != Chunk(max_tokens=256, overlap=31).version


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
