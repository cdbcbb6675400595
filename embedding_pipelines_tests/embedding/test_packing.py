"""Requests keep within the limits, and every text comes exactly once."""

from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.embedding.packing import pack
from embedding_pipelines.providers.base import Limits


@given(st.lists(st.integers(0, 50)), st.integers(1, 60), st.integers(1, 7))
def test_requests_keep_within_the_limits_and_lose_nothing(
    tokens: list[int], request_tokens: int, request_texts: int
) -> None:
    requests = list(pack(tokens, Limits(50, request_tokens, request_texts)))
    assert sorted(position for request in requests for position in request) == list(
        range(len(tokens))
    )
    assert all(0 < len(request) <= request_texts for request in requests)
    assert all(
        len(request) == 1 or sum(tokens[i] for i in request) <= request_tokens
        for request in requests
    )
    lengths = [tokens[position] for request in requests for position in request]
    assert lengths == sorted(lengths, reverse=True)
