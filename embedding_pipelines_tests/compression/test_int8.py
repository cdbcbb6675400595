"""Whole numbers with one scale: cosine on codes needs no decoding."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.compression.base import unit
from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.errors import CompressionError
from embedding_pipelines_tests.compression.contract import check_compressor, clustered


def test_int8_keeps_the_contract_and_most_neighbours(tmp_path: Path) -> None:
    check_compressor(Int8(), tmp_path, cosine_floor=0.9999, overlap_floor=0.98)


def test_the_cosine_of_codes_is_the_cosine_of_vectors() -> None:
    vectors = clustered(200, 96)
    codes = unit(Int8().fit(vectors, seed=0).encode(vectors).astype(np.float32))
    assert codes @ codes.T == pytest.approx(vectors @ vectors.T, abs=0.01)


def test_opposite_vectors_have_opposite_codes_and_nothing_wraps_around() -> None:
    vectors = clustered(50, 16, rank=8)
    codec = Int8().fit(vectors[:10] * 0.5, seed=0)
    wide = np.eye(16, dtype=np.float32)  # far beyond the sample's largest number
    assert codec.encode(wide).max() == 127
    assert codec.encode(-wide).min() == -127
    assert np.array_equal(codec.encode(-vectors), -codec.encode(vectors))


@pytest.mark.parametrize("rows", [0, 3])
def test_a_sample_without_any_direction_is_refused(rows: int) -> None:
    with pytest.raises(CompressionError, match="of the sample are zero"):
        Int8().fit(np.zeros((rows, 8), np.float32), seed=0)
