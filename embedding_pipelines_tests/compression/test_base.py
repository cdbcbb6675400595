"""The chain: its order, its identity, its file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_pipelines import plugins
from embedding_pipelines.compression.base import CodecChain, Compressor, check_chain, is_fitted
from embedding_pipelines.compression.binary import Binary
from embedding_pipelines.compression.float16 import Float16
from embedding_pipelines.compression.int8 import Int8, Int8Codec
from embedding_pipelines.compression.pca import Pca, PcaCodec
from embedding_pipelines.compression.truncate import Truncate
from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines.vectors import Vectors, unit
from embedding_pipelines_tests.compression.contract import clustered, fit_chain, overlap


def test_every_kind_is_found_under_the_name_of_its_file() -> None:
    choices = plugins.choices("compression", Compressor)
    assert sorted(choices) == ["binary", "float16", "int8", "pca", "truncate"]
    for kind, choice in choices.items():
        assert choice.__module__ == f"embedding_pipelines.compression.{kind}"
        assert issubclass(choice, Compressor)
        assert choice.codec.kind == kind


def test_a_pipeline_file_names_a_choice_by_its_kind() -> None:
    options = {"kind": "pca", "dimensions": 128}
    assert plugins.parse("compression", Compressor, options) == Pca(dimensions=128)


def test_the_empty_chain_is_the_identity_and_keeps_lengths(tmp_path: Path) -> None:
    vectors = clustered(20, 32) * np.float32(3)
    chain = fit_chain([], vectors)
    assert (chain.id, chain.dtype, chain.metric) == ("none", "float32", "cosine")
    assert chain.dimensions == 32
    assert np.array_equal(chain.encode(vectors), vectors)
    assert np.array_equal(chain.decode(vectors), vectors)
    chain.save(tmp_path / "codec.npz")
    assert CodecChain.load(tmp_path / "codec.npz").statistics() == chain.statistics()


def test_a_chain_applies_its_codecs_in_order_and_comes_back_from_its_file(tmp_path: Path) -> None:
    sample, fresh = clustered(500, 96), clustered(200, 96, seed=1)
    chain = fit_chain([Truncate(dimensions=90), Pca(dimensions=40), Int8()], sample)
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
    chain = fit_chain([Pca(dimensions=8), Int8()], sample)
    projected = chain.codecs[0].encode(sample)
    assert chain.codecs[1].statistics() == Int8().fit([projected]).statistics()


def test_the_id_tells_kinds_options_and_vectors_apart() -> None:
    sample = clustered(200, 64)
    fits: list[tuple[list[Compressor], Vectors]] = [
        ([Pca(dimensions=16)], sample),
        ([Pca(dimensions=17)], sample),
        ([Pca(dimensions=16)], sample[:150]),
        ([Truncate(dimensions=16)], sample),
        ([Float16()], sample),
        ([Float16()], sample[:, :32]),
        ([Binary()], sample),
        ([Binary()], sample[:, ::-1] * np.linspace(1, 2, 64, dtype=np.float32)),
        ([Binary(oversample=5)], sample),
        ([Binary(rescore="float16")], sample),
        ([Binary(rescore="none")], sample),
        ([Pca(dimensions=16), Int8()], sample),
    ]
    chains = [fit_chain(compressors, data) for compressors, data in fits]
    assert len({chain.id for chain in chains}) == len(chains)
    assert all(len(bytes.fromhex(chain.id)) == 16 for chain in chains)


CHAINS: dict[str, list[Compressor]] = {
    "pca": [Pca(dimensions=5)],
    "int8": [Int8()],
    "binary": [Binary()],
    "pca+int8": [Pca(dimensions=5), Int8()],
    "truncate+pca+binary": [Truncate(dimensions=10), Pca(dimensions=5), Binary()],
}


@pytest.mark.parametrize("name", CHAINS)
@given(
    rows=st.integers(40, 120),
    seed=st.integers(0, 999),
    cuts=st.lists(st.integers(0, 120), max_size=8),
)
@settings(max_examples=25)
def test_how_vectors_are_cut_into_blocks_decides_nothing(
    name: str, rows: int, seed: int, cuts: list[int]
) -> None:
    vectors = clustered(rows, 12, seed=seed, rank=8)
    parts = np.split(vectors, sorted(min(cut, rows) for cut in cuts))
    streamed = CodecChain.fit(CHAINS[name], lambda: iter(parts), 12)
    whole = fit_chain(CHAINS[name], vectors)
    assert streamed.id == whole.id


@given(
    place=st.integers(0, 10_000),
    stage=st.sampled_from(["directions", "spectrum", "scale", "oversample"]),
)
@settings(max_examples=50)
def test_whatever_was_fitted_otherwise_makes_another_id(place: int, stage: str) -> None:
    chain = fit_chain(CHAINS["truncate+pca+binary"], clustered(60, 12, rank=8))
    changed = CodecChain.from_bytes(chain.to_bytes(), "here")
    _, pca, binary = changed.codecs
    assert isinstance(pca, PcaCodec)
    assert isinstance(binary.rescoring_codec, Int8Codec)
    if stage == "scale":
        binary.rescoring_codec.scale = float(np.nextafter(binary.rescoring_codec.scale, 1))
    elif stage == "oversample":
        binary.oversample += 1
    else:
        numbers = pca.arrays()[stage].flat
        numbers[place % len(numbers)] = np.nextafter(numbers[place % len(numbers)], np.float32(2))
    assert CodecChain(changed.codecs, 12).id != chain.id


@pytest.mark.parametrize(
    ("compressors", "expected"),
    [
        ([], 256),
        ([Pca(dimensions=16)], 64),
        ([Float16()], 128),
        ([Int8()], 64),
        ([Truncate(dimensions=20), Binary(rescore="none")], 3),
        ([Pca(dimensions=16), Binary()], 18),
    ],
)
def test_the_bytes_of_a_vector_are_those_of_its_codes(
    compressors: list[Compressor], expected: int
) -> None:
    vectors = clustered(30, 64)
    chain = fit_chain(compressors, vectors)
    rescoring = chain.encode_rescoring(vectors)
    rescoring_bytes = 0 if rescoring is None else rescoring.nbytes
    assert chain.bytes_per_vector == expected
    assert chain.encode(vectors).nbytes + rescoring_bytes == 30 * expected


def test_equal_chains_are_equal_bytes() -> None:
    sample = clustered(200, 64)
    one, two = (fit_chain([Pca(dimensions=16), Int8()], sample) for _ in range(2))
    assert one.to_bytes() == two.to_bytes()


def test_another_order_is_refused_with_the_one_to_use() -> None:
    with pytest.raises(
        ConfigError,
        match=r"int8, pca, truncate cannot follow.*Use this order: truncate, pca, int8\.",
    ):
        check_chain([Int8(), Pca(dimensions=4), Truncate(dimensions=8)], 16)
    with pytest.raises(
        ConfigError, match=r"what cuts the model's own numbers comes first.*order: truncate, pca\."
    ):
        check_chain([Pca(dimensions=8), Truncate(dimensions=4)], 16)
    assert check_chain([Truncate(dimensions=8), Pca(dimensions=4), Int8()], 16) == 4


def test_a_chain_has_one_end() -> None:
    with pytest.raises(ConfigError, match=r"'int8', 'binary' each end a chain.*Keep one"):
        check_chain([Int8(), Binary()], 16)


def test_dimensions_are_checked_along_the_chain() -> None:
    assert check_chain([Truncate(dimensions=8), Pca(dimensions=4), Binary()], 16) == 4
    with pytest.raises(ConfigError, match="12 dimensions cannot be made of 8"):
        check_chain([Truncate(dimensions=8), Pca(dimensions=12)], 16)


def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "codec.npz"
    with pytest.raises(CompressionError, match=r"codec\.npz: the codec cannot be read"):
        CodecChain.load(path)
    fit_chain([Pca(dimensions=4)], clustered(50, 16, rank=8)).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not a zip" * 10):
        path.write_bytes(damaged)
        with pytest.raises(CompressionError, match=r"codec\.npz: this is no codec"):
            CodecChain.load(path)


def test_a_file_whose_content_does_not_match_its_id_is_refused(tmp_path: Path) -> None:
    chain = fit_chain([Pca(dimensions=4)], clustered(50, 16, rank=8))
    path = tmp_path / "codec.npz"
    chain.save(path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["0.directions"] = -arrays["0.directions"]
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(CompressionError, match="the codec says it is"):
        CodecChain.load(path)


@pytest.mark.parametrize("wrong", [np.zeros(8, np.float32), np.ones((9, 7), np.float32)])
def test_vectors_of_another_shape_are_refused(wrong: Vectors) -> None:
    with pytest.raises(CompressionError, match=r"shape .* \[n, 8\] is needed"):
        CodecChain.fit([Int8()], lambda: [np.ones((3, 8), np.float32), wrong], 8)


@pytest.mark.parametrize(
    "wrong", [np.ones((9, 7), np.float32), np.full((2, 8), np.nan, np.float32)]
)
def test_the_empty_chain_refuses_what_are_no_codes_of_it(wrong: Vectors) -> None:
    with pytest.raises(CompressionError, match=r"compression\.decode"):
        CodecChain([], 8).decode(wrong)


@pytest.mark.parametrize("chain", [[], [Float16()], [Int8()], [Pca(dimensions=32), Int8()]])
def test_what_is_kept_of_vectors_is_what_the_directions_hold_of_them(
    chain: list[Compressor],
) -> None:
    vectors, zero = clustered(300, 96, noise=0.5), np.zeros((1, 96), np.float32)
    codec = fit_chain(chain, vectors)
    expected = codec.codecs[0].statistics().get("kept_energy", 1) if chain else 1
    assert codec.kept_energy(vectors).mean() == pytest.approx(expected, abs=1e-3)
    assert codec.kept_energy(zero) == [1]
    rescored = fit_chain([*chain[:1], Binary()] if chain[1:] else [Binary()], vectors)
    alone = fit_chain(
        [*chain[:1], Binary(rescore="none")] if chain[1:] else [Binary(rescore="none")], vectors
    )
    assert alone.kept_energy(vectors).mean() < rescored.kept_energy(vectors).mean()


@pytest.mark.parametrize(
    ("chain", "fitted"),
    [
        ([], False),
        ([Truncate(dimensions=8), Float16()], False),
        ([Binary(rescore="float16")], False),
        ([Binary()], True),
        ([Truncate(dimensions=8), Int8()], True),
        ([Pca(dimensions=8)], True),
    ],
)
def test_which_chains_depend_on_the_vectors(chain: list[Compressor], fitted: bool) -> None:
    assert is_fitted(chain, 96) is fitted
