"""A warehouse in a bucket: several machines, one writer, and nothing that is published is lost."""

import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_pipelines.delete import delete_pipeline, plan_deletion
from embedding_pipelines.errors import BucketError, BusyError, ConfigError, DocumentError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.forget.forget import forget
from embedding_pipelines.objects import Bucket
from embedding_pipelines.push import Pusher
from embedding_pipelines.releases import live_release, read_releases, rollback
from embedding_pipelines.remote import Remote, Writer, is_current, refresh
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.status import pipeline_status
from embedding_pipelines.steps.embeddings import re_embed
from embedding_pipelines.storage import generations
from embedding_pipelines.storage.forgotten import read_forgotten, write_forgotten
from embedding_pipelines.storage.lease import Lease
from embedding_pipelines.storage.receipts import Receipts
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.buckets import Exchange, Proxy, TestBucket
from embedding_pipelines_tests.chain import (
    assert_same_rows,
    live_rows,
    run_of,
    run_recorded,
    top,
    write_csv,
)
from embedding_pipelines_tests.decoded import files_with
from embedding_pipelines_tests.shared import (
    EDITED,
    PIPELINE,
    ROWS,
    at_work,
    copy_machine,
    let_leases_end,
    machine,
    remote_of,
    run_shared,
)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one release, which is in no bucket yet."""
    home = machine(tmp_path_factory.mktemp("released"), "")
    (home / "warehouse.yaml").unlink()
    run_recorded(home, "p")
    return home


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return (tmp_path / "bucket").as_uri()


@pytest.fixture
def one(released: Path, tmp_path: Path, uri: str) -> Path:
    """A machine that has published."""
    home = copy_machine(released, tmp_path / "one", uri)
    with at_work(home):
        pass
    return home


@pytest.fixture
def two(tmp_path: Path, uri: str) -> Path:
    """Another one, with the pipeline's file alone."""
    return machine(tmp_path / "two", uri)


def stop_after(function: Callable[..., Any], *arguments: Any) -> None:
    function(*arguments)
    raise KeyboardInterrupt


def files_of(home: Path) -> set[str]:
    root = home / "data" / "warehouse"
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def die_as_it_fetches(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are here, the cache has none of their vectors, and no index says so."""
    with monkeypatch.context() as patched:
        patched.setattr(Remote, "_fill_cache", partial(stop_after, lambda *_: None))
        with pytest.raises(KeyboardInterrupt):
            run_shared(home)


def test_another_machine_goes_on_where_the_first_one_was(one: Path, two: Path) -> None:
    assert run_shared(two) == []
    assert_same_rows(live_rows(two, "p"), live_rows(one, "p"))
    write_csv(two, "a.csv", EDITED)
    assert sorted(run_shared(two)) == ["text added", "text zero"]
    assert set(top(one, "p", "text added", k=1)) == {"id-99"}  # a search follows the bucket
    write_csv(one, "a.csv", EDITED)
    assert run_shared(one) == []
    assert_same_rows(live_rows(one, "p"), live_rows(two, "p"))


def test_a_machine_that_died_while_it_fetched_pays_for_no_text_that_is_published(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_as_it_fetches(two, monkeypatch)
    write_csv(two, "a.csv", EDITED)
    assert sorted(run_shared(two)) == ["text added", "text zero"]


def test_a_machine_that_died_while_it_fetched_first_follows_whoever_published_since(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_as_it_fetches(two, monkeypatch)
    write_csv(one, "a.csv", EDITED)
    run_shared(one)
    write_csv(two, "a.csv", EDITED)
    assert run_shared(two) == []
    assert_same_rows(live_rows(two, "p"), live_rows(one, "p"))


def test_a_search_fetches_what_it_reads_alone(one: Path, two: Path) -> None:
    assert top(two, "p", "text 3") == top(one, "p", "text 3")
    fetched = files_of(two)
    assert any(name.startswith("tables/") for name in fetched)
    assert not [
        name for name in fetched if re.search(r"(^|/)b\d\d[-.]", name)
    ]  # no shard of a partition
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delattr(Bucket, "fetch")
        assert top(two, "p", "text 4") == top(one, "p", "text 4")


def test_a_reader_of_all_fetches_all(one: Path, two: Path) -> None:
    refresh(Warehouse(two), "p")
    assert_same_rows(live_rows(two, "p"), live_rows(one, "p"))
    own = {"activity.json", "last_run.json", "bucket.json", "run.lock", "step.lock"}
    theirs = {name for name in files_of(one) if name.startswith(("tables", "pipelines"))}
    assert {n for n in theirs if n.rpartition("/")[2] not in own} <= files_of(two)


def test_what_was_deployed_to_a_machine_is_on_record_there_alone(one: Path, two: Path) -> None:
    """And stays so, whatever another one publishes."""
    refresh(Warehouse(two), "p")
    path = Warehouse(two).pipeline("p").received
    write_json(path, {"releases": [1]})
    write_csv(one, "a.csv", EDITED)
    run_shared(one)
    refresh(Warehouse(two), "p")
    assert read_json(path) == {"releases": [1]}
    assert not Warehouse(one).pipeline("p").received.exists()


def test_a_status_fetches_records_alone(one: Path, two: Path) -> None:
    def status(home: Path) -> dict[str, Any]:
        return pipeline_status(find_pipeline("p", home), Warehouse(home))

    here, there = status(one), status(two)
    assert there["live_release"] == 1
    assert (there["chunks"], there["embeddings"]) == (here["chunks"], here["embeddings"])
    assert there["bucket"].startswith("generation 1 in file://")
    assert "no rows" in there["source"]
    assert not [name for name in files_of(two) if name.endswith(".parquet")]


@pytest.mark.parametrize("has_all", [False, True], ids=["of a search", "whole"])
def test_a_status_leaves_a_copy_that_can_be_searched(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch, has_all: bool
) -> None:
    refresh(Warehouse(two), "p", "all" if has_all else "search")
    (one / "pipelines" / "p.yaml").write_text(PIPELINE.replace("[float16]", "[]"))
    write_csv(one, "a.csv", EDITED)
    run_shared(one)  # a table of its own
    pipeline_status(find_pipeline("p", two), Warehouse(two))

    def fail(*_: object, **__: object) -> None:
        raise BucketError("s3://b: the store does not answer.")

    monkeypatch.setattr(Bucket, "list_after", fail)
    assert top(two, "p", "text added", k=1) == ["id-99"]


def test_a_search_keeps_no_table_that_is_published_no_more(one: Path, two: Path) -> None:
    top(two, "p", "text 3")
    stray = Warehouse(two).tables / "p-0123456789ab.lance" / "data" / "0.lance"
    stray.parent.mkdir(parents=True)
    stray.write_text("what was forgotten")
    write_csv(one, "a.csv", EDITED)
    run_shared(one)
    assert top(two, "p", "text added", k=1) == ["id-99"]
    assert not stray.parent.parent.exists()


def test_a_first_search_waits_for_another_that_fetches(one: Path, two: Path) -> None:
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with Warehouse(two).pipeline("p").lock("run"):
            held.set()
            end.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    timer = threading.Timer(0.3, end.set)
    timer.start()
    assert top(two, "p", "text 3") == top(one, "p", "text 3")
    other.join()
    timer.join()


def test_nothing_new_costs_one_listing(
    released: Path, tmp_path: Path, bucket: TestBucket, proxy: Proxy
) -> None:
    home = copy_machine(released, tmp_path / "home", f"{bucket.uri}/w")
    assert not is_current(Warehouse(home), "p")
    with at_work(home):
        pass
    before = len(proxy.paths)
    assert is_current(Warehouse(home), "p")
    assert [path.partition("?")[0] for path in proxy.paths[before:]] == [f"GET /{bucket.name}"]


def test_lancedb_opens_the_live_version_in_the_bucket(
    released: Path, tmp_path: Path, bucket: TestBucket
) -> None:
    import lancedb

    home = copy_machine(released, tmp_path / "home", f"{bucket.uri}/w")
    with at_work(home):
        pass
    write_csv(home, "a.csv", EDITED)
    run_shared(home)
    release = live_release(Warehouse(home).pipeline("p"))
    options = {"aws_endpoint": bucket.address, "allow_http": "true"}
    table = lancedb.connect(f"{bucket.uri}/w/tables", storage_options=options).open_table(
        release.table
    )
    table.checkout(release.version)
    there = {row["chunk_id"]: row for row in table.to_arrow().to_pylist()}
    assert_same_rows(there, live_rows(home, "p"))


def test_a_second_writer_is_told_and_writes_nothing(one: Path, two: Path) -> None:
    before = files_of(two)
    with at_work(one):
        with pytest.raises(BusyError, match="is being run by process"), at_work(two):
            pass
        new = {name for name in files_of(two) - before if not name.endswith("run.lock")}
    assert new == {"copy.id"}


def test_a_writer_whose_lease_was_taken_over_publishes_nothing(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(one, "a.csv", EDITED)
    work = ExitStack()
    writer = work.enter_context(at_work(one))
    run_recorded(one, "p")
    writer.require_lease()
    with monkeypatch.context() as later:
        let_leases_end(later)
        write_csv(two, "a.csv", ROWS[:6])
        run_shared(two)
    with pytest.raises(BusyError, match="was taken over by"):
        writer.require_lease()
    with pytest.raises(BusyError, match="was taken over by") as refusal:
        work.close()
    assert "is not published" in str(refusal.value)
    assert len(live_rows(two, "p")) == 6
    write_csv(one, "a.csv", ROWS[:6])
    run_shared(one)
    assert_same_rows(live_rows(one, "p"), live_rows(two, "p"))
    assert read_releases(Warehouse(one).pipeline("p")) == read_releases(
        Warehouse(two).pipeline("p")
    )


def test_an_overtaken_run_goes_on_where_nobody_published_after_it(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever took the lease over died before it did anything with it."""
    write_csv(one, "a.csv", EDITED)
    work = ExitStack()
    work.enter_context(at_work(one))
    run_recorded(one, "p")
    let_leases_end(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(Writer, "begin", lambda _: stop_after(lambda: None))
        patched.setattr(Lease, "_give_back", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            run_shared(two)
    with pytest.raises(BusyError, match="was taken over"):
        work.close()
    assert run_shared(one) == []
    assert len(live_rows(one, "p")) == len(EDITED)
    assert set(top(two, "p", "text added", k=1)) == {"id-99"}


def test_a_sleeper_that_had_looked_before_cannot_publish_either(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes a lease over closes the number that the sleeper would publish under."""
    write_csv(one, "a.csv", EDITED)
    work = ExitStack()
    work.enter_context(at_work(one))
    run_recorded(one, "p")
    with monkeypatch.context() as later:
        let_leases_end(later)
        with at_work(two):
            pass
    monkeypatch.setattr(Lease, "renew", lambda _: True)  # just before it fell asleep
    with pytest.raises(BusyError, match="was taken over"):
        work.close()
    assert len(live_rows(two, "p")) == len(ROWS)


def test_what_a_dead_writer_left_under_a_version_harms_nobody(
    one: Path, two: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wrote the table's next version into the bucket, and died before it published it."""
    write_csv(one, "a.csv", EDITED)
    other = [("id-0", "text nought", "c"), *ROWS[2:], ("id-98", "another", "d")]

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(generations.Generations, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            run_shared(one)
    write_csv(two, "a.csv", other)  # as many commits to the table
    run_shared(two)
    remote = remote_of(two)
    number = remote.newest()
    assert number is not None
    keys = {entry.key for entry in remote.generations.read(number).files.values()}
    moved = {key.split("/")[1] for key in keys if key.startswith("tables/") and "~" in key}
    assert len(moved) == 1  # the whole table, so that it can be opened there
    assert len({key.split("/")[1] for key in keys if key.startswith("tables/")}) == 1
    write_csv(two, "a.csv", other[:9])
    run_shared(two)
    write_csv(one, "a.csv", other[:9])
    assert run_shared(one) == []
    assert_same_rows(live_rows(one, "p"), live_rows(two, "p"))


def test_what_a_killed_run_made_is_published_by_the_next(one: Path, two: Path) -> None:
    write_csv(one, "a.csv", EDITED)
    with pytest.raises(KeyboardInterrupt), at_work(one):
        stop_after(run_recorded, one, "p")
    assert not is_current(Warehouse(one), "p")
    assert top(two, "p", "text added") != ["id-99"]
    assert run_shared(one) == []
    assert is_current(Warehouse(one), "p")
    assert top(two, "p", "text added") == ["id-99"]


def test_without_the_bucket_a_search_answers_and_a_run_refuses(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BucketError("s3://b: the store does not answer.")

    monkeypatch.setattr(Bucket, "list_after", fail)
    with Searcher(Warehouse(one), "p") as searcher:
        result = searcher.search("text 3", k=1)
    assert len(result.hits) == 1
    assert "does not answer. What answers is the copy on this machine, of 20" in result.notes[0]
    with pytest.raises(BucketError, match="does not answer"), at_work(one):
        pytest.fail("it ran")


def test_without_bucket_and_copy_there_is_nothing_to_answer(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BucketError("s3://b: the store does not answer.")

    monkeypatch.setattr(Bucket, "list_after", fail)
    with pytest.raises(BucketError):
        Searcher(Warehouse(two), "p")


def test_a_rollback_is_published(one: Path, two: Path) -> None:
    write_csv(one, "a.csv", EDITED)
    run_shared(one)
    with at_work(one):
        rollback(Warehouse(one).pipeline("p"), None)
    assert top(two, "p", "text added") != ["id-99"]
    assert live_release(Warehouse(two).pipeline("p")).number == 1


def test_what_is_deleted_goes_from_the_bucket_and_from_other_machines(
    one: Path, two: Path, tmp_path: Path
) -> None:
    run_shared(two)
    delete_pipeline(one, "p", keep_file=True)
    left = {path.name for path in (tmp_path / "bucket").rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith((".parquet", ".lance", ".manifest"))]
    refresh(Warehouse(two), "p")
    assert read_releases(Warehouse(two).pipeline("p")).releases == []
    assert run_shared(one) == []  # the cache has them
    assert_same_rows(live_rows(one, "p"), live_rows(two, "p"))


def test_a_machine_that_never_ran_it_deletes_what_another_published(
    one: Path, two: Path, tmp_path: Path
) -> None:
    run_shared(one)
    assert plan_deletion(two, "p", keep_file=True).releases == [1]
    delete_pipeline(two, "p", keep_file=True)
    left = {path.suffix for path in (tmp_path / "bucket").rglob("*") if path.is_file()}
    assert left.isdisjoint({".parquet", ".lance", ".manifest"})


def test_releases_that_were_never_published_are_not_replaced(
    one: Path, released: Path, tmp_path: Path, uri: str
) -> None:
    other = shutil.copytree(released, tmp_path / "other")
    write_csv(other, "a.csv", EDITED)
    run_recorded(other, "p")
    (other / "warehouse.yaml").write_text(f"bucket: {uri}\n")
    with pytest.raises(ConfigError, match=r"never published.*Keep one of them"), at_work(other):
        pass
    assert read_releases(Warehouse(other).pipeline("p")).live == 2


def test_they_are_not_deleted_for_a_generation_without_releases_either(
    released: Path, tmp_path: Path, uri: str
) -> None:
    machine(tmp_path / "first", uri)
    with at_work(tmp_path / "first"):  # its run was held back
        folder = Warehouse(tmp_path / "first").pipeline("p").folder
        (folder / "files.json").write_text("{}")
    other = copy_machine(released, tmp_path / "other", uri)
    with pytest.raises(ConfigError, match=r"never published.*none of them"), at_work(other):
        pass
    with pytest.raises(ConfigError, match="never published"):
        refresh(Warehouse(other), "p")
    assert read_releases(Warehouse(other).pipeline("p")).live == 1


def forget_list(home: Path, document: str) -> Path:
    path = Warehouse(home).forgotten / "p.json"
    write_forgotten(path, read_forgotten(path).with_more({"id": [document]}))
    return path


def test_what_is_forgotten_outlives_a_deletion_with_its_copy(
    one: Path, two: Path, tmp_path: Path
) -> None:
    with at_work(one):
        forget_list(one, "id-a")
    delete_pipeline(one, "p", keep_file=True)
    assert not Warehouse(one).pipeline("p").folder.exists()
    last = max((tmp_path / "bucket/pipelines/p/generations").iterdir())
    files = remote_of(two).generations.read(int(last.stem)).files
    assert set(files) == {"forgotten/p.json", "forgotten/p.copy.json"}
    refresh(Warehouse(two), "p")
    assert {"forgotten/p.json", "forgotten/p.copy.json"} <= files_of(two)


def test_what_is_lost_here_is_fetched_again_and_not_lost_for_all(one: Path, two: Path) -> None:
    shutil.rmtree(Warehouse(one).tables)
    (Warehouse(one).pipeline("p").folder / "files.json").write_text("damaged")
    with at_work(one):
        pass
    assert top(two, "p", "text 3") == top(one, "p", "text 3")
    assert remote_of(one).newest() == 1


def test_receipts_stay_where_a_server_writes_them(one: Path, two: Path) -> None:
    run_shared(one)
    receipts = Receipts(Warehouse(one).pipeline("p").folder)
    receipts.add("tea", ["id-1"], release=1, mode="vector", k=1, keeps_text=True)
    with at_work(one):
        receipts.add("milk", ["id-2"], release=1, mode="vector", k=1, keeps_text=True)
    write_csv(two, "a.csv", EDITED)
    run_shared(two)
    assert not (Warehouse(two).pipeline("p").folder / "receipts").exists()
    refresh(Warehouse(one), "p", "search")
    assert live_release(Warehouse(one).pipeline("p")).number == 2
    assert [each.query for each in receipts.read()[0]] == ["tea", "milk"]


def test_what_is_forgotten_elsewhere_leaves_the_receipts_and_its_proof_is_fetched(
    one: Path, two: Path
) -> None:
    run_shared(one)
    refresh(Warehouse(two), "p", "search")
    receipts = Receipts(Warehouse(two).pipeline("p").folder)
    for query, documents in (("tea with Ada", ["id-1", "id-2"]), ("milk", ["id-2", "id-3"])):
        name = receipts.add(query, documents, release=1, mode="text", k=2, keeps_text=True)
        receipts.rate(name, "id-2", 3)
    with run_of(one, "p") as run:
        proof = forget(run, ["id-1"], []).path
    refresh(Warehouse(two), "p", "search")
    # Nobody has the text here any more, which the first query may quote.
    assert [(each.query, each.documents) for each in receipts.read()[0]] == [
        ("milk", ["id-2", "id-3"])
    ]
    with (
        Pusher(find_pipeline("p", two), Warehouse(two)) as pusher,
        pytest.raises(DocumentError, match="forgotten for good"),
    ):
        pusher.put([{"id": "id-1", "title": "it again", "cat": "c"}])
    refresh(Warehouse(two), "p")
    assert (Warehouse(two).forgotten / "receipts" / Path(proof).name).is_file()


def test_what_quotes_a_text_that_is_forgotten_elsewhere_goes_while_the_text_is_at_hand(
    one: Path, two: Path
) -> None:
    """Whatever it was shown for, whichever pipeline was asked, and on the machine of a server, which
    has no shards."""
    secret = "Ada Lovelace lives in the blue house"
    write_csv(one, "a.csv", [*ROWS, ("ada", secret, "c")])
    run_shared(one)
    refresh(Warehouse(two), "p", "search")
    warehouse = Warehouse(two)
    folders = [warehouse.pipelines / name for name in ("p", "q")]
    for folder in folders:
        for query in (f"who said: {secret}?", "milk"):
            Receipts(folder).add(query, ["id-2"], release=1, mode="text", k=1, keeps_text=True)
    with run_of(two, "p") as run:
        keys = [run.cache.key(run.model.space.id, "query", text) for text in (secret, "milk")]
        run.cache.put_many(keys, np.ones((2, run.model.space.dimensions), np.float32), "a space")
    report = warehouse.root / "reports" / "p.html"
    report.parent.mkdir()
    report.write_text(secret)
    with run_of(one, "p") as run:
        forget(run, ["ada"], [])
    refresh(warehouse, "p", "search")
    for folder in folders:
        assert [each.query for each in Receipts(folder).read()[0]] == ["milk"]
    with run_of(two, "p") as run:
        assert run.cache.get_many(keys, None).keys() == {keys[1]}
    assert files_with(two / "data" / "warehouse", secret) == []


def test_what_is_deleted_elsewhere_leaves_the_receipts(one: Path, two: Path) -> None:
    run_shared(one)
    refresh(Warehouse(two), "p", "search")
    receipts = Receipts(Warehouse(two).pipeline("p").folder)
    receipts.add("tea", ["id-1"], release=1, mode="text", k=1, keeps_text=True)
    delete_pipeline(one, "p")
    refresh(Warehouse(two), "p", "search")
    assert receipts.read() == ([], [])


def test_what_is_marked_to_be_embedded_again_is_published(one: Path, two: Path) -> None:
    with run_of(one, "p") as run:
        re_embed(run)
    write_csv(two, "a.csv", EDITED)
    with at_work(two):
        pass
    refresh(Warehouse(two), "p")
    assert Warehouse(two).pipeline("p").embed_anew.exists()
    refresh(Warehouse(one), "p")
    assert Warehouse(one).pipeline("p").embed_anew.exists()


def test_who_slept_before_it_erases_erases_nothing(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(two, "a.csv", EDITED)
    erase = generations.Generations.erase

    def sleep_and_erase(*args: Any) -> bool:
        with monkeypatch.context() as later:
            let_leases_end(later)
            run_shared(two)
        return erase(*args)

    monkeypatch.setattr(generations.Generations, "erase", sleep_and_erase)
    with pytest.raises(BusyError, match="is not erased: say the command again"), at_work(one) as w:
        w.forget()
    monkeypatch.undo()
    assert top(two, "p", "text added", k=1) == ["id-99"]
    assert run_shared(two) == []
    write_csv(one, "a.csv", EDITED)
    assert run_shared(one) == []


def test_a_deletion_of_who_was_overtaken_deletes_nothing(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = ExitStack()
    writer = work.enter_context(at_work(one))
    with monkeypatch.context() as later:
        let_leases_end(later)
        run_shared(two)
    with pytest.raises(BusyError, match="was taken over"):
        writer.delete()
    work.close()
    assert run_shared(two) == []


def test_who_was_overtaken_uploads_nothing(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = ExitStack()
    work.enter_context(at_work(one))
    with monkeypatch.context() as later:
        let_leases_end(later)
        run_shared(two)
    forget_list(one, "id-a")
    monkeypatch.delattr(generations.Generations, "upload")
    with pytest.raises(BusyError, match="was taken over"):
        work.close()


def test_a_forget_that_ended_before_it_published_is_said(
    one: Path, two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt), at_work(one):
        stop_after(forget_list, one, "id-b")
    with at_work(two):
        forget_list(two, "id-c")
    with at_work(one):
        pass
    assert "Say the same command again" in caplog.text


def test_an_object_that_is_damaged_or_gone_is_named(one: Path, two: Path, tmp_path: Path) -> None:
    (data,) = (tmp_path / "bucket" / "tables").rglob("data/*.lance")
    content = data.read_bytes()
    data.write_bytes(content[:-1] + b"x")
    with pytest.raises(BucketError, match=r"data/.*\.lance is damaged: its content"):
        Searcher(Warehouse(two), "p")
    data.unlink()
    with pytest.raises(BucketError, match=r"data/.*\.lance is gone"):
        Searcher(Warehouse(two), "p")
    data.write_bytes(content)
    assert top(two, "p", "text 3") == top(one, "p", "text 3")


def test_a_bucket_that_lost_its_generations_is_an_error(one: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "bucket" / "pipelines" / "p" / "generations").iterdir():
        path.unlink()
    with pytest.raises(BucketError, match=r"does not hold generation 1 .* any more"), at_work(one):
        pass


def test_old_generations_and_what_none_names_are_swept(
    one: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "KEPT", timedelta(0))
    for number in range(5):
        write_csv(one, "a.csv", [*ROWS, ("new", f"text of {number}", "c")])
        run_shared(one)
    bucket = tmp_path / "bucket"
    kept = sorted((bucket / "pipelines" / "p" / "generations").iterdir())
    assert [path.stem.lstrip("0") for path in kept] == ["4", "5", "6"]
    named = {
        entry.key
        for path in kept
        for entry in remote_of(one).generations.read(int(path.stem)).files.values()
    }
    there = {path.relative_to(bucket).as_posix() for path in bucket.rglob("*") if path.is_file()}
    assert named <= there
    others = {
        name for name in there - named if "/lease/" not in name and "/generations/" not in name
    }
    assert others <= {"warehouse.json", "pipelines/p/clock"}
    assert_same_rows(live_rows(two, "p"), live_rows(one, "p"))


class Died(BaseException):
    """Stands for `kill -9`."""


METHODS = ("create", "read", "list_after", "find", "delete", "touch")


def small(home: Path, uri: str, content: str) -> Path:
    """A home whose pipeline has a few files, which no step has made."""
    machine(home, uri)
    write_files(home, content)
    return home


def write_files(home: Path, content: str) -> None:
    folder = Warehouse(home).pipeline("p").folder
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    for name in ("releases.json", "releases.copy.json", "documents/b00.json"):
        (folder / name).write_text(f'{{"is": "{content}"}}')
    versions = home / "data/warehouse/tables/p-1.lance/_versions"
    versions.mkdir(parents=True, exist_ok=True)
    (versions / "9.manifest").write_text(content)


def contents(home: Path) -> set[str]:
    folder = Warehouse(home).pipeline("p").folder
    versions = home / "data/warehouse/tables/p-1.lance/_versions"
    names = ("releases.json", "releases.copy.json", "documents/b00.json")
    return {(folder / n).read_text() for n in names} | {(versions / "9.manifest").read_text()}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [Died, BucketError], ids=["kill", "failure"])
def test_a_push_that_ends_at_any_call_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], after: bool
) -> None:
    for at in range(1, 100):
        uri = (tmp_path / f"bucket{at}").as_uri()
        home = small(tmp_path / f"home{at}", uri, "old")
        with at_work(home):
            pass
        calls = _end_at(monkeypatch, home, at, after, error)
        other = machine(tmp_path / f"other{at}", uri)
        refresh(Warehouse(other), "p")
        assert contents(other) in ({'{"is": "old"}', "old"}, {'{"is": "new"}', "new"})
        has_run = contents(home) == {'{"is": "new"}', "new"}
        with at_work(home):  # the next run
            assert contents(home) == {'{"is": "new"}', "new"} or not has_run
            write_files(home, "new")
        refresh(Warehouse(other), "p")
        assert contents(other) == {'{"is": "new"}', "new"}
        if calls < at:
            break
    assert 15 < at < 99


def _end_at(
    monkeypatch: pytest.MonkeyPatch, home: Path, at: int, after: bool, error: type[BaseException]
) -> int:
    """Change and push, with call `at` to the store failing before or after it did what it should;
    how many calls there were."""
    calls = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            number = calls
            if number == at and not after:
                raise error("it failed")
            if number > at and error is Died:
                raise error("it is dead")
            result = function(*args, **options)
            if number == at:
                raise error("it failed")
            return result

        return call

    with monkeypatch.context() as patched:
        for name in METHODS:
            patched.setattr(Bucket, name, wrap(getattr(Bucket, name)))
        with suppress(error, BusyError), at_work(home):
            write_files(home, "new")
    return calls


def test_faults_of_the_network_are_waited_for(
    tmp_path: Path, bucket: TestBucket, proxy: Proxy
) -> None:
    home = small(tmp_path / "home", bucket.uri, "old")

    def fail_often(exchange: Exchange) -> bool:
        if exchange.number % 5 == 2:
            return exchange.answer(503, b"<Code>SlowDown</Code>")
        return exchange.reset() if exchange.number % 7 == 3 else False

    proxy.fault = fail_often
    with at_work(home):
        write_files(home, "new")
    other = machine(tmp_path / "other", bucket.uri)
    refresh(Warehouse(other), "p")
    assert contents(other) == contents(home)


def test_two_pipelines_share_a_bucket_and_nothing_else(one: Path, two: Path) -> None:
    for home in (one, two):
        (home / "pipelines" / "p-x.yaml").write_text(PIPELINE)
    remote = remote_of(one)
    assert remote.owns_table("p-0123456789ab.lance")
    assert remote.owns_table("p-0123456789ab.2.lance")
    assert remote.owns_table("p-0123456789ab~1a.checksums.json")
    assert not remote.owns_table("p-x-0123456789ab.lance")


def test_a_home_that_cannot_be_written_is_searched_as_it_is(
    one: Path, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top(two, "p", "text 3")
    write_csv(one, "a.csv", EDITED)
    run_shared(one)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13), "run.lock")

    monkeypatch.setattr("embedding_pipelines.storage.warehouse._hold", refuse)
    with Searcher(Warehouse(two), "p") as searcher:
        result = searcher.search("text 3", k=1)
    assert "What answers is the copy on this machine" in result.notes[0]
