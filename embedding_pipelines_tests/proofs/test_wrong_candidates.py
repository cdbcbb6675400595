"""A real model's vectors: wrong candidates are stopped, each by the check that knows why, and right
ones never."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.providers.base import EmbeddingModel, InputType, Limits, Response
from embedding_pipelines.space import Space
from embedding_pipelines.steps.release import release
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.chain import checks_of, hashing, run_of, run_steps, write_pipeline
from embedding_pipelines_tests.quality.test_checks import failed, live, outcomes, vandalize

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

MODEL = "hf:sentence-transformers/all-MiniLM-L6-v2"
PIPELINE = f"""\
source: {{kind: jsonl, path: data/*.jsonl, id: _id, text: [title, text]}}
preprocessing: {{chunk: null}}
model: {MODEL}
partitions: 4
"""
DOCUMENTS, WORDS, HEALTHY_RUNS = 600, 60, 20


@pytest.fixture(scope="module")
def built(shared: Path, proof_home: Path) -> Path:
    (proof_home / "data").mkdir()
    write_pipeline(proof_home, "p", PIPELINE)
    write(proof_home, corpus(shared)[:DOCUMENTS])
    run_steps(proof_home, "p")
    return proof_home


@pytest.fixture
def released(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of the test's own, whose live release stays the live one."""
    home = tmp_path / "home"
    shutil.copytree(built, home)
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    yield home
    assert live(home) == 1


def corpus(shared: Path) -> list[dict[str, Any]]:
    """Titles and how the abstracts begin: a few sentences each."""
    entries = [
        json.loads(line) for line in (shared / "scifact" / "corpus.jsonl").read_text().splitlines()
    ]
    return [{**entry, "text": " ".join(entry["text"].split()[:WORDS])} for entry in entries]


def write(home: Path, entries: Sequence[dict[str, Any]]) -> None:
    (home / "data" / "corpus.jsonl").write_text(
        "".join(json.dumps(entry) + "\n" for entry in entries)
    )


class Faulty(EmbeddingModel):
    """The real model behind a fault, which makes a space of its own: what was embedded before
    proves nothing of it."""

    def __init__(self, inner: EmbeddingModel) -> None:
        super().__init__(inner.options)
        self.inner = inner

    @property
    def space(self) -> Space:
        return self.inner.space.model_copy(update={"revision": type(self).__name__})

    @property
    def limits(self) -> Limits:
        return self.inner.limits

    @property
    def tokenizer(self) -> Any:
        return self.inner.tokenizer

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        return self.inner.embed(inputs, input_type)


class OtherQueries(Faulty):
    """Queries come from another model of as many dimensions."""

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        if input_type == "query":
            return hashing(dimensions=self.space.dimensions).embed(inputs, input_type)
        return super().embed(inputs, input_type)


class Deaf(Faulty):
    """E5's prompts are wanted, and lost on the way to the model."""

    @property
    def space(self) -> Space:
        return super().space.model_copy(
            update={"prompts": {"query": "query: ", "document": "passage: "}}
        )


def failed_behind(home: Path, fault: type[Faulty]) -> list[str]:
    """The checks that stop a candidate made through a fault."""
    with run_of(home, "p") as run:
        return failed(list(outcomes(home, fault(run.model)).values()))


def test_shuffled_vectors_are_stopped(released: Path) -> None:
    context = run_of(released, "p")
    vandalize(context, lambda vectors: np.random.default_rng(0).permutation(vectors))
    assert "vectors_belong_to_their_texts" in failed(checks_of(context))
    with pytest.raises(ReleaseError, match="vectors_belong_to_their_texts"):
        release(context)


def test_a_tenth_of_the_rows_zeroed_is_stopped(released: Path) -> None:
    def zeroed(vectors: Vectors) -> Vectors:
        vectors[::10] = 0
        return vectors

    context = run_of(released, "p")
    vandalize(context, zeroed)
    assert failed(checks_of(context)) == ["vectors_are_sound"]
    with pytest.raises(ReleaseError, match="vectors_are_sound"):
        release(context, "even with a reason")


def test_queries_embedded_by_another_model_are_stopped(released: Path) -> None:
    assert "known_items_are_found" in failed_behind(released, OtherQueries)


def test_lost_prompts_are_stopped(released: Path) -> None:
    assert failed_behind(released, Deaf) == ["input_types_differ"]


def test_twenty_healthy_runs_of_twenty_are_released(built: Path, shared: Path) -> None:
    """Each takes some of the documents away and brings as many that were never there."""
    others = iter(corpus(shared)[DOCUMENTS:])
    entries, drawn = corpus(shared)[:DOCUMENTS], random.Random(7)
    for run in range(HEALTHY_RUNS):
        before = live(built)
        for place in drawn.sample(range(DOCUMENTS), 5):
            entries[place] = next(others)
        write(built, entries)
        run_steps(built, "p")
        assert live(built) == before + 1, f"run {run + 1}"
