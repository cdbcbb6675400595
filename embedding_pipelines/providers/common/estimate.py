"""A tokenizer for models whose own is not at hand: counts from above, so that texts cut by it fit.

Pieces of up to four ASCII letters, three digits, one sign, and one character of any other script.
Byte-pair vocabularies need fewer tokens for prose; what they need more for (rare signs, emoji) the
service itself refuses.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PIECE = r"[A-Za-z]{1,4}|[0-9]{1,3}|\s+|[^A-Za-z0-9\s]"


@functools.cache
def estimate() -> Tokenizer:
    """Counts pieces; its ids mean nothing."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(PIECE), "isolated")]
    )
    return tokenizer
