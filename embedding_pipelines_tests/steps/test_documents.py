"""documents: only changed files are read, bad records are told, and a refused source leaves
everything as it was."""

import json
import os
import random
import resource
import shutil
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines.files import draft_beside
from embedding_pipelines.run import Run
from embedding_pipelines.sources.base import Input
from embedding_pipelines.steps import documents
from embedding_pipelines.steps.documents import read_files, write_documents
from embedding_pipelines_tests.buckets import TestBucket
from embedding_pipelines_tests.chain import run_of, run_steps, top, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING

TYPED = HASHING.replace("metadata: [cat]", "metadata: {cat: int}, max_rejected: 3")


def rejected(home: Path) -> list[tuple[str, int]]:
    rows = pq.read_table(run_of(home, "p").folder.rejected).to_pylist()
    assert all(row["reason"] and row["raw"] for row in rows)
    return [(row["file"], row["row"]) for row in rows]


def test_rejected_records_of_unchanged_files_are_remembered(home: Path) -> None:
    write_pipeline(home, "p", TYPED)
    write_csv(home, "a.csv", [(1, "one", 1), (2, "two", "no number")])
    write_csv(home, "b.csv", [(3, "three", "no number"), (4, "four", 4)])
    statistics = write_documents(run_of(home, "p")).statistics
    assert (statistics["documents"], statistics["rejected"], statistics["changed_files"]) == (
        2,
        2,
        2,
    )
    assert rejected(home) == [("data/a.csv", 3), ("data/b.csv", 2)]
    write_csv(home, "b.csv", [(3, "three", 3), (4, "four", 4), (5, "five", "no")])
    statistics = write_documents(run_of(home, "p")).statistics
    assert (statistics["documents"], statistics["rejected"], statistics["changed_files"]) == (
        3,
        2,
        1,
    )
    assert rejected(home) == [("data/a.csv", 3), ("data/b.csv", 4)]
    assert [statistics.rejected for statistics in read_files(run_of(home, "p")).values()] == [
        1,
        1,
    ]


@pytest.mark.parametrize("is_in_bucket", [False, True])
def test_what_is_renamed_after_it_was_listed_is_read_under_its_new_name(
    home: Path, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch, is_in_bucket: bool
) -> None:
    text = HASHING.replace("'data/*.csv'", f"'{bucket.uri}/in/*.csv'") if is_in_bucket else HASHING
    write_pipeline(home, "p", text)
    path = write_csv(home, "a.csv", [(1, "one", "x")])
    bucket.put("in/a.csv", path.read_bytes())
    listed = documents._all_files

    def list_then_rename(run: Run) -> list[Input]:
        files = listed(run)
        if is_in_bucket and any(file.name.endswith("a.csv") for file in files):
            bucket.copy("in/a.csv", "in/b.csv")
            bucket.delete("in/a.csv")
        elif path.exists():
            path.rename(path.with_name("b.csv"))
        return files

    monkeypatch.setattr(documents, "_all_files", list_then_rename)
    run = run_of(home, "p")
    assert write_documents(run).statistics["documents"] == 1
    assert [name.rpartition("/")[2] for name in read_files(run)] == ["b.csv"]
    assert not list(run.folder.documents.folder.glob(".*"))


def test_what_is_always_gone_ends_the_step(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pipeline(home, "p", HASHING)
    path = write_csv(home, "a.csv", [(1, "one", "x")])
    write_csv(home, "b.csv", [(2, "two", "x")])
    files = documents.inputs_of(run_of(home, "p"))
    path.unlink()
    monkeypatch.setattr(documents, "_all_files", lambda _: files)
    with pytest.raises(
        SourceError, match=r"a\.csv: the file is gone\. Put it back, or run again\."
    ):
        write_documents(run_of(home, "p"))


def test_too_many_rejected_records_leave_the_documents_as_they_were(home: Path) -> None:
    write_pipeline(home, "p", TYPED)
    write_csv(home, "a.csv", [(1, "one", 1)])
    run_steps(home, "p")
    write_csv(home, "a.csv", [(1, "changed", 1), *((n, "x", "bad") for n in range(2, 7))])
    with pytest.raises(
        SourceError, match=r"(?s)5 of 6 records were rejected.*data/a\.csv:3:.*stay in force"
    ):
        run_steps(home, "p")
    assert top(home, "p", "one") == ["1"]
    assert read_files(run_of(home, "p"))["data/a.csv"].rows == 1
    write_csv(home, "a.csv", [(1, "changed", 1)])
    run_steps(home, "p")
    assert top(home, "p", "changed") == ["1"]
    assert rejected(home) == []


def test_what_a_folder_s_walk_leaves_out_is_told(home: Path) -> None:
    write_pipeline(home, "p", HASHING.replace("data/*.csv", "data"))
    write_csv(home, "a.csv", [(1, "one", "c")])
    (home / "data" / "b.csv.7z").write_bytes(b"")
    run = run_of(home, "p")
    notes: list[str] = []
    run.progress.note = notes.append  # type: ignore[method-assign]
    write_documents(run)
    assert [note[:30] for note in notes] == ["passed over: data/b.csv.7z (do"]


def test_the_same_id_twice_in_one_file_names_both_lines_if_it_is_an_error(home: Path) -> None:
    write_pipeline(home, "p", with_duplicates("error"))
    write_csv(home, "a.csv", [("x", "one", "c"), ("y", "two", "c"), ("x", "three", "c")])
    with pytest.raises(
        SourceError, match=r"data/a\.csv:4: document id 'x' stands at data/a\.csv:2 too"
    ):
        write_documents(run_of(home, "p"))
    assert not list(
        (home / "data" / "warehouse" / "pipelines" / "p" / "documents").glob(".reading-*")
    )


def with_duplicates(policy: str, max_rejected: str = "100%") -> str:
    options = f"metadata: [cat], duplicates: {policy}, max_rejected: {max_rejected}"
    return HASHING.replace("metadata: [cat]", options)


def documents_of(home: Path) -> list[tuple[str, str, str, int]]:
    run = run_of(home, "p")
    columns = ["document_id", "text", "source_file", "source_row"]
    tables = [run.folder.documents.read_columns(name, columns) for name in run.spec.partition_names]
    return sorted(tuple(row.values()) for table in tables for row in table.to_pylist())


def test_a_duplicate_id_in_a_thousand_rows_is_rejected_and_told(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    rows = [(row, f"text {row}", "c") for row in range(999)]
    write_csv(home, "a.csv", [*rows, (7, "again", "c")])
    report = write_documents(run_of(home, "p"))
    assert (report.statistics["documents"], report.statistics["rejected"]) == (999, 1)
    rejection = pq.read_table(run_of(home, "p").folder.rejected).to_pylist()[0]
    assert (rejection["file"], rejection["row"], rejection["reason"]) == (
        "data/a.csv",
        1001,
        "document id '7' stands at data/a.csv:9 too, which counts (source.duplicates)",
    )
    assert json.loads(rejection["raw"])["text"] == "again"


@pytest.mark.parametrize(("policy", "text"), [("first", "one"), ("last", "three")])
def test_one_of_the_records_with_an_id_counts_and_the_others_are_told(
    home: Path, policy: str, text: str
) -> None:
    write_pipeline(home, "p", with_duplicates(policy, "0"))
    write_csv(home, "a.csv", [("x", "one", "c"), ("x", "two", "c")])
    write_csv(home, "b.csv", [("x", "three", "c")])
    report = write_documents(run_of(home, "p"))
    assert [row[1] for row in documents_of(home)] == [text]
    assert (report.statistics["documents"], report.statistics["rejected"]) == (1, 0)
    assert report.statistics["notes"] == [
        "left out, for another record has the same id (source.duplicates): 2"
    ]


def test_too_many_duplicates_end_the_run_and_change_nothing(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(row, f"text {row}", "c") for row in range(5)])
    write_documents(run_of(home, "p"))
    before = documents_of(home)
    write_csv(home, "b.csv", [(row, "again", "c") for row in range(5)])
    with pytest.raises(SourceError, match=r"5 of 10 .*max_rejected \(1%\).*\n.*b\.csv:2: document"):
        write_documents(run_of(home, "p"))
    assert documents_of(home) == before


def test_a_run_that_dies_brings_back_the_record_that_it_left_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pipeline(home, "p", with_duplicates("first"))
    write_csv(home, "b.csv", [("x", "b", "c"), *((row, "other", "c") for row in range(9))])
    write_documents(run_of(home, "p"))
    before = documents_of(home)
    write_csv(home, "a.csv", [("x", "a", "c")])
    with monkeypatch.context() as patch:
        patch.setattr(documents, "replace_rows", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_documents(run_of(home, "p"))
    assert documents_of(home) != before
    (home / "data" / "a.csv").unlink()
    write_documents(run_of(home, "p"))
    assert documents_of(home) == before


@pytest.mark.parametrize("policy", ["reject", "first", "last"])
def test_whatever_changes_and_goes_the_documents_are_those_of_a_whole_run(
    home: Path, policy: str
) -> None:
    chance = random.Random(policy)
    write_pipeline(home, "p", with_duplicates(policy))
    names = ["a.csv", "b.csv", "c.csv", "d.csv"]
    for step in range(8):
        for name in chance.sample(names, chance.randint(1, 2)):
            if chance.random() < 0.4 and len([*(home / "data").glob("*.csv")]) > 1:
                (home / "data" / name).unlink(missing_ok=True)
                continue
            ids = [chance.randint(1, 8) for _ in range(chance.randint(1, 6))]
            write_csv(
                home, name, [(each, f"{name} {step} {at}", "c") for at, each in enumerate(ids)]
            )
        report = write_documents(run_of(home, "p")).statistics
        after = documents_of(home)
        lost = rejected(home)
        shutil.rmtree(run_of(home, "p").folder.documents.folder)
        whole = write_documents(run_of(home, "p")).statistics
        assert after == documents_of(home)
        assert (report["documents"], report["rejected"]) == (whole["documents"], whole["rejected"])
        assert sorted(lost) == sorted(rejected(home))
        assert len({row[0] for row in after}) == len(after) == report["documents"]


def test_changed_options_of_the_source_read_every_file_again(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(1, "one", "c")])
    run_steps(home, "p")
    write_pipeline(home, "p", HASHING.replace("text: [title]", "text: [title, cat]"))
    run_steps(home, "p")
    assert top(home, "p", "c") == ["1"]
    statistics = write_documents(run_of(home, "p")).statistics
    assert statistics["changed_files"] == 0


def test_another_number_of_partitions_is_refused(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(1, "one", "c")])
    run_steps(home, "p")
    write_pipeline(home, "p", HASHING.replace("partitions: 4", "partitions: 8"))
    with pytest.raises(ConfigError, match="made with 4 partitions, its file now says 8"):
        run_steps(home, "p")
    assert top(home, "p", "one") == ["1"]


def write_lines(home: Path, name: str, *records: dict[str, object]) -> None:
    path = home / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


JSONL = HASHING.replace("kind: csv", "kind: jsonl").replace("*.csv", "*.jsonl")


def test_a_field_that_some_files_lack_has_no_value_there_and_is_told(home: Path) -> None:
    write_pipeline(home, "p", JSONL.replace("metadata: [cat]", "metadata: {cat: float}"))
    write_lines(home, "a.jsonl", {"id": 1, "title": "one", "cat": 1}, {"id": 2, "title": "two"})
    write_lines(home, "b.jsonl", {"id": 3, "title": "three", "cat": float("nan")})
    write_lines(home, "c.jsonl", {"id": 4, "title": "four", "\udc00" * 99: 1})
    write_lines(home, "d.jsonl")
    report = write_documents(run_of(home, "p"))
    assert report.statistics["documents"] == 4
    assert report.statistics["notes"] == [
        "column 'cat': read as no value: 'NaN' (1)",
        "column 'cat' is missing in 1 of 4 files; their documents have no value there",
    ]
    for name in ("a.jsonl", "b.jsonl"):
        (home / "data" / name).unlink()
    with pytest.raises(
        SourceError, match=r"c\.jsonl: column 'cat' is missing; found 'id', 'title', '.{59,}…'"
    ):
        write_documents(run_of(home, "p"))


def test_what_a_killed_run_left_goes_and_what_another_process_holds_stays(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(1, "one", 1)])
    run_steps(home, "p")
    folder = run_of(home, "p").folder
    left = [
        folder.documents.folder / ".reading-abc" / "b00.arrows",
        folder.chunks.folder / ".b01.0123456789ab.tmp",
        folder.quality / ".queries.json.0123456789ab.tmp",
        folder.folder / ".releases.json.0123456789ab.tmp",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    with draft_beside(folder.optimization) as draft:
        run_steps(home, "p")
        assert draft.exists()
    assert not [path for path in left if path.exists()]
    assert not left[0].parent.exists()


def test_more_partitions_than_open_files(home: Path) -> None:
    write_pipeline(home, "p", HASHING.replace("partitions: 4", "partitions: 200"))
    rows = [(number, f"text {number}", "c") for number in range(9_000)]
    write_csv(home, "a.csv", rows)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, limits[1]))
    try:
        statistics = write_documents(run_of(home, "p")).statistics
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert statistics["documents"] == 9_000
    folder = run_of(home, "p").folder.documents
    ids = [
        name
        for partition in run_of(home, "p").spec.partition_names
        for batch in folder.read(partition, ["document_id"])
        for name in batch["document_id"].to_pylist()
    ]
    assert sorted(map(int, ids)) == list(range(9_000))
