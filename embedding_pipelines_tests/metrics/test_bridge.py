"""metrics/bridge: a turned space is bridged without loss, a stretched one by the ridge, and what has
nothing in common by nothing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from embedding_pipelines.metrics.bridge import Bridge, fit_bridge, retention_of

Vectors = NDArray[np.float32]


def unit(rows: int, dimensions: int, seed: int) -> Vectors:
    """Vectors that lean to one side, as those of models do."""
    vectors = np.random.default_rng(seed).normal(0.3, 1, (rows, dimensions))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def cosines(bridge: Bridge, new: Vectors, old: Vectors) -> float:
    return float((bridge.map(new) * old).sum(axis=1).min())


def test_a_space_that_is_turned_or_padded_is_bridged_without_loss() -> None:
    old = unit(600, 16, 1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(16, 16)))[0].astype(np.float32)
    for new in (old @ turn, np.hstack([old @ turn, np.zeros((600, 8), np.float32)])):
        bridge = fit_bridge(new[:400], old[:400])
        assert bridge.matrix.shape == (new.shape[1], 16)
        assert cosines(bridge, new[400:], old[400:]) > 0.999
        assert bridge.map(new[0]) == pytest.approx(bridge.map(new[:1])[0], abs=1e-6)


def test_a_space_that_is_stretched_needs_the_ridge() -> None:
    old = unit(600, 16, 1)
    new = old * np.linspace(0.2, 4, 16, dtype=np.float32)
    bridge = fit_bridge(new[:400], old[:400])
    assert bridge.kind == "ridge"
    assert cosines(bridge, new[400:], old[400:]) > 0.99


def test_spaces_without_anything_in_common_are_mapped_to_nothing_in_particular() -> None:
    old, new = unit(600, 16, 1), unit(600, 16, 3)
    mapped = fit_bridge(new[:400], old[:400]).map(new[400:])
    centred = [each - each.mean(axis=0) for each in (mapped, old[400:])]
    lengths = [np.linalg.norm(each, axis=1) for each in centred]
    assert (
        abs(float(((centred[0] * centred[1]).sum(axis=1) / lengths[0] / lengths[1]).mean())) < 0.2
    )


def test_what_was_written_is_read_and_maps_alike() -> None:
    old = unit(100, 8, 1)
    bridge = fit_bridge(old[:, ::-1], old)
    again = Bridge.from_bytes(bridge.to_bytes())
    assert again.kind == bridge.kind
    assert np.array_equal(again.map(old), bridge.map(old))


def test_wrong_shapes_are_told() -> None:
    old = unit(100, 8, 1)
    with pytest.raises(ValueError, match="ten pairs"):
        fit_bridge(old[:5], old[:5])
    with pytest.raises(ValueError, match="ten pairs"):
        fit_bridge(old[:50], old)
    with pytest.raises(ValueError, match="8 dimensions, not 7"):
        fit_bridge(old, old).map(old[:, :7])


def test_retention_is_a_share_with_a_bound_that_few_queries_widen() -> None:
    own, bridged = np.ones(400), np.ones(400)
    bridged[::20] = 0
    many, few = retention_of(bridged, own), retention_of(bridged[:40], own[:40])
    assert many.mean == pytest.approx(0.95)
    assert (many.own_recall, many.queries) == (1.0, 400)
    assert few.low < many.low < many.mean
    half = retention_of(bridged * 0.5, own * 0.5)
    assert half.mean == pytest.approx(0.95)
    assert retention_of(np.zeros(5), np.zeros(5)).low == 0.0
