"""`word2vec`: the normalized mean of a text's word vectors, from a file or trained.

Files are in word2vec's text or binary format, GloVe's or fastText's text (`.vec`), or gensim's
KeyedVectors, gzipped or not.
"""

import functools
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Regex, Tokenizer, pre_tokenizers

from embedding_pipelines.errors import ConfigError, ProviderError, SourceError
from embedding_pipelines.extras import need
from embedding_pipelines.files import draft_beside, replacing
from embedding_pipelines.once import forget, once
from embedding_pipelines.providers._word2vec_files import (
    WordVectors,
    content_sha256,
    load_vectors,
    parts,
)
from embedding_pipelines.providers.base import (
    InputType,
    Limits,
    ProviderOptions,
    Response,
    TrainableModel,
)
from embedding_pipelines.providers.common.tokenizers import count_pieces
from embedding_pipelines.space import Space

VERSION = "1"  # raise it when the vectors of the same file change
RESULT = "vectors.bin"  # of training, in the pipeline's own folder
NO_WORD = "None of its words has a vector."
MAX_TOKENS = 10_000  # means over more words are alike for all texts


class Word2vecModel(TrainableModel):
    options: "Word2vec"
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

    def release_options(self, folder: Path) -> "Word2vec":
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
        return load_vectors(path, self.options.trusted)


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


class Word2vec(ProviderOptions):
    """The mean over those words of a text that have a vector. A text without any is rejected."""

    model_class = Word2vecModel

    kind: Literal["word2vec"] = "word2vec"
    vectors: str | None = None
    """A file of word vectors, below the home folder."""

    trusted: bool = False
    """Open `vectors` though it is a pickle (gensim's KeyedVectors), which may run code."""

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

    def known_dimensions(self, home: Path) -> int | None:
        return None if self.train is None else self.train.dimensions

    def mistakes(self, home: Path) -> Iterator[str]:
        if self.vectors and not (home / self.vectors).is_file():
            yield f"vectors: there is no file {str(home / self.vectors)!r}. Correct the path."


def train_vectors(texts: Iterable[str], options: Training, path: Path) -> None:
    """Train on `texts` and replace `path`, in word2vec's binary format.

    `texts` is read once into a temporary file beside `path`, which each epoch reads. Memory grows
    with the number of different words only. Raises SourceError if no word is frequent enough.
    """
    word2vec = need("gensim.models.word2vec", "word2vec")
    with replacing(path) as draft, draft_beside(path) as corpus:
        count, tokenizer = 0, word_tokenizer()
        with corpus.open("w", encoding="utf-8") as file:
            for text in texts:
                file.write(" ".join(split_words(text.lower(), tokenizer)) + "\n")
                count += 1
        model = word2vec.Word2Vec(
            vector_size=options.dimensions,
            window=options.window,
            min_count=options.min_count,
            seed=options.seed,
            workers=1,  # with more, the result differs from run to run
            # Of the same value in each process, unlike Python's own.
            hashfxn=lambda word: zlib.crc32(word.encode()),
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


def word_tokenizer() -> Tokenizer:
    """Counts words: runs of letters, marks and digits."""
    return count_pieces(pre_tokenizers.Split(Regex(r"\w+"), "removed", invert=True))


def split_words(text: str, tokenizer: Tokenizer) -> list[str]:
    """The words of a text, without signs and white space. `tokenizer` is a `word_tokenizer()`."""
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
