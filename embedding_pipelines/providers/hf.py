"""`hf`: any sentence-transformers text model, from a folder, an installed package or the Hugging Face hub."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from embedding_pipelines.home import home
from embedding_pipelines.providers.base import Limits, Provider, Role, Vectors
from embedding_pipelines.space import Space

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedding_pipelines.providers._sentence_transformer import Engine

CALL_TOKENS = 32_768  # about 6 s on two AVX2 cores: what a killed run has to repeat at most
CALL_TEXTS = 1_024


class Hf(Provider):
    """A local model. Pooling, prompts, truncation and normalization are what its own files say."""

    kind: Literal["hf"] = "hf"
    model: str
    revision: str | None = None  # a commit of the hub's repository; None: what the hub calls main

    @property
    def space(self) -> Space:
        facts = self._engine.facts
        return Space(
            provider=self.kind,
            model=self.model,
            revision=facts.revision,
            dimensions=facts.dimensions,
            pooling=facts.pooling,
            prompts=facts.prompts,
            max_tokens=facts.max_tokens,
            normalized=facts.normalized,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        return Limits(max_tokens=self._engine.max_text_tokens, call_tokens=CALL_TOKENS, call_texts=CALL_TEXTS)

    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    def embed(self, inputs: Sequence[str], input_type: Role) -> Vectors:
        prompt = self._engine.facts.prompts.get(input_type, "")
        return self._engine.embed([prompt + text for text in inputs])

    @property
    def _engine(self) -> Engine:
        return _engine(self.model, self.revision, home())


@functools.lru_cache(maxsize=4)
def _engine(model: str, revision: str | None, folder: Path) -> Engine:
    """One engine per model and process, however many pipelines use it."""
    from embedding_pipelines.providers._sentence_transformer import Engine
    from embedding_pipelines.providers._weights import model_folder

    return Engine(model_folder(model, revision, folder))
