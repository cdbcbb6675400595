"""A model that should tell queries from documents and does not is spoken of, and no other."""

import numpy as np
import pytest

from embedding_pipelines.metrics.input_types import same_for_both_input_types

E5 = {"query": "query: ", "document": "passage: "}
VECTORS = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


def test_the_same_vectors_for_different_prompts_are_told() -> None:
    sentence = same_for_both_input_types(VECTORS, VECTORS + np.float32(2e-7), E5)
    assert sentence is not None
    assert "'query: '" in sentence
    assert "'passage: '" in sentence


@pytest.mark.parametrize("prompts", [{"query": "query: "}, {"document": "passage: "}])
def test_one_prompt_is_enough_to_be_asymmetric(prompts: dict[str, str]) -> None:
    assert same_for_both_input_types(VECTORS, VECTORS, prompts)


@pytest.mark.parametrize(
    "prompts", [{}, {"query": "x: ", "document": "x: "}, {"query": "", "document": ""}]
)
def test_a_symmetric_model_is_left_alone(prompts: dict[str, str]) -> None:
    assert same_for_both_input_types(VECTORS, VECTORS, prompts) is None


def test_vectors_that_differ_in_one_place_are_left_alone() -> None:
    other = VECTORS.copy()
    other[2, 5] += 1e-3
    assert same_for_both_input_types(VECTORS, other, E5) is None


def test_arrays_of_other_texts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8\) and \(2, 8\)"):
        same_for_both_input_types(VECTORS, VECTORS[:2], E5)
    with pytest.raises(ValueError, match=r"\(0, 8\)"):
        same_for_both_input_types(VECTORS[:0], VECTORS[:0], E5)
