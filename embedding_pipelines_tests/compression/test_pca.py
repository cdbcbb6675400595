"""Principal components keep the cosine's own origin, and say how much they keep."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.compression.base import CodecChain, Compressor
from embedding_pipelines.compression.binary import Binary
from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.compression.pca import Pca, PcaCodec
from embedding_pipelines.compression.truncate import Truncate
from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines.vectors import Vectors, cosine, unit
from embedding_pipelines_tests.compression.contract import check_compressor, clustered, overlap


def as_they_come(pca: Pca, *blocks: Vectors) -> PcaCodec:
    """The codec without its rotation: principal directions, the strongest first."""
    return PcaCodec(*pca.principal(blocks[0].shape[1], iter(blocks)))


def test_pca_keeps_the_contract_and_the_neighbours(tmp_path: Path) -> None:
    codec = check_compressor(Pca(dimensions=28), tmp_path, cosine_floor=0.995, overlap_floor=0.95)
    assert 0.98 < codec.statistics()["kept_energy"] <= 1


def test_pca_to_all_dimensions_is_a_rotation_that_loses_nothing() -> None:
    vectors = clustered(200, 48)
    codec = Pca(dimensions=48).fit([vectors])
    assert codec.decode(codec.encode(vectors)) == pytest.approx(vectors, abs=1e-5)
    assert codec.statistics()["kept_energy"] == pytest.approx(1)


def test_the_mean_is_not_subtracted() -> None:
    """A strong common direction is the first one kept, so cosines between vectors stay what they
    were."""
    vectors = unit(clustered(300, 32, rank=8) + np.float32(3) * clustered(1, 32, seed=9))
    codes = Pca(dimensions=10).fit([vectors]).encode(vectors)
    assert codes @ codes.T == pytest.approx(vectors @ vectors.T, abs=0.01)


def test_pca_keeps_more_neighbours_than_a_prefix_of_the_same_size() -> None:
    vectors = clustered(300, 96)
    pca = Pca(dimensions=16).fit([vectors])
    prefix = Truncate(dimensions=16).fit([vectors])
    assert overlap(pca, vectors) > overlap(prefix, vectors) + 0.03


def test_the_sign_of_each_direction_is_fixed_by_its_largest_entry() -> None:
    directions = as_they_come(Pca(dimensions=12), clustered(100, 32)).directions
    peaks = np.abs(directions).argmax(axis=1)
    assert (directions[np.arange(12), peaks] > 0).all()
    assert directions @ directions.T == pytest.approx(np.eye(12), abs=1e-5)


def test_the_energy_is_spread_over_all_numbers_and_no_cosine_changes() -> None:
    vectors = clustered(400, 96, rank=24)
    rotated, plain = Pca(dimensions=24).fit([vectors]), as_they_come(Pca(dimensions=24), vectors)
    assert rotated.directions @ rotated.directions.T == pytest.approx(np.eye(24), abs=1e-5)
    codes, before = rotated.encode(vectors), plain.encode(vectors)
    assert codes @ codes.T == pytest.approx(before @ before.T, abs=1e-5)
    assert rotated.decode(codes) == pytest.approx(plain.decode(before), abs=1e-5)
    strongest = [(each**2).mean(axis=0).max() for each in (codes, before)]
    assert strongest[0] < strongest[1] / 2


@pytest.mark.parametrize("last", [Int8(), Binary(rescore="none")])
def test_what_rounds_the_projections_loses_less_when_they_are_rotated(last: Compressor) -> None:
    vectors = unit(clustered(600, 96, rank=24) + np.float32(2) * clustered(1, 96, seed=9))
    pca, errors = Pca(dimensions=24), []
    for first in (pca.fit([vectors]), as_they_come(pca, vectors)):
        codes = first.encode(vectors)
        codec = last.fit([codes])
        errors.append(((codec.decode(codec.encode(codes)) - codes) ** 2).sum())
    assert errors[0] < errors[1] / 1.5


def test_long_vectors_count_no_more_than_short_ones() -> None:
    vectors = clustered(100, 32)
    lengths = np.linspace(0.1, 50, 100, dtype=np.float32)[:, None]
    plain, scaled = (Pca(dimensions=8).fit([each]) for each in (vectors, vectors * lengths))
    assert scaled.directions == pytest.approx(plain.directions, abs=1e-3)


def test_the_spectrum_says_how_much_lies_in_each_direction_those_that_are_dropped_included(
    tmp_path: Path,
) -> None:
    vectors = clustered(400, 48)
    codec = Pca(dimensions=12).fit([vectors])
    assert codec.spectrum.shape == (48,)
    assert codec.spectrum.dtype == np.float32
    assert codec.spectrum.sum() == pytest.approx(1)
    assert (np.diff(codec.spectrum) <= 0).all()
    principal = as_they_come(Pca(dimensions=12), vectors)
    energies = ((vectors @ principal.directions.T) ** 2).sum(axis=0) / len(vectors)
    assert codec.spectrum[:12] == pytest.approx(energies, rel=1e-4)
    assert codec.statistics()["kept_energy"] == pytest.approx(energies.sum(), abs=1e-5)
    assert "spectrum" not in codec.statistics()
    CodecChain([codec], 48).save(tmp_path / "codec.npz")
    (loaded,) = CodecChain.load(tmp_path / "codec.npz").codecs
    assert np.array_equal(loaded.arrays()["spectrum"], codec.spectrum)


def test_products_in_float32_cost_less_than_a_hundred_thousandth_of_each_direction() -> None:
    """20,000 vectors: two whole blocks and a rest."""
    vectors = clustered(20_000, 64, rank=16)
    codec = as_they_come(
        Pca(dimensions=16), *(vectors[at : at + 3_000] for at in range(0, 20_000, 3_000))
    )
    exact = unit(vectors).astype(np.float64)
    directions = np.linalg.eigh(exact.T @ exact)[1].T[::-1][:16]
    directions *= np.sign((directions * codec.directions).sum(axis=1))[:, None]
    assert np.linalg.norm(directions - codec.directions, axis=1).max() < 1e-5


def test_vectors_without_any_direction_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"pca.fit: all 30 vectors are zero\. Embed"):
        Pca(dimensions=4).fit([np.zeros((30, 8), np.float32)])


@pytest.mark.parametrize("rows", [1, 2, 20, 27])
def test_fewer_rows_than_directions_are_kept_whole(rows: int) -> None:
    vectors = clustered(rows, 96)
    codec = Pca(dimensions=28).fit([vectors])
    assert np.allclose(codec.directions @ codec.directions.T, np.eye(28), atol=1e-5)
    assert codec.kept_energy == pytest.approx(1)
    assert cosine(codec.decode(codec.encode(vectors)), vectors) == pytest.approx(1, abs=1e-5)


def test_more_dimensions_than_there_are_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"compression.pca: 512 .* 384 or less"):
        Pca(dimensions=512).check(384)
