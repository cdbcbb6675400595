"""Which compressions are worth measuring, and which of what was measured is chosen. Nothing is
searched here.

A point is a compression, an index and how many times as many rows the index hands on to be ranked
by their codes (`refine`), with what was measured of it. Cheap is what takes few bytes of disk for
each vector; the median time of a search decides between equals.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from embedding_pipelines.compression.base import (
    CodecChain,
    Compressor,
    as_options,
    check_blocks,
    describe_chain,
)
from embedding_pipelines.compression.binary import Binary
from embedding_pipelines.compression.float16 import Float16
from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.compression.pca import Pca, PcaCodec
from embedding_pipelines.compression.truncate import Truncate
from embedding_pipelines.vectors import Vectors, unit

Compression = tuple[Compressor, ...]

# Shares of the dimensions. Measured with MiniLM on 50,000 captions, recall@10 of PCA to these
# shares: 1, 0.987, 0.975, 0.924, 0.839 at a third; so the first steps are the small ones.
SHARES = (1, 31 / 32, 15 / 16, 7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4)
ROUND_TO = 8  # dimensions: whole bytes of bits, and what product quantization and SIMD like
LASTS: tuple[Compressor, ...] = (
    Float16(),
    Int8(),
)  # float32 after PCA is twice float16, and finds as much
# Of all dimensions alone: recall@10 on 100,000 captions is 0.88, 0.98 and 0.99. After PCA to 7/8
# the last is 0.987, in 378 bytes; PCA to 15/16 and int8 are 0.993 in 360.
BITS: tuple[Compressor, ...] = (Binary(), Binary(oversample=16), Binary(oversample=64))


@dataclass
class Point:
    """What was measured of one choice; bytes on disk, times in milliseconds."""

    compression: Compression
    index: str
    refine: int | None  # None: the store's own figure for the index
    bytes_per_vector: float
    recall_at_10: float | None = None  # mean over the tuning queries; None: there are none
    lower_bound: float | None = None  # of it
    p50_ms: float | None = None
    p95_ms: float | None = None
    on_front: bool = False  # nothing that was measured is both smaller and finds more
    chosen: bool = False
    certified: bool | None = (
        None  # whether it held on queries that took no part in the choice; None: not tried
    )
    held_out_recall: float | None = None
    held_out_lower_bound: float | None = None

    @property
    def statistics(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "compression": as_options(self.compression)}

    def __str__(self) -> str:
        index = "no index" if self.index == "none" else f"index {self.index}"
        chain = describe_chain(as_options(self.compression))
        return f"{chain} with {index}{f', refine {self.refine}' if self.refine else ''}"


def candidates(
    dimensions: int, is_trained_for_truncation: bool, rows: int, only: int | None = None
) -> list[Compression]:
    """The compressions to try for `rows` vectors of so many dimensions, those that keep most first.

    `only` this number of dimensions is tried if it is given; it is `dimensions` at most.
    """
    sizes = (
        [only]
        if only
        else sorted({_rounded(dimensions * share, dimensions) for share in SHARES}, reverse=True)
    )
    found: list[Compression] = [()] if sizes[0] == dimensions else []
    for size in sizes:
        shorter: list[Compression] = [()] if size == dimensions else []
        if (
            size < dimensions and size <= rows
        ):  # PCA finds no more directions than there are vectors
            shorter.append((Pca(dimensions=size),))
        if size < dimensions and is_trained_for_truncation:
            shorter.append((Truncate(dimensions=size),))
        found += [(*first, last) for last in LASTS for first in shorter]
        if size == dimensions:
            found += [(last,) for last in BITS]
    return found


def fitted(
    compressions: Iterable[Compression], blocks: Callable[[], Iterable[Vectors]], dimensions: int
) -> dict[Compression, CodecChain]:
    """Each compression fitted to the vectors as `CodecChain.fit` does it, but all PCAs by one pass.

    `blocks()` gives the vectors anew, float32[n_i, dimensions]. Raises as `CodecChain.fit`.
    """
    compressions = list(compressions)
    pcas = _pcas(
        {first for first, *_ in filter(None, compressions) if isinstance(first, Pca)},
        blocks,
        dimensions,
    )
    return {
        compression: _behind(pcas[compression[0]], compression[1:], blocks)
        if compression and compression[0] in pcas
        else CodecChain.fit(compression, blocks, dimensions)
        for compression in compressions
    }


def mark_front(points: Sequence[Point]) -> None:
    """Mark the points that no other one beats in bytes without losing recall, or the other way
    round."""
    for point in points:
        own = (-point.bytes_per_vector, point.recall_at_10 or 0.0)
        others = [(-other.bytes_per_vector, other.recall_at_10 or 0.0) for other in points]
        point.on_front = not any(
            other != own and other[0] >= own[0] and other[1] >= own[1] for other in others
        )


def choices(points: Iterable[Point], floor: float, most_ms: float) -> list[Point]:
    """Those whose bound is not below the floor and whose median search is quick enough, the
    cheapest first."""
    held = [
        point
        for point in points
        if (point.lower_bound or 0.0) >= floor and (point.p50_ms or 0.0) <= most_ms
    ]
    return sorted(held, key=lambda point: (point.bytes_per_vector, point.p50_ms or 0.0))


def best(points: Iterable[Point]) -> Point | None:
    """The one that comes nearest to a floor that none has reached; of equals the cheapest."""
    return max(
        points, key=lambda point: (point.lower_bound or 0.0, -point.bytes_per_vector), default=None
    )


def _pcas(
    wanted: set[Pca], blocks: Callable[[], Iterable[Vectors]], dimensions: int
) -> dict[Compressor, PcaCodec]:
    """The codec of each, from one set of principal directions."""
    if not wanted:
        return {}
    widest = max(wanted, key=lambda choice: choice.dimensions)
    directions, spectrum = widest.principal(
        dimensions, map(unit, check_blocks(blocks(), "pca.fit", dimensions))
    )
    return {choice: PcaCodec.rotate(directions[: choice.dimensions], spectrum) for choice in wanted}


def _behind(
    pca: PcaCodec, rest: Compression, blocks: Callable[[], Iterable[Vectors]]
) -> CodecChain:
    """The chain of a fitted PCA and what is fitted to what it makes of the vectors."""
    first = CodecChain([pca], pca.input_dimensions)
    chain = CodecChain.fit(rest, lambda: map(first.encode, blocks()), pca.dimensions)
    return CodecChain([pca, *chain.codecs], pca.input_dimensions)


def _rounded(size: float, dimensions: int) -> int:
    return min(dimensions, max(ROUND_TO, round(size / ROUND_TO) * ROUND_TO))
