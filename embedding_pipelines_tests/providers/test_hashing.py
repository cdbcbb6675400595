"""`hashing`: the contract, and that its vectors never change without a new recipe."""

import numpy as np
import pytest

from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines_tests.providers.contract import check_provider


@pytest.mark.parametrize("dimensions", [64, 300])
def test_hashing_keeps_the_contract(dimensions: int) -> None:
    check_provider(Hashing(dimensions=dimensions))


def test_its_vectors_are_the_same_for_ever() -> None:
    found = Hashing(dimensions=8).embed(["a cat"], "document")[0]
    assert np.allclose(
        found,
        [0.219933, 0.456061, 0.384417, 0.030379, -0.753734, -0.054746, -0.049767, 0.146114],
        atol=1e-5,
    )


def test_options_make_another_space() -> None:
    assert (
        len({Hashing().space.id, Hashing(dimensions=32).space.id, Hashing(max_tokens=100).space.id})
        == 3
    )
