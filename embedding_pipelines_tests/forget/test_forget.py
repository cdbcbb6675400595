"""Forgetting: a document is in no file afterwards, and no run brings it back unsaid."""

import errno
import functools
import json
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from embedding_pipelines.deployments import Deployment, write_deployment
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.errors import BusyError, ConfigError, DocumentError, StoreError
from embedding_pipelines.files import list_files, write_json
from embedding_pipelines.forget.forget import allow_again, forget, source_name
from embedding_pipelines.forget.receipt import Receipt
from embedding_pipelines.progress import Silent
from embedding_pipelines.providers.clip import Clip
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.push import Pusher
from embedding_pipelines.releases import read_releases, rollback
from embedding_pipelines.report.page import write_report
from embedding_pipelines.search import Searcher
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.storage.forgotten import COPY
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.receipts import Receipts
from embedding_pipelines.storage.warehouse import Shards, Warehouse, read_table
from embedding_pipelines_tests.chain import (
    copy_home,
    live_rows,
    report,
    run_of,
    run_recorded,
    run_steps,
    top,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.decoded import files_with
from embedding_pipelines_tests.drawn import drawing, encoded, write
from embedding_pipelines_tests.embedding.service import DIALECT
from embedding_pipelines_tests.providers.wire import serve
from embedding_pipelines_tests.seeing import Seeing
from embedding_pipelines_tests.shared import at_work, machine, remote_of, run_shared
from embedding_pipelines_tests.stores.tables import token_files

PIPELINE = """\
source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat], max_rejected: 5}
model: {provider: hashing}
partitions: 2
compression: [float16]
store: {kind: lancedb, keep_releases: 3, index_rows: 256}
evaluation: {known_items: 30, may_shrink: 1}
"""
SECRET, BEFORE = "Ada Lovelace lives in the blue house", "Ada Lovelace lives in the red house"
ROWS = [(f"id-{n}", f"word{n % 7} text number {n}", "c") for n in range(20)]
MANY = [(f"id-{n}", f"word{n % 7} text number {n}", "c") for n in range(300)]


def release(home: Path, rows: list[tuple[str, ...]], pipeline: str = PIPELINE) -> None:
    write_pipeline(home, "p", pipeline)
    write_csv(home, "a.csv", rows)
    run_steps(home, "p")


@pytest.fixture(scope="module")
def released_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("released")
    release(home, [*ROWS, ("ada", f"{BEFORE}.", "c")])
    release(home, [*ROWS, ("ada", f"{SECRET}.", "c"), ("ada", f"{SECRET}, too.", "c")])
    write_report(Warehouse(home), "p", Silent())
    return home


@pytest.fixture
def released(home: Path, released_once: Path) -> Path:
    """A home whose pipeline holds the document `ada`: in two releases with other texts, in a
    rejected record, in a report."""
    return copy_home(released_once, home)


def forget_it(home: Path, *ids: str, files: tuple[str, ...] = ()) -> Receipt:
    with run_of(home, "p") as run:
        return forget(run, ids, files)


def kept(home: Path) -> list[str]:
    """The files that the warehouse holds the texts in."""
    return files_with(home / "data" / "warehouse", SECRET, BEFORE)


def test_a_document_is_in_no_file_and_everything_else_stays(released: Path) -> None:
    before = live_rows(released, "p")
    quarantine = {"partitions": {"b00": f"ValueError: {SECRET}"}}  # of a run on many machines
    write_json(run_of(released, "p").folder.quarantine, quarantine)
    places = {path.split("/")[0] for path in kept(released)}
    assert places == {"pipelines", "tables", "reports"}
    cached = len(run_of(released, "p").cache)
    receipt = forget_it(released, "ada")
    assert kept(released) == receipt.left == []
    after = live_rows(released, "p")
    assert after.keys() == before.keys() - {"ada#0"}
    assert all(list(after[name]["vector"]) == list(before[name]["vector"]) for name in after)
    assert (receipt.documents, receipt.release, receipt.removed_releases) == (1, 3, [1, 2])
    assert [entry.number for entry in read_releases(run_of(released, "p").folder).releases] == [3]
    assert receipt.erased["cached_vectors"] == cached - len(run_of(released, "p").cache)
    assert receipt.erased["cached_vectors"] >= 3  # both texts, and a query of theirs
    assert receipt.erased["rejected_records"] == receipt.erased["reports"] == 1
    assert receipt.checked["searches"] == 1
    written = Path(receipt.path).read_text()
    assert json.loads(written)["checked"]["texts"] >= 2
    assert not any(word in written for word in ("Ada", "ada"))


def test_searches_that_quote_it_are_in_no_receipt_and_deployments_are_named(home: Path) -> None:
    release(home, [*ROWS, ("ada", SECRET, "c")])
    folder = run_of(home, "p").folder
    receipts = Receipts(folder.folder)
    for query, documents in ((SECRET, ["ada"]), ("word3", ["ada", "id-3"])):
        receipts.add(query, documents, release=1, mode="text", k=1, keeps_text=True)
    others = Receipts(run_of(home, "p").warehouse.pipelines / "q")  # whom somebody asked as well
    others.add(f"is it true: {SECRET}?", [], release=1, mode="text", k=1, keeps_text=True)
    deployment = Deployment(
        endpoint="http://there",
        target="server",
        pipeline="p",
        release=1,
        space_id="",
        deployed_at=datetime.now(UTC),
    )
    write_deployment(folder, deployment)
    result = forget_it(home, "ada")
    assert result.left == []
    assert [(each.query, each.documents) for each in receipts.read()[0]] == [("word3", ["id-3"])]
    assert others.read() == ([], [])
    assert any("deployed to http://there" in note for note in result.notes)


def test_no_other_model_s_vector_of_it_stays_in_the_cache(home: Path) -> None:
    """As it was compared with, or as a program filed it; one of another text stays."""
    release(home, [*ROWS, ("ada", SECRET, "c")])
    with run_of(home, "p") as run:
        other = Hashing(dimensions=12).open(home)
        embed_all([SECRET, "word3"], other, run.cache, "document")
        run.cache.set(SECRET, "a program's own", [0.0, 1.0], "query")
        forget(run, ["ada"], [])
        assert run.cache.get(SECRET, other) is None
        assert run.cache.get(SECRET, "a program's own", "query") is None
        assert run.cache.get("word3", other) is not None


def test_its_words_leave_the_full_text_index(home: Path) -> None:
    """The index of the table that is left is that of a pipeline which never held them."""
    words = PIPELINE + "search: {mode: hybrid}\n"
    release(home, [*ROWS, ("ada", f"{SECRET}.", "c")], words)
    before = token_files(home)
    assert Searcher(home, "p").search("lovelace", mode="text").hits[0].document_id == "ada"
    forget_it(home, "ada")
    after = token_files(home)
    assert before.isdisjoint(after)
    assert Searcher(home, "p").search("lovelace", mode="text").hits == []
    run_steps(home, "p")
    assert token_files(home) == after
    other = home / "other"
    release(other, ROWS, words)
    assert token_files(other) == after


def test_a_run_over_a_source_that_holds_it_leaves_it_out_and_says_so(released: Path) -> None:
    forget_it(released, "ada")
    reports, texts = run_recorded(released, "p")
    assert texts == []  # nothing else is paid for again
    assert report(reports, "documents").statistics["forgotten"] == 2
    assert not report(reports, "release").changed
    assert kept(released) == []
    write_csv(released, "b.csv", [("new", "an added text", "c"), ("ada", f"{SECRET}.", "c")])
    reports, texts = run_recorded(released, "p")
    assert (texts, report(reports, "documents").statistics["forgotten"]) == (["an added text"], 3)
    assert kept(released) == []
    assert "ada#0" not in live_rows(released, "p")


def test_the_next_run_makes_what_hangs_on_it_and_then_there_is_nothing_to_do(
    released: Path,
) -> None:
    forget_it(released, "ada")
    run_steps(released, "p")
    assert not any(report.changed for report in run_steps(released, "p"))
    release(released, [*ROWS[1:], ("ada", f"{SECRET}.", "c")])
    assert [entry.number for entry in read_releases(run_of(released, "p").folder).releases] == [
        3,
        4,
    ]
    rollback(run_of(released, "p").folder, None)


def test_all_documents_of_a_file_go_and_a_copy_of_it_is_left_out(released: Path) -> None:
    rows = [("x", f"{SECRET} today.", "c"), ("y", f"{BEFORE} still.", "c")]
    write_csv(released, "b.csv", rows)
    release(released, ROWS)
    receipt = forget_it(released, files=("data/b.csv",))
    assert (receipt.documents, receipt.left) == (2, [])
    assert kept(released) == []
    write_csv(released, "c.csv", [*rows, ("z", "a text of its own", "c")])
    write_csv(released, "b.csv", [*rows, ("w", f"{SECRET} again.", "c")])  # is not even read
    statistics = report(run_steps(released, "p"), "documents").statistics
    assert (statistics["forgotten"], statistics["forgotten_files"]) == (2, 1)
    assert live_rows(released, "p").keys() == {*(f"id-{n}#0" for n in range(20)), "z#0"}


def test_without_ids_the_content_tells_a_document(home: Path) -> None:
    pipeline = PIPELINE.replace("id: id, ", "")
    release(home, [("1", f"{SECRET}.", "c"), *ROWS], pipeline)
    forget_it(home, "data/a.csv:2")
    release(home, [*ROWS, ("1", f"{SECRET}.", "c")], pipeline)
    rows = live_rows(home, "p")
    assert len(rows) == len(ROWS)
    assert "data/a.csv:2#0" in rows  # another record's place now
    assert kept(home) == []
    forget_it(home, "data/a.csv:2#0".removesuffix("#0"))
    with run_of(home, "p") as run, pytest.raises(ConfigError, match="by --source"):
        allow_again(run, ["data/a.csv:2"], [])


def test_without_ids_all_documents_of_equal_content_go_from_every_file(home: Path) -> None:
    pipeline = PIPELINE.replace("id: id, ", "")
    write_csv(home, "b.csv", [("1", f"{SECRET}.", "c"), ("2", "one that stays", "c")])
    release(home, [("1", f"{SECRET}.", "c"), ("2", f"{SECRET}.", "c"), *ROWS], pipeline)
    receipt = forget_it(home, "data/a.csv:2")
    assert (receipt.documents, receipt.left) == (3, [])
    assert receipt.notes == [
        "2 of the documents are named by none: without source.id all documents of equal content go."
    ]
    assert len(live_rows(home, "p")) == len(ROWS) + 1
    assert report(run_steps(home, "p"), "documents").statistics["forgotten"] == 3
    assert len(live_rows(home, "p")) == len(ROWS) + 1
    assert kept(home) == []


def test_texts_that_others_have_too_stay_with_them(home: Path) -> None:
    release(home, [*ROWS, ("ada", f"{SECRET}.", "c"), ("eve", f"{SECRET}.", "c")])
    receipt = forget_it(home, "ada")
    assert receipt.left == []
    assert "stand in other documents too" in receipt.notes[0]
    assert "eve#0" in live_rows(home, "p")
    assert run_recorded(home, "p")[1] == []


def test_a_text_that_another_document_of_the_live_release_has_stays_with_it(home: Path) -> None:
    release(home, ROWS, PIPELINE.replace("may_shrink: 1", "may_shrink: 0.5"))
    write_csv(home, "a.csv", [("id-3", ROWS[11][1], "c"), *ROWS[4:9]])
    with pytest.raises(Exception, match="may_shrink"):
        run_steps(home, "p")
    receipt = forget_it(home, "id-3")
    assert receipt.left == []
    assert live_rows(home, "p").keys() == {f"id-{n}#0" for n in range(20) if n != 3}


def test_a_held_back_candidate_is_forgotten_too(home: Path) -> None:
    release(home, ROWS)
    write_pipeline(home, "p", PIPELINE.replace("may_shrink: 1", "may_shrink: 0.1"))
    write_csv(home, "a.csv", [*ROWS[:11], ("ada", f"{SECRET}.", "c")])
    with pytest.raises(Exception, match="may_shrink"):
        run_steps(home, "p")
    assert forget_it(home, "ada").left == kept(home) == []
    assert len(live_rows(home, "p")) == 20


def test_what_was_never_released_is_forgotten(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", [("ada", f"{SECRET}.", "c"), *ROWS])
    with run_of(home, "p") as run:
        from embedding_pipelines.steps.chain import step_named

        for name in ("documents", "chunks", "embeddings"):
            list(step_named(name).work(run, run.spec.partition_names))
    receipt = forget_it(home, "ada")
    assert (receipt.release, receipt.left, kept(home)) == (None, [], [])
    run_steps(home, "p")
    assert len(live_rows(home, "p")) == 20


def test_the_only_document_is_forgotten(home: Path) -> None:
    release(home, [("ada", f"{SECRET}.", "c")])
    assert forget_it(home, "ada").left == kept(home) == []
    assert top(home, "p", "blue house") == []


def test_open_searchers_go_on_and_no_longer_find_it(home: Path) -> None:
    """While it goes on, too: one process searches without a pause."""
    release(home, [*MANY, ("ada", f"{SECRET}.", "c")])
    answers, problems, ended = list[list[str]](), list[Exception](), threading.Event()

    def search() -> None:
        with Searcher(Warehouse(home), "p") as searcher:
            while not ended.is_set():
                try:
                    hits = searcher.search(SECRET, 1).hits
                    with Searcher(Warehouse(home), "p") as other:
                        hits += other.search(SECRET, 1).hits
                    answers.append([hit.document_id for hit in hits])
                except Exception as error:  # noqa: BLE001  # that is what is looked for
                    problems.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    while not answers and not problems:
        time.sleep(0.01)
    forget_it(home, "ada")
    before = len(answers)
    while len(answers) < before + 3 and not problems:
        time.sleep(0.01)
    ended.set()
    thread.join()
    assert problems == []
    assert answers[0] == ["ada", "ada"]
    assert "ada" not in answers[-1]


def fail(*arguments: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


FOUR = [(f"gone-{n}", f"{SECRET} since {n}.", "c") for n in range(4)]


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A home with a pipeline of a text, which holds four documents to forget; built once for each."""

    @functools.cache
    def built(pipeline: str) -> Path:
        home = tmp_path_factory.mktemp("holding")
        write_csv(home, "b.csv", FOUR)
        release(home, ROWS, pipeline)
        return home

    return built


@pytest.mark.parametrize(
    "part",
    [
        "forget.erase_by_text",
        "erase._erase_from_table",
        "erase._erase_rows",
        "erase._erase_from_shard",
        "forget.check",
    ],
)
@pytest.mark.parametrize(
    ("between", "pipeline"),
    [("a run", PIPELINE), ("nothing", PIPELINE), ("a run", PIPELINE.replace("id: id, ", ""))],
    ids=["a run", "nothing", "a run without ids"],
)
def test_killed_anywhere_the_same_command_ends_right_and_so_does_a_run_in_between(
    home: Path,
    holding: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    between: str,
    pipeline: str,
) -> None:
    copy_home(holding(pipeline), home)
    with run_of(home, "p") as run:
        texts = [text for _, text, _ in FOUR]
        keys = [run.cache.key(run.model.space.id, "document", text) for text in texts]
        assert len(run.cache.get_many(keys, None)) == len(FOUR)
    with monkeypatch.context() as patch:
        patch.setattr(f"embedding_pipelines.forget.{part}", fail)
        with pytest.raises(OSError, match="output error"):
            forget_it(home, files=("data/b.csv",))
    if between == "a run":
        run_steps(home, "p")
        assert len(live_rows(home, "p")) == len(ROWS)
    assert forget_it(home, files=("data/b.csv",)).left == kept(home) == []
    assert run_of(home, "p").cache.get_many(keys, None) == {}
    run_steps(home, "p")
    assert len(live_rows(home, "p")) == len(ROWS)
    assert kept(home) == []


def test_another_pipeline_that_holds_it_is_named(released: Path) -> None:
    write_pipeline(released, "q", PIPELINE)
    run_steps(released, "q")
    receipt = forget_it(released, "ada")
    assert receipt.left == []
    assert receipt.notes[-1] == (
        "Pipeline 'q' holds some of the texts too: forget them there as well."
    )


def test_undone_it_comes_back_with_the_next_run(released: Path) -> None:
    forget_it(released, "ada")
    with run_of(released, "p") as run:
        assert allow_again(run, ["ada"], []) == 1
        assert allow_again(run, ["ada"], []) == 0
    run_steps(released, "p")
    assert "ada#0" in live_rows(released, "p")


@pytest.mark.parametrize("order", ["at once", "the file first", "the id first"])
def test_to_undo_a_file_does_not_bring_back_what_was_named_by_its_id(
    home: Path, order: str
) -> None:
    write_csv(home, "b.csv", [("ada", f"{SECRET}.", "c"), ("eve", "a text of Eve's", "c")])
    release(home, ROWS)
    if order == "at once":
        forget_it(home, "ada", files=("data/b.csv",))
    elif order == "the file first":
        forget_it(home, files=("data/b.csv",))
        forget_it(home, "ada")
    else:
        forget_it(home, "ada")
        forget_it(home, files=("data/b.csv",))
    with run_of(home, "p") as run:
        allow_again(run, [], ["data/b.csv"])
    run_steps(home, "p")
    assert live_rows(home, "p").keys() - {f"id-{n}#0" for n in range(20)} == {"eve#0"}


def test_tombstones_outlive_the_file_and_damaged_ones_stop_a_run(released: Path) -> None:
    forget_it(released, "ada")
    path = Warehouse(released).forgotten / "p.json"
    path.unlink()  # there is a copy
    write_csv(released, "b.csv", [("new", "an added text", "c")])
    assert report(run_steps(released, "p"), "documents").statistics["forgotten"] == 2
    path.with_suffix(COPY).write_text("{")
    write_csv(released, "b.csv", [("new", "another added text", "c")])
    with pytest.raises(StoreError, match=r"has forgotten for good\. Put back a copy"):
        run_steps(released, "p")


def test_what_nobody_has_heard_of_is_refused(released: Path) -> None:
    before = files_with(released, SECRET)
    with pytest.raises(ConfigError, match="there is no document 'nobody', in no release"):
        forget_it(released, "nobody")
    with pytest.raises(ConfigError, match=r"no document on record is of 'data/b\.csv'"):
        forget_it(released, files=("data/b.csv",))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        forget_it(released, "b\udcff")
    with Warehouse(released).pipeline("p").lock("run"), pytest.raises(BusyError):
        forget_it(released, "ada")
    assert files_with(released, SECRET) == before
    rollback(run_of(released, "p").folder, None)
    release(released, ROWS)
    rollback(run_of(released, "p").folder, 1)
    with pytest.raises(ConfigError, match="nobody can tell their files"):
        forget_it(released, files=("data/a.csv",))


def rejected(home: Path) -> list[str]:
    rows = read_table(run_of(home, "p").folder.rejected)
    assert rows is not None
    return [raw.decode() for raw in rows["raw"].to_pylist()]


def test_a_rejected_record_is_told_by_its_id_not_by_a_word_of_it(home: Path) -> None:
    """By a cell of CSV or a field of JSON, also of what is broken."""
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", ROWS)
    eve = "eve,seen in 2024 by Eve,c,2024"
    with (home / "data" / "a.csv").open("a") as file:
        file.write(f"{eve}\nada,too,many,cells\n")
    run_steps(home, "p")
    assert rejected(home) == [eve, "ada,too,many,cells"]
    for word in ("2024", "seen", "too"):
        with pytest.raises(ConfigError, match="there is no document"):
            forget_it(home, word)
    assert forget_it(home, "ada").erased["rejected_records"] == 1
    assert rejected(home) == [eve]
    broken = ['{"id": "ada", "title": ["x"}', '{"id": 7, "title": {"a": "ada"}}', '{"title": "ada']
    lines = [*broken, *(json.dumps({"id": name, "title": text}) for name, text, _ in ROWS)]
    (home / "data" / "a.jsonl").write_text("\n".join(lines))
    pipeline = PIPELINE.replace("kind: csv, path: 'data/*.csv'", "kind: jsonl, path: data/a.jsonl")
    write_pipeline(home, "p", pipeline.replace(" metadata: [cat],", ""))
    with run_of(home, "p") as run:
        allow_again(run, ["ada"], [])
    run_steps(home, "p")
    forget_it(home, "ada")
    assert rejected(home) == broken[1:]
    forget_it(home, "7")
    assert rejected(home) == broken[2:]


def test_status_counts_what_is_left_of_the_rejected(home: Path) -> None:
    rows = [("a", "one"), ("b", "a long text that nobody takes"), ("c", "three"), ("c", "four")]
    write_csv(home, "a.csv", rows, "id,title")
    with serve(DIALECT, 8) as server:
        server.poisoned = {rows[1][1]: "Not this one."}.get
        write_pipeline(
            home,
            "p",
            PIPELINE.replace(", metadata: [cat]", "").replace(
                "{provider: hashing}",
                f"{{provider: openai, model: m, dimensions: 8, base_url: '{server.url}/v1'}}",
            ),
        )
        run_steps(home, "p")
        with run_of(home, "p") as run:
            status = pipeline_status(run.spec, run.warehouse)
            assert (status["rejected"], status["rejected_texts"]) == (1, 1)
            forget(run, ["b"], [])
            status = pipeline_status(run.spec, run.warehouse)
            assert (status["rejected"], status["rejected_texts"]) == (1, 0)
        run_steps(home, "p")
        with run_of(home, "p") as run:
            status = pipeline_status(run.spec, run.warehouse)
    assert (status["rejected"], status["rejected_texts"], status["forgotten"]) == (1, 0, 1)


def test_a_file_is_named_from_here_or_from_home(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(released, "p")
    names = {source_name(run, name) for name in ("data/a.csv", str(released / "data/a.csv"))}
    monkeypatch.chdir(released / "data")
    assert names | {source_name(run, "a.csv")} == {"data/a.csv"}
    assert source_name(run, "~no-such-user/a.csv") == "~no-such-user/a.csv"


def test_an_object_keeps_its_name_once_its_rows_are_not_on_record(released: Path) -> None:
    """Else a forget that was killed could not go on, nor be undone."""
    assert source_name(run_of(released, "p"), "s3://shop/a.csv") == "s3://shop/a.csv"


def test_what_is_forgotten_leaves_the_bucket_too(released: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    (released / "warehouse.yaml").write_text(f"bucket: {bucket.as_uri()}\n")
    with at_work(released):
        pass
    receipt = forget_it(released, "ada")
    assert receipt.documents
    # All that was published before is gone; the receipt, which says so, follows.
    first, last = sorted(int(path.stem) for path in bucket.rglob("generations/*.json"))
    read = remote_of(released).generations.read
    (published,) = read(last).files.keys() - read(first).files.keys()
    assert published == f"forgotten/receipts/{Path(receipt.path).name}"
    other = machine(tmp_path / "other", bucket.as_uri())
    write_pipeline(other, "p", PIPELINE)
    write_csv(other, "a.csv", [*ROWS, ("ada", f"{SECRET}.", "c")])
    texts = run_shared(other)
    assert {row[1] for row in ROWS}.isdisjoint(texts)  # their vectors are published
    assert "ada" not in {row["document_id"] for row in live_rows(other, "p").values()}
    with run_of(released, "p") as run:
        assert allow_again(run, ["ada"], []) == 1
    run_shared(other)
    assert "ada" in {row["document_id"] for row in live_rows(other, "p").values()}


def test_a_forget_that_dies_as_it_erases_is_known_to_all(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of what is forgotten is in the bucket before anything is erased."""
    uri = (tmp_path / "bucket").as_uri()
    (released / "warehouse.yaml").write_text(f"bucket: {uri}\n")
    with at_work(released):
        pass

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("embedding_pipelines.forget.forget.erase_by_text", die)
    with pytest.raises(KeyboardInterrupt):
        forget_it(released, "ada")
    other = machine(tmp_path / "other", uri)
    write_pipeline(other, "p", PIPELINE)
    write_csv(other, "a.csv", [*ROWS, ("ada", f"{SECRET}.", "c")])
    run_shared(other)
    assert "ada" not in {row["document_id"] for row in live_rows(other, "p").values()}
    run_shared(released)
    assert "ada" not in {row["document_id"] for row in live_rows(released, "p").values()}


@pytest.mark.parametrize("is_released", [False, True])
def test_what_was_pushed_leaves_the_log_the_cache_and_open_searchers(
    home: Path, is_released: bool
) -> None:
    release(home, ROWS)
    warehouse = Warehouse(home)
    with Pusher(run_of(home, "p").spec, warehouse) as pusher:
        for text in (BEFORE, SECRET):
            pusher.put([{"id": "ada", "title": f"{text}.", "cat": "c"}])
        pusher.put([{"id": "eve", "title": f"{BEFORE}."}, {"id": "id-1", "title": "other"}])
        pusher.delete(["id-2"])
    if is_released:
        run_steps(home, "p")
    searcher = Searcher(warehouse, "p")
    assert {"ada", "eve"} <= {hit.document_id for hit in searcher.search(SECRET, 3).hits}
    assert kept(home)
    receipt = forget_it(home, "ada", "id-2")
    assert receipt.left == []
    assert receipt.erased["pushed_changes"] == 3
    # What another document has too stays with it, and nothing else.
    assert files_with(home / "data" / "warehouse", SECRET) == []
    assert {*pushed_log(warehouse, "p").words()} == {"eve", "id-1"}
    found = {hit.document_id for hit in searcher.search(SECRET, 50).hits}
    assert found == {"eve", *(f"id-{number}" for number in range(20) if number != 2)}
    with Pusher(run_of(home, "p").spec, warehouse) as pusher:
        with pytest.raises(DocumentError, match="forgotten for good"):
            pusher.put([{"id": "ada", "title": "again"}])
        pusher.put([{"id": "bob", "title": "someone else"}])
    run_steps(home, "p")
    rows = live_rows(home, "p")
    assert {row["document_id"] for row in rows.values()} == found | {"bob"}
    assert files_with(home / "data" / "warehouse", SECRET) == []
    with run_of(home, "p") as run:
        allow_again(run, ["ada"], [])
    with Pusher(run_of(home, "p").spec, warehouse) as pusher:
        pusher.put([{"id": "ada", "title": "again"}])


def test_what_a_server_has_on_record_of_its_runs_goes_where_it_quotes(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the proof would name it for ever. A server may delete an old one meanwhile."""

    def listed(folder: Path, pattern: str) -> list[Path]:
        gone = [folder / "gone.json"] if folder == Warehouse(released).runs else []
        return [*gone, *list_files(folder, pattern)]

    monkeypatch.setattr("embedding_pipelines.forget.erase.list_files", listed)
    for name in ("quotes", "other"):
        problem = f"known_items: '{SECRET}.' is not found." if name == "quotes" else "x"
        path = Warehouse(released).runs / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"problem": problem}))
        path.with_suffix(".log").write_text(problem)
    receipt = forget_it(released, "ada")
    assert (receipt.left, receipt.erased["server_runs"]) == ([], 2)
    assert {path.stem for path in Warehouse(released).runs.iterdir()} == {"other"}


def test_what_was_pushed_before_the_first_run_is_forgotten(home: Path) -> None:
    write_pipeline(home, "p", "input_type: text\nmodel: {provider: hashing}\n")
    with Pusher(run_of(home, "p").spec, Warehouse(home)) as pusher:
        pusher.put([{"id": "ada", "text": f"{SECRET}. {'More of it. ' * 900}"}])
        pusher.put([{"id": "eve", "text": "another"}])
    assert kept(home)
    receipt = forget_it(home, "ada")
    assert receipt.left == kept(home) == []
    assert receipt.erased["cached_vectors"] > 2
    with Searcher(Warehouse(home), "p") as searcher:
        assert [hit.document_id for hit in searcher.search(SECRET).hits] == ["eve"]
    with pytest.raises(ConfigError, match="a part of the log"):
        forget_it(home, files=("data/warehouse/pushed/p/0000000001-0000000001-0001.jsonl",))


IMAGES = """\
source: {kind: images, path: photos}
model: {provider: clip, model: seeing}
partitions: 2
evaluation: {known_items: 0, may_shrink: 1}
"""


@pytest.mark.usefixtures("decoded_here")
def test_an_image_leaves_the_cache_and_the_table_of_duplicates(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clip, "model_class", Seeing)
    write_pipeline(home, "p", IMAGES)
    for seed in range(4):
        write(home / "photos" / f"{seed}.png", encoded(drawing(seed)))
    write(home / "photos" / "twice.bmp", encoded(drawing(3), "BMP"))
    run_steps(home, "p")
    with run_of(home, "p") as run:
        digests = {row["document_id"]: row["image"] for row in live_rows(home, "p").values()}
        space, path = run.model.space.id, run.folder.duplicates
        keys = {name: run.cache.key(space, "image", image) for name, image in digests.items()}
        assert len(run.cache.get_many([*keys.values()], None)) == 4
        assert len(read_table(path)) == 2
        receipt = forget_it(home, "twice.bmp")
        assert run.cache.get_many([*keys.values()], None).keys() == {
            keys[name] for name in ("0.png", "1.png", "2.png")
        }
        assert len(read_table(path)) == 0
    assert (receipt.documents, receipt.erased["cached_vectors"], receipt.left) == (2, 1, [])
    assert receipt.notes == [
        "1 of the documents are named by none: all images of the same pixels go."
    ]
    (home / "photos" / "4.png").write_bytes(encoded(drawing(4)))
    assert report(run_steps(home, "p"), "documents").statistics["forgotten"] == 2
    assert live_rows(home, "p").keys() == {f"{seed}.png#0" for seed in (0, 1, 2, 4)}


@pytest.mark.usefixtures("decoded_here")
def test_a_forgotten_image_stays_out_under_any_name_and_in_any_lossless_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clip, "model_class", Seeing)
    write_pipeline(home, "p", IMAGES)
    photos = home / "photos"
    for seed in range(3):
        write(photos / f"{seed}.png", encoded(drawing(seed)))
    run_steps(home, "p")
    (photos / "2.png").rename(photos / "moved.png")
    run_steps(home, "p")
    assert forget_it(home, "2.png").documents == 2  # gone from the source, and in it as moved.png
    write(photos / "2.png", encoded(drawing(5)))  # another picture of the same name
    (photos / "moved.png").rename(photos / "again.png")
    write(photos / "other.webp", encoded(drawing(2), "WEBP", lossless=True))
    assert report(run_steps(home, "p"), "documents").statistics["forgotten"] == 2
    assert live_rows(home, "p").keys() == {"0.png#0", "1.png#0", "2.png#0"}


@pytest.mark.usefixtures("decoded_here")
def test_what_is_said_of_one_broken_image_is_said_of_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clip, "model_class", Seeing)
    write_pipeline(home, "p", IMAGES.replace("photos}", "photos, max_rejected: 5}"))
    write(home / "photos" / "0.png", encoded(drawing(0)))
    write(home / "photos" / "broken.png", encoded(drawing(1))[:200])
    run_steps(home, "p")
    forget_it(home, files=("photos/broken.png",))
    write(home / "photos" / "another.png", encoded(drawing(2))[:200])
    statistics = report(run_steps(home, "p"), "documents").statistics
    assert (statistics["rejected"], statistics["forgotten_files"]) == (1, 1)


def test_a_forget_that_dies_between_two_documents_of_equal_content_ends_right(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the tombstone tells the second command that the other one has to go."""
    pipeline = PIPELINE.replace("id: id, ", "").replace("partitions: 2", "partitions: 16")
    rows = [("1", f"{SECRET}.", "c"), ("2", f"{SECRET}.", "c"), *ROWS]
    release(home, rows, pipeline)
    write, first = Shards.write, True

    def dies_after_the_first(shards: Shards, *args: object) -> object:
        nonlocal first
        if shards.folder.name == "documents":
            if not first:
                raise OSError(errno.EIO, "I/O error")
            first = False
        return write(shards, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Shards, "write", dies_after_the_first)
    with pytest.raises(OSError, match="I/O error"):
        forget_it(home, "data/a.csv:2")
    monkeypatch.undo()
    assert kept(home) != []
    assert forget_it(home, "data/a.csv:2").left == []
    assert kept(home) == []


@pytest.mark.usefixtures("decoded_here")
def test_what_stands_there_of_another_kind_of_source_is_forgotten_as_what_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline file has changed since the last run, to images or from them."""
    monkeypatch.setattr(Clip, "model_class", Seeing)
    texts = PIPELINE.replace("{provider: hashing}", "{provider: clip, model: seeing}")
    release(home, [("ada", SECRET, "c"), ("b", "another text", "c")], texts)
    for seed in range(2):
        write(home / "photos" / f"{seed}.png", encoded(drawing(seed)))
    write_pipeline(home, "p", IMAGES)
    assert forget_it(home, "ada").left == []
    assert kept(home) == []
    run_steps(home, "p")
    write_pipeline(home, "p", texts)
    assert forget_it(home, "0.png").erased["cached_vectors"] == 1
    (home / "photos" / "0.png").rename(home / "photos" / "again.png")
    write_pipeline(home, "p", IMAGES)
    run_steps(home, "p")
    assert live_rows(home, "p").keys() == {"1.png#0"}
