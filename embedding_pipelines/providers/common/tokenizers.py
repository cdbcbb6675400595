"""Whose tokenizer counts, where a service has none of its own at hand: a file's, a hub model's, or
an estimate."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ESTIMATE = "estimate"  # as `tokenizer_of`


def uncut(tokenizer: Tokenizer) -> Tokenizer:
    """The same one, which neither pads nor cuts as its file says: what it counts is the text's own
    tokens."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@functools.lru_cache(maxsize=8)
def load_tokenizer(name: str | None) -> Tokenizer:
    """The tokenizer of a file below the home folder or of a hub model; an estimate for None and
    "estimate".

    Raises ConfigError if it cannot be had.
    """
    from tokenizers import Tokenizer

    from embedding_pipelines.home import home
    from embedding_pipelines.providers.common.estimate import estimate

    if name in (None, ESTIMATE):
        return estimate()
    try:
        file = home() / name
        return uncut(
            Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(name)
        )
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(
            f"tokenizer_of: {name!r} is neither a file below {home()} nor a model of the Hugging Face hub ({error}). "
            "Write tokenizer_of: estimate to count tokens from above."
        ) from error


@functools.lru_cache(maxsize=8)
def tokenizer_digest(name: str | None) -> str:
    """What decides how `load_tokenizer(name)` counts."""
    return digest(load_tokenizer(name).to_str().encode()).hex()
