"""Truncation is a prefix, made a unit vector again."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.compression.truncate import Truncate
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.vectors import unit
from embedding_pipelines_tests.compression.contract import check_compressor, clustered


def test_truncate_keeps_the_contract(tmp_path: Path) -> None:
    check_compressor(Truncate(dimensions=64), tmp_path, cosine_floor=0.75, overlap_floor=0.85)


def test_codes_are_the_first_numbers_scaled_to_unit_length() -> None:
    vectors = clustered(5, 32)
    codes = Truncate(dimensions=8).fit([vectors]).encode(vectors)
    assert codes == pytest.approx(unit(vectors[:, :8]), abs=1e-6)


def test_a_vector_with_an_empty_prefix_stays_zero_and_raises_nothing() -> None:
    vectors = np.array([[0, 0, 1, 0]], np.float32)
    assert not Truncate(dimensions=2).fit([vectors]).encode(vectors).any()


def test_more_dimensions_than_there_are_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"compression.truncate: 512 .* 384 or less"):
        Truncate(dimensions=512).check(384)
