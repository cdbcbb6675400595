"""Small tokenizers of the three families in use, built here, and the checks that all chunks must
pass."""

import functools
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from embedding_pipelines.preprocessing.chunk import Piece
from embedding_pipelines.preprocessing.tokens import has_content

WORDS = [
    "the",
    "of",
    "a",
    "and",
    "fox",
    "jump",
    "quick",
    "brown",
    "dog",
    "lazy",
    "over",
    "sentence",
    "one",
]


@functools.cache
def wordpiece() -> Tokenizer:
    """As BERT: words, word pieces, unknown words of over 20 letters are one token; [CLS] and
    [SEP]."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-+/="
    pieces = [*"abcdefghijklmnopqrstuvwxyz0123456789", "ing", "ed", "s"]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *letters,
        *WORDS,
        *(f"##{piece}" for piece in pieces),
    ]
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=20))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@functools.cache
def bytes_() -> Tokenizer:
    """As GPT and CLIP, but without merges: one token for each byte, so an emoji has four; one end
    token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: number for number, token in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 0)]
    )
    return tokenizer


@functools.cache
def unigram() -> Tokenizer:
    """As XLM-R and T5: a mark before each word, compatibility forms taken apart; no special
    tokens."""
    scores = [("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -3.0) for word in WORDS)]
    scores += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz.,"]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


ALL = {"wordpiece": wordpiece, "bytes": bytes_, "unigram": unigram}


def count(tokenizer: Tokenizer, text: str) -> int:
    """Tokens as the model sees them; the tokenizer must not pad or truncate."""
    return len(tokenizer.encode(text).ids)


def is_blank(text: str, tokenizer: Tokenizer) -> bool:
    """Whether the model reads nothing of a text."""
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    return not has_content(text) or count(tokenizer, text) <= special


def check_pieces(text: str, pieces: Sequence[Piece], tokenizer: Tokenizer, limit: int) -> None:
    """Within the limit, counted right, starts and ends rising, and only what the model does not
    read left out."""
    covered = 0
    previous = Piece(-1, 0, 0)
    for piece in pieces:
        part = text[piece.start : piece.end]
        assert part
        assert piece.tokens == count(tokenizer, part) <= limit
        assert piece.start > previous.start
        assert piece.end > previous.end
        assert is_blank(text[covered : piece.start], tokenizer)
        covered, previous = piece.end, piece
    assert is_blank(text[covered:], tokenizer)
