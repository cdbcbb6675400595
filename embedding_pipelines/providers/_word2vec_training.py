"""Trains word vectors on a pipeline's texts by gensim; equal texts and options give equal files."""

import zlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from embedding_pipelines.errors import SourceError
from embedding_pipelines.extras import need
from embedding_pipelines.files import draft_beside, replacing
from embedding_pipelines.providers._word2vec_words import split_words, word_tokenizer


class Training(BaseModel):
    """Options of word2vec's training, with gensim's defaults: CBOW with five negative samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int = Field(100, ge=2, le=4096)
    window: int = Field(5, ge=1)
    """Words to the left and to the right that a word's vector depends on."""

    min_count: int = Field(2, ge=1)
    """Rarer words get no vector."""

    epochs: int = Field(5, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)


def train_vectors(texts: Iterable[str], options: Training, path: Path) -> None:
    """Train on `texts` and replace `path`, in word2vec's binary format.

    `texts` is read once into a temporary file beside `path`, which each epoch reads. Memory grows
    with the number of different words only. Raises SourceError if no word is frequent enough.
    """
    word2vec = need("gensim.models.word2vec", "word2vec")
    with replacing(path) as draft, draft_beside(path) as corpus:
        count = _write_words(texts, corpus)
        model = word2vec.Word2Vec(
            vector_size=options.dimensions,
            window=options.window,
            min_count=options.min_count,
            seed=options.seed,
            workers=1,  # with more, the result differs from run to run
            hashfxn=_hash,
        )
        sentences = word2vec.LineSentence(str(corpus))
        model.build_vocab(sentences)
        if not len(model.wv):
            raise SourceError(
                f"word2vec: no word occurs {options.min_count} times or more in the {count:,} "
                "texts to train on. Lower train.min_count, or give the pipeline more text."
            )
        model.train(sentences, total_examples=model.corpus_count, epochs=options.epochs)
        model.wv.save_word2vec_format(str(draft), binary=True)


def _write_words(texts: Iterable[str], corpus: Path) -> int:
    """Write each text as a line of lower-case words; returns the number of texts."""
    count, tokenizer = 0, word_tokenizer()
    with corpus.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(" ".join(split_words(text.lower(), tokenizer)) + "\n")
            count += 1
    return count


def _hash(word: str) -> int:
    """Of the same value in each process, unlike Python's own."""
    return zlib.crc32(word.encode())
