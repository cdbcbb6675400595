"""Vectors that are made anew reach the table: after damage, after wrong replies, and on request."""

import sqlite3
from pathlib import Path

import pytest

from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.steps.embeddings import re_embed
from embedding_pipelines_tests.chain import (
    assert_same_rows,
    checks_of,
    live_rows,
    run_of,
    run_recorded,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING

ROWS = [(number, f"word{number % 7} text number {number}", "c") for number in range(40)]


@pytest.fixture
def built(home: Path) -> Path:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    return home


def lose_shards(home: Path) -> None:
    for path in run_of(home, "p").folder.embeddings.folder.glob("b*"):
        path.unlink()


def turn(home: Path, text: str) -> None:
    """Put a wrong vector of unit length into the cache, as a service that answers wrongly does."""
    run = run_of(home, "p")
    key = run.cache.key(run.model.space.id, "document", text)
    vector = -run.cache.get_many([key], None)[key]
    run.cache.put_many([key], vector[None], "a space")


def test_a_vector_that_changed_reaches_the_table_and_its_check_names_the_way_out(
    built: Path,
) -> None:
    before = live_rows(built, "p")
    turn(built, ROWS[3][1])
    lose_shards(built)
    with pytest.raises(ReleaseError, match="vectors_belong_to_their_texts"):
        run_steps(built, "p")
    with run_of(built, "p") as run:
        checks = {check.name: check for check in checks_of(run)}
        assert "chunk '3#0'" in checks["vectors_belong_to_their_texts"].sentence
        assert "run p --re-embed" in checks["vectors_belong_to_their_texts"].sentence
        re_embed(run)
    _, texts = run_recorded(built, "p")
    assert sorted(texts) == sorted(text for _, text, _ in ROWS)
    assert_same_rows(live_rows(built, "p"), before)
    assert run_recorded(built, "p")[1] == []


def test_a_flipped_bit_in_the_cache_is_embedded_anew(built: Path) -> None:
    before = live_rows(built, "p")
    run = run_of(built, "p")
    key = run.cache.key(run.model.space.id, "document", ROWS[3][1])
    value = bytearray(run.cache.get_many([key], None)[key].tobytes())
    value[3] ^= 0x20
    with sqlite3.connect(run.cache.path) as database:
        database.execute("UPDATE vectors SET vector = ? WHERE key = ?", (bytes(value), key))
    database.close()
    lose_shards(built)
    _, texts = run_recorded(built, "p")
    assert texts == [ROWS[3][1]]
    assert_same_rows(live_rows(built, "p"), before)


def test_embedding_anew_is_gone_on_with_after_a_stop(built: Path) -> None:
    with run_of(built, "p") as run:
        re_embed(run)
        first = run.spec.partition_names[0]
        list(step_named("embeddings").work(run, [first]))  # then the run is stopped
        re_embed(run)  # by the same command, once more
    _, texts = run_recorded(built, "p")
    assert len(texts) == len(ROWS) - run.folder.chunks.required(first).rows
    assert not run.folder.embed_anew.exists()
