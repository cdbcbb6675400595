"""Word vectors trained on a pipeline's own texts, by gensim; the same texts and options give the
same file."""

import zlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from embedding_pipelines.errors import SourceError
from embedding_pipelines.extras import need
from embedding_pipelines.files import draft_beside, replacing
from embedding_pipelines.providers._word2vec_words import split_words, word_tokenizer


class Training(BaseModel):
    """How word2vec is trained: skip-gram's counterpart CBOW with five negative samples, gensim's own
    defaults else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int = Field(100, ge=2, le=4096)
    window: int = Field(5, ge=1)
    """Words to the left and to the right that a word's vector is trained on."""

    min_count: int = Field(2, ge=1)
    """Rarer words are left out, and have no vector."""

    epochs: int = Field(5, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)


def train_vectors(texts: Iterable[str], options: Training, path: Path) -> None:
    """Train on `texts` and write `path`, in word2vec's binary format; a reader never meets half
    of it.

    `texts` is read once: its words are kept in a temporary file beside `path`, which each epoch
    reads. Memory is bounded by the number of different words. Raises SourceError if no word is
    frequent enough.
    """
    word2vec = need("gensim.models.word2vec", "word2vec")
    with replacing(path) as draft, draft_beside(path) as corpus:
        count = _write_words(texts, corpus)
        model = word2vec.Word2Vec(
            vector_size=options.dimensions,
            window=options.window,
            min_count=options.min_count,
            seed=options.seed,
            workers=1,  # several threads train in an order that differs from run to run
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
    """One text a line, its words in lower case; returns how many texts there were."""
    count, tokenizer = 0, word_tokenizer()
    with corpus.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(" ".join(split_words(text.lower(), tokenizer)) + "\n")
            count += 1
    return count


def _hash(word: str) -> int:
    """Python's own differs from process to process."""
    return zlib.crc32(word.encode())
