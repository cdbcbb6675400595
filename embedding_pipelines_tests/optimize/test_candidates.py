"""The compressions to measure, and the ranking of points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.compression.base import (
    CodecChain,
    Compressor,
    as_options,
    check_chain,
    describe_chain,
)
from embedding_pipelines.compression.binary import Binary
from embedding_pipelines.compression.float16 import Float16
from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.compression.pca import Pca
from embedding_pipelines.compression.truncate import Truncate
from embedding_pipelines.optimize.candidates import (
    Point,
    best_point,
    fit_all,
    list_compressions,
    mark_front,
    rank_eligible,
)
from embedding_pipelines.plugins import parse


def point(size: float, recall: float, milliseconds: float = 1.0) -> Point:
    return Point((), "sq", None, size, recall, recall - 0.01, milliseconds, milliseconds)


def test_all_precisions_of_all_dimensions_are_candidates_and_no_compression_too() -> None:
    compressions = list_compressions(384, False, 1_000)
    assert compressions[0] == ()
    assert compressions[1:4] == [(Float16(),), (Int8(),), (Binary(),)]
    assert (Binary(oversample=64),) in compressions
    sizes = {
        choice.dimensions for first, *_ in compressions[1:] if isinstance(choice := first, Pca)
    }
    assert sizes == {368, 360, 336, 288, 240, 192, 144, 96}
    assert len(compressions) == len(set(compressions)) == 1 + 2 * 9 + 3


@pytest.mark.parametrize(("dimensions", "rows"), [(384, 1_000), (300, 100), (8, 5), (3, 2), (1, 1)])
def test_every_candidate_can_be_fitted(dimensions: int, rows: int) -> None:
    for compression in list_compressions(dimensions, True, rows):
        assert 1 <= check_chain(compression, dimensions) <= dimensions
        assert all(
            not isinstance(choice, Pca) or choice.dimensions <= rows for choice in compression
        )


def test_only_vectors_made_for_it_are_truncated() -> None:
    assert not any(
        isinstance(choice, Truncate)
        for chain in list_compressions(64, False, 99)
        for choice in chain
    )
    assert (Truncate(dimensions=32), Int8()) in list_compressions(64, True, 99)


def test_given_dimensions_are_the_only_ones() -> None:
    assert list_compressions(384, False, 1_000, only=100) == [
        (Pca(dimensions=100), Float16()),
        (Pca(dimensions=100), Int8()),
    ]
    assert list_compressions(384, False, 1_000, only=384) == [
        (),
        (Float16(),),
        (Int8(),),
        (Binary(),),
        (Binary(oversample=16),),
        (Binary(oversample=64),),
    ]


def test_all_together_are_fitted_as_each_alone() -> None:
    vectors = np.random.default_rng(1).standard_normal((300, 32), dtype=np.float32)
    compressions = list_compressions(32, True, 300)
    passes = []

    def blocks() -> list[np.ndarray]:
        passes.append(1)
        return [vectors[:100], vectors[100:]]

    together = fit_all(compressions, blocks, 32)
    assert list(together) == compressions
    assert len(passes) < len(compressions)
    for compression, chain in together.items():
        assert chain.id == CodecChain.fit(compression, blocks, 32).id


def test_options_are_those_of_a_pipeline_file() -> None:
    for compression in [
        *list_compressions(64, True, 99),
        (Binary(rescore="float16", oversample=8),),
    ]:
        options = as_options(compression)
        assert tuple(parse("compression", Compressor, option) for option in options) == compression
    assert as_options((Pca(dimensions=16), Int8())) == [
        {"kind": "pca", "dimensions": 16},
        {"kind": "int8"},
    ]


def test_names_are_short() -> None:
    assert describe_chain(as_options(())) == "float32"
    assert describe_chain(as_options((Pca(dimensions=16), Int8()))) == "pca 16, int8"
    assert describe_chain(as_options((Binary(oversample=16),))) == "binary oversample 16"
    assert str(Point((Int8(),), "none", None, 16.0)) == "int8 with no index"
    assert str(Point((Int8(),), "rq", 40, 16.0)) == "int8 with index rq, refine 40"


def test_the_front_is_what_nothing_beats() -> None:
    small, large, worse, equal = (
        point(100, 0.9),
        point(200, 0.95),
        point(200, 0.94),
        point(100, 0.9),
    )
    mark_front([small, large, worse, equal])
    assert [entry.on_front for entry in (small, large, worse, equal)] == [True, True, False, True]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1))
def test_whatever_is_not_on_the_front_is_beaten_by_something_on_it(
    figures: list[tuple[int, int]],
) -> None:
    points = [point(size, recall / 5) for size, recall in figures]
    mark_front(points)
    front = [entry for entry in points if entry.on_front]
    assert front
    for entry in points:
        assert any(
            other.bytes_per_vector <= entry.bytes_per_vector
            and (other.recall_at_10 or 0) >= (entry.recall_at_10 or 0)
            for other in front
        )


def test_the_cheapest_is_chosen_among_those_whose_bound_keeps_the_floor() -> None:
    quick, slow, large, poor = (
        point(100, 0.96, 2),
        point(100, 0.97, 9),
        point(300, 1),
        point(50, 0.955),
    )
    assert rank_eligible([large, slow, poor, quick], 0.95, 10) == [quick, slow, large]
    assert rank_eligible([large, slow, poor, quick], 0.95, 5) == [quick, large]
    assert rank_eligible([poor], 0.95, 10) == []


def test_the_best_comes_nearest_to_the_floor() -> None:
    near, far = point(300, 0.9), point(100, 0.8)
    assert best_point([far, near]) is near
    cheap = point(200, 0.9)
    assert best_point([near, cheap]) is cheap
