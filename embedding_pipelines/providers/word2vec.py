"""`word2vec`: a text is the mean of its words' vectors, normalized; from a file, or trained on the
pipeline's texts.

Files in word2vec's text or binary format, GloVe's or fastText's text (`.vec`), or gensim's
KeyedVectors; also gzipped.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import model_validator

from embedding_pipelines.errors import ConfigError, ProviderError
from embedding_pipelines.files import replacing
from embedding_pipelines.once import forget, once
from embedding_pipelines.providers._word2vec_files import (
    WordVectors,
    content_sha256,
    load_vectors,
    parts,
)
from embedding_pipelines.providers._word2vec_training import Training, train_vectors
from embedding_pipelines.providers._word2vec_words import split_words, word_tokenizer
from embedding_pipelines.providers.base import (
    NO_SECRETS,
    InputType,
    Limits,
    ProviderOptions,
    Response,
    TrainableModel,
)
from embedding_pipelines.space import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = "1"  # raise it when the vectors of the same file change
RESULT = "vectors.bin"  # of training, in the pipeline's own folder
NO_WORD = "No word of it is among the word vectors."
MAX_TOKENS = 10_000  # a mean over more words is the same for every text


class Word2vec(ProviderOptions):
    """Mean of the vectors of a text's words, those without one left out. A text of which no word
    has a vector has none either, and is rejected."""

    kind: Literal["word2vec"] = "word2vec"
    vectors: str | None = None
    """The file of word vectors, below the home folder."""

    train: Training | None = None
    """Train the vectors on the pipeline's own texts; `train: {}` takes the defaults."""

    trained: str | None = None
    """In a release: the file that training wrote, below the home folder."""

    @model_validator(mode="after")
    def _has_a_file(self) -> Self:
        if self.vectors is not None and (self.train is not None or self.trained is not None):
            raise ValueError("`vectors` are read and `train` makes others: keep one of them")
        if self.vectors is None and self.train is None:
            raise ValueError(
                "name a file of word vectors with `vectors`, or have them trained on your own "
                "texts with `train: {}`"
            )
        return self

    @property
    def trains(self) -> bool:
        return self.train is not None and self.trained is None

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> Word2vecModel:
        return Word2vecModel(self, home, folder)


class Word2vecModel(TrainableModel):
    options: Word2vec

    def __init__(self, options: Word2vec, home: Path, folder: Path | None) -> None:
        super().__init__(options)
        self._home = home
        name = options.vectors or options.trained
        self._path = home / name if name else folder / RESULT if folder else None

    @functools.cached_property
    def space(self) -> Space:
        words = self._words
        return Space(
            provider=self.options.kind,
            model=words.path.name,
            revision=f"{VERSION}-{words.sha256}",
            dimensions=words.vectors.shape[1],
            pooling="mean",
            prompts={},
            max_tokens=MAX_TOKENS,
            normalized=True,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        return Limits(max_tokens=MAX_TOKENS, request_tokens=65_536, request_texts=4_096)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return word_tokenizer()

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        words = self._words
        vectors = np.full((len(inputs), words.vectors.shape[1]), np.nan, np.float32)
        for row, text in enumerate(inputs):
            rows = words.rows_of(split_words(text, self.tokenizer)[:MAX_TOKENS])
            if not rows:
                continue
            mean = words.vectors[rows].mean(axis=0, dtype=np.float64)
            length = np.linalg.norm(mean)
            if 0 < length < np.inf:  # words that cancel out have no direction
                vectors[row] = mean / length
        without = np.flatnonzero(np.isnan(vectors[:, 0]))
        return Response(vectors, rejected=dict.fromkeys(map(int, without), NO_WORD))

    def train(self, texts: Iterable[str]) -> None:
        training, path = self.options.train, self._path
        if not self.options.trains or training is None or path is None:
            raise ConfigError("word2vec: only a pipeline's model with `train` can be trained.")
        train_vectors(texts, training, path)
        forget(self, "_words", "space")

    def release_options(self, folder: Path) -> Word2vec:
        words = self._words
        copy = folder / words.sha256[:32] / words.path.name
        if not copy.exists():
            if content_sha256(words.path) != words.sha256:
                raise ProviderError(
                    f"{words.path}: this file has changed since the run began, so that a release "
                    "would not hold the vectors that were used. Run the pipeline again."
                )
            for part in reversed(parts(words.path)):  # the file that is looked for comes last
                with replacing(copy.parent / part.name) as draft:
                    shutil.copyfile(part, draft)
        option = "vectors" if self.options.train is None else "trained"
        return self.options.model_copy(update={option: copy.relative_to(self._home).as_posix()})

    def close(self) -> None:
        forget(self, "_words")

    @once
    def _words(self) -> WordVectors:
        path = self._path
        if path is None or (self.options.train is not None and not path.is_file()):
            raise ConfigError(
                "word2vec: the vectors are trained on the pipeline's own texts, which has not been "
                "done. Run the pipeline's `train` step, or name a file of vectors with `vectors`."
            )
        return load_vectors(path)
