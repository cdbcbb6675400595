"""The output holds the rows of the live release, whole, whatever happens to place and process."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding_pipelines import objects
from embedding_pipelines.delete import delete_pipeline
from embedding_pipelines.errors import BucketError, BusyError, ConfigError
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.plan import plan
from embedding_pipelines.progress import StepReport
from embedding_pipelines.releases import rollback
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline, read_draft
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.output import OutputStep, forget_rows
from embedding_pipelines.steps.pending import pending
from embedding_pipelines.storage.output import Output
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.validate import check_file
from embedding_pipelines_tests.buckets import Exchange, Proxy, TestBucket, request
from embedding_pipelines_tests.chain import report, run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import PLAIN, UNMEASURED
from embedding_pipelines_tests.runs import Collected

OUTPUT = f"{PLAIN}{UNMEASURED}output: results\n"


def rows(count: int, word: str = "text") -> list[tuple[str, str, str]]:
    return [
        (f"id-{n}", f"{word} number {n} about subject{n % 17}", f"c{n % 3}") for n in range(count)
    ]


def index_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "index.json").read_text())
    return values


def delivered(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of the files that the index names, by document."""
    files = [folder / file["name"] for file in index_of(folder)["files"].values()]
    every = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(every) == index_of(folder)["rows"]
    return {row["document_id"]: row for row in every}


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"index.json"}


def last(reports: list[StepReport]) -> dict[str, Any]:
    return report(reports, "output").statistics


@pytest.fixture
def built(home: Path) -> Path:
    """A home with a pipeline `p` whose 40 rows are delivered to `results`."""
    write_pipeline(home, "p", OUTPUT)
    write_csv(home, "a.csv", rows(30))
    write_csv(home, "b.csv", [(f"b-{n}", f"other {n}", "c9") for n in range(10)])
    run_steps(home, "p")
    return home


def test_rows_say_what_they_are_of_and_hold_the_models_own_vectors(home: Path) -> None:
    write_pipeline(home, "p", f"{OUTPUT}compression: [int8]\n")
    write_csv(home, "a.csv", rows(12))
    assert last(run_steps(home, "p"))["written"] == 4
    found, index = delivered(home / "results"), index_of(home / "results")
    with run_of(home, "p") as run:
        space = run.model.space
        texts = [row["text"] for row in found.values()]
        vectors = run.model.embed(texts, "document").vectors
    np.testing.assert_array_equal([row["vector"] for row in found.values()], vectors)
    assert found["id-7"]["cat"] == "c1"
    assert found["id-7"]["source_uri"] == "data/a.csv"
    assert {row["embedding_space"] for row in found.values()} == {space.id, index["space"]} - {""}
    assert {row["embedding_dimensions"] for row in found.values()} == {64, index["dimensions"]}
    assert {row["embedding_model"] for row in found.values()} == {index["model"], "hashing:words"}
    assert (index["release"], index["rows"], index["previous"]) == (1, 12, None)


def test_only_partitions_that_changed_are_written_and_the_previous_release_stays(
    built: Path,
) -> None:
    folder = built / "results"
    first, before = files_in(folder), delivered(folder)
    with run_of(built, "p") as run:
        (unchanged,) = OutputStep().work(run, run.spec.partition_names)
        assert not unchanged.changed
    write_csv(built, "a.csv", [*rows(29), ("id-29", "now another text", "c2")])
    assert last(run_steps(built, "p"))["written"] == 1
    assert delivered(folder)["id-29"]["text"] == "now another text"
    assert index_of(folder)["previous"]["release"] == 1
    assert files_in(folder) > first
    write_csv(built, "a.csv", rows(29))  # a document is deleted
    (folder / "NOTES.txt").write_text("of somebody else")
    assert last(run_steps(built, "p"))["removed"] == 1
    assert delivered(folder).keys() == before.keys() - {"id-29"}
    assert len(files_in(folder)) == 4 + 1 + 1  # of release 2 one, and the notes


def test_a_file_that_is_one_document_has_its_own_tag(home: Path, bucket: TestBucket) -> None:
    source = f"{{kind: jsonl, path: '{bucket.uri}/in/*.jsonl', id: id, text: t}}"
    write_pipeline(
        home,
        "p",
        f"source: {source}\nmodel: {{provider: hashing}}\npartitions: 2\n{UNMEASURED}"
        f"output: {bucket.uri}/out/\n",
    )
    for name in ("one", "three"):
        bucket.put(f"in/{name}.jsonl", json.dumps({"id": name, "t": f"text {name}"}))
    assert last(run_steps(home, "p"))["written"] == 2
    bucket.put("in/one.jsonl", json.dumps({"id": "one", "t": "text one"}) + "\n")
    assert last(run_steps(home, "p"))["written"] == 1  # the same text, of another object
    index = json.loads(request(bucket.address, "GET", f"/{bucket.name}/out/index.json"))
    assert index["release"] == 1
    tags = {}
    for file in index["files"].values():
        (home / "file").write_bytes(
            request(bucket.address, "GET", f"/{bucket.name}/out/{file['name']}")
        )
        tags |= {
            row["source_uri"]: row["source_tag"] for row in pq.read_table(home / "file").to_pylist()
        }
    place, _ = objects.open_bucket(bucket.uri)
    assert tags == {bucket.uri + "/" + entry.key: entry.tag for entry in place.walk("in")}


def test_what_is_lost_or_damaged_is_delivered_anew(built: Path) -> None:
    folder = built / "results"
    before, names = delivered(folder), files_in(folder)
    next(iter(folder.glob("b00*"))).write_bytes(b"PAR1")
    assert last(run_steps(built, "p"))["written"] == 1
    (folder / "index.json").unlink()
    run_steps(built, "p")
    assert (delivered(folder), files_in(folder)) == (before, names)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with run_of(built, "p") as run:
        assert OutputStep().current(run) is None
    assert not folder.exists()  # a look writes nothing
    run_steps(built, "p")
    assert delivered(folder) == before


def test_a_store_that_fails_leaves_the_live_release_and_the_next_run_mends_it(
    home: Path, bucket: TestBucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRIES", 0)
    write_pipeline(home, "p", OUTPUT.replace("results", f"{bucket.uri}/out"))
    write_csv(home, "a.csv", rows(30))
    for part, status in (("b03-", 403), ("index.json", 503)):

        def fail(exchange: Exchange, part: str = part, status: int = status) -> bool:
            is_put = exchange.handler.command == "PUT" and part in exchange.path
            return is_put and exchange.answer(status, b"<Error><Code>AccessDenied</Code></Error>")

        proxy.fault = fail
        with pytest.raises(BucketError, match=r"Release 1 is live and searched all the same"):
            run_steps(home, "p")
        with run_of(home, "p") as run:
            waiting = pending(run, run.spec.source.files(home))
            assert (waiting.step, str(waiting)[:36]) == (
                "output",
                "the live release is not delivered to",
            )
            assert pipeline_status(run.spec, run.warehouse)["output"].startswith("nothing is deliv")
            assert plan(run).output == f"{bucket.uri}/out"
    proxy.fault = lambda _: False
    assert last(run_steps(home, "p"))["files"] == 4
    with run_of(home, "p") as run:
        assert pending(run, run.spec.source.files(home)).is_empty
        assert plan(run).output == ""
        assert pipeline_status(run.spec, run.warehouse)["output"].endswith("/out: 30 rows")


def test_a_run_that_another_machine_has_taken_over_delivers_nothing(built: Path) -> None:
    index = built / "results" / "index.json"
    index.unlink()
    with run_of(built, "p") as run:
        run.require_lease = Mock(side_effect=BusyError("its lease was taken over"))
        with pytest.raises(BusyError, match="taken over"):
            list(OutputStep().work(run, run.spec.partition_names))
    assert not index.exists()
    run_steps(built, "p")
    assert index.exists()


def test_a_rollback_is_followed_as_far_as_files_are_there(built: Path) -> None:
    folder, notes = built / "results", Collected()
    first = delivered(folder)
    for count in (29, 28):
        write_csv(built, "a.csv", rows(count))
        run_steps(built, "p")
    spec, warehouse = find_pipeline("p", built), Warehouse(built)
    rollback(warehouse.pipeline("p"), 2)
    assert run_steps(built, "p")[-1].statistics["of_release"] == index_of(folder)["release"] == 2
    assert "id-28" in delivered(folder)
    rollback(warehouse.pipeline("p"), 1)
    with Run(spec, warehouse, notes) as run:
        (report,) = OutputStep().work(run, spec.partition_names)
    assert not report.changed
    assert "its rows are no longer at hand" in notes.notes[-1]
    rollback(warehouse.pipeline("p"), 3)
    run_steps(built, "p")
    assert delivered(folder).keys() == first.keys() - {"id-28", "id-29"}


def test_what_is_forgotten_leaves_every_place_at_once(built: Path) -> None:
    write_pipeline(built, "p", OUTPUT.replace("results", "data/elsewhere"))
    notes = Collected()
    spec = find_pipeline("p", built)
    with Run(spec, Warehouse(built), notes) as run:
        list(OutputStep().work(run, spec.partition_names))
    assert "stays as it is: delete it if nobody reads it" in notes.notes[-1]
    with run_of(built, "p") as run:
        receipt = forget(run, ["id-3"], [])
    assert receipt.erased["output_rows"] == 2
    assert receipt.left == []
    for folder in (built / "results", built / "data/elsewhere"):
        assert len(delivered(folder)) == 39
        assert files_in(folder) == {file["name"] for file in index_of(folder)["files"].values()}
        assert not any(
            "id-3" in pq.read_table(path)["document_id"].to_pylist()
            for path in folder.glob("*.parquet")
        )
    with run_of(built, "p") as run:
        told = pipeline_status(run.spec, run.warehouse)["output"]
        assert told == f"release 2 in {built / 'data/elsewhere'}: 39 rows"
        assert not pending(run, run.spec.source.files(built)).is_empty
    run_steps(built, "p")
    assert index_of(built / "data/elsewhere")["release"] == 2


def test_after_a_failed_delivery_forget_says_whose_rows_are_there(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(built, "a.csv", rows(30, "later"))
    monkeypatch.setattr(Output, "put", Mock(side_effect=BucketError("It is full.")))
    with pytest.raises(BucketError, match="Release 2 is live"):
        run_steps(built, "p")
    monkeypatch.undo()
    with run_of(built, "p") as run:
        assert forget(run, ["id-3"], []).release == 3
        told = pipeline_status(run.spec, run.warehouse)["output"]
    assert index_of(built / "results")["release"] == 1
    assert told == f"release 1 in {built / 'results'}: 39 rows"
    run_steps(built, "p")
    assert index_of(built / "results")["release"] == 3
    assert delivered(built / "results")["id-4"]["text"].startswith("later")


@pytest.mark.parametrize("command", ["forget", "delete"])
def test_files_of_a_first_delivery_that_died_are_reached(
    home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """No index names them, and no delivery is on record."""
    write_pipeline(home, "p", OUTPUT)
    write_csv(home, "a.csv", rows(30))
    monkeypatch.setattr(Output, "write_index", Mock(side_effect=BucketError("It is full.")))
    with pytest.raises(BucketError, match="Release 1 is live"):
        run_steps(home, "p")
    monkeypatch.undo()
    assert files_in(home / "results")
    with run_of(home, "p") as run:
        assert pipeline_status(run.spec, run.warehouse)["output"].startswith("nothing is deliv")
        if command == "forget":
            forget(run, ["id-3"], [])
        else:
            delete_pipeline(home, "p")
    assert files_in(home / "results") == set()
    if command == "forget":
        run_steps(home, "p")
        assert len(delivered(home / "results")) == 29


def test_a_deleted_pipeline_takes_along_what_it_delivered(built: Path) -> None:
    (built / "results" / "NOTES.txt").write_text("of somebody else")
    deletion = delete_pipeline(built, "p")
    assert deletion.outputs == [str(built / "results")]
    assert [path.name for path in (built / "results").iterdir()] == ["NOTES.txt"]


def test_a_place_of_another_pipeline_is_refused(built: Path) -> None:
    write_pipeline(built, "q", OUTPUT)
    with pytest.raises(ConfigError, match=r"it holds the output of pipeline 'p'"):
        run_steps(built, "q")
    (built / "results" / "index.json").write_text('{"pipeline": "q"}')
    with pytest.raises(ConfigError, match=r"its index.json is none that a pipeline writes"):
        run_steps(built, "q")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("data/warehouse/x", "is in the warehouse"),
        ("s3://shared/team/out", "where the warehouse is published"),
        ("{home}/data", "is inside the source"),
    ],
)
def test_a_place_that_would_be_read_or_overwritten_is_refused(
    home: Path, output: str, words: str
) -> None:
    (home / "warehouse.yaml").write_text("bucket: s3://shared/team\n")
    write_csv(home, "a.csv", rows(2))
    text = OUTPUT.replace("results", output.format(home=home)).replace("data/*.csv", "data/**")
    draft = read_draft(write_pipeline(home, "p", text))
    lines, _ = check_file(draft, Warehouse(home))
    assert any(words in line for line in lines), lines


def test_a_forgetting_that_lost_its_lease_delivers_nothing(built: Path) -> None:
    before = index_of(built / "results")
    lost = Mock(side_effect=BusyError("Another machine has the lease."))
    with run_of(built, "p") as run, pytest.raises(BusyError, match="lease"):
        forget_rows(run, {"id-3"}, 1, 2, lost)
    assert index_of(built / "results") == before
    assert "id-3" in delivered(built / "results")
