"""Lists the compressions to measure, and ranks points, the measured ones.

A point is a compression, an index, how many times as many rows the index returns for ranking by
their codes (`refine`), and figures. Cheap means few bytes of disk a vector, then a quick search.
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
# After PCA or alone. Not float32, which takes twice the bytes of float16 for the same recall.
NUMBER_CODECS: tuple[Compressor, ...] = (Float16(), Int8())
# Of all dimensions only: recall@10 on 100,000 captions is 0.88, 0.98 and 0.99. After PCA to 7/8
# the last is 0.987, in 378 bytes; PCA to 15/16 and int8 are 0.993 in 360.
BIT_CODECS: tuple[Compressor, ...] = (Binary(), Binary(oversample=16), Binary(oversample=64))


@dataclass(eq=False)
class Point:
    """A candidate's figures; bytes on disk, times in milliseconds."""

    compression: Compression
    index: str
    refine: int | None  # None: the store's default for the index
    bytes_per_vector: float
    recall_at_10: float | None = None  # mean over the selection queries; None: there are none
    lower_bound: float | None = None  # of the mean
    p50_ms: float | None = None
    p95_ms: float | None = None
    on_front: bool = False  # no other point is smaller and has a higher recall
    chosen: bool = False
    certified: bool | None = None  # by the held-out queries; None: not measured with them
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


def list_compressions(
    dimensions: int, is_trained_for_truncation: bool, rows: int, only: int | None = None
) -> list[Compression]:
    """The compressions to measure for `rows` vectors, those of most dimensions first; with `only`,
    those of this number of dimensions, at most `dimensions`."""
    multiples = {round(dimensions * share / ROUND_TO) * ROUND_TO for share in SHARES}
    steps = {min(dimensions, max(ROUND_TO, size)) for size in multiples}
    sizes = [only] if only else sorted(steps, reverse=True)
    compressions: list[Compression] = [()] if sizes[0] == dimensions else []
    for size in sizes:
        starts: list[Compression] = [()] if size == dimensions else []
        if size < dimensions and size <= rows:  # PCA needs as many vectors as directions
            starts.append((Pca(dimensions=size),))
        if size < dimensions and is_trained_for_truncation:
            starts.append((Truncate(dimensions=size),))
        compressions += [(*start, codec) for codec in NUMBER_CODECS for start in starts]
        if size == dimensions:
            compressions += [(codec,) for codec in BIT_CODECS]
    return compressions


def fit_all(
    compressions: Iterable[Compression], blocks: Callable[[], Iterable[Vectors]], dimensions: int
) -> dict[Compression, CodecChain]:
    """`CodecChain.fit` of each compression, with one pass for all PCAs. `blocks()` gives the
    vectors from the start, float32[n_i, dimensions]."""
    compressions = list(compressions)
    starts = [compression[0] for compression in compressions if compression]
    pcas = {start for start in starts if isinstance(start, Pca)}
    codecs: dict[Compressor, PcaCodec] = {}
    if pcas:  # of one set of principal directions
        widest = max(pcas, key=lambda choice: choice.dimensions)
        vectors = map(unit, check_blocks(blocks(), "pca.fit", dimensions))
        directions, spectrum = widest.principal(dimensions, vectors)
        codecs = {pca: PcaCodec.rotate(directions[: pca.dimensions], spectrum) for pca in pcas}
    chains: dict[Compression, CodecChain] = {}
    for compression in compressions:
        if compression and compression[0] in codecs:
            chains[compression] = _append(codecs[compression[0]], compression[1:], blocks)
        else:
            chains[compression] = CodecChain.fit(compression, blocks, dimensions)
    return chains


def mark_front(points: Sequence[Point]) -> None:
    """Mark the points on the Pareto front of bytes and recall."""
    for point in points:
        own = (-point.bytes_per_vector, point.recall_at_10 or 0.0)
        others = [(-other.bytes_per_vector, other.recall_at_10 or 0.0) for other in points]
        point.on_front = not any(
            other != own and other[0] >= own[0] and other[1] >= own[1] for other in others
        )


def rank_eligible(points: Iterable[Point], floor: float, most_ms: float) -> list[Point]:
    """The points, cheapest first, with a bound of `floor` or more and a quick enough search."""
    eligible = [
        point
        for point in points
        if (point.lower_bound or 0.0) >= floor and (point.p50_ms or 0.0) <= most_ms
    ]
    return sorted(eligible, key=lambda point: (point.bytes_per_vector, point.p50_ms or 0.0))


def best_point(points: Sequence[Point]) -> Point:
    """The point with the highest lower bound; of equals the cheapest."""
    return max(points, key=lambda point: (point.lower_bound or 0.0, -point.bytes_per_vector))


def _append(
    pca: PcaCodec, rest: Compression, blocks: Callable[[], Iterable[Vectors]]
) -> CodecChain:
    """The chain of a PCA and of codecs fitted to its output."""
    first = CodecChain([pca], pca.input_dimensions)
    chain = CodecChain.fit(rest, lambda: map(first.encode, blocks()), pca.dimensions)
    return CodecChain([pca, *chain.codecs], pca.input_dimensions)
