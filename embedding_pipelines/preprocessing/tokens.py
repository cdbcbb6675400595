"""What a tokenizer says of a text beside its length: whether it has any content, and which tokens
the model's vocabulary lacks."""

import unicodedata

from tokenizers import Encoding, Tokenizer, models

# Share of a corpus's or a query's tokens from which on it is told that the model lacks them. A word
# or a sign that it lacks is usual (emoji, names); a script that it lacks is half of the text or all.
TELL_UNKNOWN = 0.05
RARE = "\U00012345"  # a cuneiform sign: in no vocabulary that is not made of bytes
INVISIBLE = ("Cc", "Cf")  # control and format characters, U+200B among them


def has_content(text: str) -> bool:
    """Whether a text has more than white space, control and format characters."""
    return text[:1].isalnum() or any(
        not letter.isspace() and unicodedata.category(letter) not in INVISIBLE for letter in text
    )


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id that stands for what the vocabulary lacks; None if it lacks nothing, since it is made
    of bytes, or if the tokenizer only counts."""
    if tokenizer.get_vocab_size() <= 1:  # an estimate, whose ids mean nothing
        return None
    if isinstance(tokenizer.model, models.Unigram):  # which does not say
        ids = tokenizer.encode(RARE, add_special_tokens=False).ids
        token = tokenizer.id_to_token(ids[-1]) if ids else None
        is_known = token is None or token.startswith("<0x") or RARE in token
        return None if is_known else ids[-1]
    name = tokenizer.model.unk_token
    number = None if name is None else tokenizer.token_to_id(name)
    # CLIP names the token at the end of every text, since its vocabulary, of bytes, lacks nothing.
    return None if number in tokenizer.encode("").ids else number


def count_unknown(encoding: Encoding, unknown: int | None) -> int:
    """How many of a text's tokens are the `unknown_id`."""
    return 0 if unknown is None else encoding.ids.count(unknown)
