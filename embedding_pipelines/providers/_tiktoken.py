"""OpenAI's vocabulary as a `tokenizers.Tokenizer`, which counts as tiktoken does.

tiktoken downloads the vocabulary once. The converted tokenizer stays in the user's cache folder;
with it neither tiktoken nor the download is needed.
"""

from collections.abc import Mapping

from platformdirs import user_cache_path
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import need
from embedding_pipelines.files import replacing
from embedding_pipelines.schemas import digest

ENCODING = "cl100k_base"
VERSION = "1"  # raise it when the conversion changes
REMEDY = "Or write tokenizer_of: estimate, an upper bound that needs neither."

# tiktoken's own pattern, but for `\p{N}{1,3}+`, which matches any number of digits in `tokenizers`.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def cl100k_digest() -> str:
    """Identifies the tokenizer; tiktoken checks the vocabulary's own hash."""
    return digest(ENCODING.encode(), VERSION.encode()).hex()


def cl100k() -> Tokenizer:
    """The tokenizer of OpenAI's embedding models, for which special tokens are plain text.

    Raises ConfigError if it is not in the cache folder and tiktoken or its vocabulary is
    unavailable.
    """
    file = user_cache_path("embedding-pipelines") / "tokenizers" / f"{ENCODING}-{VERSION}.json"
    if not file.is_file():
        tokenizer = convert(_read_ranks())
        with replacing(file) as draft:
            tokenizer.save(str(draft), pretty=False)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ConfigError(
            f"{file} is damaged ({error}). Delete it; the next run writes it again."
        ) from error


def convert(ranks: Mapping[bytes, int]) -> Tokenizer:
    """A tokenizer from tiktoken's ranks by byte sequence, for texts split by PATTERN.

    tiktoken joins neighbours whose union is the token of lowest rank; `tokenizers` needs a list of
    all such pairs.
    """
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
    """The printable character for each byte of a vocabulary: its own, else one above 255."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


def _read_ranks() -> Mapping[bytes, int]:
    tiktoken = need("tiktoken", "openai")
    try:
        ranks: Mapping[bytes, int] = tiktoken.get_encoding(ENCODING)._mergeable_ranks
        return ranks
    except (OSError, ValueError) as error:  # no network, or a damaged file
        raise ConfigError(
            f"tiktoken cannot get the vocabulary {ENCODING} ({type(error).__name__}: {error}). "
            "Let it download once, or put the file into a folder that TIKTOKEN_CACHE_DIR names. "
            f"{REMEDY}"
        ) from error
