"""What local models share that take texts as they are and tokenize them themselves."""

import functools
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from embedding_pipelines.providers.base import (
    EmbeddingModel,
    InputType,
    Limits,
    ProviderOptions,
    Response,
)
from embedding_pipelines.providers.common.tokenizers import load_tokenizer
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors, unit


class PlainOptions(ProviderOptions):
    max_tokens: int = Field(512, ge=4)
    """Longer texts are cut into chunks of this many tokens."""

    tokenizer_of: str | None = None
    """The tokenizer that counts: that of a model of the Hugging Face hub, or a `tokenizer.json`
    below the home folder. Default: an upper estimate."""

    request_texts: int = Field(64, ge=1)
    normalize: bool = False
    """Bring vectors to unit length."""


class PlainModel(EmbeddingModel):
    options: PlainOptions

    def make_space(self, model: str, revision: str, dimensions: int) -> Space:
        return Space(
            provider=self.options.kind,
            model=model,
            revision=revision,
            dimensions=dimensions,
            pooling="own",
            prompts={},
            max_tokens=self.options.max_tokens,
            normalized=self.options.normalize,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        options = self.options
        return Limits(
            max_tokens=options.max_tokens,
            request_tokens=options.max_tokens * options.request_texts,
            request_texts=options.request_texts,
        )

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.options.tokenizer_of, self.home)

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        if not inputs:
            return Response(np.empty((0, self.space.dimensions), np.float32))
        vectors = self.compute(inputs, input_type)
        return Response(unit(vectors) if self.options.normalize else vectors)

    @abstractmethod
    def compute(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        """float32[n, dimensions] of one text or more, as the model gives them."""
