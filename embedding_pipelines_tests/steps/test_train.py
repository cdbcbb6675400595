"""A provider that learns from the pipeline's own texts: once, kept, and again when its options
change."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines.plan import plan
from embedding_pipelines.search import search
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines_tests.chain import (
    live_rows,
    report,
    run_of,
    run_steps,
    top,
    write_csv,
    write_pipeline,
)

PIPELINE = """\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}}
model: {{provider: word2vec, train: {{dimensions: {dimensions}, min_count: 1, epochs: 60, seed: 3}}}}
partitions: 4
"""
TOPICS = (
    "cats and dogs are pets that sleep and play",
    "shares and bonds are traded by banks and brokers",
)


def corpus(home: Path, rows: int = 200) -> None:
    random = np.random.default_rng(0)
    made = []
    for n in range(rows):
        words = TOPICS[n % 2].split()
        made.append((f"d{n}", " ".join(random.permutation(words)[:6]), f"t{n % 2}"))
    write_csv(home, "a.csv", made)


def test_it_learns_once_and_again_when_its_options_change(home: Path) -> None:
    corpus(home)
    write_pipeline(home, "p", PIPELINE.format(dimensions=24))
    first = report(run_steps(home, "p"), "train")
    assert (first.changed, first.statistics["texts"], first.statistics["dimensions"]) == (
        True,
        200,
        24,
    )
    assert all(
        hit.metadata["cat"] == "t1" for hit in search(home, "p", "bonds and brokers", k=5).hits
    )
    before = live_rows(home, "p")

    write_csv(home, "b.csv", [("new", "dogs play", "t0"), ("alien", "xylophone zither", "t2")])
    again = report(run_steps(home, "p"), "train")
    assert (again.changed, again.statistics["revision"]) == (False, first.statistics["revision"])
    rows = live_rows(home, "p")
    assert rows.keys() == before.keys() | {"new#0"}
    refused = pq.read_table(run_of(home, "p").folder.rejected_texts).to_pylist()
    assert [(row["chunk_id"], row["text"]) for row in refused] == [("alien#0", "xylophone zither")]
    assert "None of its words has a vector" in refused[0]["reason"]
    with pytest.raises(ConfigError, match="'zither' has no vector: None of its words has a vector"):
        search(home, "p", "zither")
    run = run_of(home, "p")
    reports = [step.whole(run) for step in steps_of(run.spec)]
    assert all(made is not None and not made.changed for made in reports)

    kept = run_of(home, "p").folder.model.parent / "vectors.bin"
    kept.write_bytes(kept.read_bytes()[:100])
    mended = report(run_steps(home, "p"), "train")
    assert mended.changed
    assert len(kept.read_bytes()) > 1_000

    write_pipeline(home, "p", PIPELINE.format(dimensions=32))
    other = report(run_steps(home, "p"), "train")
    assert (other.changed, other.statistics["dimensions"], other.statistics["texts"]) == (
        True,
        32,
        202,
    )
    assert top(home, "p", "xylophone") == ["alien"]  # it knows the word now


def test_plan_learns_too_and_calls_nobody_refused_a_new_row(home: Path) -> None:
    corpus(home)
    write_csv(home, "b.csv", [("silent", "!!! ???", "t2")])
    write_pipeline(home, "p", PIPELINE.format(dimensions=24))
    context = run_of(home, "p")
    made = plan(context)
    assert (made.rows_new, made.tokens > 0, made.usd) == (200, True, 0)
    run_steps(home, "p")
    made = plan(context)
    assert (made.rows_new, made.rows_unchanged, made.texts_to_embed) == (0, 200, 0)


def test_too_little_to_learn_from_is_said(home: Path) -> None:
    write_csv(home, "a.csv", [("a", "!!!", "x")])
    write_pipeline(home, "p", PIPELINE.format(dimensions=24))
    with pytest.raises(SourceError, match="no word occurs 1 times or more in the 0 texts"):
        run_steps(home, "p")


def test_new_texts_of_the_same_words_have_the_same_vector_and_that_is_right(home: Path) -> None:
    corpus(home)
    write_pipeline(
        home, "p", PIPELINE.format(dimensions=24).replace("partitions: 4", "partitions: 1")
    )
    run_steps(home, "p")
    write_csv(home, "b.csv", [("one", "banks and shares", "t1"), ("two", "shares and banks", "t1")])
    run_steps(home, "p")
    assert {"one#0", "two#0"} <= live_rows(home, "p").keys()
