"""Tokenizers for models that bring none: a file's, a hub model's, or an estimate."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from embedding_pipelines.errors import ConfigError

PIECE = r"[A-Za-z]{1,4}|[0-9]{1,3}|\s+|[^A-Za-z0-9\s]"


def load_tokenizer(name: str | None, home: Path) -> Tokenizer:
    """The tokenizer of a file below `home` or of a hub model; the estimate for None and "estimate".

    Raises ConfigError if there is neither.
    """
    if name is None or name == "estimate":
        return estimate()
    try:
        file = home / name
        load = Tokenizer.from_file if file.is_file() else Tokenizer.from_pretrained
        tokenizer = load(str(file) if file.is_file() else name)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(
            f"tokenizer_of: {name!r} is neither a file below {home} nor a model of the Hugging "
            f"Face hub ({error}). Write tokenizer_of: estimate for an upper bound."
        ) from error
    tokenizer.no_padding()  # whatever its file says: count all tokens of a text and no others
    tokenizer.no_truncation()
    return tokenizer


def estimate() -> Tokenizer:
    """Counts at least as many tokens as a model, so that texts cut by it fit; its ids mean nothing.

    Pieces of up to four ASCII letters, three digits, one sign, and one character of any other
    script. Byte-pair vocabularies need fewer tokens for prose, and more for rare signs and emoji
    only, which the service itself rejects.
    """
    pieces = pre_tokenizers.Split(Regex(PIECE), "isolated")
    return count_pieces(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces]))


def count_pieces(split: PreTokenizer) -> Tokenizer:
    """Counts the pieces that `split` makes of a text; its ids mean nothing."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = split
    return tokenizer
