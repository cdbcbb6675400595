"""What every compressor must keep; each kind's test calls it, then adds what is special to it.

The vectors have geometry: clusters around random centres with a shared mean direction, as text
models give them, so that a codec that loses the neighbours fails.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedding_pipelines.compression.base import (
    Codec,
    CodecChain,
    Compressor,
    check_chain,
    code_width,
)
from embedding_pipelines.errors import CompressionError
from embedding_pipelines.vectors import Vectors, unit

NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "binary": np.uint8}


def clustered(
    n: int, dimensions: int, seed: int = 0, rank: int = 24, noise: float = 0.05
) -> Vectors:
    """Unit vectors float32[n, dimensions] in 25 clusters, most of them in a space of `rank`
    directions."""
    basis = np.random.default_rng(20_240_501)  # the same space and centres whatever the seed
    mean = basis.normal(size=dimensions) / np.sqrt(dimensions)
    directions = np.linalg.qr(basis.normal(size=(dimensions, rank)))[0].T
    centres = basis.normal(size=(25, rank))
    random = np.random.default_rng(seed)
    inner = centres[random.integers(25, size=n)] + 0.4 * random.normal(size=(n, rank))
    vectors = 0.5 * mean + inner @ directions / np.sqrt(rank)
    vectors += noise * random.normal(size=(n, dimensions)) / np.sqrt(dimensions)
    return unit(vectors.astype(np.float32))


def fit_chain(compressors: Sequence[Compressor], vectors: Vectors) -> CodecChain:
    """The chain fitted to `vectors` in one block."""
    return CodecChain.fit(compressors, lambda: [vectors], vectors.shape[-1])


def neighbours(codec: Codec | CodecChain, vectors: Vectors, k: int) -> NDArray[np.int64]:
    """The k nearest rows of each row, by the codec's own metric on its own codes."""
    codes = codec.encode(vectors)
    if codec.metric == "hamming":
        bits = np.unpackbits(codes, axis=1).astype(np.float32)
        scores = -(bits @ (1 - bits).T + (1 - bits) @ bits.T)
    else:
        directions = unit(codes.astype(np.float32))
        scores = directions @ directions.T
    return np.argsort(-scores, axis=1, kind="stable")[:, 1 : k + 1]


def overlap(codec: Codec | CodecChain, vectors: Vectors, k: int = 10) -> float:
    """The mean share of the k exact neighbours that are also neighbours among the codes."""
    exact = neighbours(CodecChain([], vectors.shape[1]), vectors, k)
    rows = neighbours(codec, vectors, k)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(exact, rows, strict=True)]))


def check_compressor(
    compressor: Compressor,
    folder: Path,
    *,
    dimensions: int = 96,
    cosine_floor: float,
    overlap_floor: float,
) -> Codec:
    """Asserts the contract for vectors of `dimensions`, and returns the codec for further tests."""
    sample, fresh = clustered(600, dimensions), clustered(300, dimensions, seed=1)
    out = check_chain([compressor], dimensions)
    codec = compressor.fit([sample])
    assert codec.kind == compressor.kind
    assert (codec.input_dimensions, codec.dimensions) == (dimensions, out)

    codes = codec.encode(fresh)
    _check_shapes(codec, fresh, codes)
    _check_inputs(codec, fresh, codes)
    _check_identity(compressor, codec, sample, fresh, folder)

    cosine = np.einsum("ij,ij->i", unit(codec.decode(codes)), fresh)
    assert cosine.mean() >= cosine_floor
    assert overlap(codec, fresh) >= overlap_floor
    return codec


def _check_shapes(codec: Codec, vectors: Vectors, codes: NDArray[np.generic]) -> None:
    width = code_width(codec.dimensions, codec.dtype)
    assert codes.shape == (len(vectors), width)
    assert codes.dtype == NUMPY_DTYPES[codec.dtype]
    decoded = codec.decode(codes)
    assert decoded.shape == vectors.shape
    assert decoded.dtype == np.float32
    empty = codec.encode(vectors[:0])
    assert empty.shape == (0, width)
    assert empty.dtype == codes.dtype
    assert codec.decode(empty).shape == (0, vectors.shape[1])
    if codec.dtype == "float32":
        assert np.linalg.norm(codes, axis=1) == pytest.approx(1, abs=1e-5)


def _check_inputs(codec: Codec, vectors: Vectors, codes: NDArray[np.generic]) -> None:
    before = vectors.copy()
    _same(codec.encode(np.asfortranarray(vectors)), codes)
    _same(codec.encode(np.repeat(vectors, 2, axis=0)[::2]), codes)
    _same(codec.encode(vectors * np.float32(8)), codes)  # directions count, lengths do not
    assert np.array_equal(vectors, before)
    zero = codec.encode(np.zeros((1, vectors.shape[1]), np.float32))
    assert np.isfinite(zero).all()
    for wrong in (vectors[:, :-1], np.hstack([vectors, vectors[:, :1]]), vectors[0]):
        with pytest.raises(CompressionError, match="shape"):
            codec.encode(wrong)
    with pytest.raises(CompressionError, match="shape"):
        codec.decode(np.hstack([codes, codes[:, :1]]))
    broken = vectors.copy()
    broken[3, 0] = np.nan
    with pytest.raises(CompressionError, match="number 3"):
        codec.encode(broken)


def _check_identity(
    compressor: Compressor, codec: Codec, sample: Vectors, vectors: Vectors, folder: Path
) -> None:
    chain = CodecChain([codec], codec.input_dimensions)
    passes: list[int] = []

    def in_parts() -> Iterator[Vectors]:
        passes.append(1)
        yield from (sample[:257], sample[257:257], sample[257:])

    again = CodecChain.fit([compressor], in_parts, sample.shape[1])
    assert again.id == chain.id
    assert len(passes) == (0 if compressor.build(sample.shape[1]) else 1)
    path = folder / "codec.npz"
    chain.save(path)
    loaded = CodecChain.load(path)
    assert loaded.id == chain.id
    assert loaded.statistics() == chain.statistics()
    assert np.array_equal(loaded.encode(vectors), chain.encode(vectors))
    for number in (np.nan, np.inf):
        broken = sample.copy()
        broken[5, 2] = number
        with pytest.raises(CompressionError, match="number 5"):
            compressor.fit([broken])
        if not compressor.build(sample.shape[1]):
            with pytest.raises(CompressionError, match="number 5"):
                CodecChain.fit(
                    [compressor], lambda given=broken: [given[:3], given[3:]], sample.shape[1]
                )


def _same(codes: NDArray[np.generic], expected: NDArray[np.generic]) -> None:
    """Equal but for rounding, which may tip a whole number or a bit at the very border."""
    if codes.dtype.kind == "f":
        assert codes == pytest.approx(expected, abs=1e-3)
    else:
        assert (codes == expected).mean() > 0.999
