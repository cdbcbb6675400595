"""The contract of backends, which run a local model: padded token ids in, vectors out."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import ProviderError, error_lines
from embedding_pipelines.vectors import Vectors

Precision = Literal["auto", "float32", "bfloat16", "int8"]  # what a user may ask for
Array = NDArray[np.int64]
OUT_OF_MEMORY = ("out of memory", "can't allocate", "bad_alloc")  # as errors word it


class OutOfMemory(Exception):
    """The device has no memory for this batch. The engine then tries smaller ones."""


@contextlib.contextmanager
def translate_errors(library: str, line: int) -> Iterator[None]:
    """Raise errors as OutOfMemory or ProviderError; `line` of their text says what happened."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words, signs = error_lines(error)[line], OUT_OF_MEMORY
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs):
            raise OutOfMemory(words) from error
        raise ProviderError(f"{library} could not compute: {words}") from error


def damage_error(folder: Path, reason: object) -> ProviderError:
    """The error for files in the cache that are not readable."""
    return ProviderError(
        f"{folder}: the converted model is damaged ({reason}). Delete this folder; the next run "
        "makes it again."
    )


class Backend(ABC):
    """One model on one device; any number of threads may use it."""

    name: str  # library and device, for reports
    precision: str  # of the computation: a Precision other than "auto", or "float16"
    batch_tokens: int  # per batch at most, padding included
    in_flight: int  # batches to start before the first is finished, at most

    @abstractmethod
    def start(self, tokens: Array, mask: Array, pooled: Array) -> Any:
        """Start a batch: token ids [n, width], a mask of real ones, and of those that pooling
        counts.

        Returns a handle for `finish`. May raise OutOfMemory.
        """

    @abstractmethod
    def finish(self, handle: Any) -> Vectors:
        """Wait for a batch: float32[n, d]. May raise OutOfMemory, or else ProviderError."""
