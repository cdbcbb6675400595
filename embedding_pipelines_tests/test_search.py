"""Search: the nearest first, from the live release alone, and readable refusals."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import (
    CompressionError,
    ConfigError,
    ReleaseError,
    SpaceMismatchError,
    StoreError,
)
from embedding_pipelines.inference import cross_encoder
from embedding_pipelines.ranking import nearest
from embedding_pipelines.schemas import RESCORING_VECTOR
from embedding_pipelines.search import Searcher, search
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    hashing,
    run_of,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.compression.contract import clustered
from embedding_pipelines_tests.conftest import HASHING, UNMEASURED
from embedding_pipelines_tests.recording import Recording
from embedding_pipelines_tests.stores.tables import add, build, fit_chain

ROWS = [
    (f"id-{n}", f"animal{n} in room{n % 5}", "even" if n % 2 == 0 else "odd", n) for n in range(60)
]
PIPELINE = HASHING.replace("metadata: [cat]", "metadata: {Cat: string, year: int}")


@pytest.fixture(scope="module")
def searcher_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("searcher")
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", ROWS, "id,title,Cat,year")
    run_steps(home, "p")
    return home


@pytest.fixture
def searcher(home: Path, searcher_once: Path) -> Searcher:
    copy_home(searcher_once, home)
    return Searcher(Warehouse(home), "p")


def test_the_nearest_comes_first_with_score_place_and_metadata(searcher: Searcher) -> None:
    result = searcher.search("animal7 room2", k=5)
    assert (result.pipeline, result.release, result.query, len(result.hits)) == (
        "p",
        1,
        "animal7 room2",
        5,
    )
    best = result.hits[0]
    assert (best.document_id, best.chunk_id, best.start, best.end) == (
        "id-7",
        "id-7#0",
        0,
        len("animal7 in room2"),
    )
    assert best.metadata == {"Cat": "odd", "year": 7}
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    vectors = hashing().embed(["animal7 room2", "animal7 in room2"], "query").vectors
    assert best.score == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-3)
    assert result.milliseconds > 0


def test_the_query_is_cleaned_as_the_documents_were(searcher: Searcher) -> None:
    clean = searcher.search("animal7 in room2").hits
    assert (
        searcher.search("  animal7\u200b  in\troom2\x00 ").hits[0].document_id
        == clean[0].document_id
    )
    for query in ("", "  \n", "\x00"):
        with pytest.raises(ConfigError, match="The query is empty after cleaning"):
            searcher.search(query)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("year >= 50", range(50, 60)),
        ("year > 49 AND Cat = 'even'", range(50, 60, 2)),
        ("`Cat` = 'odd' AND year < 5", (1, 3)),
        ("document_id = 'id-3'", (3,)),
        ("year > 1000", ()),
    ],
)
def test_a_filter_keeps_what_it_says(
    searcher: Searcher, condition: str, expected: Sequence[int]
) -> None:
    found = [hit.document_id for hit in searcher.search("animal7 in room2", 60, condition).hits]
    assert sorted(found) == sorted(f"id-{n}" for n in expected)


def test_a_wrong_filter_is_told_with_the_columns_there_are(searcher: Searcher) -> None:
    for wrong in ("nothing = 1", "year =", "year = 'x' 'y'"):
        with pytest.raises(StoreError, match=r"(?s)cannot be used.*year") as caught:
            searcher.search("x", 1, wrong)
        assert "Traceback" not in str(caught.value)
    with pytest.raises(StoreError, match="'id' is the id, which is document_id in filters"):
        searcher.search("x", 1, "id = 'id-3'")
    with pytest.raises(StoreError, match="'title' is in the text, which is text in filters"):
        searcher.search("x", 1, "title = 'x'")
    not_filters: list[Any] = [["year = 5"], 5, True]
    for wrong in not_filters:
        with pytest.raises(ConfigError, match=r"The filter is .*Write a condition"):
            searcher.search("x", 1, wrong)


@pytest.mark.parametrize("k", [0, -1, 10_001])
def test_k_has_bounds(searcher: Searcher, k: int) -> None:
    with pytest.raises(ConfigError, match="must lie between 1 and 10000"):
        searcher.search("x", k)


def test_a_vector_of_another_space_is_refused_with_the_remedy(searcher: Searcher) -> None:
    own = hashing()
    vector = own.embed(["animal7 in room2"], "query").vectors[0]
    assert searcher.search_vector(vector, own.space, 1).hits[0].document_id == "id-7"
    other = hashing(max_tokens=100)  # the same dimensions are not the same space
    with pytest.raises(
        SpaceMismatchError, match=r"Query it with hashing:words, or run `embedding-pipelines run p`"
    ):
        searcher.search_vector(vector, other.space, 1)
    with pytest.raises(Exception, match="shape"):
        searcher.search_vector(np.ones(3, np.float32), own.space, 1)


def test_a_model_whose_weights_changed_is_refused(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_pipelines.providers.hashing.VERSION", "2")
    with pytest.raises(SpaceMismatchError, match="cannot be compared"):
        searcher.search("animal7")


def test_a_searcher_keeps_its_release_while_newer_ones_come(searcher: Searcher, home: Path) -> None:
    write_csv(home, "a.csv", [("new", "animal7 in room2", "odd", 1)], "id,title,Cat,year")
    run_steps(home, "p")
    assert searcher.search("animal7 in room2", 1).hits[0].document_id == "id-7"
    assert search(home, "p", "animal7 in room2", 1).hits[0].document_id == "new"


def test_a_changed_pipeline_file_does_not_change_what_is_live(
    searcher: Searcher, home: Path
) -> None:
    before = searcher.search("animal7 in room2")
    for text in (
        "broken",
        PIPELINE.replace("{provider: hashing}", "{provider: hashing, dimensions: 32}"),
    ):
        write_pipeline(home, "p", text)
        assert search(home, "p", "animal7 in room2").hits == before.hits


@pytest.mark.parametrize(
    "chain", ["[float16]", "[int8]", "[binary]", "[{kind: truncate, dimensions: 32}]"]
)
def test_every_codec_finds_the_document_itself(home: Path, chain: str) -> None:
    write_pipeline(home, "p", PIPELINE + f"compression: {chain}\n")
    write_csv(home, "a.csv", ROWS, "id,title,Cat,year")
    run_steps(home, "p")
    for n in (0, 7, 33):
        best = search(home, "p", f"animal{n} in room{n % 5}", 1).hits[0]
        assert best.document_id == f"id-{n}"
        assert best.score == pytest.approx(1, abs=0.02)


def test_another_cross_encoder_takes_the_place_of_the_first(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = list[str]()

    class Encoder:
        def __init__(self, name: str, home: Path) -> None:
            self.name = name
            steps.append(f"open {name}")

        def scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
            return np.arange(len(pairs), dtype=np.float32)

        def close(self) -> None:
            steps.append(f"close {self.name}")

    monkeypatch.setattr(cross_encoder, "CrossEncoder", Encoder)
    with searcher:
        for name in ("one", "one", "other"):
            assert searcher.search("animal7", rerank=name).reranked_by == name
    assert steps == ["open one", "close one", "open other", "close other"]


@pytest.fixture(scope="module")
def rescored_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bits with int8 copies, twice as many found as are wanted."""
    home = tmp_path_factory.mktemp("rescored")
    write_pipeline(home, "p", PIPELINE + "compression: [{kind: binary, oversample: 2}]\n")
    write_csv(home, "a.csv", ROWS, "id,title,Cat,year")
    run_steps(home, "p")
    return home


@pytest.fixture
def rescored(home: Path, rescored_once: Path) -> Searcher:
    copy_home(rescored_once, home)
    return Searcher(Warehouse(home), "p")


def test_rescored_scores_are_cosines_and_in_their_order(rescored: Searcher) -> None:
    asked = "animal7 room2"
    hits = rescored.search(asked, 10).hits
    query, *vectors = hashing().embed([asked, *(hit.text for hit in hits)], "query").vectors
    scores = [hit.score for hit in hits]
    assert scores == pytest.approx([float(query @ vector) for vector in vectors], abs=0.01)
    assert scores == sorted(scores, reverse=True)
    assert len({hit.chunk_id for hit in hits}) == 10


def test_copies_are_kept_in_the_table_and_given_to_no_searcher(rescored: Searcher) -> None:
    release, table = rescored.release, rescored._table
    assert table.schema(release.version).field(RESCORING_VECTOR).type == pa.list_(pa.int8(), 64)
    assert rescored.search("animal7", 1).hits[0].metadata.keys() == {"Cat", "year"}
    vector = hashing().embed(["animal7"], "query").vectors[0]
    found = nearest(table, rescored.codec, vector, 3, None, release.version)
    own = ["chunk_id", "document_id", "start", "end", "text", "Cat", "year"]
    assert found.column_names == [*own, "score"]
    assert found.schema.field("score").type == pa.float32()


def test_a_filter_loses_no_rows_to_rescoring(rescored: Searcher) -> None:
    found = [hit.document_id for hit in rescored.search("animal7 in room2", 60, "year >= 20").hits]
    assert sorted(found) == sorted(f"id-{n}" for n in range(20, 60))
    assert len(rescored.search("animal7 in room2", 5, "Cat = 'odd'").hits) == 5
    assert rescored.search("animal7 in room2", 5, "Cat = 'nobody'").hits == []


def test_more_oversampling_finds_more_of_the_nearest(tmp_path: Path) -> None:
    vectors, asked = clustered(3_000, 64), clustered(30, 64, seed=5)
    exact = np.argsort(-asked @ vectors.T, axis=1)[:, :10].tolist()
    shares = []
    for oversample in (1, 4, 32):
        codec = fit_chain(f"[{{kind: binary, oversample: {oversample}}}]", vectors)
        table = build(tmp_path, codec)
        add(table, codec, vectors, 0, [])
        assert table.index(codec.metric, 0) == 3_000
        assert table.version is not None
        names = [
            nearest(table, codec, query, 10, None, table.version)["chunk_id"].to_pylist()
            for query in asked
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


TYPED = HASHING.replace(
    "metadata: [cat]",
    "metadata: {year: int, price: float, sold: bool, day: date, at: timestamp, query: string}",
)


@pytest.fixture(scope="module")
def typed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with metadata of every type, of which some is missing, and a column `query`."""
    home = tmp_path_factory.mktemp("typed")
    write_pipeline(home, "p", TYPED)
    rows = [
        ("a", "red fox", 1999, 1.5, "true", "2024-05-01", "2024-05-01T10:00:00Z", "q1"),
        ("b", "red whale", "", "", "", "", "", ""),
        ("c", "green tea", 2001, 2, "false", "2024-05-02", "2024-05-01T11:00:00Z", "q3"),
    ]
    write_csv(home, "a.csv", rows, "id,title,year,price,sold,day,at,query")
    run_steps(home, "p")
    return home


@pytest.fixture
def typed(home: Path, typed_once: Path) -> Searcher:
    copy_home(typed_once, home)
    return Searcher(Warehouse(home), "p")


TYPES = {
    "score": "float32",
    "chunk_id": "str",
    "document_id": "str",
    "start": "Int64",
    "end": "Int64",
    "text": "str",
    "year": "Int64",
    "price": "float64",
    "sold": "boolean",
    "day": "datetime64[ms]",
    "at": "datetime64[us, UTC]",
}


def test_a_result_is_a_table_with_a_row_for_each_hit(typed: Searcher) -> None:
    result = typed.search("red fox", 3)
    frame = result.to_pandas()
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == TYPES | {"query": "str"}
    assert frame["document_id"].tolist() == [hit.document_id for hit in result.hits]
    assert frame["score"].tolist() == pytest.approx([hit.score for hit in result.hits])
    assert frame.loc[0, ["text", "year", "price", "sold"]].tolist() == ["red fox", 1999, 1.5, True]
    assert frame.loc[0, "day"] == pd.Timestamp("2024-05-01")
    assert frame.set_index("document_id").loc["b"].isna().sum() == 5
    empty = typed.search("fox", 3, "year = 1").to_pandas()
    assert empty.dtypes.to_dict() == frame.dtypes.to_dict()


def test_many_queries_get_what_each_of_them_gets_alone(typed: Searcher) -> None:
    queries = ["red  fox", "tea", "red fox", "a whale"]
    many = typed.search_many(queries, 2, "year IS NULL OR year < 2001")
    assert {name: str(kind) for name, kind in many.dtypes.items()} == {
        "query": "str",
        "rank": "int32",
        **TYPES,
        "metadata_query": "str",
    }
    for row, query in enumerate(queries):
        alone = typed.search(query, 2, "year IS NULL OR year < 2001").to_pandas()
        hits = many.loc[row]
        assert hits["query"].tolist() == [query] * 2
        assert hits["rank"].tolist() == [1, 2]
        assert hits["chunk_id"].tolist() == alone["chunk_id"].tolist()
        assert hits["score"].tolist() == pytest.approx(alone["score"].tolist(), abs=1e-5)
        assert hits["text"].tolist() == alone["text"].tolist()


def test_a_column_of_queries_keeps_its_index(typed: Searcher) -> None:
    frame = pd.DataFrame({"asked": ["tea", "red fox"]}, index=["second", "first"])
    many = typed.search_many(frame["asked"], 1)
    assert many.index.tolist() == ["second", "first"]
    joined = frame.join(many.drop(columns="query"))
    assert joined["document_id"].to_dict() == {"second": "c", "first": "a"}


def test_no_queries_and_no_hits_are_empty_tables_of_the_same_columns(typed: Searcher) -> None:
    full = typed.search_many(["fox"], 1)
    for empty in (typed.search_many([]), typed.search_many(["fox"], 1, "year = 1")):
        assert len(empty) == 0
        assert empty.dtypes.astype(str).to_dict() == full.dtypes.astype(str).to_dict()


def test_many_queries_are_embedded_in_few_calls_and_once(typed: Searcher) -> None:
    recording = Recording(hashing())
    typed.model = recording
    queries = [f"fox {number % 50}" for number in range(120)]
    typed.search_many(queries, 1)
    assert sorted(recording.texts) == sorted(set(queries))
    assert len(recording.calls) == 1
    typed.search_many(queries, 1)
    assert len(recording.calls) == 1


def test_what_no_query_can_be_is_refused_before_anything_is_embedded(typed: Searcher) -> None:
    recording = Recording(hashing())
    typed.model = recording
    missing = pd.Series(["tea", None])
    for queries, k, words in (
        (["tea", " \x00"], 1, r"queries\[1\] is empty after cleaning"),
        (missing, 1, r"queries\[1\] is nan, not a text"),
        ("tea", 1, "queries is one str: give a list"),
        (missing.to_frame("a").assign(b=1), 1, "the columns a, b. Give the one with the queries"),
        (3, 1, "The query is 3. Give a text"),
        (["tea"], 0, "k is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            typed.search_many(queries, k)
    typed.model = Recording(hashing(max_tokens=100))
    with pytest.raises(SpaceMismatchError, match="embedding-pipelines run p"):
        typed.search_many(["tea"])
    assert recording.texts == typed.model.texts == []


@pytest.mark.parametrize("query", [{"fox": 1}, b"fox", 5, None])
def test_what_holds_no_texts_is_refused(typed: Searcher, query: Any) -> None:
    with pytest.raises(ConfigError, match="Give a text, a list of texts, or a column"):
        typed.search(query)


def test_a_pipeline_has_a_number_and_one_that_there_is_not_is_told(home: Path) -> None:
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", ROWS, "id,title,Cat,year")
    run_steps(home, "p")
    assert search(home, 1, "fox").pipeline == "p"
    with pytest.raises(ConfigError, match=r"There is no pipeline 'q' in .* There are: p"):
        search(home, "q", "fox")
    with pytest.raises(ConfigError, match="There is no pipeline 'p' in "):
        search(home / "elsewhere", "p", "fox")
    with pytest.raises(ConfigError, match="No pipeline has the number 7: 1 is 'p'"):
        search(home, "7", "fox")


def test_without_pandas_the_extra_is_named(
    typed: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = typed.search("tea")
    monkeypatch.setitem(sys.modules, "pandas", None)
    for ask in (result.to_pandas, lambda: typed.search_many(["tea"])):
        with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[explore\]'"):
            ask()


MINE = """\
import numpy as np
class Mine:
    dimensions = 4
    def embed(self, texts, input_type):
        rows = np.zeros((len(texts), 4), np.float32)
        for row, text in enumerate(texts):
            rows[row, ({place} + len(text)) % 4] = 1
        return rows
"""


def test_one_process_serves_two_homes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each home has a model, a module and data of its own under the same names, and nobody reads
    the environment for them."""
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    source = "source: {kind: csv, path: 'data/*.csv', id: id, text: [title]}\npartitions: 2\n"
    model = "model: {provider: custom, cls: 'mine:Mine', normalize: true}\n"
    homes = [tmp_path / name for name in ("one", "other")]
    for place, home in enumerate(homes):
        write_pipeline(home, "p", source + model + UNMEASURED)
        (home / "mine.py").write_text(MINE.format(place=place))
        write_csv(home, "a.csv", [(f"{home.name}-{size}", "x" * size, "") for size in (4, 5, 6, 7)])
        run_steps(home, "p")
    with (
        Searcher(Warehouse(homes[0]), "p") as one,
        Searcher(Warehouse(homes[1]), "p") as other,
    ):
        for _ in range(2):  # in turn, both open
            for searcher, home in ((one, homes[0]), (other, homes[1])):
                for size in (4, 5, 6, 7):
                    (hit,) = searcher.search("y" * size, 1).hits
                    assert (hit.document_id, hit.score) == (f"{home.name}-{size}", 1.0)
        assert one.release.space != other.release.space
    assert search(homes[1], "p", "zzzz", 1).hits[0].document_id == "other-4"


def test_texts_are_searchable_by_words_as_soon_as_they_are_cut(home: Path) -> None:
    """No vector exists and nothing is written; the first release then answers."""
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", ROWS, "id,title,Cat,year")
    with pytest.raises(ReleaseError, match="has no release yet"):
        search(home, "p", "animal7", mode="text")
    with run_of(home, "p") as run:
        for step in steps_of(run.spec)[:2]:
            list(step.work(run, run.spec.partition_names))
    before = sorted(path for path in home.rglob("*"))
    result = search(home, "p", "rooms animal7", 3, mode="text")
    assert sorted(path for path in home.rglob("*")) == before
    assert (result.release, result.mode, result.hits[0].document_id) == (0, "text", "id-7")
    assert result.hits[0].metadata == {"Cat": "odd", "year": 7}
    assert "'p' has no release yet" in result.notes[0]
    assert "4 of 4 partitions" in result.notes[0]
    assert result.to_pandas()["year"][0] == 7
    few = search(home, "p", "animal7 animal8", 3, {"Cat": "even"}, mode="text")
    assert [hit.document_id for hit in few.hits] == ["id-8"]
    with pytest.raises(StoreError, match="cannot be used"):
        search(home, "p", "x", 3, "year =", mode="text")
    for mode in (None, "vector", "hybrid"):
        with pytest.raises(ReleaseError, match="has no release yet"):
            search(home, "p", "animal7", mode=mode)  # type: ignore[call-overload]
    run_steps(home, "p")
    assert search(home, "p", "animal7", mode="text").release == 1
