"""`hashing`: the contract, and that its vectors never change without a new version."""

from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines_tests.providers.contract import check_provider

HOME = Path("/nowhere")


@pytest.mark.parametrize("dimensions", [64, 300])
def test_hashing_keeps_the_contract(dimensions: int) -> None:
    check_provider(Hashing(dimensions=dimensions).open(HOME))


def test_its_vectors_are_the_same_for_ever() -> None:
    model = Hashing(dimensions=8).open(HOME)
    assert np.allclose(
        model.embed(["a cat"], "document").vectors[0],
        [0.219933, 0.456061, 0.384417, 0.030379, -0.753734, -0.054746, -0.049767, 0.146114],
        atol=1e-5,
    )


def test_options_make_another_space() -> None:
    options = (Hashing(), Hashing(dimensions=32), Hashing(max_tokens=100))
    assert len({one.open(HOME).space.id for one in options}) == 3
