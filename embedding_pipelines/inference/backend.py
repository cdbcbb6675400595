"""What runs a local model: padded token ids in, vectors out, a few batches at a time. No
tokenizing, no texts."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import ProviderError

Precision = Literal["auto", "float32", "bfloat16", "int8"]  # what a user may ask for
Array = NDArray[np.int64]
Vectors = NDArray[np.float32]


class OutOfMemory(Exception):
    """The device has no room for this batch. Never seen by users: the engine tries smaller ones."""


def damage_error(folder: Path, reason: object) -> ProviderError:
    """What to raise when files of a converted model cannot be read."""
    return ProviderError(
        f"{folder}: the converted model cannot be loaded ({reason}). Delete this folder: it is "
        "then made again."
    )


class Backend(ABC):
    """One model on one device; any number of threads may use it. Nobody changes what it says."""

    name: str  # library and device, for reports
    precision: str  # what it really computes in: one of those, or "float16"
    batch_tokens: int  # of one batch at most, padding included
    in_flight: int  # batches that are started before the first is finished, at most

    @abstractmethod
    def start(self, tokens: Array, mask: Array, pooled: Array) -> Any:
        """Begin with token ids [n, width], the mask of real ones and of those that pooling counts.

        A handle for `finish`. May raise OutOfMemory.
        """

    @abstractmethod
    def finish(self, handle: Any) -> Vectors:
        """Wait for a batch: float32[n, d]. May raise OutOfMemory; ProviderError for what else goes
        wrong."""
