"""The cache: exact keys, whole values, many processes, a kill, a damaged file."""

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_pipelines.embedding.cache import LOOKUP_KEYS, EmbeddingCache
from embedding_pipelines.errors import StoreError

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
        cache.put(keys(count), vectors(count))
        cache.put([], vectors(0))
        assert len(cache) == count
    with EmbeddingCache(tmp_path / "folder" / "cache.sqlite") as cache:
        found = cache.get(keys(count + 5), 4)
        assert cache.get([], 4) == {}
    assert set(found) == set(keys(count))
    assert np.array_equal(np.stack([found[key] for key in keys(count)]), vectors(count))


def test_a_value_of_another_size_is_not_believed_and_can_be_replaced(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        cache.put(keys(1), vectors(1, 3))
        assert cache.get(keys(1), 4) == {}
        cache.put(keys(1), vectors(1, 4))
        assert cache.get(keys(1), 4)[keys(1)[0]].tolist() == [0, 1, 2, 3]


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path / "cache.sqlite") as cache:
        with pytest.raises(ValueError, match="zip"):
            cache.put(keys(3), vectors(2))
        assert len(cache) == 0
        cache.put(keys(3), vectors(3))
        assert len(cache) == 3


WRITER = """
import sys
from pathlib import Path
from embedding_pipelines_tests.embedding.test_cache import keys, vectors
from embedding_pipelines.embedding.cache import EmbeddingCache
first = int(sys.argv[2])
with EmbeddingCache(Path(sys.argv[1])) as cache:
    for n in range(200 if len(sys.argv) == 3 else 100_000):
        cache.put(keys(10, first + 10 * n), vectors(10))
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
        assert cache.get(keys(10, 990), 4).keys() == set(keys(10, 990))


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
        found = cache.get(keys(last + 10), 4)
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
        EmbeddingCache(path)


def test_a_file_that_is_damaged_further_in_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with EmbeddingCache(path) as cache:
        cache.put(keys(5_000), vectors(5_000))
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    content = bytearray(path.read_bytes())
    content[8_192:] = b"\xff" * (len(content) - 8_192)
    path.write_bytes(content)
    with EmbeddingCache(path) as cache, pytest.raises(StoreError, match="move it away"):
        cache.get(keys(5_000), 4)
