"""`word2vec`: the normalized mean of a text's word vectors, from a file or trained.

Files are in word2vec's text or binary format, GloVe's or fastText's text (`.vec`), or gensim's
KeyedVectors, gzipped or not.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Sequence
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
NO_WORD = "None of its words has a vector."
MAX_TOKENS = 10_000  # means over more words are alike for all texts


class Word2vecModel(TrainableModel):
    options: Word2vec
    resources = ("_words",)

    @property
    def _path(self) -> Path | None:
        name = self.options.vectors or self.options.trained
        if name:
            return self.home / name
        return self.folder / RESULT if self.folder else None

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
                    f"{words.path} has changed since the run began, so a release would not hold "
                    "the vectors of this run. Run the pipeline again."
                )
            for part in reversed(parts(words.path)):  # last the file whose existence counts
                with replacing(copy.parent / part.name) as draft:
                    shutil.copyfile(part, draft)
        option = "vectors" if self.options.train is None else "trained"
        return self.options.model_copy(update={option: copy.relative_to(self.home).as_posix()})

    @once
    def _words(self) -> WordVectors:
        path = self._path
        if path is None or (self.options.train is not None and not path.is_file()):
            raise ConfigError(
                "word2vec: the vectors are not trained yet. Run the pipeline's `train` step, or "
                "name a file of word vectors with `vectors`."
            )
        return load_vectors(path)


class Word2vec(ProviderOptions):
    """The mean over those words of a text that have a vector. A text without any is rejected."""

    model_class = Word2vecModel

    kind: Literal["word2vec"] = "word2vec"
    vectors: str | None = None
    """A file of word vectors, below the home folder."""

    train: Training | None = None
    """Train word vectors on the pipeline's own texts; `train: {}` takes the defaults."""

    trained: str | None = None
    """In a release: the file that training wrote, below the home folder."""

    @model_validator(mode="after")
    def _check_file(self) -> Self:
        if self.vectors is not None and (self.train is not None or self.trained is not None):
            raise ValueError("`vectors` and `train` exclude each other: keep one of them")
        if self.vectors is None and self.train is None:
            raise ValueError(
                "name a file of word vectors with `vectors`, or train them on your own texts with "
                "`train: {}`"
            )
        return self

    @property
    def trains(self) -> bool:
        return self.train is not None and self.trained is None
