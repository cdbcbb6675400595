"""What a text must be before a model reads it: some content, and no more than the model takes.

A model that is given more reads the beginning and says nothing, and one that is given nothing
answers all the same. So every text of a caller comes through here first: it is refused, or cut and
told. The chunks of a pipeline were cut by `preprocessing/`, which counts them alike.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.preprocessing.chunk import Cutter
from embedding_pipelines.preprocessing.tokens import (
    TELL_UNKNOWN,
    count_unknown,
    has_content,
    unknown_id,
)
from embedding_pipelines.providers.base import EmbeddingModel, InputType
from embedding_pipelines.providers.common.http import ServiceOptions
from embedding_pipelines.providers.common.tokenizers import estimate

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TooLong = Literal["refuse", "cut"]  # what to do with a text that the model would not read whole
TEXTS_AT_ONCE = 4_096  # to count; their encodings are in memory
EXCERPT = 80  # characters of a text in an error; the notes, which may be logged, quote none
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ReadableTexts:
    """Texts that the model reads whole, with their tokens, special ones included."""

    texts: list[str]
    tokens: list[int]
    cut: str = ""  # a sentence on what was cut; empty: nothing
    unknown: str = ""  # one on the tokens that the model lacks; empty: few or none
    unseen: int = 0  # tokens of what was cut off

    @property
    def notes(self) -> list[str]:
        return [note for note in (self.cut, self.unknown) if note]


def prepare(
    texts: Sequence[str],
    model: EmbeddingModel,
    input_type: InputType,
    too_long: TooLong = "refuse",
    name: Callable[[int], str] = "texts[{}]".format,
    remedy: str = "Divide the text into chunks.",
    cutter: "Callable[[Tokenizer, int], Cutter]" = lambda tokenizer, limit: Cutter(
        tokenizer, limit, None
    ),
) -> ReadableTexts:
    """The texts as the model can read them; `name` says of a row what its text is called. `cutter`
    gives what cuts at a limit, which takes 30 ms to make.

    Raises ConfigError, with `remedy`, for a text that is longer than the model reads, unless it is
    to be cut; and for one that is empty to the model or cannot be written in UTF-8.
    """
    if input_type not in ("document", "query"):
        raise ConfigError(f"input_type is {input_type!r}: write 'document' or 'query'.")
    if too_long not in ("refuse", "cut"):
        raise ConfigError(f"too_long is {too_long!r}: write 'refuse' or 'cut'.")
    _require_content(texts, name)
    counts = _count(texts, model, input_type, keeps_long=too_long == "cut")
    special = counts.tokenizer.num_special_tokens_to_add(is_pair=False)
    for row, count in enumerate(counts.tokens):
        if count <= special:
            raise ConfigError(
                f"{name(row)} ({_excerpt(texts[row])}) holds nothing that {model.space.title} reads. "
                "Leave it out: it has no meaning to embed."
            )
    readable, cut, unseen = list(texts), "", 0
    long = [row for row, count in enumerate(counts.tokens) if count > counts.limit]
    if long:
        row = max(long, key=counts.tokens.__getitem__)
        at_most = " at most" if counts.is_estimate else ""
        has = (
            f"has {counts.tokens[row]:,} tokens{at_most}; of a {input_type}, {model.space.title} "
            f"reads {counts.limit:,}"
        )
        if too_long == "refuse":
            exact = " Or name the model's tokenizer with tokenizer_of, which counts exactly."
            raise ConfigError(
                f"{name(row)} ({_excerpt(texts[row])}) {has}. {remedy}"
                f"{exact if counts.is_estimate else ''}"
            )
        unseen = _cut(readable, counts, long, cutter)
        others = f", and so were {len(long) - 1:,} more" if len(long) > 1 else ""
        cut = f"{name(row)} {has}, and it was cut there{others}."
    unknown = _unknown_in_words(counts, special, model.space.title, name)
    return ReadableTexts(readable, counts.tokens, cut, unknown, unseen)


def _require_content(texts: Sequence[str], name: Callable[[int], str]) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(f"{name(row)} is {_excerpt(text)}, not a text.")
        if not has_content(text):
            raise ConfigError(f"{name(row)} is empty. Leave it out: it has no meaning to embed.")
        if SURROGATE.search(text):
            raise ConfigError(f"{name(row)} holds half a character, a lone surrogate. Replace it.")


def count_tokens(texts: Sequence[str], tokenizer: "Tokenizer") -> list[int]:
    """Of each text, special tokens included."""
    parts = (texts[at : at + TEXTS_AT_ONCE] for at in range(0, len(texts), TEXTS_AT_ONCE))
    return [len(entry) for part in parts for entry in tokenizer.encode_batch_fast(list(part))]


@dataclass(frozen=True)
class _Counts:
    """What a tokenizer says of texts."""

    tokenizer: "Tokenizer"
    limit: int  # of the model, in tokens of this tokenizer
    tokens: list[int]
    unknown: list[int]  # of these, those that the vocabulary lacks
    long: "dict[int, Encoding]"  # beyond the limit, by row, with offsets; empty unless kept

    @property
    def is_estimate(self) -> bool:
        # A model's own tokenizer takes milliseconds to write out; an estimate has one word.
        is_small = self.tokenizer.get_vocab_size() <= 1
        return is_small and self.tokenizer.to_str() == estimate().to_str()


def _cut(
    texts: list[str],
    counts: _Counts,
    rows: Sequence[int],
    cutter: "Callable[[Tokenizer, int], Cutter]",
) -> int:
    """Cut these texts at the limit, in place as their tokens are; how many tokens were cut off."""
    encodings = [counts.long[row] for row in rows]
    cuts = cutter(counts.tokenizer, counts.limit).cut([texts[row] for row in rows], encodings)
    unseen = 0
    for row, pieces in zip(rows, cuts, strict=True):
        unseen += pieces[0].unseen
        texts[row] = texts[row][: pieces[0].end]
        counts.tokens[row] = pieces[0].tokens
    return unseen


def _unknown_in_words(counts: _Counts, special: int, model: str, name: Callable[[int], str]) -> str:
    """A sentence on the tokens that the model lacks; empty if they are few."""
    unknown, content = counts.unknown, sum(counts.tokens) - special * len(counts.tokens)
    if not content or sum(unknown) / content < TELL_UNKNOWN:
        return ""
    row = max(range(len(unknown)), key=unknown.__getitem__)
    share, most = f"{min(1, sum(unknown) / content):.0%}", f", most in {name(row)}"
    return (
        f"{share} of the tokens are unknown to {model}{most if len(unknown) > 1 else ''}: "
        "it reads nothing in them. Use a model of their language."
    )


def _count(
    texts: Sequence[str], model: EmbeddingModel, input_type: InputType, keeps_long: bool
) -> _Counts:
    """`keeps_long`: who is about to cut needs no second encoding."""
    prompts, options = model.space.prompts, model.options
    # Estimate first where that is possible: OpenAI's vocabulary may have to be downloaded, and
    # only texts that exceed the estimate need it.
    can_estimate = isinstance(options, ServiceOptions) and options.tokenizer_of is None
    for is_estimate in (True, False) if can_estimate else (False,):
        tokenizer = estimate() if is_estimate else model.tokenizer
        pair = [prompts.get(input_type, ""), prompts.get("document", "")]
        own, documents = count_tokens(pair, tokenizer) if pair[0] != pair[1] else (0, 0)
        # The model's limit excludes the prompt of documents.
        limit = model.limits.max_tokens - max(0, own - documents)
        counts = _Counts(tokenizer, limit, [], [], {})
        encode = tokenizer.encode_batch if keeps_long else tokenizer.encode_batch_fast
        missing = unknown_id(tokenizer)
        for at in range(0, len(texts), TEXTS_AT_ONCE):
            for entry in encode(list(texts[at : at + TEXTS_AT_ONCE])):
                if keeps_long and len(entry) > limit:
                    counts.long[len(counts.tokens)] = entry
                counts.tokens.append(len(entry))
                counts.unknown.append(count_unknown(entry, missing))
        if max(counts.tokens, default=0) <= limit:
            break
    return counts


def _excerpt(text: object) -> str:
    return repr(text[:EXCERPT] if isinstance(text, str) else text)[: 2 * EXCERPT]
