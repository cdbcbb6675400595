"""Chunking: cuts cleaned text into pieces that the model can take whole, and counts their tokens.

A piece is an exact slice of the text. semantic-text-splitter decides where it begins and ends
(paragraphs before lines before sentences before words).

Given the tokenizer, that library encodes about ten times the text to find its cuts: 59.8 s for the
PEPs (14.3 M characters, 3.9 M MiniLM tokens, limit 256). So each long text is encoded once here
(7 s), and the library asks for sizes, which a bisection over the token offsets answers (1.8 s): the
very same 20,879 chunks. A cut within a word can change tokens, so each chunk is counted once more
by itself, and the rare ones that are too long are halved.

The library's time also grows with the square of its text (100,000 Chinese characters without a full
stop 27 s, 200,000 127 s), so it gets one window at a time (1.1 s and 2.2 s; the PEPs' chunks stay
the same).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Encoding, Tokenizer

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import version_of
from embedding_pipelines.preprocessing.tokens import count_unknown, has_content, unknown_id

_VERSION = 2  # raise it when the same options give other chunks
_LONG = 6  # characters per token of the limit (prose: 4 to 5) from which a text needs offsets
_WINDOW = 16  # in limits of tokens; the splitter's time grows with the square of its text
_PART = 1_000_000  # characters to encode at once; an encoding takes about 125 bytes for each
_UNCERTAIN = 2  # chunks at a window's end that may change once the splitter sees what follows


class Chunk(BaseModel):
    """The length of a chunk in tokens as the model counts them, special tokens included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: int | None = Field(default=None, ge=1)
    """None: the model's own limit, which also caps a larger number."""
    overlap: int = Field(default=32, ge=0)
    """Most tokens that neighbours share, as whole sentences or words; at most half a chunk."""

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
        """The options and the splitter's version, for fingerprints; without the tokenizer."""
        splitter = version_of("semantic-text-splitter")
        options = f"max_tokens={self.max_tokens},overlap={self.overlap}"
        return f"chunk/{_VERSION}:{options};semantic-text-splitter={splitter}"


class Piece(NamedTuple):
    """A slice of a text, in characters, and its tokens as the model counts them."""

    start: int
    end: int
    tokens: int
    unknown: int = 0  # of these, those that the model's vocabulary lacks


class Cutter:
    """Cuts texts for one tokenizer, which it copies, and one limit.

    `chunk` None: one piece a text, its beginning up to the limit. `limit` is the model's, special
    tokens included. Raises ConfigError if no text would fit, or if the overlap takes more than half
    of a chunk.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int, chunk: Chunk | None) -> None:
        from semantic_text_splitter import TextSplitter

        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._unknown_id = unknown_id(self._tokenizer)
        self._limit = _effective_limit(limit, chunk, self._special)
        self._whole = chunk is None
        capacity = max(1, self._limit - self._special - self._first_word_mark())
        # The library requires an overlap below the capacity.
        overlap = min(chunk.overlap, capacity - 1) if chunk else 0
        # Not a method of the cutter: Python cannot free a cycle through the library's splitter.
        self._sizes = _Sizes()
        self._splitter = TextSplitter.from_callback(self._sizes, capacity, overlap)

    def cut(self, texts: Sequence[str]) -> list[list[Piece]]:
        """The pieces of each text in order, `start` and `end` rising; none for a text of which the
        model reads nothing: white space, control and format characters.

        Only such characters lie outside the pieces, unless a text has just one. Raises ConfigError
        if a single character has more tokens than a chunk may hold.
        """
        if any(len(text) > _PART for text in texts):
            return [
                self._cut_parts(text) if len(text) > _PART else self.cut([text])[0]
                for text in texts
            ]
        pieces: list[list[Piece]] = [[] for _ in texts]
        cuts: list[tuple[int, int, int]] = []  # number of the text, start, end
        for at, encoding in self._encode(texts).items():
            if len(encoding) <= self._limit:
                pieces[at] = [self._piece(0, len(texts[at]), encoding)]
            elif self._whole:
                cuts.append((at, 0, self._prefix(texts[at], encoding)))
            else:
                cuts += [(at, *span) for span in self._split(texts[at], encoding)]
        parts = self._tokenizer.encode_batch_fast([texts[at][start:end] for at, start, end in cuts])
        for (at, start, end), encoding in zip(cuts, parts, strict=True):
            if len(encoding) <= self._limit:
                pieces[at].append(self._piece(start, end, encoding))
            else:
                pieces[at] += self._halve(texts[at], start, end)
        return [self._readable(_drop_inner(each)) for each in pieces]

    def _piece(self, start: int, end: int, encoding: Encoding) -> Piece:
        return Piece(start, end, len(encoding), count_unknown(encoding, self._unknown_id))

    def _readable(self, pieces: list[Piece]) -> list[Piece]:
        """Without pieces of special tokens alone, which would all have one and the same vector."""
        return [piece for piece in pieces if piece.tokens > self._special]

    def _cut_parts(self, text: str) -> list[Piece]:
        """The pieces of one very long text; at the seams of its parts pieces share no tokens."""
        pieces: list[Piece] = []
        start = 0
        while start < len(text) and not (self._whole and pieces):
            end = _seam(text, start)
            for piece in self.cut([text[start:end]])[0]:
                moved = {"start": start + piece.start, "end": start + piece.end}
                pieces.append(piece._replace(**moved))
            start = end
        return pieces

    def _encode(self, texts: Sequence[str]) -> dict[int, Encoding]:
        """By number, without texts of no content; with offsets for texts beyond the limit, cheaply for the
        others."""
        with_text = [at for at, text in enumerate(texts) if has_content(text)]
        short = [at for at in with_text if len(texts[at]) < _LONG * self._limit]
        fast = self._tokenizer.encode_batch_fast([texts[at] for at in short])
        pairs = zip(short, fast, strict=True)
        encodings = {at: encoding for at, encoding in pairs if len(encoding) <= self._limit}
        long = [at for at in with_text if at not in encodings]
        with_offsets = self._tokenizer.encode_batch([texts[at] for at in long])
        return encodings | dict(zip(long, with_offsets, strict=True))

    def _split(self, text: str, encoding: Encoding) -> list[tuple[int, int]]:
        """The splitter's chunks, window by window; each window begins where a chunk does."""
        starts, ends = _offsets(encoding)
        spans: list[tuple[int, int]] = []
        begin, size = 0, _WINDOW * self._limit
        while True:
            last = bisect_left(starts, begin) + size
            end = ends[last] if last < len(ends) else len(text)
            window = text[begin:end]
            self._sizes.open(window, begin, starts, ends)
            chunks = self._splitter.chunk_indices(window)
            cuts = [(begin + at, begin + at + len(piece)) for at, piece in chunks]
            if end == len(text):
                return spans + cuts
            if len(cuts) > _UNCERTAIN:
                spans += cuts[:-_UNCERTAIN]
                begin = cuts[-_UNCERTAIN][0]
            else:
                size *= 2  # a few very long words fill it

    def _halve(self, text: str, start: int, end: int) -> list[Piece]:
        """Halves of halves, between words where possible, until each part fits."""
        encoding = self._tokenizer.encode(text[start:end])
        if len(encoding) <= self._limit:
            return [self._piece(start, end, encoding)]
        if end - start == 1:
            raise self._too_large_error(text[start:end], len(encoding))
        middle = _word_end(text[start:end], (end - start + 1) // 2) + start
        rest = end - len(text[middle:end].lstrip())
        return self._halve(text, start, middle) + self._halve(text, rest, end)

    def _too_large_error(self, character: str, tokens: int) -> ConfigError:
        return ConfigError(
            f"preprocessing: {character!r} alone takes {tokens} tokens, and a chunk may hold "
            f"{self._limit}. Set preprocessing.chunk.max_tokens to {tokens} or more, or choose a "
            "model with a higher limit."
        )

    def _prefix(self, text: str, encoding: Encoding) -> int:
        """Where the one piece ends: at the limit, or at the last word's end if that keeps half."""
        end = _offsets(encoding)[1][self._limit - self._special - 1]
        while True:
            end = _word_end(text, end)
            tokens = self._tokens(text[:end])
            if tokens <= self._limit:
                return end
            if end == 1:
                raise self._too_large_error(text[:1], tokens)
            end = max(1, min(end - 1, end * self._limit // tokens))

    def _first_word_mark(self) -> int:
        """1 if the tokenizer may put its own token before a text that begins within a word, else 0.

        SentencePiece does so with "▁" in scripts without spaces; the whole text's encoding does not
        show it.
        """
        one, two = (self._tokens(text) - self._special for text in ("字", "字字"))
        return int(2 * one > two)

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))


class _Sizes:
    """The size in tokens of a slice of one window, from the offsets of the whole text's encoding.

    The splitter passes the slice, not its place; wherever it stands, it has the same tokens.
    """

    def open(self, window: str, begin: int, starts: Sequence[int], ends: Sequence[int]) -> None:
        self._window, self._begin, self._starts, self._ends = window, begin, starts, ends

    def __call__(self, piece: str) -> int:
        at = self._begin + self._window.index(piece)
        return bisect_left(self._starts, at + len(piece)) - bisect_right(self._ends, at)


def _seam(text: str, start: int) -> int:
    """Where the part from `start` ends: after a paragraph, a line or a word, else anywhere."""
    end = start + _PART
    if end >= len(text):
        return len(text)
    breaks = (text.rfind(mark, start + _PART // 2, end) for mark in ("\n\n", "\n", " "))
    return next((at + 1 for at in breaks if at >= 0), end)


def _offsets(encoding: Encoding) -> tuple[list[int], list[int]]:
    """Starts and ends of the tokens in characters, without the special tokens."""
    pairs = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    offsets = [offset for offset, is_special in pairs if not is_special]
    return [start for start, _ in offsets], [end for _, end in offsets]


def _word_end(text: str, end: int) -> int:
    """The last end of a word up to `end`, or `end` itself if that would lose half the text."""
    if end < len(text) and not text[end].isspace():
        head = text[:end].rstrip()
        if len(head) == end:
            words = head.rsplit(maxsplit=1)
            shorter = head[: len(head) - len(words[-1])].rstrip()
            return len(shorter) if 2 * len(shorter) > end else end
    return len(text[:end].rstrip()) or end


def _drop_inner(pieces: Sequence[Piece]) -> list[Piece]:
    """Without pieces inside another: a second cut can reach into the overlap that follows."""
    outer: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.start, -piece.end)):
        if not outer or piece.end > outer[-1].end:
            outer.append(piece)
    return outer


def _effective_limit(limit: int, chunk: Chunk | None, special: int) -> int:
    effective = limit if chunk is None or chunk.max_tokens is None else min(limit, chunk.max_tokens)
    if effective <= special:
        raise ConfigError(
            f"preprocessing.chunk.max_tokens: {effective} tokens leave no room for text, for the "
            f"model adds {special} of its own. Set it to {special + 1} or more; the model takes "
            f"{limit}."
        )
    if chunk is not None and 2 * chunk.overlap > effective:
        raise ConfigError(
            f"preprocessing.chunk.overlap: {chunk.overlap} tokens are more than half of a chunk of "
            f"{effective}, and the model takes {limit}. Set it to {effective // 2} or less."
        )
    return effective
