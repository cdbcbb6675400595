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

from embedding_pipelines.errors import EngineError, SourceError
from embedding_pipelines.files import read_json
from embedding_pipelines.run import Run
from embedding_pipelines.sources.base import SourceFile
from embedding_pipelines.steps import documents, reading
from embedding_pipelines.steps.copy import copy_with_chunks
from embedding_pipelines.steps.documents import write_documents
from embedding_pipelines.steps.reading import Report
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


class OtherDisk(Parcelled):
    """A machine that has another file at the path of one."""

    folder: Path

    def map_shards(self, work: Any, shards: Any) -> Any:
        path = self.folder / "data" / "0.csv"
        content, status = path.read_bytes(), path.stat()
        path.write_text("id,title,cat\nother,of another machine,1\n")
        results = list(super().map_shards(work, shards))
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        yield from results


class Lossy(Parcelled):
    """A disk that loses a file."""

    folder: Path

    def map_shards(self, work: Any, shards: Any) -> Any:
        results = list(super().map_shards(work, shards))
        next(self.folder.rglob(".reading-*/*/*.arrows")).unlink()
        yield from results


class Twice(Parcelled):
    """Each job is done by two workers."""

    def map_shards(self, work: Any, shards: Any) -> Any:
        return super().map_shards(work, [*shards, *shards])


class Other(Parcelled):
    """A machine with other packages."""

    def map_shards(self, work: Any, shards: Any) -> Any:
        kit = work.kit()
        yield type(kit)(**{**vars(kit), "configuration": "another"}).open(None, None)


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


@pytest.mark.parametrize("changed", [0, 1])
def test_workers_read_the_files_again_that_one_process_does(
    tmp_path: Path, changed: int, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that changed, and those whose records it left out: 1 alone had the id n0."""
    read: list[str] = []
    read_file = reading._Reader._read_file

    def note(reader: Any, file: SourceFile, *given: Any) -> Any:
        read.append(file.name)
        return read_file(reader, file, *given)

    monkeypatch.setattr(reading._Reader, "_read_file", note)
    results = []
    for name in ("here", "there"):
        run = home_of(tmp_path / name)
        write(tmp_path / name, "csv", [*FILES[:1], [(100, "n", "1")], *FILES[2:]])
        run = elsewhere(run) if name == "there" else run
        write_documents(run)
        read.clear()
        with (tmp_path / name / "data" / f"{changed}.csv").open("a") as file:
            file.write("101,new,1\n")
        left = told(run, None)
        results.append((left, set(read)))
    again = {"data/0.csv", "data/2.csv", "data/3.csv"} if changed == 0 else {"data/1.csv"}
    assert results[0] == results[1]
    assert results[0][1] == again


def test_what_a_worker_reports_is_short(tmp_path: Path, small: None) -> None:
    run = home_of(tmp_path)
    run.spec = run.spec.model_copy(update={"engine": Overheard(folder=tmp_path)})
    write_documents(run)
    reports = [path.read_bytes() for path in tmp_path.glob("*.report")]
    assert len(reports) > 5
    assert max(map(len, reports)) < 1_500
    read = (pickle.loads(report) for report in reports)  # noqa: S301
    files = [file for each in read if isinstance(each, Report) for file in each.files]
    assert {name for name, _, log in files if log is None} == {"data/1.csv", "data/3.csv"}


def test_a_job_has_so_many_files_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "JOB_FILES", 2)
    files = [SourceFile(str(at), 1, (1, 0, 0), Path(str(at))) for at in range(5)]
    assert list(reading._jobs(files, 100)) == [files[:2], files[2:4], files[4:]]


def test_rows_that_workers_read_and_that_are_gone_are_missed(tmp_path: Path, small: None) -> None:
    run = home_of(tmp_path)
    run.spec = run.spec.model_copy(update={"engine": Lossy(folder=run.folder.folder)})
    with pytest.raises(EngineError, match=r"Of \d+ rows that were read \d+ are in .*\.reading-"):
        write_documents(run)
    assert not list(run.folder.documents.folder.iterdir())


def test_too_many_rejections_are_told_of_as_by_one_process(tmp_path: Path, small: None) -> None:
    errors = []
    for name, part_bytes in (("here", None), ("there", 400)):
        run = home_of(tmp_path / name)
        source = run.spec.source.model_copy(update={"max_rejected": 0})
        run.spec = run.spec.model_copy(update={"source": source})
        with pytest.raises(SourceError) as caught:
            write_documents(run, part_bytes)
        errors.append(str(caught.value).replace(str(tmp_path / name), ""))
    assert errors[0] == errors[1]
    assert errors[0].count("\n  data/0.csv:") == 3


def test_a_job_that_two_workers_have_done_counts_once(tmp_path: Path, small: None) -> None:
    """As where one was taken for dead."""
    run = home_of(tmp_path)

    run.spec = run.spec.model_copy(update={"engine": Twice()})
    assert write_documents(run).statistics["documents"] == DOCUMENTS


def test_files_that_workers_do_not_see_are_read_here(tmp_path: Path, small: None) -> None:
    here, run = home_of(tmp_path / "here"), home_of(tmp_path / "there")
    run.spec = run.spec.model_copy(update={"engine": OtherDisk(folder=tmp_path / "there")})
    statistics, notes, left = told(run, None)
    assert (statistics, left) == (told(here, None)[0], state(here))
    assert "do not see their files as it does, as data/0.csv:1. Mount them" in notes[0]


def test_a_file_that_changes_while_its_parts_are_read_is_divided_anew_and_in_the_end_read_whole(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = elsewhere(home_of(tmp_path))
    looks: list[tuple[str, bool, bool]] = []

    def change(file: SourceFile) -> bool:
        is_same = as_listed(file)
        looks.append((file.name, file.part is None, is_same))
        os.utime(file.path, ns=(1, len(looks) * 10**9))
        return is_same

    as_listed = reading._is_as_listed
    monkeypatch.setattr(reading, "_is_as_listed", change)
    assert write_documents(run).statistics["documents"] == DOCUMENTS
    before_and_after = [("data/0.csv", False, True), ("data/0.csv", False, False)]
    assert looks[:4] == before_and_after * (documents.LISTINGS - 1)
    assert looks[4:] == [(f"data/{at}.csv", True, True) for at in range(4)]  # by a worker


def test_a_file_that_is_replaced_while_it_is_read_is_no_damaged_one(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = elsewhere(home_of(tmp_path / "there", "parquet"))
    looks: list[bool] = []

    def replace(file: SourceFile) -> bool:
        looks.append(as_listed(file))
        if len(looks) == 3:  # before the second part
            write(tmp_path / "there", "parquet", [FILES[0][:1]])
        return looks[-1]

    as_listed = reading._is_as_listed
    monkeypatch.setattr(reading, "_is_as_listed", replace)
    result = told(run, None)
    assert looks[:4] == [True, True, True, False]
    here = home_of(tmp_path / "here", "parquet")
    write(tmp_path / "here", "parquet", [FILES[0][:1]])
    assert result == told(here, None)


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
