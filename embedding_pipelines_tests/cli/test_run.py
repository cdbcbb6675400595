"""The command `run` that stops by itself, at a share of the work or after a time."""

import errno
import gc
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.cli import run as cli_run
from embedding_pipelines.cli.common import PAUSED
from embedding_pipelines.embedding.batch import EmbeddedBatch
from embedding_pipelines.progress import Paused
from embedding_pipelines.steps import embeddings
from embedding_pipelines_tests.chain import live_rows, write_csv, write_pipeline
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import PLAIN, UNMEASURED

TEXTS = 3_000  # three requests


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_a_run_stops_where_it_is_told_to_and_the_next_one_goes_on(
    command: Command, home: Path
) -> None:
    write_pipeline(home, "p", PLAIN + UNMEASURED)
    write_csv(home, "a.csv", [(n, f"text {n}", "x") for n in range(TEXTS)])
    early = command("run", "p", "--for", "0s")
    assert early.code == PAUSED
    assert "p: 1 of 4 partitions are cut into chunks. Nothing is released until" in early.err
    said = command("run", "p", "--until", "30%", "--json")
    assert said.code == PAUSED
    (error,) = said.errors
    assert re.match(r"p: [\d,]+ of 6,000 tokens are embedded\. Nothing is released", error)
    assert error.endswith("`embedding-pipelines run p` goes on from here.")
    assert said.results[0]["paused"] in error
    assert command("status", "p", "--json").results[0]["live_release"] is None
    last = command("run", "p", "--json")
    assert last.code == 0
    assert last.results[0]["paused"] is None
    (step,) = [step for step in last.results[0]["steps"] if step["step"] == "embeddings"]
    assert 0 < step["embedded"] < TEXTS
    assert len(live_rows(home, "p")) == TEXTS
    again = command("run", "p", "--until", "1%")
    assert (again.code, again.err) == (0, "")  # nothing is left to embed


def test_an_error_on_the_way_out_is_told_before_the_pause(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = embeddings._Writing.fill

    def fail(writing: embeddings._Writing, embedded: Iterator[EmbeddedBatch]) -> None:
        try:
            fill(writing, embedded)
        except Paused as paused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard.parquet") from paused

    monkeypatch.setattr(embeddings._Writing, "fill", fail)
    write_pipeline(home, "p", PLAIN + UNMEASURED)
    write_csv(home, "a.csv", [(n, f"text {n}", "x") for n in range(TEXTS)])
    said = command("run", "p", "--until", "30%", "--json")
    assert said.results[0]["paused"]
    (error,) = said.errors
    assert "No space left on device" in error
    assert said.code == 1


def test_a_share_of_batch_jobs_is_refused(command: Command, home: Path) -> None:
    model = "{provider: openai, model: text-embedding-3-small, mode: batch}"
    write_pipeline(home, "p", PLAIN.replace("{provider: hashing}", model))
    said = command("run", "p", "--until", "30%")
    assert said.code == 1
    assert "p: run --until does not go with batch jobs" in said.err


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--until", "half", "write a share from 1% to 99%, as 50%"),
        ("--until", "0%", "write a share"),
        ("--until", "100%", "write a share"),
        ("--for", "soon", "write seconds, minutes or hours, as 30m"),
    ],
)
def test_a_share_or_a_time_that_is_none_is_told(
    command: Command, home: Path, option: str, value: str, remedy: str
) -> None:
    write_pipeline(home, "p", PLAIN + UNMEASURED)
    said = command("run", "p", option, value)
    assert said.code == 2
    assert f"`{option}` is '{value}': " in said.err
    assert remedy in said.err


def test_what_one_run_leaves_is_collected_though_another_follows() -> None:
    def cycle() -> "weakref.ref[Any]":
        own = type("Own", (), {})()
        own.self = own
        return weakref.ref(own)

    rest = cycle()
    with cli_run._without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.collect()
    assert rest() is None
