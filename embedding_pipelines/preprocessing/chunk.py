"""Chunking: cleaned text is cut into pieces that the model can take whole.

Cuts only, and counts tokens. A piece is an exact slice of the text; where it may begin and end is
semantic-text-splitter's decision (paragraphs before lines before sentences before words).

Given the tokenizer, that library encodes about ten times the text to find its cuts: 59.8 s for the
PEPs (14.3 M characters, 3.9 M MiniLM tokens, limit 256). Here each long text is encoded once (7 s),
and the library asks for sizes that a bisection over the token offsets answers (1.8 s): the very
same 20,879 chunks. A token can differ where a cut goes through a word, so each chunk is counted
once more by itself, and the rare ones that are too long are halved.

Its time also grows with the square of its text (100,000 Chinese characters without a full stop 27
s, 200,000 127 s), so it is shown one window at a time (1.1 s and 2.2 s; the PEPs' chunks stay the
same).
"""

import importlib.metadata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Encoding, Tokenizer

from embedding_pipelines.errors import ConfigError

_VERSION = 1  # raise it whenever the same options give other chunks
_SURELY_LONG = (
    6  # characters per token of the limit; prose has 4 to 5, so such a text is encoded with offsets
)
_WINDOW = 16  # limits of tokens that the splitter sees at once; its time grows with the square of its text
_PART = 1_000_000  # characters encoded at once; an encoding takes about 125 bytes for each
_UNSETTLED = 2  # chunks at a window's end that could be others if the splitter saw what follows


class Chunk(BaseModel):
    """How long a chunk may be, in tokens as the model counts them, special tokens included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int | None = Field(default=None, ge=1)
    """None: the model's own limit, which also caps a larger number."""
    overlap: int = Field(default=32, ge=0)
    """Tokens that neighbours share, at most: whole sentences or words; half of `max_tokens` at
    most."""

    @model_validator(mode="after")
    def _overlap_leaves_room(self) -> Self:
        if self.max_tokens is not None and 2 * self.overlap > self.max_tokens:
            raise ValueError(
                f"overlap is {self.overlap} and max_tokens {self.max_tokens}; "
                f"set overlap to {self.max_tokens // 2} or less"
            )
        return self

    @property
    def version(self) -> str:
        """The options and the splitter's version, for fingerprints; the tokenizer belongs to the
        model."""
        version = importlib.metadata.version("semantic-text-splitter")
        return f"chunk/{_VERSION}:max_tokens={self.max_tokens},overlap={self.overlap};semantic-text-splitter={version}"


class Piece(NamedTuple):
    """A slice of a text, in characters, and its tokens as the model counts them."""

    start: int
    end: int
    tokens: int


class Cutter:
    """Cuts texts for one tokenizer and one limit.

    `chunk` None means one piece per text: its beginning, up to the limit. `limit` is the model's,
    special tokens included. ConfigError if no text would fit, or if the overlap takes more than
    half of a chunk.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int, chunk: Chunk | None) -> None:
        from semantic_text_splitter import TextSplitter

        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # ours to change, and changed once
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._limit = _effective_limit(limit, chunk, self._special)
        self._whole = chunk is None
        capacity = max(1, self._limit - self._special - self._first_word_mark())
        overlap = (
            min(chunk.overlap, capacity - 1) if chunk else 0
        )  # the library wants it below the capacity
        self._sizes = _Sizes()
        self._splitter = TextSplitter.from_callback(self._sizes, capacity, overlap)

    def cut(self, texts: Sequence[str]) -> list[list[Piece]]:
        """The pieces of each text in order, `start` and `end` rising; none for a text of white
        space.

        Every character outside the pieces is white space, except in the one-piece mode. ConfigError
        if a single character has more tokens than a chunk may hold.
        """
        if any(len(text) > _PART for text in texts):
            return [
                piece
                for text in texts
                for piece in (self._cut_in_parts(text) if len(text) > _PART else self.cut([text]))
            ]
        encodings = self._encode(texts)
        spans: list[list[tuple[int, int]]] = []
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding is None or len(encoding) <= self._limit:
                spans.append([])
            elif self._whole:
                spans.append([(0, self._prefix(text, encoding))])
            else:
                spans.append(self._split(text, encoding))
        pieces = self._count(texts, spans)
        for at, encoding in enumerate(encodings):
            if encoding is not None and len(encoding) <= self._limit:
                pieces[at] = [Piece(0, len(texts[at]), len(encoding))]
        return pieces

    def _cut_in_parts(self, text: str) -> list[list[Piece]]:
        """The pieces of one very long text; at the seams, between paragraphs or words, pieces share
        no tokens."""
        pieces: list[Piece] = []
        start = 0
        while start < len(text) and not (self._whole and pieces):
            end = _seam(text, start)
            pieces += [
                Piece(start + at, start + stop, tokens)
                for at, stop, tokens in self.cut([text[start:end]])[0]
            ]
            start = end
        return [pieces]

    def _encode(self, texts: Sequence[str]) -> list[Encoding | None]:
        """None for white space; with offsets for each text beyond the limit, cheaply for the
        others."""
        encodings: list[Encoding | None] = [None] * len(texts)
        filled = [at for at, text in enumerate(texts) if text and not text.isspace()]
        long = [at for at in filled if len(texts[at]) >= _SURELY_LONG * self._limit]
        short = sorted(set(filled).difference(long))
        for at, encoding in zip(
            short, self._tokenizer.encode_batch_fast([texts[i] for i in short]), strict=True
        ):
            if len(encoding) <= self._limit:
                encodings[at] = encoding
            else:
                long.append(at)
        for at, encoding in zip(
            long, self._tokenizer.encode_batch([texts[i] for i in long]), strict=True
        ):
            encodings[at] = encoding
        return encodings

    def _split(self, text: str, encoding: Encoding) -> list[tuple[int, int]]:
        """The splitter's chunks, taken window by window; each window begins where a chunk does."""
        starts, ends = _offsets(encoding)
        spans: list[tuple[int, int]] = []
        begin, size = 0, _WINDOW * self._limit
        while True:
            last = bisect_left(starts, begin) + size
            end = ends[last] if last < len(ends) else len(text)
            window = text[begin:end]
            self._sizes.open(window, begin, starts, ends)
            found = [
                (begin + at, begin + at + len(piece))
                for at, piece in self._splitter.chunk_indices(window)
            ]
            if end == len(text):
                return spans + found
            if len(found) > _UNSETTLED:
                spans += found[:-_UNSETTLED]
                begin = found[-_UNSETTLED][0]
            else:
                size *= 2  # a few very long words fill it

    def _count(
        self, texts: Sequence[str], spans: Sequence[list[tuple[int, int]]]
    ) -> list[list[Piece]]:
        """Each span counted by itself; those beyond the limit cut again."""
        flat = [
            text[start:end] for text, cuts in zip(texts, spans, strict=True) for start, end in cuts
        ]
        lengths = iter([len(encoding) for encoding in self._tokenizer.encode_batch_fast(flat)])
        counted: list[list[Piece]] = []
        for text, cuts in zip(texts, spans, strict=True):
            pieces: list[Piece] = []
            for start, end in cuts:
                tokens = next(lengths)
                if tokens <= self._limit:
                    pieces.append(Piece(start, end, tokens))
                else:
                    pieces += self._cut_again(text, start, end)
            counted.append(_advancing(pieces))
        return counted

    def _cut_again(self, text: str, start: int, end: int) -> list[Piece]:
        """Halves of halves, between words where that is possible, until each part fits."""
        tokens = self._tokens(text[start:end])
        if tokens <= self._limit:
            return [Piece(start, end, tokens)]
        if end - start == 1:
            raise self._too_large(text[start:end], tokens)
        middle = _word_end(text[start:end], (end - start + 1) // 2) + start
        rest = end - len(text[middle:end].lstrip())
        return self._cut_again(text, start, middle) + self._cut_again(text, rest, end)

    def _too_large(self, character: str, tokens: int) -> ConfigError:
        return ConfigError(
            f"preprocessing: {character!r} alone takes {tokens} tokens, and a chunk may hold {self._limit}. "
            f"Set preprocessing.chunk.max_tokens to {tokens} or more, or take a model with a higher limit."
        )

    def _prefix(self, text: str, encoding: Encoding) -> int:
        """Where to cut the one piece: at the limit, back to the end of a word if less than half is
        lost."""
        end = _offsets(encoding)[1][self._limit - self._special - 1]
        while True:
            end = _word_end(text, end)
            tokens = self._tokens(text[:end])
            if tokens <= self._limit:
                return end
            if end == 1:
                raise self._too_large(text[:1], tokens)
            end = max(1, min(end - 1, end * self._limit // tokens))

    def _first_word_mark(self) -> int:
        """1 if the tokenizer may put a token of its own before a text that begins within a word,
        else 0.

        SentencePiece's "▁" does so in scripts without spaces; the whole text's encoding does not
        show it.
        """
        one, two = (self._tokens(text) - self._special for text in ("字", "字字"))
        return int(2 * one > two)

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))


class _Sizes:
    """The size in tokens of any slice of one window, from the offsets of the whole text's encoding.

    The splitter passes the slice, not its place; any place where it stands has the same tokens.
    """

    def open(self, window: str, begin: int, starts: Sequence[int], ends: Sequence[int]) -> None:
        self._window, self._begin, self._starts, self._ends = window, begin, starts, ends

    def __call__(self, piece: str) -> int:
        at = self._begin + self._window.index(piece)
        return bisect_left(self._starts, at + len(piece)) - bisect_right(self._ends, at)


def _seam(text: str, start: int) -> int:
    """Where a part that begins at `start` ends: after a paragraph, else a line, else a word, else
    anywhere."""
    end = start + _PART
    if end >= len(text):
        return len(text)
    found = (text.rfind(mark, start + _PART // 2, end) for mark in ("\n\n", "\n", " "))
    return next((at + 1 for at in found if at >= 0), end)


def _offsets(encoding: Encoding) -> tuple[list[int], list[int]]:
    """Starts and ends of the tokens in characters, without the special tokens."""
    inside = [
        offset
        for offset, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        if not special
    ]
    return [start for start, _ in inside], [end for _, end in inside]


def _word_end(text: str, end: int) -> int:
    """The last end of a word at or before `end`; `end` itself if that would lose half the text or
    more."""
    if end < len(text) and not text[end].isspace():
        head = text[:end].rstrip()
        if len(head) == end:
            words = head.rsplit(maxsplit=1)
            shorter = head[: len(head) - len(words[-1])].rstrip()
            return len(shorter) if 2 * len(shorter) > end else end
    return len(text[:end].rstrip()) or end


def _advancing(pieces: Sequence[Piece]) -> list[Piece]:
    """Without the pieces that lie inside another: a second cut can reach into the overlap that
    follows."""
    advancing: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.start, -piece.end)):
        if not advancing or piece.end > advancing[-1].end:
            advancing.append(piece)
    return advancing


def _effective_limit(limit: int, chunk: Chunk | None, special: int) -> int:
    effective = limit if chunk is None or chunk.max_tokens is None else min(limit, chunk.max_tokens)
    if effective <= special:
        raise ConfigError(
            f"preprocessing.chunk.max_tokens: {effective} tokens leave no room for text, for the model adds "
            f"{special} of its own. Set it to {special + 1} or more; the model takes {limit}."
        )
    if chunk is not None and 2 * chunk.overlap > effective:
        raise ConfigError(
            f"preprocessing.chunk.overlap: {chunk.overlap} tokens are more than half of a chunk of "
            f"{effective}, and the model takes {limit}. Set it to {effective // 2} or less."
        )
    return effective
