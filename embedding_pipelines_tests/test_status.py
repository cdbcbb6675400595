"""Status: what the warehouse holds, and whether the source has moved on."""

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.push import Pusher
from embedding_pipelines.releases import live_release, rollback
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.status import list_status, pipeline_status
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.steps.release import release
from embedding_pipelines.steps.sentences import sentence
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import HASHING, UNMEASURED

WORD = "far "


def status(home: Path) -> dict[str, Any]:
    return pipeline_status(find_pipeline("p", home), Warehouse(home))


def test_a_pipeline_that_never_ran_is_new(home: Path) -> None:
    write_pipeline(home, "p", HASHING + "schedule: '@daily'\n")
    found = status(home)
    assert (found["status"], found["documents"], found["live_release"]) == ("new", 0, None)
    assert found["schedule"] == "@daily"
    assert "matches no file" in found["source"]
    write_csv(home, "a.csv", [(1, "one", "x")])
    assert status(home)["source"] == "1 new: data/a.csv"
    assert status(home)["freshness"] == "not up to date: 1 new: data/a.csv"


def test_up_to_date_is_said_only_of_what_is(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(number, f"text {number}", "x") for number in range(8)])
    run_steps(home, "p")
    folder = Warehouse(home).pipeline("p")

    def why() -> str:
        found = status(home)
        assert found["up_to_date"] is found["freshness"].startswith("up to date; release 1 is ")
        return "" if found["up_to_date"] else str(found["freshness"])

    assert why() == ""
    write_csv(home, "b.csv", [(9, "text 9", "x")])
    assert why().startswith("not up to date: 1 new: data/b.csv; release 1 is ")
    (home / "data" / "b.csv").unlink()
    assert why() == ""
    for edit in ("compression: [int8]\n", "preprocessing: {chunk: {max_tokens: 99}}\n"):
        write_pipeline(home, "p", HASHING + edit)
        assert "the pipeline file has changed since the last run" in why()
    write_pipeline(home, "p", HASHING + "description: other words\nschedule: '@daily'\n")
    assert why() == ""
    content = folder.releases_copy.read_bytes()
    folder.releases_copy.write_bytes(content.replace(b"hashing", b"smashed"))
    assert "1 file of its state is damaged; the next run mends it" in why()
    folder.releases_copy.write_bytes(content)
    (shard,) = list(folder.embeddings.folder.glob("b00-*.parquet"))
    shard.rename(shard.with_suffix(".away"))
    assert "'embeddings' has not taken it in" in why()
    shard.with_suffix(".away").rename(shard)
    codec = folder.codecs / live_release(folder).codec
    content = codec.read_bytes()
    for damaged in (content[:-1], b""):
        codec.write_bytes(damaged)
        assert f"{codec}: " in why()
    codec.unlink()
    assert f"{codec}: the codec cannot be read" in why()
    codec.write_bytes(content)
    table = folder.tables / f"{live_release(folder).table}.lance"
    data = next(table.glob("data/*.lance"))
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    assert "is lost or damaged; the next run mends it" in why()
    data.write_bytes(content)
    assert why() == ""
    write_csv(home, "a.csv", [(number, f"text {number} more", "x") for number in range(8)])
    run_steps(home, "p")
    assert status(home)["drift"] is not None
    rollback(folder, 1)
    assert "it was rolled back; release 1 is " in why()


def test_a_database_has_tables_not_files(home: Path) -> None:
    with sqlite3.connect(home / "shop.db") as database:
        database.execute("CREATE TABLE things (id TEXT, title TEXT)")
        database.execute("INSERT INTO things VALUES ('1', 'red fox'), ('2', 'blue whale')")
    database.close()
    source = "{kind: sql, url: 'sqlite:///shop.db', table: things, id: id, text: [title]}"
    write_pipeline(home, "p", f"source: {source}\nmodel: {{provider: hashing}}\n{UNMEASURED}")
    assert status(home)["source"] == "1 new: things"
    reports = run_steps(home, "p")
    assert sentence(reports[0]).startswith("2 documents from 1 table, 0 rejected")
    assert status(home)["source"] == "no table has changed"


def test_rows_releases_and_changed_files_are_counted(home: Path) -> None:
    write_pipeline(
        home, "p", HASHING.replace("metadata: [cat]", "metadata: {cat: int}, max_rejected: 5")
    )
    write_csv(home, "a.csv", [(1, "one", 1), (2, "", 2), (3, "three", "no number")])
    write_csv(home, "b.csv", [(4, "four", 4)])
    run_steps(home, "p")
    found = status(home)
    assert found["status"] == "active"
    assert (found["documents"], found["chunks"], found["embeddings"], found["rejected"]) == (
        3,
        2,
        2,
        1,
    )
    assert (found["live_release"], found["live_rows"], found["kept_releases"]) == (1, 2, [1])
    assert found["source"] == "no file has changed"
    assert found["model"] == "hashing"
    write_csv(home, "a.csv", [(1, "one more", 1)])
    write_csv(home, "c.csv", [(5, "five", 5)])
    (home / "data" / "b.csv").unlink()
    assert (
        status(home)["source"] == "1 new: data/c.csv; 1 changed: data/a.csv; 1 deleted: data/b.csv"
    )


def test_a_candidate_that_is_held_back_is_named_until_it_is_released(home: Path) -> None:
    plain = HASHING.replace("known_items: 8", "known_items: 8, require: {known_item_mrr: 1.5}")
    write_pipeline(home, "p", plain)
    write_csv(
        home,
        "a.csv",
        [(number, f"{WORD * number} and {number} more", "x") for number in range(1, 9)],
    )
    with pytest.raises(ReleaseError):
        run_steps(home, "p")
    assert re.fullmatch(
        r"by required_metrics_hold: known_item_mrr is 0\.\d+, at least 1\.5 is required by "
        r"evaluation\.require\.",
        str(status(home)["held_back"]),
    )
    write_pipeline(home, "p", HASHING)
    run_steps(home, "p")
    assert status(home)["held_back"] is None


def test_what_was_released_with_a_reason_or_given_up_is_not_held_back(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(
        home,
        "a.csv",
        [(number, f"{WORD * number} and {number} more", "x") for number in range(1, 9)],
    )
    run_steps(home, "p")
    demanding = HASHING.replace("known_items: 8", "known_items: 8, require: {known_item_mrr: 1.5}")
    write_pipeline(home, "p", demanding + "compression: [int8]\n")
    with pytest.raises(ReleaseError):
        run_steps(home, "p")
    assert status(home)["held_back"] is not None
    write_pipeline(home, "p", demanding)  # as a refused `optimize` puts the file back
    assert status(home)["held_back"] is None
    write_pipeline(home, "p", demanding + "compression: [int8]\n")
    context = run_of(home, "p")
    release(context, "the disk is full")
    assert status(home)["held_back"] is None


def test_a_live_model_that_is_not_the_files_is_named_with_its_reason(home: Path) -> None:
    write_pipeline(home, "p", HASHING)
    write_csv(home, "a.csv", [(number, f"text {number}", "x") for number in range(8)])
    run_steps(home, "p")
    assert (status(home)["live_model"], status(home)["override"]) == (None, None)
    spec = find_pipeline("p", home)
    with Run(spec, Warehouse(home), options=Hashing(dimensions=32)) as run:
        for step in steps_of(run.spec):
            for _ in step.work(run, run.spec.partition_names):
                pass
    assert json.loads(status(home)["override"]) == {"dimensions": 32}
    assert status(home)["live_model"] == (
        "hashing, dimensions 32: set for its run alone; the next run uses the model of the "
        "pipeline file"
    )
    run_steps(home, "p")
    assert status(home)["live_model"] is None
    write_pipeline(home, "p", HASHING.replace("hashing}", "hashing, dimensions: 16}"))
    assert status(home)["live_model"] == (
        "hashing, dimensions 64: the pipeline file has changed since; the next run uses its model"
    )
    write_pipeline(home, "p", HASHING.replace("{provider: hashing}", "hf:a/b"))
    assert str(status(home)["live_model"]).startswith("hashing: the pipeline file has changed")


def test_a_copy_of_a_file_that_the_model_reads_is_the_same_model(home: Path) -> None:
    (home / "words.vec").write_text("red 1 0\nfox 0 1\nblue 1 1\n")
    model = "{provider: word2vec, vectors: words.vec}"
    write_pipeline(home, "p", HASHING.replace("{provider: hashing}", model))
    write_csv(home, "a.csv", [(1, "red fox", "x"), (2, "blue fox", "x"), (3, "red", "x")])
    run_steps(home, "p")
    assert live_release(Warehouse(home).pipeline("p")).spec.model != find_pipeline("p", home).model
    assert status(home)["live_model"] is None


def test_what_was_pushed_is_searched_before_a_release_and_forgotten_without_a_trace(
    home: Path,
) -> None:
    write_pipeline(home, "p", "source: {kind: push}\nmodel: hashing\npartitions: 2\n" + UNMEASURED)
    assert status(home)["source"] == "a run has to read what the source holds"
    with Pusher(run_of(home, "p").spec, Warehouse(home)) as pusher:
        pusher.put([{"id": name, "text": f"text {name}"} for name in "abc"])
    (row,) = list_status(home)
    assert (row["status"], row["states"], row["pushed_waiting"]) == ("active", ["active"], 3)
    run_steps(home, "p")
    forget(run_of(home, "p"), ["a"], [])
    row = status(home)
    assert (row["live_rows"], row["pushed_waiting"]) == (2, 0)
    assert row["source"] == "a run has to read what the source holds"  # nothing was pushed
