"""One bit per dimension, packed."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.compression.binary import Binary
from embedding_pipelines_tests.compression.contract import check_compressor


def test_binary_keeps_the_contract(tmp_path: Path) -> None:
    codec = check_compressor(Binary(), tmp_path, cosine_floor=0.75, overlap_floor=0.78)
    assert codec.metric == "hamming"


def test_binary_keeps_the_contract_when_dimensions_do_not_fill_the_last_byte(tmp_path: Path) -> None:
    check_compressor(Binary(), tmp_path, dimensions=91, cosine_floor=0.75, overlap_floor=0.78)


def test_bits_are_signs_from_the_highest_down_and_spare_bits_are_zero() -> None:
    vectors = np.array([[1, -1, 0, 2, -3, -1, -1, 1, 5, -5]], np.float32)
    codec = Binary().fit(vectors, seed=0)
    codes = codec.encode(vectors)
    assert codes.tolist() == [[0b10010001, 0b10000000]]
    assert np.sign(codec.decode(codes)).tolist() == [[1, -1, -1, 1, -1, -1, -1, 1, 1, -1]]
    assert np.linalg.norm(codec.decode(codes)) == pytest.approx(1)
