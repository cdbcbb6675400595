"""The chain: its order, its identity, its file."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines import plugins
from embedding_pipelines.compression.base import CodecChain, Compressor, Vectors, check_chain, unit
from embedding_pipelines.compression.binary import Binary
from embedding_pipelines.compression.float16 import Float16
from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.compression.pca import Pca
from embedding_pipelines.compression.truncate import Truncate
from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines_tests.compression.contract import clustered, overlap


def test_every_kind_is_found_under_the_name_of_its_file() -> None:
    found = plugins.choices("compression", Compressor)
    assert sorted(found) == ["binary", "float16", "int8", "pca", "truncate"]
    for kind, choice in found.items():
        assert choice.__module__ == f"embedding_pipelines.compression.{kind}"
        assert issubclass(choice, Compressor)
        assert choice.codec.kind == kind


def test_a_pipeline_file_names_a_choice_by_its_kind() -> None:
    options = {"kind": "pca", "dimensions": 128}
    assert plugins.parse("compression", Compressor, options) == Pca(dimensions=128)


def test_the_empty_chain_is_the_identity_and_keeps_lengths(tmp_path: Path) -> None:
    vectors = clustered(20, 32) * np.float32(3)
    chain = CodecChain.fit([], vectors, seed=0)
    assert (chain.id, chain.dtype, chain.metric, chain.dimensions) == ("none", "float32", "cosine", 32)
    assert np.array_equal(chain.encode(vectors), vectors)
    assert np.array_equal(chain.decode(vectors), vectors)
    chain.save(tmp_path / "codec.npz")
    assert CodecChain.load(tmp_path / "codec.npz").facts() == chain.facts()


def test_a_chain_applies_its_codecs_in_order_and_comes_back_from_its_file(tmp_path: Path) -> None:
    sample, fresh = clustered(500, 96), clustered(200, 96, seed=1)
    chain = CodecChain.fit([Truncate(dimensions=90), Pca(dimensions=40), Int8()], sample, seed=0)
    assert (chain.input_dimensions, chain.dimensions, chain.dtype) == (96, 40, "int8")
    codes = chain.encode(fresh)
    assert codes.shape == (200, 40)
    assert codes.dtype == np.int8
    assert overlap(chain, fresh) > 0.8
    assert np.einsum("ij,ij->i", unit(chain.decode(codes)), fresh).mean() > 0.95
    chain.save(tmp_path / "deep" / "codec.npz")
    loaded = CodecChain.load(tmp_path / "deep" / "codec.npz")
    assert np.array_equal(loaded.encode(fresh), codes)
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["codec.npz"]


def test_each_codec_is_fitted_to_what_the_one_before_it_makes() -> None:
    sample = clustered(500, 96)
    chain = CodecChain.fit([Pca(dimensions=8), Int8()], sample, seed=0)
    projected = chain.codecs[0].encode(sample)
    assert chain.codecs[1].facts() == Int8().fit(projected, seed=0).facts()


def test_the_id_tells_kinds_options_and_samples_apart() -> None:
    sample = clustered(200, 64)
    fits: list[tuple[list[Compressor], Vectors]] = [
        ([Pca(dimensions=16)], sample),
        ([Pca(dimensions=17)], sample),
        ([Pca(dimensions=16)], sample[:150]),
        ([Truncate(dimensions=16)], sample),
        ([Float16()], sample),
        ([Float16()], sample[:, :32]),
        ([Binary()], sample),
        ([Pca(dimensions=16), Int8()], sample),
    ]
    chains = [CodecChain.fit(compressors, data, seed=0) for compressors, data in fits]
    assert len({chain.id for chain in chains}) == len(chains)
    assert all(len(bytes.fromhex(chain.id)) == 16 for chain in chains)


def test_equal_chains_are_equal_bytes() -> None:
    sample = clustered(200, 64)
    one, two = (CodecChain.fit([Pca(dimensions=16), Int8()], sample, seed=0) for _ in range(2))
    assert one.to_bytes() == two.to_bytes()


def test_what_ends_a_chain_must_come_last_and_the_error_names_the_order() -> None:
    with pytest.raises(ConfigError, match=r"'int8' ends a chain.*Use this order: pca, truncate, int8\."):
        check_chain([Int8(), Pca(dimensions=8), Truncate(dimensions=4)], 16)


def test_a_chain_has_one_end() -> None:
    with pytest.raises(ConfigError, match=r"'int8', 'binary' each end a chain.*Keep one"):
        check_chain([Int8(), Binary()], 16)


def test_dimensions_are_checked_along_the_chain() -> None:
    assert check_chain([Pca(dimensions=8), Truncate(dimensions=4), Binary()], 16) == 4
    with pytest.raises(ConfigError, match="12 dimensions cannot be made of 8"):
        check_chain([Truncate(dimensions=8), Pca(dimensions=12)], 16)


def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "codec.npz"
    with pytest.raises(CompressionError, match=r"codec\.npz: the codec cannot be read"):
        CodecChain.load(path)
    CodecChain.fit([Pca(dimensions=4)], clustered(50, 16, rank=8), seed=0).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not a zip" * 10):
        path.write_bytes(damaged)
        with pytest.raises(CompressionError, match=r"codec\.npz: this is no codec"):
            CodecChain.load(path)


def test_a_file_whose_content_does_not_match_its_id_is_refused(tmp_path: Path) -> None:
    chain = CodecChain.fit([Pca(dimensions=4)], clustered(50, 16, rank=8), seed=0)
    path = tmp_path / "codec.npz"
    chain.save(path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["0.directions"] = -arrays["0.directions"]
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(CompressionError, match="the codec says it is"):
        CodecChain.load(path)


def test_a_sample_that_is_no_table_of_vectors_is_refused() -> None:
    with pytest.raises(CompressionError, match="shape"):
        CodecChain.fit([Float16()], np.zeros(8, np.float32), seed=0)
