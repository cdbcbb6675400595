"""A batch of texts while some of its vectors are pending, the requests for them, and what comes
out."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import pyarrow as pa

from embedding_pipelines.embedding.budget import Usage
from embedding_pipelines.embedding.request import Request
from embedding_pipelines.vectors import Vectors


@dataclass
class Embeddings:
    """Vectors float32[n, d] in the order of n texts; a row of NaN for a text in `rejected`, with
    the provider's reason."""

    vectors: Vectors
    rejected: dict[int, str]
    usage: Usage


@dataclass
class EmbeddedBatch(Embeddings):
    """One batch with its vectors."""

    rows: pa.RecordBatch


@dataclass
class Batch:
    """A batch while it waits. Texts and images are named by their keys in the cache."""

    rows: pa.RecordBatch
    keys: list[bytes]  # of each row
    vectors: dict[bytes, Vectors] = field(default_factory=dict)
    rejected: dict[bytes, str] = field(default_factory=dict)
    pending: set[bytes] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)

    def embedded(self, dimensions: int) -> EmbeddedBatch:
        """What is yielded, once nothing is pending."""
        missing = np.full(dimensions, np.nan, np.float32)
        rows = [self.vectors.get(key, missing) for key in self.keys]
        vectors = np.concatenate(rows).reshape(len(rows), dimensions)
        rejected = {
            row: self.rejected[key] for row, key in enumerate(self.keys) if key in self.rejected
        }
        return EmbeddedBatch(vectors, rejected, self.usage, self.rows)


@dataclass
class BatchRequest(Request):
    """A request for texts that `batch` was the first to need."""

    keys: Sequence[bytes] = ()
    digests: Sequence[str] = ()  # of images, whose names the inputs are; they are loaded later
    batch: Batch = field(kw_only=True)
    is_part: bool = False  # of a request that failed or was too large
    # What is wrong with rows of the reply; its other vectors are in the cache.
    faults: dict[int, str] = field(default_factory=dict)
    is_final: bool = False  # one text that failed alone before
    submitted_at: float = 0.0  # by the clock `time.perf_counter`, as the next two
    started_at: float = 0.0
    ended_at: float = 0.0

    def part(self, positions: Sequence[int]) -> Self:
        """Some of its texts as a request of their own."""
        return replace(
            self,
            inputs=[self.inputs[at] for at in positions],
            images=[self.images[at] for at in positions] if self.images else (),
            tokens=[self.tokens[at] for at in positions],
            keys=[self.keys[at] for at in positions],
            digests=[self.digests[at] for at in positions] if self.digests else (),
            usage=Usage(),
            is_part=True,
            is_final=False,
        )

    def halves(self, attempts: int | None = None) -> list[Self]:
        """Two parts, each sent `attempts` times at most; by default as often as the whole."""
        middle = len(self.inputs) // 2
        parts = (range(middle), range(middle, len(self.inputs)))
        return [replace(self.part(half), attempts=attempts or self.attempts) for half in parts]
