"""Calls keep within the limits, and every text comes exactly once."""

from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.embedding.packing import calls
from embedding_pipelines.providers.base import Limits


@given(st.lists(st.integers(0, 50)), st.integers(1, 60), st.integers(1, 7))
def test_calls_keep_within_the_limits_and_lose_nothing(
    tokens: list[int], request_tokens: int, request_texts: int
) -> None:
    found = list(calls(tokens, Limits(50, request_tokens, request_texts)))
    assert sorted(position for call in found for position in call) == list(range(len(tokens)))
    assert all(0 < len(call) <= request_texts for call in found)
    assert all(len(call) == 1 or sum(tokens[i] for i in call) <= request_tokens for call in found)
    lengths = [tokens[position] for call in found for position in call]
    assert lengths == sorted(lengths, reverse=True)
