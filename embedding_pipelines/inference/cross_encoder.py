"""A cross-encoder on this machine: a model that reads a query and a text together and says how well
they fit. Slower than vectors, and better at the order of a few texts."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.extras import need
from embedding_pipelines.inference.backend import translate_errors
from embedding_pipelines.inference.torch import BATCH_TOKENS, accelerator
from embedding_pipelines.inference.weights import model_folder
from embedding_pipelines.once import forget, once

if TYPE_CHECKING:
    import sentence_transformers

Pair = tuple[str, str]  # a query and a text
BATCH_PAIRS = 64


class CrossEncoder:
    """Loaded at first use. One thread at a time scores, others may count meanwhile.

    `name` is a folder below the home folder, or a model of the Hugging Face hub.
    """

    def __init__(self, name: str, home: Path) -> None:
        self.name, self._home = name, home

    @property
    def batch_tokens(self) -> int:
        """Of one call, padding included, so that it has memory enough."""
        return BATCH_TOKENS[accelerator() or "cpu"]

    @property
    def max_tokens(self) -> int:
        """Of a pair, special tokens included; it is cut there."""
        return int(self._model.max_seq_length or self._model.tokenizer.model_max_length)

    def count(self, pairs: Sequence[Pair]) -> list[int]:
        """The tokens of each pair, however long."""
        queries, texts = [query for query, _ in pairs], [text for _, text in pairs]
        encoded = self._counter(queries, texts, truncation=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def scores(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """float32[n], higher for pairs that fit better; by most models between 0 and 1.

        Raises ProviderError if the model cannot be loaded, or has no memory.
        """
        with translate_errors("torch", 0):
            scores = self._model.predict(
                list(pairs), batch_size=BATCH_PAIRS, show_progress_bar=False, convert_to_numpy=True
            )
        return np.asarray(scores, np.float32)

    def close(self) -> None:
        """Free its memory; the next use loads it again."""
        forget(self, "_model", "_counter")

    @once
    def _counter(self) -> Any:
        """A tokenizer of its own, since scoring sets the state of its tokenizer: whether it cuts."""
        counter = copy.deepcopy(self._model.tokenizer)
        counter("", truncation=False)  # which sets it, before there are two threads
        return counter

    @once
    def _model(self) -> "sentence_transformers.CrossEncoder":
        library: Any = need("sentence_transformers", "local")
        folder = model_folder(self.name, None, self._home)
        try:
            model: sentence_transformers.CrossEncoder = library.CrossEncoder(
                str(folder), device=accelerator() or "cpu", local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ProviderError(
                f"{self.name} cannot be loaded as a cross-encoder: {error}. Name one, such as "
                "cross-encoder/ms-marco-MiniLM-L6-v2."
            ) from error
        if model.num_labels != 1:
            raise ProviderError(
                f"{self.name} gives {model.num_labels} numbers for a pair, not one score. Name a "
                "cross-encoder that was trained to rank."
            )
        return model
