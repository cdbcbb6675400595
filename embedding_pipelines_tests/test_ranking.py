"""Ranking: by vectors, by words and by both, in searches, checks and comparisons alike."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines.files import read_json
from embedding_pipelines.ranking import FUSION, Query, find, fuse, nearest
from embedding_pipelines.schemas import RESCORING_VECTOR
from embedding_pipelines.search import Searcher, search
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.spec.search import Mode
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    hashing,
    report,
    run_of,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.compression.contract import clustered
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.stores.tables import add, build, fit_chain

ROWS = [
    *((f"id-{n}", f"animal{n} runs in room{n % 5}", "even" if n % 2 == 0 else "odd") for n in range(60)),
    ("rare", "the Zanzibar leopard was running here " + "and there " * 30, "odd"),
]  # fmt: skip
ROOMS = [
    (f"id-{n}", f"animal{n} in room{n % 5}", "even" if n % 2 == 0 else "odd", n) for n in range(60)
]
RESCORED = (
    HASHING.replace("metadata: [cat]", "metadata: {Cat: string, year: int}")
    + "compression: [{kind: binary, oversample: 2}]\n"
)
MODES: tuple[Mode, ...] = ("vector", "text", "hybrid")


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("ranking")
    write_pipeline(home, "p", f"{HASHING}search: {{mode: hybrid}}\n")
    write_csv(home, "a.csv", ROWS)
    run_steps(home, "p")
    return home


@pytest.fixture
def built(home: Path, built_once: Path) -> Path:
    return copy_home(built_once, home)


def ranked(names: str) -> pa.Table:
    return pa.table(
        {
            "chunk_id": pa.array(list(names), pa.string()),
            "score": pa.array(range(len(names)), pa.float32()),
        }
    )


def test_fusion_adds_the_reciprocal_ranks_and_the_nearer_of_equals_comes_first() -> None:
    rows = fuse(ranked("abc"), ranked("dca"), 4)
    scores = {
        "a": 1 / (FUSION + 1) + 1 / (FUSION + 3),
        "b": 1 / (FUSION + 2),
        "c": 1 / (FUSION + 3) + 1 / (FUSION + 2),
        "d": 1 / (FUSION + 1),
    }
    expected = sorted(scores, key=lambda name: -scores[name])
    assert rows["chunk_id"].to_pylist() == expected
    half = (FUSION + 1) / 2
    assert rows["score"].to_pylist() == pytest.approx([scores[name] * half for name in expected])
    assert fuse(ranked("a"), ranked("b"), 2)["chunk_id"].to_pylist() == ["a", "b"]
    assert fuse(ranked("ab"), ranked("ab"), 1)["score"].to_pylist() == [1.0]
    assert len(fuse(ranked(""), ranked(""), 3)) == 0


@pytest.mark.parametrize("mode", MODES)
def test_each_result_names_the_way_it_took(built: Path, mode: Mode) -> None:
    result = search(built, "p", "leopards run", 5, mode=mode)
    assert (result.mode, result.release, result.notes) == (mode, 1, [])
    assert [hit.score for hit in result.hits] == sorted(
        (hit.score for hit in result.hits), reverse=True
    )
    if mode != "vector":  # which compares whole texts, and this one is mostly others' words
        assert "rare" in [hit.document_id for hit in result.hits]
    (other,) = search(built, "p", ["leopards run"], 5, mode=mode)
    assert (other.mode, other.hits) == (mode, result.hits)


def test_the_mode_is_the_pipelines_unless_a_search_says_otherwise(built: Path) -> None:
    assert search(built, "p", "leopards").mode == "hybrid"
    with pytest.raises(ConfigError, match=r"mode is 'words'.* one of vector, text, hybrid"):
        search(built, "p", "leopards", mode="words")  # type: ignore[call-overload]
    assert not search(built, "p", "nobody wrote this", mode="text").hits
    assert len(search(built, "p", "nobody wrote this", 7).hits) == 7


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_holds_in_every_mode(built: Path, mode: Mode) -> None:
    for filter in ("cat = 'odd'", {"cat": "odd"}):
        hits = search(built, "p", "animal7 runs in room2", 60, filter, mode=mode).hits
        assert {hit.metadata["cat"] for hit in hits} == {"odd"}
        assert len({hit.chunk_id for hit in hits}) == len(hits) == 31


def test_words_alone_are_searched_without_the_model(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = Searcher(Warehouse(built), "p")
    monkeypatch.setattr(type(searcher.model), "embed", None)
    assert searcher.search("leopard", mode="text").hits[0].document_id == "rare"


def test_a_search_by_vectors_needs_one(built: Path) -> None:
    searcher = Searcher(Warehouse(built), "p")
    version = searcher.release.version
    with pytest.raises(ConfigError, match="needs the vector of its query"):
        find(searcher.rows.current.table, searcher.codec, Query("x"), 1, None, version, "hybrid")


def test_a_release_without_the_index_is_read_and_says_what_to_do(built: Path) -> None:
    write_pipeline(built, "p", HASHING)
    version = report(run_steps(built, "p"), "vector_store").statistics["version"]
    searcher = Searcher(Warehouse(built), "p")
    assert (searcher.release.number, searcher.release.version) == (2, version)
    assert searcher.search("leopard").notes == []
    result = searcher.search("leopard", mode="text")
    assert [hit.document_id for hit in result.hits] == ["rare"]
    (note,) = result.notes
    assert "Release 2 of 'p' has no full-text index" in note
    assert "`search: {mode: hybrid}`" in note
    assert "`embedding-pipelines run p`" in note


def test_a_changed_mode_makes_a_release_and_writes_no_row(built: Path) -> None:
    for number, options in ((2, "mode: text"), (3, "mode: text, language: German")):
        write_pipeline(built, "p", f"{HASHING}search: {{{options}}}\n")
        statistics = report(run_steps(built, "p"), "vector_store").statistics
        assert (statistics["added"], statistics["removed"]) == (0, 0)
        release = Searcher(Warehouse(built), "p").release
        assert (release.number, release.spec.search) == (number, find_pipeline("p", built).search)
        assert run_steps(built, "p")[-1].changed is False


def test_checks_measure_what_users_search_by(built: Path) -> None:
    """Known items go the pipeline's way, recall@10 the vectors' whatever it is."""
    by_mode = {}
    for mode in MODES:
        write_pipeline(built, "p", f"{HASHING}search: {{mode: {mode}}}\n")
        run_steps(built, "p")
        with run_of(built, "p") as run:
            by_mode[mode] = (read_json(run.folder.checks) or {})["metrics"]
    assert {figures["recall_at_10"] for figures in by_mode.values()} == {1.0}
    assert by_mode["text"]["known_item_mrr"] != by_mode["vector"]["known_item_mrr"] or (
        by_mode["text"]["known_item_mrr"] == by_mode["hybrid"]["known_item_mrr"] == 1.0
    )


def test_the_hits_of_both_ways_are_among_the_fused_ones(built: Path) -> None:
    searcher = Searcher(Warehouse(built), "p")
    near, worded, both = (
        {hit.chunk_id for hit in searcher.search("leopards run in room3", 61, mode=mode).hits}
        for mode in MODES
    )
    assert both == near | worded
    assert np.isfinite([hit.score for hit in searcher.search("room3", 61).hits]).all()


@pytest.fixture(scope="module")
def rescored_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bits with int8 copies, of twice as many rows as there are hits."""
    home = tmp_path_factory.mktemp("rescored")
    write_pipeline(home, "p", RESCORED)
    write_csv(home, "a.csv", ROOMS, "id,title,Cat,year")
    run_steps(home, "p")
    return home


@pytest.fixture
def rescored(home: Path, rescored_once: Path) -> Searcher:
    copy_home(rescored_once, home)
    return Searcher(Warehouse(home), "p")


def test_rescored_scores_are_cosines_and_in_their_order(rescored: Searcher) -> None:
    text = "animal7 room2"
    hits = rescored.search(text, 10).hits
    query, *vectors = hashing().embed([text, *(hit.text for hit in hits)], "query").vectors
    scores = [hit.score for hit in hits]
    assert scores == pytest.approx([float(query @ vector) for vector in vectors], abs=0.01)
    assert scores == sorted(scores, reverse=True)
    assert len({hit.chunk_id for hit in hits}) == 10


def test_copies_are_kept_in_the_table_and_given_to_no_searcher(rescored: Searcher) -> None:
    release, table = rescored.release, rescored.rows.current.table
    assert table.schema(release.version).field(RESCORING_VECTOR).type == pa.list_(pa.int8(), 64)
    assert rescored.search("animal7", 1).hits[0].metadata.keys() == {"Cat", "year"}
    vector = hashing().embed(["animal7"], "query").vectors[0]
    rows = nearest(table, rescored.codec, vector, 3, None, release.version)
    own = ["chunk_id", "document_id", "start", "end", "text", "Cat", "year"]
    assert rows.column_names == [*own, "score"]
    assert rows.schema.field("score").type == pa.float32()


def test_a_filter_loses_no_rows_to_rescoring(rescored: Searcher) -> None:
    hits = rescored.search("animal7 in room2", 60, "year >= 20").hits
    assert sorted(hit.document_id for hit in hits) == sorted(f"id-{n}" for n in range(20, 60))
    assert len(rescored.search("animal7 in room2", 5, "Cat = 'odd'").hits) == 5
    assert rescored.search("animal7 in room2", 5, "Cat = 'nobody'").hits == []


def test_more_oversampling_finds_more_of_the_nearest(tmp_path: Path) -> None:
    vectors, queries = clustered(3_000, 64), clustered(30, 64, seed=5)
    exact = np.argsort(-queries @ vectors.T, axis=1)[:, :10].tolist()
    shares = []
    for oversample in (1, 4, 32):
        codec = fit_chain(f"[{{kind: binary, oversample: {oversample}}}]", vectors)
        table = build(tmp_path, codec)
        add(table, codec, vectors, 0, [])
        assert table.index(codec.metric, 0) == 3_000
        assert table.version is not None
        names = [
            nearest(table, codec, query, 10, None, table.version)["chunk_id"].to_pylist()
            for query in queries
        ]
        shares.append(
            np.mean(
                [len(set(map(int, a)) & set(b)) / 10 for a, b in zip(names, exact, strict=True)]
            )
        )
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.95


@pytest.mark.parametrize(
    "chain", ["[]", "[float16]", "[int8]", "[{kind: binary, rescore: none}]", "[binary]"]
)
def test_a_vector_of_another_shape_or_without_numbers_is_refused(
    tmp_path: Path, chain: str
) -> None:
    vectors = clustered(300, 64)
    codec = fit_chain(chain, vectors)
    table = build(tmp_path, codec)
    add(table, codec, vectors, 0, [])
    assert table.version is not None
    for wrong in (vectors[0, :-1], np.full(64, np.nan, np.float32)):
        with pytest.raises(CompressionError, match=r"shape|NaN"):
            nearest(table, codec, wrong, 1, None, table.version)
