"""What of the source is not released, after each step of the chain."""

from pathlib import Path

import pytest

from embedding_pipelines.run import Run
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.steps.embeddings import re_embed
from embedding_pipelines.steps.pending import Pending, pending
from embedding_pipelines_tests.chain import run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import PLAIN, UNMEASURED


def state_of(run: Run) -> Pending:
    return pending(run, run.spec.source.files(run.warehouse.home))


@pytest.fixture
def pipeline(home: Path) -> Path:
    write_pipeline(home, "p", PLAIN + UNMEASURED)
    write_csv(home, "a.csv", [(number, f"text {number}", "x") for number in range(8)])
    return home


def test_each_step_that_a_run_did_not_reach_is_pending(pipeline: Path) -> None:
    seen = []
    with run_of(pipeline, "p") as run:
        assert state_of(run) == Pending(new=("data/a.csv",))
        for step in steps_of(run.spec):
            list(step.work(run, run.spec.partition_names))
            seen.append(state_of(run).step)
        assert state_of(run).is_empty
    # documents, chunks, embeddings, codec, vector_store, checks, release
    assert seen == [
        "chunks",
        "embeddings",
        "vector_store",
        "vector_store",
        "release",
        "release",
        "",
    ]


def test_some_partitions_are_not_all(pipeline: Path) -> None:
    run_steps(pipeline, "p")
    write_csv(pipeline, "a.csv", [(number, f"other {number}", "x") for number in range(8)])
    with run_of(pipeline, "p") as run:
        assert state_of(run).changed == ("data/a.csv",)
        for step in steps_of(run.spec):
            if step.name in ("documents", "chunks", "embeddings"):
                list(step.work(run, run.spec.partition_names[:2]))
        assert state_of(run) == Pending(step="chunks")
        assert "is not released: 'chunks' has not taken it in" in str(state_of(run))


def test_a_file_whose_content_stays_is_not_pending_after_a_run(pipeline: Path) -> None:
    run_steps(pipeline, "p")
    (pipeline / "data/a.csv").touch()
    with run_of(pipeline, "p") as run:
        assert state_of(run).changed == ("data/a.csv",)
    run_steps(pipeline, "p")
    with run_of(pipeline, "p") as run:
        assert str(state_of(run)) == "no file has changed"


def test_other_options_of_the_source_make_every_file_new(pipeline: Path) -> None:
    run_steps(pipeline, "p")
    write_pipeline(pipeline, "p", PLAIN.replace("[title]", "[title, cat]") + UNMEASURED)
    with run_of(pipeline, "p") as run:
        assert state_of(run) == Pending(new=("data/a.csv",))


def test_vectors_that_are_to_be_made_anew_are_pending(pipeline: Path) -> None:
    run_steps(pipeline, "p")
    with run_of(pipeline, "p") as run:
        re_embed(run)
        assert state_of(run) == Pending(step="embeddings")
    run_steps(pipeline, "p")
    with run_of(pipeline, "p") as run:
        assert state_of(run).is_empty
