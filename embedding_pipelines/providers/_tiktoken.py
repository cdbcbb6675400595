"""OpenAI's vocabulary as a `tokenizers.Tokenizer`: counts as tiktoken does, and cuts as the other
models' do.

tiktoken downloads the vocabulary once. What it is converted to is kept in the user's cache folder,
so that a machine that has it needs neither tiktoken nor the download.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import need
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENCODING = "cl100k_base"
RECIPE = "1"  # raise it when the conversion changes
OTHERWISE = "Or write tokenizer_of: estimate, which counts from above and needs neither."

# tiktoken's own pattern, but for `\p{N}{1,3}+`: in the dialect of `tokenizers` that takes all
# digits there are.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def cl100k_digest() -> str:
    """Stands for the tokenizer in fingerprints; tiktoken checks the vocabulary's own hash."""
    return digest(ENCODING.encode(), RECIPE.encode()).hex()


@functools.cache
def cl100k() -> Tokenizer:
    """The tokenizer of OpenAI's embedding models. Special tokens in a text count as the text they
    are.

    Raises ConfigError if it has to be made and tiktoken or its vocabulary cannot be had.
    """
    from platformdirs import user_cache_path
    from tokenizers import Tokenizer

    kept = user_cache_path("embedding-pipelines") / "tokenizers" / f"{ENCODING}-{RECIPE}.json"
    if not kept.is_file():
        tokenizer = converted(_ranks())
        _keep(tokenizer, kept)
        return tokenizer
    try:
        return Tokenizer.from_file(str(kept))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(f"{kept} is damaged ({error}). Delete it: it is made anew.") from error


def converted(ranks: Mapping[bytes, int]) -> Tokenizer:
    """A tokenizer from tiktoken's ranks by byte sequence, for texts split by PATTERN.

    tiktoken joins the neighbours that make the token of lowest rank; `tokenizers` wants each such
    pair by name.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = _letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    pairs = [
        (names[token[:cut]], names[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    tokenizer = Tokenizer(
        models.BPE({names[token]: rank for token, rank in ranks.items()}, pairs, ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _letters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary: its own, else
    one above 255."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


def _ranks() -> Mapping[bytes, int]:
    tiktoken = need("tiktoken", "openai")
    try:
        ranks: Mapping[bytes, int] = tiktoken.get_encoding(ENCODING)._mergeable_ranks
        return ranks
    except (OSError, ValueError) as error:  # no network, or a file that is not what it should be
        raise ConfigError(
            f"tiktoken cannot get the vocabulary {ENCODING} ({type(error).__name__}: {error}). Let it download once, "
            f"or put the file into a folder that TIKTOKEN_CACHE_DIR names. {OTHERWISE}"
        ) from error


def _keep(tokenizer: Tokenizer, file: Path) -> None:
    """Whole or not at all, whoever else does the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.stem}-", dir=file.parent) as folder:
        draft = Path(folder) / file.name
        tokenizer.save(str(draft), pretty=False)
        draft.replace(file)
