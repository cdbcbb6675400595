"""Words, for training word vectors and for looking them up: runs of letters, marks and digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def word_tokenizer() -> Tokenizer:
    """Counts words; its ids mean nothing."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True)
    return tokenizer


def split_words(text: str, tokenizer: Tokenizer) -> list[str]:
    """The words of a text, without signs and white space. `tokenizer` is a `word_tokenizer()`."""
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
