"""A warning where prompts do not reach the model."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from embedding_pipelines.embedding.budget import Purse
from embedding_pipelines.embedding.cache import Ledger
from embedding_pipelines.providers.base import Role, Vectors
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.quality.input_types import roles_are_told_apart
from embedding_pipelines.space import Space
from embedding_pipelines_tests.chain import Recording


class Prompted(Recording):
    """A model with prompts; `arrive`: whether it is given them."""

    arrive: bool = True

    @property
    def space(self) -> Space:
        prompts = {"query": "query: ", "document": "passage: "}
        return Space(**{**self.inner.space.model_dump(), "prompts": prompts})

    def embed(self, inputs: Sequence[str], input_type: Role) -> Vectors:
        prompt = self.space.prompts[input_type] if self.arrive else ""
        return super().embed([prompt + text for text in inputs], input_type)


@pytest.mark.parametrize("arrive", [True, False])
def test_it_tells_whether_prompts_arrive_and_asks_once_per_space(
    tmp_path: Path, arrive: bool
) -> None:
    with Ledger(tmp_path / "l") as ledger:
        provider = Prompted(inner=Hashing(), arrive=arrive)
        found = roles_are_told_apart(provider, ledger, Purse())
        assert found.passed == arrive
        assert arrive or "'query: ' with a query" in found.sentence
        assert (found.facts["cosine"] > 0.999) != arrive
        assert len(provider.texts) == 4
        roles_are_told_apart(provider, ledger, Purse())
        assert len(provider.texts) == 4


def test_a_model_without_roles_is_not_asked(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        provider = Recording(inner=Hashing())
        assert roles_are_told_apart(provider, ledger, Purse()).passed
        assert provider.texts == []
