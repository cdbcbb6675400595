"""Chunking: cuts cleaned text into pieces that the model can take whole, and counts their tokens.

A piece is an exact slice of the text. A text that is too long is cut at its strongest border, then
each part again, until all of them fit. Borders are the ends of paragraphs, lines and sentences,
within a long sentence those of words, within a long word those of tokens. How strong one is depends
on nothing but what follows it: a paragraph is stronger than a sentence, and among equals a hash of
the next letters decides. So borders stay where the text around them stays: what is inserted, deleted
or edited changes the chunks beside it, and the vectors of all others are in the embedding cache.

Of 36 PEPs (1,500 words each, limit 256), a paragraph that is inserted, taken out or edited by a word
changes 1.6 chunks in the mean and 3 at most; filling each chunk from the beginning of the text, 2.4
and 14. The price: a chunk has 171 tokens in the mean instead of 212, and all chunks together 6%
more. What is found does not suffer: of 100 PEPs by their titles, nDCG@10 is 0.938 (0.913).

Each long text is encoded once, and sizes are counted by the tokens' offsets (the PEPs: 14.3 M
characters, 3.9 M MiniLM tokens). A cut within a word can change tokens, and with most tokenizers a
cut between words can, so each chunk is counted once more by itself, and the rare ones that are too
long are halved. BERT's takes each word by itself, so there a cut between words leaves all tokens.
"""

import itertools
import re
import unicodedata
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Encoding, Tokenizer, normalizers, pre_tokenizers

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.preprocessing.tokens import count_unknown, has_content, unknown_id

_VERSION = 3  # raise it when the same options give other chunks
_LONG = 6  # characters per token of the limit (prose: 4 to 5) from which a text needs offsets
_PART = 1_000_000  # characters to encode at once; an encoding takes about 125 bytes for each
_LEAST = 0.4  # of a chunk: what a cut leaves on either side, where there is a border that does
_DECISIVE = 32  # characters after a border whose hash says how strong it is
_PARAGRAPH = 0.4  # what the end of a paragraph is stronger, beside a hash in [0, 1)
_JOINERS = "\u200d\ufe0e\ufe0f"  # hold what is around them together
# The end of a sentence, or of a line, with white space; a full stop of Chinese needs none.
_END = re.compile(r"[.!?…][\"')\]’”»]?\s+|\n\s*|[。！？][」』’”）]?\s*")
_WORDS = re.compile(r"\s+")


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
        """The options, for fingerprints; without the tokenizer."""
        return f"chunk/{_VERSION}:max_tokens={self.max_tokens},overlap={self.overlap}"


class Piece(NamedTuple):
    """A slice of a text, in characters, and its tokens as the model counts them."""

    start: int
    end: int
    tokens: int
    unknown: int = 0  # of these, those that the model's vocabulary lacks
    unseen: int = 0  # tokens of the text behind it that no piece holds


class Cutter:
    """Cuts texts for one tokenizer, which it copies, and one limit.

    `chunk` None: one piece a text, its beginning up to the limit. `limit` is the model's, special
    tokens included. Raises ConfigError if no text would fit, or if the overlap takes more than half
    of a chunk.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int, chunk: Chunk | None) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._unknown_id = unknown_id(self._tokenizer)
        self._parts_words = _parts_words(self._tokenizer)
        self._limit = effective_limit(limit, chunk, self._special)
        self._whole = chunk is None
        self._capacity = max(1, self._limit - self._special - self._first_word_mark())
        self._overlap = min(chunk.overlap, self._capacity - 1) if chunk else 0

    def cut(
        self, texts: Sequence[str], encodings: Sequence[Encoding] | None = None
    ) -> list[list[Piece]]:
        """The pieces of each text in order, `start` and `end` rising; none for a text of which the
        model reads nothing: white space, control and format characters. `encodings`, with offsets,
        of whoever has them spares their computation.

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
        by_number = dict(enumerate(encodings)) if encodings else self._encode(texts)
        for at, encoding in by_number.items():
            text = texts[at]
            if len(encoding) <= self._limit:
                pieces[at] = [self._piece(0, len(text), encoding)]
                continue
            tokens = _Tokens(encoding)
            if self._whole:
                end = tokens.ends[self._limit - self._special - 1]
                spans = [(0, _word_end(text, end))]
            else:
                spans = _Long(text, tokens, self._capacity, self._overlap).spans()
            for start, end in spans:
                piece = self._of_words(text, tokens, start, end)
                if piece and piece.tokens <= self._limit:
                    pieces[at].append(piece)
                else:
                    cuts.append((at, start, end))
        parts = self._tokenizer.encode_batch_fast([texts[at][start:end] for at, start, end in cuts])
        for (at, start, end), encoding in zip(cuts, parts, strict=True):
            if len(encoding) <= self._limit:
                pieces[at].append(self._piece(start, end, encoding))
            elif self._whole:
                pieces[at] = [self._beginning(texts[at], end, len(encoding))]
            else:
                pieces[at] += self._halve(texts[at], start, end)
        if self._whole:
            for at, encoding in by_number.items():
                (piece,) = pieces[at]
                pieces[at] = [piece._replace(unseen=len(encoding) - piece.tokens)]
        return [self._readable(_drop_inner(each)) for each in pieces]

    def _of_words(self, text: str, tokens: "_Tokens", start: int, end: int) -> Piece | None:
        """A piece with the tokens that the whole text has there; None where a piece by itself may
        have others."""
        if not self._parts_words or not _is_apart_from_words(text, start, end):
            return None
        within = tokens.within(start, end)
        ids = tokens.ids[within.start : within.stop]
        unknown = 0 if self._unknown_id is None else ids.count(self._unknown_id)
        return Piece(start, end, len(ids) + self._special, unknown)

    def _piece(self, start: int, end: int, encoding: Encoding) -> Piece:
        return Piece(start, end, len(encoding), count_unknown(encoding, self._unknown_id))

    def _readable(self, pieces: list[Piece]) -> list[Piece]:
        """Without pieces of special tokens alone, which would all have one and the same vector."""
        return [piece for piece in pieces if piece.tokens > self._special]

    def _cut_parts(self, text: str) -> list[Piece]:
        """The pieces of one very long text; at the seams of its parts pieces share no tokens."""
        pieces: list[Piece] = []
        start = 0
        while start < len(text):
            end = _seam(text, start)
            if self._whole and pieces:  # the rest is counted
                unseen = pieces[0].unseen + self._tokens(text[start:end]) - self._special
                pieces[0] = pieces[0]._replace(unseen=unseen)
                start = end
                continue
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

    def _beginning(self, text: str, end: int, tokens: int) -> Piece:
        """The beginning of a text, shorter than `end`, where it has too many `tokens`."""
        while True:
            if end == 1:
                raise self._too_large_error(text[:1], tokens)
            end = _word_end(text, max(1, min(end - 1, end * self._limit // tokens)))
            part = self._tokenizer.encode(text[:end])
            if len(part) <= self._limit:
                return self._piece(0, end, part)
            tokens = len(part)

    def _first_word_mark(self) -> int:
        """1 if the tokenizer may put its own token before a text that begins within a word, else 0.

        SentencePiece does so with "▁" in scripts without spaces; the whole text's encoding does not
        show it.
        """
        one, two = (self._tokens(text) - self._special for text in ("字", "字字"))
        return int(2 * one > two)

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))


class _Tokens:
    """The tokens of a text but for special ones: starts and ends in characters, and ids."""

    def __init__(self, encoding: Encoding) -> None:
        own = [not special for special in encoding.special_tokens_mask]
        offsets = list(itertools.compress(encoding.offsets, own))
        self.starts = [start for start, _ in offsets]
        self.ends = [end for _, end in offsets]
        self.ids = list(itertools.compress(encoding.ids, own))

    def within(self, start: int, end: int) -> range:
        """Which of them have characters of a slice of the text."""
        return range(bisect_right(self.ends, start), bisect_left(self.starts, end))


class _Part(NamedTuple):
    """A part of a text, and which of some borders lie within it: from `first`, before `last`."""

    start: int
    end: int
    borders: "_Borders"
    first: int
    last: int


class _Borders(NamedTuple):
    """Where a part may be cut, in order, and how strong each border is."""

    level: int
    places: list[int]
    strengths: list[float]


class _Long:
    """One text that is too long, while it is cut."""

    def __init__(self, text: str, tokens: _Tokens, capacity: int, overlap: int) -> None:
        self._text, self._capacity, self._overlap = text, capacity, overlap
        self._tokens, self._starts = tokens, tokens.starts
        self._sentences = _sentences(text)

    def spans(self) -> list[tuple[int, int]]:
        """Start and end of each chunk, without white space around it."""
        text, spans = self._text, list[tuple[int, int]]()
        begins = {0: 0}  # of the chunk that is cut off there: with what it shares
        parts = [self._part(0, len(text), self._sentences)]
        while parts:
            part = parts.pop()
            begin = begins[part.start]
            if self._size(begin, part.end) > self._capacity:
                finer = part.first == part.last
                if not finer:
                    at = self._strongest(part)
                    place = part.borders.places[at]
                    begins[place] = self._begin(place, part.borders.level)
                    parts.append(part._replace(start=place, first=at + 1))
                    parts.append(part._replace(end=place, last=at))
                    continue
                if borders := self._finer(part):
                    parts.append(self._part(part.start, part.end, borders))
                    continue
            piece = text[begin : part.end]
            start = part.end - len(piece.lstrip())
            end = begin + len(piece.rstrip())
            if start < end:
                spans.append((start, end))
        return spans

    def _part(self, start: int, end: int, borders: _Borders) -> _Part:
        return _Part(start, end, borders, 0, len(borders.places))

    def _size(self, start: int, end: int) -> int:
        """In tokens."""
        return len(self._tokens.within(start, end))

    def _strongest(self, part: _Part) -> int:
        """The number of the border to cut at: the strongest that leaves enough on either side, of
        equals the one nearest to the middle."""
        places, strengths = part.borders.places, part.borders.strengths
        least, starts = max(1, int(_LEAST * self._capacity)), self._starts
        low = starts[min(bisect_left(starts, part.start) + least, len(starts) - 1)]
        high = starts[max(bisect_left(starts, part.end) - least, 0)]
        first = bisect_left(places, low, part.first, part.last)
        last = bisect_right(places, high, first, part.last)
        if first == last:
            first, last = part.first, part.last
        most, middle = max(strengths[first:last]), (part.start + part.end) // 2
        equals = (at for at in range(first, last) if strengths[at] == most)
        return min(equals, key=lambda at: abs(places[at] - middle))

    def _finer(self, part: _Part) -> _Borders | None:
        """The borders within a part that has none of its level."""
        text, level = self._text, part.borders.level + 1
        if level == 1:
            ends = (match.end() for match in _WORDS.finditer(text, part.start, part.end))
            places = [place for place in ends if part.start < place < part.end]
        elif level == 2:
            tokens = self._starts[
                bisect_right(self._starts, part.start) : bisect_left(self._starts, part.end)
            ]
            places = [place for place in dict.fromkeys(tokens) if _is_apart(text, place)]
        else:
            return None
        return _Borders(level, places, [_strength(text, place) for place in places])

    def _begin(self, place: int, level: int) -> int:
        """Where a chunk begins that is cut off at a border: with the last whole sentences before
        it, words or tokens, as many as may be shared."""
        if not self._overlap:
            return place
        at = bisect_left(self._starts, place) - self._overlap
        first = self._starts[at] if at > 0 else 0
        if level == 0:
            sentences = self._sentences.places
            return sentences[bisect_left(sentences, first)] if first else 0
        if first == 0 or self._text[first - 1].isspace():
            return first
        space = _WORDS.search(self._text, first, place)
        return space.end() if space else first


def sentence_ends(text: str) -> list[int]:
    """Where a sentence, a line or a paragraph begins behind another."""
    return _sentences(text).places


def _sentences(text: str) -> _Borders:
    """The ends of paragraphs, of sentences and of lines, but for a line that goes on in lower
    case."""
    places, strengths = list[int](), list[float]()
    for match in _END.finditer(text):
        place, is_paragraph = match.end(), match.group().count("\n") > 1
        if 0 < place < len(text) and (is_paragraph or not text[place].islower()):
            places.append(place)
            strengths.append(_strength(text, place) + _PARAGRAPH * is_paragraph)
    return _Borders(0, places, strengths)


def _strength(text: str, place: int) -> float:
    """In [0, 1), from what follows alone."""
    return zlib.crc32(text[place : place + _DECISIVE].encode()) / 2**32


def _is_apart(text: str, place: int) -> bool:
    """Whether letters stay whole that are written as several characters."""
    return not (
        unicodedata.combining(text[place]) or text[place] in _JOINERS or text[place - 1] == "\u200d"
    )


def _seam(text: str, start: int) -> int:
    """Where the part of a very long text ends that begins at `start`: the strongest border of its
    second half, if there is one."""
    end = start + _PART
    if end >= len(text):
        return len(text)
    first = start + _PART // 2
    places, strengths = _sentences(text[first:end])[1:]
    if not places:
        return text.rfind(" ", first, end) + 1 or end
    return first + places[strengths.index(max(strengths))]


def _parts_words(tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a word never depend on what lies beyond white space, as in BERT's."""
    tokens = tokenizer.get_added_tokens_decoder().values()
    # Some take the white space beside them, and with it what the normalizer left out there.
    reach_out = (token.normalized and (token.lstrip or token.rstrip) for token in tokens)
    return (
        isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and not any(reach_out)
        and not any(_WORDS.search(token.content) for token in tokens)
    )


def _is_apart_from_words(text: str, start: int, end: int) -> bool:
    """Whether what every tokenizer takes for white space is on either side of a piece."""
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    return before in ("", " ", "\n") and after in ("", " ", "\n")


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


def effective_limit(limit: int, chunk: Chunk | None, special: int = 0) -> int:
    """The most tokens of a chunk, of a model that takes `limit` and adds `special` of its own. Raises
    ConfigError if that leaves no room for text, or is less than twice the overlap."""
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
