"""A real model's vectors: wrong candidates are stopped, each by the check that knows why, and right
ones never."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.providers.base import EmbeddingModel, InputType, Limits, Response
from embedding_pipelines.space import Space
from embedding_pipelines.steps.release import release
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.chain import checks_of, hashing, run_of, run_steps, write_pipeline
from embedding_pipelines_tests.corpora import OWN, docstrings, judged_corpus, own_and
from embedding_pipelines_tests.quality.test_checks import failed, live, outcomes, vandalize

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

MODEL = "hf:sentence-transformers/all-MiniLM-L6-v2"
PIPELINE = f"""\
source: {{kind: jsonl, path: data/*.jsonl, id: _id, text: [title, text]}}
preprocessing: {{chunk: null}}
model: {MODEL}
partitions: 4
"""
DOCUMENTS, WORDS = 600, 60
HEALTHY_RUNS, FEWER_HEALTHY_RUNS = {OWN: 20, "scifact": 10}, 5


class Built(NamedTuple):
    """A released corpus, and documents that are not in it."""

    name: str
    home: Path
    entries: list[dict[str, Any]]
    others: list[dict[str, Any]]


@pytest.fixture(scope="module", params=own_and("scifact"))
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Built]:
    home, entries = tmp_path_factory.mktemp("home"), corpus(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        (home / "data").mkdir()
        write_pipeline(home, "p", PIPELINE)
        write(home, entries[:DOCUMENTS])
        run_steps(home, "p")
        yield Built(request.param, home, entries[:DOCUMENTS], entries[DOCUMENTS:])


@pytest.fixture
def released(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of the test's own, whose live release stays the live one."""
    home = tmp_path / "home"
    shutil.copytree(built.home, home)
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    yield home
    assert live(home) == 1


def corpus(name: str) -> list[dict[str, Any]]:
    """Titles and how the texts begin: a few sentences each."""
    if name == OWN:
        entries = [
            {"_id": each["name"], "title": each["summary"], "text": each["details"]}
            for each in docstrings()
            if len(each["details"].split()) >= 12
        ]
        random.Random(0).shuffle(entries)
    else:
        entries = judged_corpus(name).entries
    return [{**entry, "text": " ".join(entry["text"].split()[:WORDS])} for entry in entries]


def write(home: Path, entries: Sequence[dict[str, Any]]) -> None:
    (home / "data" / "corpus.jsonl").write_text(
        "".join(json.dumps(entry) + "\n" for entry in entries)
    )


class Faulty(EmbeddingModel):
    """The real model behind a fault, which makes a space of its own: what was embedded before
    proves nothing of it."""

    def __init__(self, inner: EmbeddingModel) -> None:
        super().__init__(inner.options, inner.home)
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


def test_healthy_runs_are_all_released(built: Built, at_length: bool) -> None:
    """Each takes some of the documents away and brings as many that were never there."""
    home, entries, others, drawn = built.home, built.entries, iter(built.others), random.Random(7)
    for run in range(HEALTHY_RUNS[built.name] if at_length else FEWER_HEALTHY_RUNS):
        before = live(home)
        for place in drawn.sample(range(DOCUMENTS), 5):
            entries[place] = next(others)
        write(home, entries)
        run_steps(home, "p")
        assert live(home) == before + 1, f"run {run + 1}"
