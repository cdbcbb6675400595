"""A model that has on record what it was asked to embed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from embedding_pipelines.providers.base import EmbeddingModel, InputType, Limits, Response
from embedding_pipelines.space import Space


class Recording(EmbeddingModel):
    """Another model, with every text that it was asked to embed. What a subclass declares can be
    set by name."""

    request_texts: int | None = None  # smaller requests than the model's own

    def __init__(self, inner: EmbeddingModel, **settings: Any) -> None:
        super().__init__(inner.options, inner.home)
        self.inner = inner
        self.texts: list[str] = []
        self.calls: list[list[str]] = []
        for name, value in settings.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    @property
    def space(self) -> Space:
        return self.inner.space

    @property
    def limits(self) -> Limits:
        own = self.inner.limits
        return dataclasses.replace(own, request_texts=self.request_texts or own.request_texts)

    @property
    def tokenizer(self) -> Any:
        return self.inner.tokenizer

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        self.calls.append(list(inputs))
        self.texts.extend(inputs)
        return self.inner.embed(inputs, input_type)
