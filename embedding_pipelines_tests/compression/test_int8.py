"""Whole numbers with one scale: cosine on codes needs no decoding."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.errors import CompressionError
from embedding_pipelines.vectors import unit
from embedding_pipelines_tests.compression.contract import check_compressor, clustered


def test_int8_keeps_the_contract_and_most_neighbours(tmp_path: Path) -> None:
    check_compressor(Int8(), tmp_path, cosine_floor=0.9999, overlap_floor=0.98)


def test_the_cosine_of_codes_is_the_cosine_of_vectors() -> None:
    vectors = clustered(200, 96)
    codes = unit(Int8().fit([vectors]).encode(vectors).astype(np.float32))
    assert codes @ codes.T == pytest.approx(vectors @ vectors.T, abs=0.01)


def test_opposite_vectors_have_opposite_codes_and_nothing_wraps_around() -> None:
    vectors = clustered(50, 16, rank=8)
    codec = Int8().fit([vectors[:10] * 0.5])
    wide = np.eye(16, dtype=np.float32)  # far beyond the sample's largest number
    assert codec.encode(wide).max() == 127
    assert codec.encode(-wide).min() == -127
    assert np.array_equal(codec.encode(-vectors), -codec.encode(vectors))


def test_the_scale_is_that_of_the_largest_number_of_all_blocks() -> None:
    vectors = clustered(100, 16, rank=8)
    largest = int(np.abs(vectors).max(axis=1).argmax())
    order = [largest, *(row for row in range(100) if row != largest)]
    for rows in (order, order[::-1]):
        codec = Int8().fit(vectors[rows][at : at + 7] for at in range(0, 100, 7))
        assert codec.statistics()["scale"] == pytest.approx(np.abs(vectors[largest]).max() / 127)


def test_vectors_without_any_direction_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"int8.fit: all 3 vectors are zero\. Embed"):
        Int8().fit([np.zeros((3, 8), np.float32)])
    with pytest.raises(CompressionError, match=r"int8.fit: there are no vectors\. Embed"):
        Int8().fit([])
