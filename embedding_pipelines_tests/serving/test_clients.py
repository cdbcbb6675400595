"""Clients that nobody here wrote: OpenAI's and Cohere's own, against a real server."""

from collections.abc import Iterator
from pathlib import Path

import cohere
import httpx
import numpy as np
import openai
import pytest

from embedding_pipelines_tests.serving.homes import KEY
from embedding_pipelines_tests.serving.live import live


@pytest.fixture(scope="module")
def address(built_home: Path) -> Iterator[str]:
    with live(built_home, KEY) as (address, _, _):
        yield address


def test_openai_s_client(address: str) -> None:
    texts = ["red fox", "blue whale"]
    with openai.OpenAI(api_key=KEY, base_url=f"{address}/v1", max_retries=0) as client:
        # It asks for base64 by itself, and decodes it.
        reply = client.embeddings.create(model="things", input=texts)
        plain = client.embeddings.create(model="things", input=texts, encoding_format="float")
        assert [item.index for item in reply.data] == [0, 1]
        for one, other in zip(reply.data, plain.data, strict=True):
            assert np.allclose(one.embedding, other.embedding)
            assert len(one.embedding) == 64
        assert reply.usage.prompt_tokens == 4
        assert {model.id for model in client.models.list()} == {"things", "hashing"}
        with pytest.raises(openai.NotFoundError) as not_found:
            client.embeddings.create(model="thing", input="x")
        assert "no model 'thing' here" in str(not_found.value.body)
        with pytest.raises(openai.BadRequestError) as bad:
            client.embeddings.create(model="things", input="x", dimensions=3)
        assert bad.value.body == "dimensions: 'things' gives 64, not 3."
    with (
        openai.OpenAI(api_key="wrong", base_url=f"{address}/v1", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_cohere_s_client(address: str) -> None:
    with httpx.Client() as http:
        client = cohere.ClientV2(api_key=KEY, base_url=address, httpx_client=http)
        reply = client.embed(
            model="things",
            input_type="search_document",
            texts=["red fox", "blue whale"],
            embedding_types=["float", "ubinary"],
        )
        assert np.shape(reply.embeddings.float_) == (2, 64)
        assert np.shape(reply.embeddings.ubinary) == (2, 8)
        assert reply.meta is not None
        assert reply.meta.billed_units is not None
        assert reply.meta.billed_units.input_tokens == 4
        ranked = client.rerank(
            model="things", query="red fox", documents=["blue whale", "a red fox"], top_n=1
        )
        assert [result.index for result in ranked.results] == [1]
        with pytest.raises(cohere.NotFoundError):
            client.embed(model="thing", input_type="search_query", texts=["x"])
        client = cohere.ClientV2(api_key="wrong", base_url=address, httpx_client=http)
        with pytest.raises(cohere.UnauthorizedError):
            client.rerank(model="things", query="x", documents=["y"])
