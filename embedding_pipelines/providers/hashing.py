"""`hashing`: hashes of words as vectors, without a model; for tests and dry runs.

Texts that share words get near vectors, so that a test of a ranking can fail.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer, pre_tokenizers

from embedding_pipelines.providers.base import (
    EmbeddingModel,
    InputType,
    Limits,
    ProviderOptions,
    Response,
)
from embedding_pipelines.providers.common.tokenizers import count_pieces
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

VERSION = "1"  # raise it when the vectors change


class HashingModel(EmbeddingModel):
    options: "Hashing"

    @property
    def space(self) -> Space:
        return Space(
            provider=self.options.kind,
            model="words",
            revision=VERSION,
            dimensions=self.options.dimensions,
            pooling="sum",
            prompts={},
            max_tokens=self.options.max_tokens,
            normalized=True,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        return Limits(self.options.max_tokens, request_tokens=65_536, request_texts=1_024)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return count_pieces(pre_tokenizers.WhitespaceSplit())

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        dimensions = self.options.dimensions
        vectors = np.zeros((len(inputs), dimensions), np.float32)
        for row, text in enumerate(inputs):
            for word in text.lower().split() or [""]:
                vectors[row] += _direction(word, dimensions)
            if not vectors[row].any():  # words that cancel out need a direction, too
                vectors[row] = _direction(text, dimensions)
        return Response(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


class Hashing(ProviderOptions):
    """The sum of one random direction per lower-case word, normalized."""

    model_class = HashingModel

    kind: Literal["hashing"] = "hashing"
    dimensions: int = Field(64, ge=8, le=4096)
    max_tokens: int = Field(256, ge=4)


@functools.lru_cache(maxsize=100_000)
def _direction(word: str, dimensions: int) -> Vectors:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(dimensions, dtype=np.float32)
