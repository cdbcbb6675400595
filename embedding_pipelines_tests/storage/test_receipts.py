"""Receipts: what people searched for, and what they said of it."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from embedding_pipelines.storage.receipts import KEPT_DAYS, Receipts


def add(receipts: Receipts, query: str = "red fox", keeps_text: bool = True) -> str:
    return receipts.add(
        query, ["1", "2", "1"], release=3, mode="vector", k=10, keeps_text=keeps_text
    )


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    names = [add(receipts), add(receipts, "blue whale")]
    assert receipts.rate(names[1], "2", 3)
    read, (rating,) = receipts.read()
    assert [each.id for each in read] == names
    assert (read[0].query, read[0].documents, read[0].release) == ("red fox", ["1", "2"], 3)
    assert (rating.receipt, rating.document_id, rating.rating) == (names[1], "2", 3)


def test_a_rating_reads_one_line(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    names = [add(receipts, f"query {number}") for number in range(3)]
    (path,) = receipts._files()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"x" * len(lines[1][:-1]) + b"\n" + lines[2])
    assert receipts.rate(names[2], "1", 1)
    assert not receipts.rate(names[1], "1", 1)  # damaged
    path.write_bytes(lines[0] + lines[1][:-9])
    assert receipts.rate(add(receipts), "1", 1)  # behind a torn line


def test_a_hash_tells_equal_queries_and_nothing_else(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    for query in ("red fox", "red fox", "blue whale"):
        add(receipts, query, keeps_text=False)
    first, second, third = receipts.read()[0]
    assert first.query is None
    assert first.hash == second.hash != third.hash
    assert Receipts(tmp_path / "other")._hash("red fox") != first.hash
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"fox" in data for data in files)


@pytest.mark.parametrize(
    "name", ["", "x", "20260101-x", "../../etc/passwd-1", "20261127-" + "0" * 32]
)
def test_nobody_can_rate_what_was_not_shown(tmp_path: Path, name: str) -> None:
    receipts = Receipts(tmp_path)
    add(receipts)
    assert not receipts.rate(name, "1", 1)
    assert receipts.read()[1] == []


def test_a_forgotten_document_is_in_no_receipt(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    name = add(receipts)
    receipts.rate(name, "1", 2)
    receipts.rate(name, "2", 2)
    assert receipts.forget({"1"}.__contains__) == 2
    read, ratings = receipts.read()
    assert read[0].documents == ["2"]
    assert [rating.document_id for rating in ratings] == ["2"]
    assert not receipts.rate(name, "1", 1)  # its id does not come back
    later = add(receipts)
    assert receipts.forget({"2"}.__contains__) == 3  # so that it begins elsewhere
    assert receipts.rate(later, "1", 1)
    assert Receipts(tmp_path / "none").forget({"1"}.__contains__) == 0


def test_a_receipt_that_quotes_what_is_forgotten_goes_as_a_whole(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    add(receipts)
    kept = add(receipts, "blue whale")
    assert receipts.forget(set().__contains__, lambda line: "fox" in line["query"]) == 1
    assert [each.id for each in receipts.read()[0]] == [kept]


def test_with_a_hash_the_filter_is_not_kept_either(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    for keeps_text in (True, False):
        receipts.add(
            *("fox", []), release=1, mode="text", k=1, filter="who = 'Ann'", keeps_text=keeps_text
        )
    assert [each.filter for each in receipts.read()[0]] == ["who = 'Ann'", None]


def test_days_that_are_over_are_deleted(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    today = datetime.now(UTC).date()
    receipts.folder.mkdir()
    old, kept = (receipts.folder / f"{today - timedelta(days=KEPT_DAYS + n)}.jsonl" for n in (1, 0))
    for path in (old, kept):
        path.touch()
    add(receipts)
    assert not old.exists()
    assert kept.exists()


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    add(receipts)
    (path,) = receipts.folder.glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"id": "torn')
    add(receipts, "blue whale")
    assert [each.query for each in receipts.read()[0]] == ["red fox", "blue whale"]


def test_nothing_is_lost_when_several_write_and_one_forgets(tmp_path: Path) -> None:
    def write(number: int) -> None:
        own = Receipts(tmp_path)
        for each in range(20):
            add(own, f"query {number} {each}")

    threads = [threading.Thread(target=write, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        Receipts(tmp_path).forget({"1"}.__contains__)
    for thread in threads:
        thread.join()
    assert len({each.query for each in Receipts(tmp_path).read()[0]}) == 80
