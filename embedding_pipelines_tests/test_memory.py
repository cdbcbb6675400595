"""Searches in memory: as the stored table answers, and by it where memory is no help."""

import threading
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_pipelines import memory
from embedding_pipelines.memory import MemoryIndex, available_bytes
from embedding_pipelines.overlay import Overlay
from embedding_pipelines.ranking import nearest
from embedding_pipelines.search import Searcher, rows
from embedding_pipelines.search.rows import as_table
from embedding_pipelines.spec.search import Mode
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import copy_home, run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.compression.contract import clustered
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.stores.tables import DIMENSIONS, add, build, fit_chain

ROWS = [
    (f"id-{n}", f"animal{n} runs in room{n % 5}", "even" if n % 2 == 0 else "odd")
    for n in range(200)
]
ENOUGH = 1 << 40


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("memory")
    write_pipeline(home, "p", f"{HASHING}search: {{mode: hybrid}}\n")
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    return home


@pytest.fixture
def built(home: Path, built_once: Path) -> Path:
    return copy_home(built_once, home)


@pytest.mark.parametrize(
    "compression", ["[]", "[float16]", "[int8]", "[{kind: pca, dimensions: 16}]"]
)
def test_it_finds_what_the_stored_table_finds(tmp_path: Path, compression: str) -> None:
    """Of 3,000 vectors, whose table is searched exactly, at least 0.99 of the ten nearest."""
    vectors, queries = clustered(3_000, DIMENSIONS, seed=0), clustered(100, DIMENSIONS, seed=1)
    codec = fit_chain(compression, vectors)
    table = build(tmp_path, codec, index="none")
    add(table, codec, vectors, 0, [])
    table.index(codec.metric, 0)
    version = table.version
    assert version is not None
    index = MemoryIndex.build(table, codec, version, ENOUGH)
    assert index is not None
    shares, all_rows = [], index.find_all(queries, 10)
    assert all_rows is not None
    for query, near in zip(queries, all_rows, strict=True):
        stored, rows = nearest(table, codec, query, 10, None, version), near.to_table()
        assert near.column_names == rows.schema.names == stored.schema.names
        assert near.to_pylist() == rows.to_pylist()
        assert near.first(3).to_table() == rows.slice(0, 3)
        some = rows["document_id"].to_pylist()[1::2]
        assert near.of(some).to_table() == rows.take(list(range(1, 10, 2)))
        shares.append(len({*rows["chunk_id"].to_pylist()} & {*stored["chunk_id"].to_pylist()}) / 10)
        np.testing.assert_allclose(rows["score"][0].as_py(), stored["score"][0].as_py(), atol=2e-3)
        assert rows["score"].to_pylist() == sorted(rows["score"].to_pylist(), reverse=True)
    assert np.mean(shares) >= 0.99


def test_among_many_equal_vectors_the_stored_table_answers(tmp_path: Path) -> None:
    """A graph of them does not lead to so many, and what it lacks would be the first row again."""
    vectors = clustered(3_000, DIMENSIONS, seed=0)
    vectors[:2_900] = vectors[0]
    codec = fit_chain("[]", vectors)
    table = build(tmp_path, codec, index="none")
    add(table, codec, vectors, 0, [])
    assert table.version is not None
    index = MemoryIndex.build(table, codec, table.version, ENOUGH)
    assert index is not None
    assert index.find_all(vectors[-3:], 1_000) is None
    few = index.find_all(vectors[-3:], 10)
    assert few is not None
    assert [len({row["chunk_id"] for row in near.to_pylist()}) for near in few] == [10, 10, 10]


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_a_search_gives_the_same_hits_with_and_without_it(built: Path, mode: str) -> None:
    stored, held = Searcher(built, "p"), Searcher(built, "p")
    assert held.load_memory()
    for filter in (None, "cat = 'odd'"):
        queries = ["animal7 in room2", "room3", "animal151"]
        pairs = zip(
            stored.search(queries, 5, filter, mode=mode),  # type: ignore[call-overload]
            held.search(queries, 5, filter, mode=mode),  # type: ignore[call-overload]
            strict=True,
        )
        for one, other in pairs:
            assert one.hits[0].chunk_id == other.hits[0].chunk_id
            scores = [[hit.score for hit in result.hits] for result in (one, other)]
            np.testing.assert_allclose(*scores, atol=5e-4)
            assert not filter or {hit.metadata["cat"] for hit in other.hits} == {"odd"}
    many = held.search("animal7", memory.MAX_K + 1, mode=mode)  # type: ignore[call-overload]
    assert len(many.hits) == (1 if mode == "text" else len(ROWS))


def test_where_memory_is_short_the_table_answers(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000)
    searcher = Searcher(built, "p")
    assert not searcher.load_memory()
    assert searcher.search("animal7 runs in room2", 1).hits[0].document_id == "id-7"


def test_codes_that_a_finer_one_ranks_stay_in_the_table(tmp_path: Path) -> None:
    vectors = clustered(300, DIMENSIONS, seed=0)
    codec = fit_chain("[binary]", vectors)
    table = build(tmp_path, codec)
    add(table, codec, vectors, 0, [])
    table.index(codec.metric, 0)
    assert table.version is not None
    assert MemoryIndex.build(table, codec, table.version, ENOUGH) is None


def test_an_index_that_nobody_wants_any_more_is_given_up(built: Path) -> None:
    searcher = Searcher(built, "p")
    assert not searcher.load_memory(lambda: False)


def test_what_was_forgotten_leaves_memory(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedding_pipelines.forget.forget import forget

    text = "animal7 runs in room2"
    searcher = Searcher(Warehouse(built), "p")
    assert searcher.load_memory()
    queries = [searcher._queries.embed(searcher.release, text, "refuse")[0]] * 3
    modes: tuple[Mode, ...] = ("hybrid", "vector")
    searches = [searcher._search(10, None, None, mode) for mode in modes]
    at_work = [map(as_table, searcher.rows.find_all(queries, search)) for search in searches]
    for tables in at_work:
        assert "id-7" in next(tables)["document_id"].to_pylist()
    seen = list[tuple[int, int]]()

    def look(*given: Any) -> Overlay:
        current = searcher.rows.current
        seen.append((current.release.number, current.overlay._release.number))
        return Overlay(*given)

    monkeypatch.setattr(rows, "Overlay", look)
    with run_of(built, "p") as run:
        forget(run, ["id-7"], [])
    for table in chain.from_iterable(at_work):  # of requests that were under way
        assert "id-7" not in table["document_id"].to_pylist()
    assert seen == [(1, 1)]  # until all of another one is there, as other threads see it
    hits = searcher.search(text, 10, mode="vector").hits
    assert "id-7" not in [hit.document_id for hit in hits]
    assert searcher.rows.current.memory is None


def test_searches_go_on_while_it_is_built(built: Path) -> None:
    searcher, steps = Searcher(built, "p"), threading.Semaphore(0)
    asked = threading.Event()

    def is_wanted() -> bool:
        asked.set()
        return steps.acquire(timeout=30)

    builder = threading.Thread(target=searcher.load_memory, args=[is_wanted])
    builder.start()
    assert asked.wait(30)
    assert searcher.search("animal7 runs in room2", 1).hits[0].document_id == "id-7"
    assert searcher.rows.current.memory is None
    steps.release(1_000)
    builder.join(30)
    assert searcher.rows.current.memory is not None


def test_memory_is_what_the_machine_and_the_container_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (available_bytes() or 1) > 0
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert available_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 7 kB\n")
    assert available_bytes() == 7 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_bytes() == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() == 7 * 1024
