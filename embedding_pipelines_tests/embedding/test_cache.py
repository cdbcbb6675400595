"""The cache: exact keys, whole values, many processes, a kill, a damaged file."""

import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.embedding.cache import LOOKUP_KEYS, EmbeddingCache
from embedding_pipelines.errors import ProviderError, StoreError

text = st.text(max_size=6)


@given(st.lists(st.tuples(text, st.sampled_from(["document", "query"]), text), max_size=8))
def test_two_keys_are_equal_only_for_equal_parts(parts: list) -> None:
    assert len({EmbeddingCache.key(*part) for part in parts}) == len(set(parts))


def test_neighbouring_parts_cannot_be_exchanged() -> None:
    assert EmbeddingCache.key("ab", "query", "c") != EmbeddingCache.key("a", "query", "bc")
    assert EmbeddingCache.key("a", "query", "") != EmbeddingCache.key("", "query", "a")


def test_the_key_is_the_same_for_ever() -> None:
    assert (
        EmbeddingCache.key("space", "document", "Ünïcødé 😀\n").hex()
        == "1b4823d3c21b6edf3666833337d93931"
    )


def vectors(count: int, dimensions: int = 4) -> np.ndarray:
    return np.arange(count * dimensions, dtype=np.float32).reshape(count, dimensions)


def keys(count: int, first: int = 0) -> list[bytes]:
    return [EmbeddingCache.key("s", "document", str(n)) for n in range(first, first + count)]


def test_what_was_put_is_got_bit_by_bit_and_nothing_else(tmp_path: Path) -> None:
    count = 2 * LOOKUP_KEYS + 10
    with EmbeddingCache(tmp_path / "folder" / "cache.sqlite") as cache:
        cache.put_many(keys(count), vectors(count), "a space")
        cache.put_many([], vectors(0), "a space")
        assert len(cache) == count
    with EmbeddingCache(tmp_path / "folder" / "cache.sqlite") as cache:
        found = cache.get_many(keys(count + 5), 4)
        assert cache.get_many([], 4) == {}
    assert set(found) == set(keys(count))
    assert np.array_equal(np.stack([found[key] for key in keys(count)]), vectors(count))


def test_a_value_of_another_size_is_not_believed_and_can_be_replaced(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        cache.put_many(keys(1), vectors(1, 3), "a space")
        assert cache.get_many(keys(1), 4) == {}
        cache.put_many(keys(1), vectors(1, 4), "a space")
        assert cache.get_many(keys(1), 4)[keys(1)[0]].tolist() == [0, 1, 2, 3]


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        with pytest.raises(ValueError, match="zip"):
            cache.put_many(keys(3), vectors(2), "a space")
        assert len(cache) == 0
        cache.put_many(keys(3), vectors(3), "a space")
        assert len(cache) == 3


WRITER = """
import sys
from pathlib import Path
from embedding_pipelines_tests.embedding.test_cache import keys, vectors
from embedding_pipelines.embedding.cache import EmbeddingCache
first = int(sys.argv[2])
with EmbeddingCache(Path(sys.argv[1])) as cache:
    for n in range(200 if len(sys.argv) == 3 else 100_000):
        cache.put_many(keys(10, first + 10 * n), vectors(10), "a space")
        print(first + 10 * n, flush=True)
"""


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    arguments = [
        [sys.executable, "-c", WRITER, str(path), str(first)] for first in (0, 1_000, 50_000)
    ]
    writers = [subprocess.Popen(each, stdout=subprocess.DEVNULL) for each in arguments]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with EmbeddingCache(path) as cache:
        assert len(cache) == 3_000 + 2_000  # the first two overlap by half
        assert cache.get_many(keys(10, 990), 4).keys() == set(keys(10, 990))


def test_a_kill_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "0", "endless"], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for _ in range(50):
            assert writer.stdout.readline()
        time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        last = 490
        for line in writer.stdout:
            if line.endswith("\n"):
                last = int(line)
    with EmbeddingCache(path) as cache:
        found = cache.get_many(keys(last + 10), 4)
        assert len(found) == last + 10
        assert len(cache) in (last + 10, last + 20)  # committed just before it could be told


@pytest.mark.parametrize(
    "content",
    [b"this is no database, and long enough to be looked at" * 100, b"SQLite format 3\x00junk"],
)
def test_a_damaged_file_is_told_and_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"cache\.sqlite cannot be opened: .*move it away"):
        EmbeddingCache(path).__enter__()
    with pytest.raises(StoreError, match="move it away"):
        EmbeddingCache(path, read_only=True).get_many(keys(1), 4)
    assert path.read_bytes() == content


def test_a_file_that_is_damaged_further_in_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with EmbeddingCache(path) as cache:
        cache.put_many(keys(5_000), vectors(5_000), "a space")
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    content = bytearray(path.read_bytes())
    content[8_192:] = b"\xff" * (len(content) - 8_192)
    path.write_bytes(content)
    with EmbeddingCache(path) as cache, pytest.raises(StoreError, match="move it away"):
        cache.get_many(keys(5_000), 4)


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files of a folder: when they were changed, and what they hold."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.iterdir())
    }


def test_a_missing_file_is_read_as_an_empty_cache_and_stays_missing(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "folder" / "cache.sqlite", read_only=True) as cache:
        assert cache.get_many(keys(2), 4) == {}
        assert len(cache) == 0
        with pytest.raises(StoreError, match="open for reading only"):
            cache.put_many(keys(1), vectors(1), "a space")
    assert list(tmp_path.iterdir()) == []


def test_reading_only_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with EmbeddingCache(path) as cache:
        cache.put_many(keys(10), vectors(10), "a space")
    before = content(tmp_path)
    with EmbeddingCache(path, read_only=True) as cache:
        assert cache.get_many(keys(20), 4).keys() == set(keys(10))
        assert [path.name for path in tmp_path.iterdir()] == ["cache.sqlite"]
    assert content(tmp_path) == before


def test_reading_only_sees_what_a_killed_writer_committed_and_changes_no_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cache.sqlite"
    command = [sys.executable, "-c", WRITER, str(path), "0", "endless"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    before = content(tmp_path)
    assert len(before) == 3  # with the log that the writer left
    with EmbeddingCache(path, read_only=True) as cache:
        assert len(cache.get_many(keys(200), 4)) == 200
    assert content(tmp_path) == before


def test_reading_only_sees_what_another_commits_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with EmbeddingCache(path, read_only=True) as reader, EmbeddingCache(path) as writer:
        assert len(reader) == 0
        writer.put_many(keys(3), vectors(3), "a space")
        assert reader.get_many(keys(3), 4).keys() == set(keys(3))
        writer.put_many(keys(5), vectors(5), "a space")
        assert len(reader) == 5


def test_each_call_opens_the_file_and_closes_it_again(tmp_path: Path) -> None:
    cache = EmbeddingCache(cache_dir=tmp_path / "own")
    assert list(tmp_path.iterdir()) == []
    cache.put_many(keys(1), vectors(1), "a space")
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["cache.sqlite"]
    assert len(cache) == 1
    with cache, cache:
        assert len(cache) == 1
        assert len(list((tmp_path / "own").iterdir())) == 3
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["cache.sqlite"]


def test_threads_share_one_cache_whoever_closes_it_first(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache.sqlite")

    def write(first: int) -> None:
        with cache:
            for number in range(first, first + 100, 10):
                cache.put_many(keys(10, number), vectors(10), "a space")
                assert len(cache.get_many(keys(10, number), 4)) == 10

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(0, 800, 100)))
    assert len(cache) == 800


def test_a_name_stands_for_a_model_whose_space_nobody_knows(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache.sqlite")
    cache.set("a fox", "my-model", [3, 4])
    vector = cache.get("a fox", "my-model")
    assert vector is not None
    assert vector.tolist() == [3, 4]
    assert cache.get("a fox", "another-model") is None
    assert cache.get("a fox", "my-model", "query") is None
    assert cache.get_or_create("a fox", "my-model", lambda text: [0.0]).tolist() == [3, 4]
    for wrong in ([], [0.0, 0.0], [float("nan")], [[1.0]]):
        with pytest.raises(ProviderError, match="Nothing was stored"):
            cache.set("a hen", "my-model", wrong)
    assert len(cache) == 1


def test_a_damaged_value_counts_as_missing_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    cache = EmbeddingCache(path)
    cache.put_many(keys(3), vectors(3) + 1, "a space")
    with sqlite3.connect(path) as database:
        value = bytearray((vectors(3) + 1)[1].tobytes())
        value[3] ^= 1
        database.execute("UPDATE vectors SET vector = ? WHERE key = ?", (bytes(value), keys(2)[1]))
        database.execute("UPDATE vectors SET key = x'00' WHERE key = ?", (keys(3)[2],))
    database.close()
    assert list(cache.get_many([*keys(3), b"\0"], 4)) == keys(1)
    assert cache.damaged == {keys(2)[1], b"\0"}
    cache.put_many(keys(2), vectors(2) + 1, "a space")
    assert list(EmbeddingCache(path, read_only=True).get_many(keys(2), 4)) == keys(2)


def test_a_cache_of_an_earlier_version_is_read_and_gets_checksums(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
        database.execute("INSERT INTO vectors VALUES (?, ?)", (keys(1)[0], vectors(1).tobytes()))
    database.close()
    for cache in (EmbeddingCache(path, read_only=True), EmbeddingCache(path)):
        assert list(cache.get_many(keys(1), 4)) == keys(1)
    cache.put_many(keys(2), vectors(2), "a space")
    assert list(cache.get_many(keys(2), 4)) == keys(2)
    assert cache.damaged == set()


def test_what_is_removed_is_gone(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache.sqlite")
    cache.put_many(keys(3), vectors(3), "a space")
    assert cache.remove_many([*keys(2), b"nowhere"]) == (2, True)
    assert list(cache.get_many(keys(3), 4)) == keys(3)[2:]


def test_a_reader_that_keeps_bytes_on_the_disk_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.embedding.cache.BUSY_SECONDS", 0.1)
    path = tmp_path / "cache.sqlite"
    with EmbeddingCache(path) as cache, closing(sqlite3.connect(path)) as reader:
        cache.put_many(keys(3), vectors(3), "a space")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM vectors").fetchone()
        assert cache.remove_many(keys(2)) == (2, False)
        reader.rollback()
        assert cache.remove_many(keys(2)) == (0, True)
        assert list(cache.get_many(keys(3), 4)) == keys(3)[2:]
