"""`word2vec`: a text is the mean of its words' vectors, normalized; from a file, or learnt from the
pipeline's texts.

Files in word2vec's text or binary format, GloVe's or fastText's text (`.vec`), or gensim's
KeyedVectors; also gzipped.
"""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import model_validator

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.files import replacing
from embedding_pipelines.home import home
from embedding_pipelines.providers._word2vec_files import WordVectors, content_sha256, opened, parts
from embedding_pipelines.providers._word2vec_training import Training, train
from embedding_pipelines.providers._word2vec_words import word_tokenizer, words_of
from embedding_pipelines.providers.base import InputType, Limits, Provider, Reply
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RECIPE = "1"  # raise it when the vectors of the same file change
LEARNT = "vectors.bin"
NO_WORD = "No word of it is among the word vectors."
MAX_TOKENS = 10_000  # a mean over more words is the same for every text

_ONE_AT_A_TIME = threading.Lock()  # a file is opened once, whoever asks first


class Word2vec(Provider):
    """Mean of the vectors of a text's known words. A text without a known word gets a row of NaN:
    it has no vector."""

    kind: Literal["word2vec"] = "word2vec"
    vectors: str | None = None
    """The file of word vectors, below the home folder."""

    train: Training | None = None
    """Learn the vectors from the pipeline's own texts; `train: {}` takes the defaults."""

    learnt: str | None = None
    """Where the learnt ones are kept, below the home folder; the pipeline has a place for them."""

    @model_validator(mode="after")
    def _has_a_file(self) -> Self:
        if self.vectors is not None and (self.train is not None or self.learnt is not None):
            raise ValueError("`vectors` are read and `train` learns others: keep one of them")
        if self.vectors is None and self.train is None:
            raise ValueError(
                "name a file of word vectors with `vectors`, or have them learnt from your own texts with `train: {}`"
            )
        return self

    @property
    def space(self) -> Space:
        return Space(
            provider=self.kind,
            model=self._path.name,
            revision=f"{RECIPE}-{content_sha256(self._path)}",
            dimensions=self._words.vectors.shape[1],
            pooling="mean",
            prompts={},
            max_tokens=MAX_TOKENS,
            normalized=True,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        return Limits(max_tokens=MAX_TOKENS, request_tokens=65_536, request_texts=4_096)

    def tokenizer(self) -> Tokenizer:
        return word_tokenizer()

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        vectors = self.embed(inputs, input_type)
        rows = np.flatnonzero(np.isnan(vectors[:, 0]))
        return Reply(vectors, refused=dict.fromkeys(map(int, rows), NO_WORD))

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        known = self._words
        vectors = np.full((len(inputs), known.vectors.shape[1]), np.nan, np.float32)
        for row, text in enumerate(inputs):
            rows = known.known(words_of(text)[:MAX_TOKENS])
            if not rows:
                continue
            mean = known.vectors[rows].mean(axis=0, dtype=np.float64)
            length = np.linalg.norm(mean)
            if 0 < length < np.inf:  # words that cancel out have no direction
                vectors[row] = mean / length
        return vectors

    @property
    def learns(self) -> bool:
        return self.train is not None

    def learn(self, texts: Iterable[str]) -> None:
        assert self.train is not None
        train(texts, self.train, self._kept)

    def kept_in(self, folder: str) -> Self:
        return (
            self
            if self.train is None or self.learnt
            else self.model_copy(update={"learnt": f"{folder}/{LEARNT}"})
        )

    def pinned(self, folder: Path) -> Self:
        kept = folder / content_sha256(self._path)[:32] / self._path.name
        if not kept.exists():
            for part in reversed(parts(self._path)):  # the file that is looked for comes last
                with replacing(kept.parent / part.name) as draft:
                    shutil.copyfile(part, draft)
        option = "learnt" if self.learns else "vectors"
        return self.model_copy(update={option: kept.relative_to(home()).as_posix()})

    @property
    def _path(self) -> Path:
        name = self.learnt if self.learns else self.vectors
        if name is None or (self.learns and not (home() / name).is_file()):
            raise ConfigError(
                "word2vec: the vectors are learnt from the pipeline's own texts, which has not been done. Run the "
                "pipeline's `model` step, or name a file of vectors with `vectors`."
            )
        return home() / name

    @property
    def _kept(self) -> Path:
        assert self.learnt is not None  # a pipeline has set it
        return home() / self.learnt

    @property
    def _words(self) -> WordVectors:
        with _ONE_AT_A_TIME:
            return _opened(self._path, content_sha256(self._path))


@functools.lru_cache(maxsize=4)
def _opened(path: Path, content: str) -> WordVectors:
    """One table of words per file and process, however many pipelines use it."""
    return opened(path, content)
