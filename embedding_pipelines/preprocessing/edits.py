"""How much of documents was edited: the tokens of sentences that are new in them, or gone.

What is embedded for an edit is compared with it: whole chunks for a sentence.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator

import pyarrow as pa

from embedding_pipelines.preprocessing.chunk import sentence_ends

Sentences = dict[bytes, float]  # digest -> tokens


class Edits:
    """Given the chunks of documents before and after; both of `schemas.chunks_schema`, and those of
    a document in their order. It holds 100 bytes for each sentence from before."""

    def __init__(self, special_tokens: int) -> None:
        self._special = special_tokens
        self._before: dict[str, Sentences] = defaultdict(dict)
        self._gone: dict[str, Sentences] = {}  # of documents that have come again
        self._new: dict[str, float] = defaultdict(float)

    def add_before(self, chunks: pa.RecordBatch) -> None:
        for document, sentence, tokens in self._sentences(chunks):
            self._before[document][_digest(sentence)] = tokens

    def add_after(self, chunks: pa.RecordBatch) -> None:
        for document, sentence, tokens in self._sentences(chunks):
            before = self._before.get(document, {})
            gone = self._gone.setdefault(document, dict(before))
            name = _digest(sentence)
            if name in before:
                gone.pop(name, None)
            else:
                self._new[document] += tokens

    @property
    def tokens(self) -> int:
        """Of each document those that are new or those that are gone, whichever are more: a sentence
        that is replaced counts once."""
        gone = {name: sum(sentences.values()) for name, sentences in self._gone.items()}
        return round(sum(max(self._new[name], tokens) for name, tokens in gone.items()))

    def _sentences(self, chunks: pa.RecordBatch) -> Iterator[tuple[str, str, float]]:
        """Document, sentence and its tokens, by its share of the chunk's characters; what chunks
        share comes once."""
        last, covered = None, 0
        names = ("document_id", "start", "end", "text", "tokens")
        for document, start, end, text, tokens in zip(
            *(chunks[name].to_pylist() for name in names), strict=True
        ):
            covered = covered if document == last else 0
            last, at = document, max(covered - start, 0)
            covered = end
            for place in (*sentence_ends(text), len(text)):
                if place > at:
                    share = (place - at) / len(text)
                    yield document, text[at:place], max(tokens - self._special, 0) * share
                    at = place


def _digest(sentence: str) -> bytes:
    return hashlib.blake2b(" ".join(sentence.split()).encode(), digest_size=8).digest()
