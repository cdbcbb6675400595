"""A model that should tell queries from documents and does not is found out, and no other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.providers.base import EmbeddingModel, InputType, Response
from embedding_pipelines.quality.base import Outcome
from embedding_pipelines.quality.evaluate import CHECKS
from embedding_pipelines.quality.evidence import Candidate
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.chain import Recording, hashing, run_of, write_pipeline
from embedding_pipelines_tests.conftest import PLAIN

CHECK = CHECKS["input_types_differ"]
E5 = {"query": "query: ", "document": "passage: "}
VECTORS = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)


class Prompted(Recording):
    """A model with prompts; `arrive`: whether it is given them."""

    def __init__(self, prompts: dict[str, str], arrive: bool = True) -> None:
        super().__init__(hashing())
        self.prompts, self.arrive = prompts, arrive

    @property
    def space(self) -> Space:
        return Space(**{**self.inner.space.model_dump(), "prompts": self.prompts})

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        prompt = self.prompts[input_type] if self.arrive else ""
        return super().embed([prompt + text for text in inputs], input_type)


def candidate(home: Path, model: EmbeddingModel) -> Candidate:
    """A table version of which this check needs nothing but the model."""
    write_pipeline(home, "p", PLAIN)
    run = run_of(home, "p", model)
    return Candidate(
        run=run,
        codec=CodecChain([], model.space.dimensions),
        table=run.spec.store.table(run.warehouse.tables, "t"),
        name="t",
        version=1,
        rows=0,
        has_index=False,
        source_rows=0,
        live=None,
        budget=BudgetTracker(),
    )


def outcome(home: Path, prompts: dict[str, str], queries: Vectors, documents: Vectors) -> Outcome:
    """What two vectors in either input type come to."""
    found = candidate(home, Prompted(prompts))
    if prompts.get("query", "") != prompts.get("document", ""):
        found.collected[CHECK.name] = {"query": queries, "document": documents}
    return CHECK.evaluate(found)


@pytest.mark.parametrize("arrive", [True, False])
def test_it_says_whether_prompts_arrive_and_embeds_once_per_space(home: Path, arrive: bool) -> None:
    model = Prompted(E5, arrive)
    for _ in range(2):
        own = candidate(home, model)
        CHECK.collect(own)
        result = CHECK.evaluate(own)
        assert result.passed == arrive
        assert arrive or "'query: ' with a query" in result.sentence
        assert (result.statistics["cosine"] > 0.999) != arrive
        assert len(model.texts) == 4
    assert CHECK.cost(own.run) > 0


def test_a_model_without_input_types_embeds_nothing(home: Path) -> None:
    model = Recording(hashing())
    own = candidate(home, model)
    CHECK.collect(own)
    assert CHECK.evaluate(own).passed
    assert model.texts == []
    assert CHECK.cost(own.run) == 0


def test_the_same_vectors_for_different_prompts_fail(home: Path) -> None:
    result = outcome(home, E5, VECTORS, VECTORS + np.float32(2e-7))
    assert result.blocks
    assert "'query: '" in result.sentence
    assert "'passage: '" in result.sentence


@pytest.mark.parametrize("prompts", [{"query": "query: "}, {"document": "passage: "}])
def test_one_prompt_is_enough_to_be_asymmetric(home: Path, prompts: dict[str, str]) -> None:
    assert not outcome(home, prompts, VECTORS, VECTORS).passed


@pytest.mark.parametrize(
    "prompts", [{}, {"query": "x: ", "document": "x: "}, {"query": "", "document": ""}]
)
def test_a_symmetric_model_passes(home: Path, prompts: dict[str, str]) -> None:
    assert outcome(home, prompts, VECTORS, VECTORS).passed


def test_vectors_that_differ_in_one_place_pass(home: Path) -> None:
    other = VECTORS.copy()
    other[1, 5] += 1e-3
    assert outcome(home, E5, VECTORS, other).passed


def test_a_model_without_vectors_for_the_texts_is_not_judged(home: Path) -> None:
    result = outcome(home, E5, VECTORS, np.full_like(VECTORS, np.nan))
    assert result.passed
    assert result.sentence.startswith("Skipped:")
