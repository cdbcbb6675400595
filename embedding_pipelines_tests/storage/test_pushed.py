"""The log of pushed documents: durable, in order, of several writers, and merged without a loss."""

import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.errors import BucketError, ConfigError, StoreError
from embedding_pipelines.files import seal
from embedding_pipelines.storage import pushed
from embedding_pipelines.storage.pushed import (
    MOST_SEGMENTS,
    Change,
    PushedLog,
    PushedWatch,
    Segment,
    in_force,
    pushed_log,
)
from embedding_pipelines.storage.warehouse import Warehouse


def put(name: str, text: str = "") -> Change:
    return Change(name, "put", {"id": name, "text": text})


def state(log: PushedLog, after: int = 0) -> dict[str, Change]:
    """The last word on each id behind a number."""
    return {change.id: change for _, change in log.changes(after)}


def test_a_log_that_nobody_wrote_is_empty(tmp_path: Path) -> None:
    log = PushedLog(tmp_path / "none")
    assert (log.last(), log.segments(), log.changes(), log.words()) == (0, [], [], {})


def test_changes_come_back_in_order_with_their_numbers(tmp_path: Path) -> None:
    log = PushedLog(tmp_path)
    assert log.append([put("a", "one"), put("b", "é\n\u2028")]) == 1
    assert log.append([Change("a", "delete"), Change("b", "withdraw")]) == 2
    assert [(number, change.id, change.kind) for number, change in log.changes()] == [
        (1, "a", "put"),
        (1, "b", "put"),
        (2, "a", "delete"),
        (2, "b", "withdraw"),
    ]
    assert log.changes()[1][1].record == {"id": "b", "text": "é\n\u2028"}
    assert [number for number, _ in log.changes(1)] == [2, 2]
    assert {name: word.kind for name, word in log.words().items()} == {
        "a": "delete",
        "b": "withdraw",
    }


def test_a_lost_log_never_gives_a_number_again(tmp_path: Path) -> None:
    log = PushedLog(tmp_path)
    with pytest.raises(StoreError, match=r"up to the number 0, and a release of .* up to 41"):
        log.append([put("a")], after=41)
    log.append([put("a")])
    assert log.append([put("a")], after=1) == 2


def test_a_lost_segment_is_named(tmp_path: Path) -> None:
    log = PushedLog(tmp_path)
    for name in "abc":
        log.append([put(name)])
    log.path(Segment(2, 2)).unlink()
    with pytest.raises(StoreError, match="lacks what was pushed under the number 2"):
        log.words()


def test_a_flipped_bit_is_named_and_never_skipped(tmp_path: Path) -> None:
    log = PushedLog(tmp_path)
    log.append([put("a"), put("b")])
    path = log.path(Segment(1, 1))
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"0000000001-0000000001-0000\.jsonl:2 is damaged"):
        log.changes()


def test_merging_keeps_every_last_word_behind_every_number(tmp_path: Path) -> None:
    log = PushedLog(tmp_path)
    for number in range(3 * MOST_SEGMENTS):
        kind = ("put", "delete", "withdraw", "put")[number % 4]
        name = str(number % 7)
        log.append([put(name, str(number)) if kind == "put" else Change(name, kind)])
    last = log.last()
    before = {after: state(log, after) for after in range(last)}
    numbers = {word.number for word in log.words().values()}
    assert log.merge(settled=last)
    assert len(log.segments()) == 1
    assert log.last() == last
    for after, words in before.items():
        kept = state(log, after)
        # Of what was withdrawn nothing is left to be said, since the log begins here.
        assert kept == {name: each for name, each in words.items() if each.kind != "withdraw"}
    assert {word.number for word in log.words().values()} <= numbers
    assert log.append([put("later")]) == last + 1


def test_merging_forgets_settled_deletions_alone(tmp_path: Path) -> None:
    log = PushedLog(tmp_path)
    log.append([Change("old", "delete")])
    for number in range(MOST_SEGMENTS):
        log.append([Change(f"new {number}", "delete")])
    assert log.merge(settled=1, is_only_source=True)
    assert "old" not in log.words()
    assert len(log.words()) == MOST_SEGMENTS


def test_a_large_segment_is_not_written_again_for_small_ones(tmp_path: Path) -> None:
    log = PushedLog(tmp_path)
    log.append([put(str(number), "x" * 2000) for number in range(100)])
    for number in range(MOST_SEGMENTS + 1):
        log.append([Change(str(number), "withdraw")])
    assert log.merge()
    assert log.segments() == [Segment(1, 1), Segment(2, log.last())]
    assert {word.kind for name, word in log.words().items() if int(name) <= MOST_SEGMENTS} == {
        "withdraw"  # else what was put before would come back
    }


def test_what_is_erased_is_in_no_file(tmp_path: Path) -> None:
    log = PushedLog(tmp_path)
    log.append([put("a", "secret"), put("b", "open")])
    log.append([Change("a", "delete")])
    log.append([put("c", "open")])
    assert log.erase({"a"}) == 2
    assert log.segments() == [Segment(1, 1, 1), Segment(2, 2, 1), Segment(3, 3)]
    assert {*log.words()} == {"b", "c"}
    assert all(b'"a"' not in path.read_bytes() for path in tmp_path.iterdir())
    assert log.append([put("d")]) == 4


@pytest.mark.parametrize("dies_at", range(6))
def test_a_merge_that_dies_anywhere_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    log = PushedLog(tmp_path)
    for number in range(MOST_SEGMENTS + 1):
        log.append([put(str(number % 5), str(number))])
    before, calls = state(log), 0

    def delete(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > dies_at:
            raise KeyboardInterrupt
        path.unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(pushed, "delete", delete)
        with pytest.raises(KeyboardInterrupt):
            log.merge()
    assert state(log) == before
    assert log.append([put("more")]) == MOST_SEGMENTS + 2
    log.merge()
    assert {path.name for path in tmp_path.iterdir()} == {each.name for each in log.segments()}


def test_a_writer_that_comes_late_does_not_write_behind_a_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = PushedLog(tmp_path), PushedLog(tmp_path)
    log.append([put("first")])
    create = pushed.create_only

    def slow(path: Path, data: bytes | str, durable: bool = False) -> bool:
        monkeypatch.setattr(pushed, "create_only", create)
        for number in range(MOST_SEGMENTS):  # meanwhile others write, and all is merged
            other.append([put(str(number))])
        assert other.merge()
        return create(path, data, durable)

    monkeypatch.setattr(pushed, "create_only", slow)
    assert log.append([put("late")]) == MOST_SEGMENTS + 2
    assert state(log)["late"].kind == "put"


def _write(folder: Path, writer: int, count: int) -> None:
    log = PushedLog(folder)
    for number in range(count):
        log.append([put(f"{writer}:{number}")])


def test_several_processes_append_and_none_loses_a_word(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    writers = [context.Process(target=_write, args=(tmp_path, at, 15)) for at in range(3)]
    for writer in writers:
        writer.start()
    log, seen, merged = PushedLog(tmp_path), set[str](), 0
    while any(writer.is_alive() for writer in writers):
        merged += log.merge()
        words = {*log.words()}
        assert seen <= words
        seen = words
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert {*log.words()} == {f"{at}:{number}" for at in range(3) for number in range(15)}
    assert len({word.number for word in log.words().values()}) == 45


def test_a_watch_sees_each_segment_once_and_misses_none(tmp_path: Path) -> None:
    log = PushedLog(tmp_path / "log")
    watch = PushedWatch(log)
    assert watch.segments() == []
    for number in range(1, 50):  # within one tick of the clock
        log.append([put("a")])
        segments = watch.segments()
        assert segments is not None
        assert segments[-1].last == number
    for path in [*log.folder.iterdir(), log.folder]:
        os.utime(path, (1, 1))
    assert watch.segments() is not None
    assert watch.segments() is None
    log.append([put("a")])
    assert watch.segments() is not None


def test_readers_go_on_while_segments_are_merged(tmp_path: Path) -> None:
    log, problems = PushedLog(tmp_path), list[BaseException]()
    log.append([put("kept")])
    is_over = threading.Event()

    def read() -> None:
        try:
            while not is_over.is_set():
                assert "kept" in state(PushedLog(tmp_path))
        except (StoreError, OSError, AssertionError) as error:
            problems.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(100):
        log.append([put(str(number))])
        log.merge()
    is_over.set()
    thread.join()
    assert not problems


def _segments() -> Iterator[Segment]:
    return st.builds(
        lambda first, more, edition: Segment(first, first + more, edition),
        st.integers(1, 20),
        st.integers(0, 5),
        st.integers(0, 2),
    )


@given(st.lists(_segments()))
def test_segments_in_force_never_overlap_where_a_merge_left_both(segments: list[Segment]) -> None:
    chosen = in_force([each.name for each in segments] + ["other.txt", ".draft"])
    for one, other in itertools.pairwise(chosen):
        assert one.first < other.first
        assert one.last < other.last
    assert max((each.last for each in segments), default=0) == max(
        (each.last for each in chosen), default=0
    )


@pytest.fixture
def machines(tmp_path: Path) -> list[PushedLog]:
    """The logs of a pipeline on two machines that share a warehouse."""
    logs = list[PushedLog]()
    for name in ("one", "other"):
        home = tmp_path / name
        home.mkdir()
        (home / "warehouse.yaml").write_text(f"bucket: {(tmp_path / 'bucket').as_uri()}\n")
        logs.append(pushed_log(Warehouse(home), "p"))
    return logs


def test_machines_share_a_log_by_a_bucket(machines: list[PushedLog]) -> None:
    one, other = machines
    assert one.append([put("a", "one")]) == 1
    assert other.append([put("b")]) == 2
    assert one.append([put("a", "two")]) == 3
    other.fetch()
    assert state(other) == state(one)
    assert {path.name for path in one.folder.iterdir()} == {
        path.name for path in other.folder.iterdir()
    }
    for number in range(MOST_SEGMENTS):
        machines[number % 2].append([put(str(number % 3))])
    one.fetch()
    before = state(one)
    assert one.merge()
    assert other.append([put("late")]) == one.last() + 1
    other.fetch()
    assert other.segments()[0] == Segment(1, MOST_SEGMENTS + 3)
    assert {name: each for name, each in state(other).items() if name != "late"} == before
    one.fetch()
    assert one.erase({"a"}) == 1
    assert other.erase({"nobody"}) == 0  # it has the segments of before
    assert "a" not in other.words()
    assert all(b'"a"' not in path.read_bytes() for path in other.folder.iterdir())
    one.delete_shared()
    with pytest.raises(BucketError, match="behind the number 0"):
        other.fetch()


def test_what_was_pushed_before_there_was_a_bucket_goes_into_it(tmp_path: Path) -> None:
    home = tmp_path / "one"
    pushed_log(Warehouse(home), "p").append([put("a")])
    (home / "warehouse.yaml").write_text(f"bucket: {(tmp_path / 'bucket').as_uri()}\n")
    assert pushed_log(Warehouse(home), "p").append([put("b")]) == 2
    other = tmp_path / "other"
    pushed_log(Warehouse(other), "p").append([put("c")])
    (other / "warehouse.yaml").write_text((home / "warehouse.yaml").read_text())
    with pytest.raises(ConfigError, match=r"never in file:.*which has others"):
        pushed_log(Warehouse(other), "p").fetch()


def test_threads_of_two_machines_lose_no_word(machines: list[PushedLog]) -> None:
    with ThreadPoolExecutor(4) as threads:
        numbers = list(threads.map(lambda at: machines[at % 2].append([put(str(at))]), range(24)))
    assert sorted(numbers) == [*range(1, 25)]
    for log in machines:
        log.fetch()
        assert len(log.words()) == 24


@pytest.mark.parametrize(
    "line", ['{"number": 1, "id": ["a"], "delete": true}', '{"number": 1}', "{}"]
)
def test_a_line_of_other_types_is_no_change(tmp_path: Path, line: str) -> None:
    log = PushedLog(tmp_path)
    log.path(Segment(1, 1)).write_bytes(seal(line) + b"\n")
    with pytest.raises(StoreError, match="damaged"):
        log.words()
