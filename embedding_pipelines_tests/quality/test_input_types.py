"""A warning where prompts do not reach the model."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.quality.input_types import input_types_differ
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.recording import Recording


class Prompted(Recording):
    """A model with prompts; `arrive`: whether it is given them."""

    arrive: bool = True

    @property
    def space(self) -> Space:
        prompts = {"query": "query: ", "document": "passage: "}
        return Space(**{**self.inner.space.model_dump(), "prompts": prompts})

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        prompt = self.space.prompts[input_type] if self.arrive else ""
        return super().embed([prompt + text for text in inputs], input_type)


@pytest.mark.parametrize("arrive", [True, False])
def test_it_tells_whether_prompts_arrive_and_asks_once_per_space(
    tmp_path: Path, arrive: bool
) -> None:
    with EmbeddingCache(tmp_path / "l") as cache:
        provider = Prompted(inner=Hashing(), arrive=arrive)
        found = input_types_differ(provider, cache, BudgetTracker())
        assert found.passed == arrive
        assert arrive or "'query: ' with a query" in found.sentence
        assert (found.statistics["cosine"] > 0.999) != arrive
        assert len(provider.texts) == 4
        input_types_differ(provider, cache, BudgetTracker())
        assert len(provider.texts) == 4


def test_a_model_without_input_types_is_not_asked(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "l") as cache:
        provider = Recording(inner=Hashing())
        assert input_types_differ(provider, cache, BudgetTracker()).passed
        assert provider.texts == []
