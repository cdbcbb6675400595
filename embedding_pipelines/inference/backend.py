"""The contract of backends, which run a local model: a batch of token ids in, vectors out."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import DeviceError, ProviderError, error_lines
from embedding_pipelines.vectors import Vectors

Precision = Literal["auto", "float32", "bfloat16", "int8"]  # what a user may ask for
Array = NDArray[np.int64]
OUT_OF_MEMORY = ("out of memory", "can't allocate", "bad_alloc")  # as errors word it
# After these nothing is computed in the process any more: a kernel has failed, and CUDA says so of each
# that follows.
BROKEN_DEVICE = ("cuda error", "cuda driver error", "cublas_status", "cudnn_status")


class OutOfMemory(Exception):
    """The device has no memory for this batch. The engine then tries smaller ones."""


@contextlib.contextmanager
def translate_errors(library: str, line: int) -> Iterator[None]:
    """Raise errors as OutOfMemory, DeviceError or ProviderError; `line` of their text says what happened."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words, text = error_lines(error)[line], str(error).lower()
        if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
            raise OutOfMemory(words) from error
        is_broken = any(sign in text for sign in BROKEN_DEVICE)
        kind = DeviceError if is_broken else ProviderError
        raise kind(f"{library} could not compute: {words}") from error


def damage_error(folder: Path, reason: object) -> ProviderError:
    """The error for files in the cache that are not readable."""
    return ProviderError(
        f"{folder}: the converted model is damaged ({reason}). Delete this folder; the next run "
        "makes it again."
    )


class Rows(Protocol):
    """What a backend computes: n rows, one vector each."""

    @property
    def lengths(self) -> Array:
        """[n]: how much of a batch each row takes."""
        ...

    def take(self, rows: Array) -> Self:
        """Some of the rows, in the order of `rows`."""
        ...

    def padded(self, multiple: int = 1) -> tuple[NDArray[Any], ...]:
        """The model's inputs, each [n, ...]; a width of texts is a multiple of `multiple`."""
        ...


@dataclass(frozen=True)
class TokenBatch:
    """The token ids of n texts, and what a model has to know of them."""

    ids: Array  # [total], those of one text after those of another
    lengths: Array  # [n], of each text
    unpooled: int = 0  # first tokens of each text that pooling leaves out
    pad_id: int = 0

    @property
    def longest(self) -> int:
        return max(1, int(self.lengths.max()))

    @property
    def starts(self) -> Array:
        """[n + 1]: where each text begins in `ids`, and their end."""
        return np.concatenate(([0], np.cumsum(self.lengths)))

    @property
    def positions(self) -> Array:
        """[total], of each token in its text, from 0."""
        return np.arange(len(self.ids)) - np.repeat(self.starts[:-1], self.lengths)

    def take(self, rows: Array) -> Self:
        """Some of the texts, in the order of `rows`."""
        part = replace(self, ids=self.ids[:0], lengths=self.lengths[rows])
        where = np.repeat(self.starts[rows], part.lengths)
        where += np.arange(len(where)) - np.repeat(part.starts[:-1], part.lengths)
        return replace(part, ids=self.ids[where])

    def padded(self, multiple: int = 1) -> tuple[NDArray[Any], ...]:
        """Token ids [n, width], a mask of real ones, and of those that pooling counts; `width` is a
        multiple of `multiple`."""
        width = -(-self.longest // multiple) * multiple
        real = np.arange(width) < self.lengths[:, None]
        tokens = np.full(real.shape, self.pad_id, np.int64)
        tokens[real] = self.ids
        mask = real.astype(np.int64)
        pooled = mask.copy()
        pooled[:, : self.unpooled] = 0
        return tokens, mask, pooled


class Backend(ABC):
    """One model on one device; any number of threads may use it."""

    name: str  # library and device, for reports
    precision: str  # of the computation: a Precision other than "auto", or "float16"
    batch_tokens: int  # per batch at most, padding included
    in_flight: int  # batches to start before the first is finished, at most
    pads: bool = True  # whether texts of a batch take as much as its longest

    @abstractmethod
    def start(self, batch: Any) -> Any:
        """Start a batch, the `Rows` that this backend takes. Returns a handle for `finish`. May raise OutOfMemory."""

    @abstractmethod
    def finish(self, handle: Any) -> Vectors:
        """Wait for a batch: float32[n, d]. May raise OutOfMemory, or else ProviderError."""
