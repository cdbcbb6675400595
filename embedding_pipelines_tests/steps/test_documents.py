"""documents: only changed files are read, bad records are told, and a refused source leaves
everything as it was."""

import json
import os
import resource
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import ConfigError, SourceError
from embedding_pipelines.files import draft_beside
from embedding_pipelines.steps.documents import read_files, write_documents
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


def test_the_same_id_twice_in_one_file_names_both_lines(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [("x", "one", "c"), ("y", "two", "c"), ("x", "three", "c")])
    with pytest.raises(
        SourceError, match=r"data/a\.csv:4: document id 'x' stands at data/a\.csv:2 too"
    ):
        write_documents(run_of(home, "p"))
    assert not list(
        (home / "data" / "warehouse" / "pipelines" / "p" / "documents").glob(".reading-*")
    )


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
    write_lines(home, "c.jsonl", {"id": 4, "title": "four"})
    write_lines(home, "d.jsonl")
    report = write_documents(run_of(home, "p"))
    assert report.statistics["documents"] == 4
    assert report.statistics["notes"] == [
        "column 'cat': read as no value: 'NaN' (1)",
        "column 'cat' is missing in 1 of 4 files; their documents have no value there",
    ]
    (home / "data" / "a.jsonl").unlink()
    (home / "data" / "b.jsonl").unlink()
    with pytest.raises(
        SourceError, match=r"c\.jsonl: column 'cat' is missing; found 'id', 'title'"
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
