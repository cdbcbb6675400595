"""What is mended without embedding a text, by real damage."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from embedding_pipelines.doctor.examine import examine, examine_cache
from embedding_pipelines.doctor.repair import mend, mend_cache
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.errors import BucketError, BusyError
from embedding_pipelines.files import write_json
from embedding_pipelines.releases import live_release
from embedding_pipelines.spec.load import find_pipeline, read_draft
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    live_rows,
    run_of,
    run_recorded,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.cli.test_main import command as command
from embedding_pipelines_tests.commands import Command
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.doctor.test_examine import flip
from embedding_pipelines_tests.shared import at_work

ROWS = [(number, f"word{number % 7} text number {number}", "c") for number in range(30)]


@pytest.fixture(scope="module")
def p_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("p")
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    return home


@pytest.fixture
def p(home: Path, p_once: Path) -> Path:
    return copy_home(p_once, home)


def mended(home: Path) -> list[str]:
    return list(mend(find_pipeline("p", home), Warehouse(home)))


def mended_cache(home: Path) -> list[str]:
    return list(mend_cache(Warehouse(home), [find_pipeline("p", home)]))


def faults(home: Path) -> list[str]:
    draft = read_draft(home / "pipelines" / "p.yaml")
    return [entry.what for entry in examine(draft, Warehouse(home)) if not entry.is_well]


def test_what_is_well_is_left_as_it_is(p: Path) -> None:
    assert (mended(p), mended_cache(p), faults(p)) == ([], [], [])


def test_lost_records_and_codecs_come_back_from_their_copies(p: Path) -> None:
    folder = run_of(p, "p").folder
    folder.releases_copy.unlink()
    (folder.codecs / live_release(folder).codec).unlink()
    assert faults(p) == ["state", "releases"]
    first, second = mended(p)
    assert "is put back from its copy" in first
    assert "is put back from its copy" in second
    assert faults(p) == []


def test_vectors_of_a_damaged_shard_come_back_from_the_table_where_the_cache_has_none(
    p: Path,
) -> None:
    run, before = run_of(p, "p"), live_rows(p, "p")
    flip(next(run.folder.embeddings.folder.glob("b*.parquet")))
    run.warehouse.cache.unlink()
    assert faults(p) == ["rows"]
    first, *rest = mended(p)
    assert "put into it from what is whole" in first
    assert any("embeddings of partition" in sentence for sentence in rest)
    assert run_recorded(p, "p")[1] == []
    assert live_rows(p, "p") == before
    assert faults(p) == []


def test_damaged_vectors_of_the_cache_are_removed_and_put_back(p: Path) -> None:
    path = Warehouse(p).cache
    count = len(EmbeddingCache(path))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE vectors SET checksum = checksum + 1")
    assert f"{count} vectors of {count} in" in examine_cache(Warehouse(p)).sentence
    first, second = mended_cache(p)
    assert first.startswith(f"{count} damaged vectors are removed")
    assert second.startswith("30 vectors are put back")
    assert examine_cache(Warehouse(p)).is_well
    path.write_bytes(b"no database" * 1_000)
    assert not examine_cache(Warehouse(p)).is_well
    first, second = mended_cache(p)
    assert "cannot be read; it is moved to" in first
    assert second.startswith("30 vectors are put back")
    assert examine_cache(Warehouse(p)).is_well


def test_a_pipeline_at_work_is_not_mended(p: Path) -> None:
    with Warehouse(p).pipeline("p").lock("run"), pytest.raises(BusyError):
        mended(p)


def test_the_bucket_mends_the_copy_and_the_copy_mends_the_bucket(p: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    (p / "warehouse.yaml").write_text(f"bucket: {bucket.as_uri()}\n")
    with at_work(p):
        pass
    folder, before = run_of(p, "p").folder, live_rows(p, "p")
    table = folder.tables / f"{live_release(folder).table}.lance"
    flip(next(table.glob("data/*.lance")))
    flip(next(folder.embeddings.folder.glob("b*.parquet")))
    assert faults(p) == ["rows", "releases"]
    assert mended(p)[0].startswith("the embeddings of partition")
    assert faults(p) == []
    assert live_rows(p, "p") == before
    lost = next(bucket.rglob("data/*.lance"))
    lost.unlink()
    short = next(bucket.rglob("documents/b00-*.parquet"))
    short.write_bytes(short.read_bytes()[:-1])
    assert faults(p) == ["bucket"]
    assert mended(p) == ["put back 2 objects of the bucket from here."]
    assert faults(p) == []


def test_what_is_lost_on_both_sides_keeps_nothing_else_from_being_put_back(
    p: Path, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    (p / "warehouse.yaml").write_text(f"bucket: {bucket.as_uri()}\n")
    with at_work(p):
        pass
    run = run_of(p, "p")
    shard = next(run.folder.embeddings.folder.glob("b00-*.parquet"))
    other = next(bucket.rglob("documents/b00-*.parquet"))
    for path in (shard, next(bucket.rglob(f"embeddings/{shard.name}")), other):
        path.unlink()
    sentences = mend(run.spec, run.warehouse)
    said = list[str]()
    with pytest.raises(BucketError, match=r"is gone\. Try again; .* publish all anew"):
        list(map(said.append, sentences))
    assert "put back 1 object of the bucket from here." in said
    assert "the bucket lacks 1 object more" in said[-1]
    assert other.is_file()


def test_a_run_that_ended_early_is_named(p: Path) -> None:
    ended = {"step": "chunks", "began_at": "2026-01-01T00:00:00+00:00", "process": 1, "host": "x"}
    folder = run_of(p, "p").folder
    write_json(folder.activity, {**ended, "state": "failed", "problem": "the disk is full"})
    assert faults(p) == ["run"]


def test_the_command_mends_and_says_what_the_next_run_does(p: Path, command: Command) -> None:
    flip(run_of(p, "p").folder.releases_copy)
    said = command("doctor", "p", "--repair")
    assert (said.code, said.err) == (0, "")
    assert "p mended: " in said.out
    assert "The next run:" in said.out
    assert "p: 30 rows unchanged; a run has nothing to do" in said.out
    (result, *_) = command("doctor", "p", "--repair", "--json").results
    assert result == {"mended": []}
    with Warehouse(p).pipeline("p").lock("run"):
        said = command("doctor", "p", "--repair")
    assert said.code == 1
    assert "error: p: not mended: Pipeline 'p' is being run" in said.err
    assert "name no pipelines" in command("doctor", "p", "--table", str(p)).err
