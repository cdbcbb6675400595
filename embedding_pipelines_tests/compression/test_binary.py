"""One bit per dimension, packed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.compression.binary import Binary
from embedding_pipelines.compression.pca import Pca
from embedding_pipelines.vectors import unit
from embedding_pipelines_tests.compression.contract import check_compressor, clustered, fit_chain


@pytest.mark.parametrize("rescore", ["int8", "float16", "none"])
@pytest.mark.parametrize("dimensions", [96, 91])
def test_binary_keeps_the_contract_though_dimensions_may_not_fill_the_last_byte(
    tmp_path: Path, rescore: str, dimensions: int
) -> None:
    compressor = Binary.model_validate({"rescore": rescore})
    codec = check_compressor(
        compressor, tmp_path, dimensions=dimensions, cosine_floor=0.75, overlap_floor=0.78
    )
    assert codec.metric == "hamming"


def test_bits_are_signs_from_the_highest_down_and_spare_bits_are_zero() -> None:
    vectors = np.array([[1, -1, 0, 2, -3, -1, -1, 1, 5, -5]], np.float32)
    codec = Binary(rescore="none").fit([vectors])
    codes = codec.encode(vectors)
    assert codes.tolist() == [[0b10010001, 0b10000000]]
    assert np.sign(codec.decode(codes)).tolist() == [[1, -1, -1, 1, -1, -1, -1, 1, 1, -1]]
    assert np.linalg.norm(codec.decode(codes)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("rescore", "rescoring_bytes"), [("int8", 64), ("float16", 128), ("none", 0)]
)
def test_rescoring_vectors_have_the_precision_that_is_asked_for_and_their_bytes_count(
    rescore: str, rescoring_bytes: int
) -> None:
    vectors = clustered(50, 64)
    chain = fit_chain([Binary.model_validate({"rescore": rescore, "oversample": 6})], vectors)
    rescoring = chain.encode_rescoring(vectors)
    assert chain.bytes_per_vector == 8 + rescoring_bytes
    if chain.rescoring_codec is None:
        assert (rescore, rescoring, chain.oversample) == ("none", None, 1)
    else:
        assert (chain.rescoring_codec.kind, chain.oversample) == (rescore, 6)
        assert rescoring is not None
        assert rescoring.nbytes == 50 * rescoring_bytes
        assert np.array_equal(rescoring, chain.rescoring_codec.encode(vectors))


def test_a_chain_with_rescoring_vectors_comes_back_from_its_file_with_them(tmp_path: Path) -> None:
    vectors = clustered(300, 64)
    chain = fit_chain([Pca(dimensions=32), Binary(oversample=3)], vectors)
    chain.save(tmp_path / "codec.npz")
    loaded = CodecChain.load(tmp_path / "codec.npz")
    assert (loaded.id, loaded.statistics(), loaded.oversample) == (chain.id, chain.statistics(), 3)
    rescoring = chain.encode_rescoring(vectors)
    assert rescoring is not None
    assert np.array_equal(loaded.encode_rescoring(vectors), rescoring)
    assert np.array_equal(
        loaded.rescore(vectors[0], rescoring), chain.rescore(vectors[0], rescoring)
    )


def test_rescoring_ranks_the_best_by_bits_as_their_own_vectors_do() -> None:
    vectors, queries = clustered(2_000, 96), clustered(100, 96, seed=1)
    chain = fit_chain([Binary()], vectors)
    rescoring = chain.encode_rescoring(vectors)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert rescoring is not None
    bits = np.unpackbits(chain.encode(vectors), axis=1)
    query_bits = np.unpackbits(chain.encode(queries), axis=1)
    recall = {}
    for oversample in (1, chain.oversample):
        shares = []
        for query, own, best in zip(queries, query_bits, exact, strict=True):
            rows = np.argsort((bits != own).sum(axis=1), kind="stable")[: 10 * oversample]
            nearest = rows[np.argsort(-chain.rescore(query, rescoring[rows]))][:10]
            shares.append(len(set(nearest) & set(best)) / 10)
        recall[oversample] = np.mean(shares)
    assert recall[chain.oversample] > recall[1] + 0.15
    assert recall[chain.oversample] > 0.84


def test_cosines_with_vectors_of_zeros_are_zero() -> None:
    vectors = clustered(20, 32)
    chain = fit_chain([Binary()], vectors)
    vectors[3] = 0
    rescoring = chain.encode_rescoring(vectors)
    assert rescoring is not None
    assert chain.rescore(vectors[1], rescoring)[3] == 0
    assert not chain.rescore(vectors[3], rescoring).any()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    dimensions=st.integers(1, 96),
    rescore=st.sampled_from(["int8", "float16"]),
    length=st.sampled_from([1e-20, 1.0, 3.0, 1e20]),
)
def test_rescored_cosines_are_the_exact_ones_within_the_error_of_their_codes(
    seed: int, dimensions: int, rescore: str, length: float
) -> None:
    vectors = np.random.default_rng(seed).normal(size=(40, dimensions)).astype(np.float32)
    chain = fit_chain([Binary.model_validate({"rescore": rescore})], vectors)
    rescoring = chain.encode_rescoring(vectors * np.float32(length))
    assert rescoring is not None
    # Each number is off by half a step at most, the vector thus by sqrt(d) times that, and again by
    # its own length.
    scale = chain.statistics()["codecs"][0]["rescoring"].get("scale", 2**-10)
    cosines = chain.rescore(vectors[7] * np.float32(length), rescoring)
    assert cosines == pytest.approx(
        unit(vectors) @ unit(vectors)[7], abs=scale * np.sqrt(dimensions) + 1e-5
    )
    assert cosines.dtype == np.float32
