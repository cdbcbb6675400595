"""Homes that share a warehouse by a bucket: a machine each."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from embedding_pipelines.objects import Bucket
from embedding_pipelines.progress import Silent
from embedding_pipelines.remote import Remote, Writer, open_remote, writing
from embedding_pipelines.storage.lease import LEASE_SECONDS
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_recorded, write_csv, write_pipeline

PIPELINE = """\
source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}
model: {provider: hashing}
compression: [float16]
store: {kind: lancedb, keep_releases: 2}
partitions: 2
evaluation:
  known_items: 0
  may_shrink: 1
  checks: {provider_is_unchanged: off, vectors_belong_to_their_texts: off, input_types_differ: off}
"""
ROWS = [(f"id-{number}", f"text {number}", "c") for number in range(12)]
EDITED = [("id-0", "text zero", "c"), *ROWS[2:], ("id-99", "text added", "d")]


def machine(folder: Path, uri: str, rows: list[tuple[str, str, str]] = ROWS) -> Path:
    """A home with a pipeline `p`, its source and the bucket's name, and nothing else."""
    write_pipeline(folder, "p", PIPELINE)
    write_csv(folder, "a.csv", rows)
    (folder / "warehouse.yaml").write_text(f"bucket: {uri}\n")
    return folder


def copy_machine(home: Path, folder: Path, uri: str) -> Path:
    """A copy of a home that has been run, now with a bucket."""
    shutil.copytree(home, folder)
    (folder / "warehouse.yaml").write_text(f"bucket: {uri}\n")
    return folder


@contextmanager
def at_work(home: Path) -> Iterator[Writer]:
    """A run's frame: the pipeline's lock and lease, the copy brought up to date, then published."""
    warehouse = Warehouse(home)
    with warehouse.pipeline("p").lock("run", 0), writing(warehouse, "p", Silent()) as writer:
        assert writer is not None
        yield writer


def run_shared(home: Path) -> list[str]:
    """A whole run; the texts that reached the model."""
    with at_work(home):
        return run_recorded(home, "p")[1]


def remote_of(home: Path) -> Remote:
    remote = open_remote(Warehouse(home), "p")
    assert remote is not None
    return remote


def let_leases_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's clock goes forward by more than a lease lasts without a sign of its holder."""
    later = datetime.now(UTC) + timedelta(seconds=LEASE_SECONDS + 60)
    monkeypatch.setattr(Bucket, "touch", lambda *_: later)
