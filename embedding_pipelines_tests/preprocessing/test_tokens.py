"""Which tokens a vocabulary lacks, by family of tokenizers."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from embedding_pipelines.preprocessing.chunk import Chunk, Cutter
from embedding_pipelines.preprocessing.tokens import count_unknown, has_content, unknown_id
from embedding_pipelines.providers.common.tokenizers import estimate
from embedding_pipelines_tests.preprocessing.tokenizers_for_tests import bytes_, unigram, wordpiece


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "fox": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def bytes_beside_pieces() -> Tokenizer:
    """As Gemma: what has no piece is written in bytes."""
    pieces = [("<unk>", 0.0), ("fox", -1.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    return Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))


@pytest.mark.parametrize(
    ("build", "unknown"),
    [
        (wordpiece, 2),
        (unigram, 1),
        (words, 2),
        (bytes_, 0),
        (bytes_beside_pieces, 0),
        (estimate, 0),
    ],
)
def test_unknown_tokens_are_counted_where_a_vocabulary_can_lack_any(
    build: Callable[[], Tokenizer], unknown: int
) -> None:
    tokenizer = build()
    text = "fox ภาษาไทย fox ខ្មែរ" if build is not unigram else "fox ภาษาไทยខ្មែរ"
    assert count_unknown(tokenizer.encode(text), unknown_id(tokenizer)) == unknown
    assert count_unknown(tokenizer.encode("fox"), unknown_id(tokenizer)) == 0


def test_each_piece_has_its_own_count() -> None:
    text = "the fox. " * 10 + "ภาษา " * 30
    for chunk in (Chunk(overlap=0), None):
        for piece in Cutter(wordpiece(), 16, chunk).cut([text])[0]:
            ids = wordpiece().encode(text[piece.start : piece.end]).ids
            assert piece.unknown == ids.count(1)
            assert len(ids) == piece.tokens


@pytest.mark.parametrize("text", ["", " \n\t\u00a0", "\u200b\u200d\u2060\ufeff\u00ad\x07"])
def test_white_space_and_what_nobody_sees_are_no_content(text: str) -> None:
    assert not has_content(text)
    assert has_content(f"{text}.{text}")
    assert Cutter(wordpiece(), 16, None).cut([text, "fox"]) == [[], [(0, 3, 3, 0, 0)]]
