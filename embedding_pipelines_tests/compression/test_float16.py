"""Half precision loses next to nothing."""

from pathlib import Path

import numpy as np

from embedding_pipelines.compression.float16 import Float16
from embedding_pipelines_tests.compression.contract import check_compressor, clustered


def test_float16_keeps_the_contract_and_nearly_every_neighbour(tmp_path: Path) -> None:
    check_compressor(Float16(), tmp_path, cosine_floor=0.999999, overlap_floor=0.99)


def test_vectors_beyond_the_range_of_half_precision_do_not_overflow() -> None:
    vectors = clustered(10, 32)
    codec = Float16().fit([vectors])
    for factor in (1e30, 1e-30):
        assert np.allclose(
            codec.encode(vectors * np.float32(factor)), codec.encode(vectors), atol=1e-3
        )
