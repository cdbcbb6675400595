"""What is held of a stream of texts while it is embedded: windows, the calls for what they lack,
and counts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from embedding_pipelines.embedding.request import TRIES, Usage
from embedding_pipelines.vectors import Vectors

TRIES_OF_PARTS = (
    2  # of half a call: what failed as a whole TRIES times is hardly the network's fault
)


@dataclass
class EmbedCounts:
    """What embedding took. `texts` counts each text of a window once, however often it occurs."""

    texts: int = 0
    from_cache: int = 0
    embedded: int = 0
    embedded_tokens: int = 0
    calls: int = 0
    provider_seconds: float = 0.0  # during which at least one call was out
    rejected: int = 0
    billed_tokens: int = (
        0  # as the provider counts, by its tokenizer where it does not say; with what was in vain
    )
    retries: int = 0
    request_seconds: float = 0.0  # from sending to answer, summed over calls
    waited_seconds: float = 0.0  # for their turn

    def add(self, other: "EmbedCounts") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Embedded:
    """One window: what was asked, and its vectors float32[rows, d] in the same order; NaN for
    rejected rows."""

    batch: pa.RecordBatch
    vectors: Vectors
    counts: EmbedCounts
    rejected: dict[int, str]  # row -> why the provider gave no vector for its text


@dataclass
class Window:
    batch: pa.RecordBatch
    keys: list[bytes]  # per row
    known: dict[bytes, Vectors]
    awaited: set[bytes]
    tokens: int
    counts: EmbedCounts = field(default_factory=EmbedCounts)

    rejected: dict[bytes, str] = field(default_factory=dict)

    def embedded(self, dimensions: int) -> Embedded:
        rejected = {
            row: self.rejected[key] for row, key in enumerate(self.keys) if key in self.rejected
        }
        nothing = np.full(dimensions, np.nan, np.float32)
        vectors = np.stack([self.known.get(key, nothing) for key in self.keys])
        return Embedded(self.batch, vectors, self.counts, rejected)


@dataclass
class Call:
    """Texts for the provider; `window` is the one that needed them first."""

    keys: list[bytes]
    texts: list[str]
    tokens: list[int]
    window: Window
    tries: int = TRIES  # of the request
    wrong_rows: int = 0  # how often its texts came back with a wrong vector
    is_part: bool = False  # of a call that was refused or too large
    is_last: bool = False  # one text that could not be had once already, though the service could be reached then
    handed_out: float = 0.0  # by the clock `time.perf_counter`
    usage: Usage = field(default_factory=Usage)  # of all that its requests were answered with

    def part(self, rows: Sequence[int], tries: int, wrong_rows: int = 0) -> "Call":
        """Some of its texts as a call of their own."""
        keys, texts = [self.keys[row] for row in rows], [self.texts[row] for row in rows]
        return Call(
            keys,
            texts,
            [self.tokens[row] for row in rows],
            self.window,
            tries,
            wrong_rows,
            is_part=True,
        )

    def once_more(self) -> "Call":
        """The same as its last attempt, with all patience."""
        again = self.part(range(len(self.texts)), TRIES, self.wrong_rows)
        again.is_last = True
        return again

    def halves(self, tries: int, wrong_rows: int = 0) -> list["Call"]:
        middle = len(self.texts) // 2
        parts = (range(middle), range(middle, len(self.texts)))
        return [self.part(rows, tries, wrong_rows) for rows in parts]
