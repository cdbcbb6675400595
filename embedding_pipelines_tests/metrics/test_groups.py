"""Groups of near vectors: those that comparing all with all gives, in bounded time."""

import time

import numpy as np
import pytest

from embedding_pipelines.metrics.groups import NearGroups
from embedding_pipelines.vectors import Vectors, unit

COSINE = 0.98


def groups_of(vectors: Vectors, block: int = 500) -> list[list[int]]:
    with NearGroups(len(vectors) + 3, COSINE) as near:
        for start in range(0, len(vectors), block):
            near.add(vectors[start : start + block])
        return near.groups()


def all_with_all(vectors: Vectors) -> list[list[int]]:
    units = unit(vectors)
    groups = [{at} for at in range(len(vectors))]
    for left, right in np.argwhere(np.triu(units @ units.T >= COSINE, 1)).tolist():
        if groups[left] is not groups[right]:
            groups[left] |= groups[right]
            for at in groups[right]:
                groups[at] = groups[left]
    distinct = {id(group): sorted(group) for group in groups}
    return sorted(group for group in distinct.values() if len(group) > 1)


def spread(number: int, dimensions: int, common: float, seed: int) -> Vectors:
    """Random directions with a part in common, as a model's have: their mean cosine is `common`."""
    random = np.random.default_rng(seed)
    own = unit(random.standard_normal((number, dimensions), np.float32))
    shared = unit(random.standard_normal((1, dimensions), np.float32))
    vectors: Vectors = np.sqrt(1 - common) * own + np.sqrt(common) * shared
    return vectors


@pytest.mark.parametrize(("number", "common"), [(3_000, 0.0), (3_000, 0.6), (1_500, 0.6)])
def test_they_are_those_that_comparing_all_with_all_gives(number: int, common: float) -> None:
    random = np.random.default_rng(1)
    vectors = spread(number, 128, common, 0)
    rows = random.choice(number, 600, replace=False).reshape(150, 4)
    for first, *copies in rows.tolist():
        for copy in copies[: random.integers(1, 4)]:  # at cosines from 0.98 to 1
            noise = unit(random.standard_normal((1, 128), np.float32))[0]
            vectors[copy] = unit(vectors[[first]])[0] + 0.2 * random.random() * noise
    expected = all_with_all(vectors)
    assert len(expected) == 150
    assert groups_of(3 * vectors) == expected


def test_there_are_none_among_none_and_one() -> None:
    assert groups_of(np.empty((0, 8), np.float32)) == []
    assert groups_of(np.ones((1, 8), np.float32)) == []
    assert groups_of(np.ones((2, 8), np.float32)) == [[0, 1]]


@pytest.mark.parametrize("kind", ["unlike", "the same"])
def test_twenty_thousand_take_no_all_with_all(kind: str) -> None:
    vectors = spread(20_000, 64, 0.3, 2)
    if kind == "the same":
        vectors[:] = vectors[0]
    start = time.process_time()
    groups = groups_of(vectors, 4_096)
    assert time.process_time() - start < 3  # 200 million cosines would take longer
    assert [len(group) for group in groups] == ([] if kind == "unlike" else [20_000])
