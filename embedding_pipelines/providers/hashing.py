"""`hashing`: words hashed to signs. Deterministic, offline, without a model; for tests and dry
runs.

It has geometry: texts that share words get near vectors, so a ranking test can fail.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from embedding_pipelines.providers.base import InputType, Limits, Provider, Vectors
from embedding_pipelines.space import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

RECIPE = "1"  # raise it when the vectors change


class Hashing(Provider):
    """Sum of one random unit direction per lower-case word, normalized."""

    kind: Literal["hashing"] = "hashing"
    dimensions: int = Field(64, ge=8, le=4096)
    max_tokens: int = Field(256, ge=4)

    @property
    def space(self) -> Space:
        return Space(
            provider=self.kind,
            model="words",
            revision=RECIPE,
            dimensions=self.dimensions,
            pooling="sum",
            prompts={},
            max_tokens=self.max_tokens,
            normalized=True,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        return Limits(max_tokens=self.max_tokens, request_tokens=65_536, request_texts=1_024)

    def tokenizer(self) -> Tokenizer:
        return _tokenizer()

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        vectors = np.zeros((len(inputs), self.dimensions), np.float32)
        for row, text in enumerate(inputs):
            words = text.lower().split() or [""]
            for word in words:
                vectors[row] += _direction(word, self.dimensions)
            if not vectors[row].any():  # words that cancel out still need a direction
                vectors[row] = _direction(text, self.dimensions)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


@functools.lru_cache(maxsize=100_000)
def _direction(word: str, dimensions: int) -> Vectors:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(dimensions, dtype=np.float32)


@functools.cache
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer
