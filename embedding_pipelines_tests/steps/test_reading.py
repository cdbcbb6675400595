"""Documents that are read by many jobs are those that one job reads, and so is all that is told."""

import json
import os
import pickle
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_pipelines.errors import EngineError, SourceError, SourceGoneError
from embedding_pipelines.files import read_json
from embedding_pipelines.run import Run
from embedding_pipelines.sources.base import SourceFile
from embedding_pipelines.steps import documents, reading
from embedding_pipelines.steps.copy import copy_with_chunks
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines_tests.buckets import TestBucket
from embedding_pipelines_tests.chain import run_of, write_csv, write_pipeline
from embedding_pipelines_tests.clusters import Noted
from embedding_pipelines_tests.steps.test_elsewhere import Parcelled

PIPELINE = """\
source:
  kind: {kind}
  path: data
  id: {id}
  text: [title]
  metadata: {{cat: int}}
  max_rejected: 100%
  duplicates: {duplicates}
model: {{provider: hashing, dimensions: 64}}
partitions: 3
"""


class Overheard(Parcelled):
    """Writes down what a worker reports."""

    folder: Path

    def map_shards(self, work: Any, shards: Any) -> Any:
        for result in super().map_shards(work, shards):
            name = uuid.uuid4().hex
            (self.folder / f"{name}.report").write_bytes(pickle.dumps(result))
            yield result


class Twice(Parcelled):
    """Each job is done by two workers."""

    def map_shards(self, work: Any, shards: Any) -> Any:
        return super().map_shards(work, [*shards, *shards])


class Other(Parcelled):
    """A machine with other packages."""

    def map_shards(self, work: Any, shards: Any) -> Any:
        kit = work.kit()
        yield type(kit)(**{**vars(kit), "configuration": "another"}).open(None)


rows = st.lists(
    st.tuples(
        st.integers(0, 30), st.sampled_from(["one", 'two\n"lines"', "é"]), st.sampled_from("12x")
    ),
    max_size=12,
)


def write(home: Path, kind: str, files: list[list[tuple[int, str, str]]]) -> None:
    for at, file in enumerate(files):
        path = home / "data" / f"{at}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "csv":
            write_csv(home, path.name, file)
            continue
        records = [dict(zip(("id", "title", "cat"), row, strict=True)) for row in file]
        if kind == "jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        else:
            names = ("id", "title", "cat")
            columns = {name: [record[name] for record in records] for name in names}
            types = pa.schema([("id", pa.int64()), ("title", pa.string()), ("cat", pa.string())])
            pq.write_table(pa.table(columns, types), path, row_group_size=2)


def state(run: Run) -> dict[str, Any]:
    """All that the step has left."""
    record = read_json(run.folder.files) or {}
    for entry in record["files"].values():
        entry["stamp"] = None
    table = pq.read_table(run.folder.rejected).to_pylist()
    shards = [run.folder.documents.required(name) for name in run.spec.partition_names]
    return {"record": record, "rejected": table, "shards": shards}


def told(run: Run, part_bytes: int | None) -> tuple[Any, ...]:
    progress = run.progress = Noted()
    try:
        report = write_documents(run, part_bytes)
    except SourceError as error:
        return str(error), progress.notes
    assert progress.done == progress.total
    assert not list(run.folder.documents.folder.glob(".reading-*"))
    return report.statistics, progress.notes, state(run)


@given(
    st.sampled_from(["csv", "jsonl", "parquet"]),
    st.lists(rows, min_size=1, max_size=3),
    st.sampled_from(["id", "null"]),
    st.sampled_from(["reject", "first", "last", "error"]),
    st.integers(1, 200),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_many_jobs_leave_what_one_leaves(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    files: list[list[tuple[int, str, str]]],
    id_column: str,
    duplicates: str,
    part_bytes: int,
) -> None:
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedding_pipelines.sources.text.BLOCK_BYTES", 50)
        for size in (None, part_bytes):
            home = tmp_path_factory.mktemp("home")
            write(home, kind, files)
            text = PIPELINE.format(kind=kind, id=id_column, duplicates=duplicates)
            write_pipeline(home, "p", text)
            results.append(told(run_of(home, "p"), size))
    assert results[1] == results[0]


FILES = [
    [(at % 90, f"text {at}", "x" if at % 40 == 0 else "1") for at in range(n)]
    for n in (90, 3, 60, 9)
]


DOCUMENTS = 87  # of 90 ids, three of which have a category that is no number


def home_of(home: Path, kind: str = "csv") -> Run:
    write(home, kind, FILES)
    write_pipeline(home, "p", PIPELINE.format(kind=kind, id="id", duplicates="reject"))
    return run_of(home, "p")


def elsewhere(run: Run) -> Run:
    run.spec = run.spec.model_copy(update={"engine": Parcelled()})
    return run


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs and blocks of some hundred bytes."""
    monkeypatch.setattr(documents, "PART_BYTES", 400)
    monkeypatch.setattr("embedding_pipelines.sources.text.BLOCK_BYTES", 200)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_workers_leave_what_one_process_leaves(tmp_path: Path, kind: str, small: None) -> None:
    here, there = home_of(tmp_path / "here", kind), elsewhere(home_of(tmp_path / "there", kind))
    assert told(there, None) == told(here, None)
    assert there.progress.total > len(FILES)
    assert not there.folder.cluster.exists()
    size = (there.warehouse.home / "data" / f"2.{kind}").stat().st_size
    with (there.warehouse.home / "data" / f"2.{kind}").open("ab") as file:
        file.truncate(size if kind == "parquet" else size - 1)
    assert write_documents(there).statistics["documents"] == DOCUMENTS


def test_what_a_worker_reports_is_short(tmp_path: Path, small: None) -> None:
    run = home_of(tmp_path)
    run.spec = run.spec.model_copy(update={"engine": Overheard(folder=tmp_path)})
    write_documents(run)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.report")]
    assert len(sizes) > 5
    assert max(sizes) < 1_500


def test_a_job_that_two_workers_have_done_counts_once(tmp_path: Path, small: None) -> None:
    """As where one was taken for dead."""
    run = home_of(tmp_path)

    run.spec = run.spec.model_copy(update={"engine": Twice()})
    assert write_documents(run).statistics["documents"] == DOCUMENTS


def test_files_that_workers_do_not_see_are_read_here(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, run = home_of(tmp_path / "here"), elsewhere(home_of(tmp_path / "there"))
    seen = os.path.exists
    monkeypatch.setattr(
        reading.os.path, "exists", lambda path: "0.csv" not in str(path) and seen(path)
    )
    statistics, notes, left = told(run, None)
    assert (statistics, left) == (told(here, None)[0], state(here))
    assert "since workers do not see their files, as data/0.csv:1. Mount them" in notes[0]


def test_a_file_that_changes_while_its_parts_are_read_is_divided_anew_and_in_the_end_read_whole(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, checked = elsewhere(home_of(tmp_path)), []

    def change(file: SourceFile) -> None:
        checked.append(file.name)
        os.utime(file.path, ns=(1, len(checked) * 10**9))
        unchanged(file)

    unchanged = reading._check_unchanged
    monkeypatch.setattr(reading, "_check_unchanged", change)
    assert write_documents(run).statistics["documents"] == DOCUMENTS
    assert len(checked) == documents.LISTINGS - 1
    with pytest.raises(SourceGoneError, match=r"0\.csv: was written to while it was read"):
        change(run.spec.source.files(tmp_path)[0])  # type: ignore[arg-type]


def test_objects_go_to_workers_as_wholes(home: Path, bucket: TestBucket, small: None) -> None:
    home_of(home)
    for path in (home / "data").iterdir():
        bucket.put(f"in/{path.name}", path.read_bytes())
    text = PIPELINE.format(kind="csv", id="id", duplicates="reject")
    write_pipeline(home, "p", text.replace("path: data", f"path: '{bucket.uri}/in'"))
    run = elsewhere(run_of(home, "p"))
    assert write_documents(run).statistics["documents"] == DOCUMENTS


def test_a_copy_is_read_by_this_process(tmp_path: Path, small: None) -> None:
    """Nobody else sees the folder of a plan."""
    with copy_with_chunks(elsewhere(home_of(tmp_path))) as copy:
        assert (
            sum(each.rows for each in copy.folder.documents.manifests(copy.spec.partition_names))
            == DOCUMENTS
        )


def test_a_machine_that_would_read_otherwise_is_refused(tmp_path: Path, small: None) -> None:
    run = home_of(tmp_path)

    run.spec = run.spec.model_copy(update={"engine": Other()})
    with pytest.raises(EngineError, match="have other versions"):
        write_documents(run)
