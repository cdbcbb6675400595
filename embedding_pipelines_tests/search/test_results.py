"""Results as tables: one query's and many queries', with a type for each column."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from embedding_pipelines.errors import ConfigError, SpaceMismatchError
from embedding_pipelines.search import Searcher
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    hashing,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING
from embedding_pipelines_tests.recording import Recording

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


@pytest.mark.usefixtures("typed")
def test_many_queries_are_embedded_in_few_calls_and_once(home: Path) -> None:
    recording = Recording(hashing())
    searcher = Searcher(home, "p", recording)
    queries = [f"fox {number % 50}" for number in range(120)]
    searcher.search_many(queries, 1)
    assert sorted(recording.texts) == sorted(set(queries))
    assert len(recording.calls) == 1
    searcher.search_many(queries, 1)
    assert len(recording.calls) == 1


@pytest.mark.usefixtures("typed")
def test_what_no_query_can_be_is_refused_before_anything_is_embedded(home: Path) -> None:
    recording, other = Recording(hashing()), Recording(hashing(max_tokens=100))
    searcher = Searcher(home, "p", recording)
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
            searcher.search_many(queries, k)
    with pytest.raises(SpaceMismatchError, match="embedding-pipelines run p"):
        Searcher(home, "p", other).search_many(["tea"])
    assert recording.texts == other.texts == []


@pytest.mark.parametrize("query", [{"fox": 1}, b"fox", 5, None])
def test_what_holds_no_texts_is_refused(typed: Searcher, query: Any) -> None:
    with pytest.raises(ConfigError, match="Give a text, a list of texts, or a column"):
        typed.search(query)


def test_without_pandas_the_extra_is_named(
    typed: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = typed.search("tea")
    monkeypatch.setitem(sys.modules, "pandas", None)
    for ask in (result.to_pandas, lambda: typed.search_many(["tea"])):
        with pytest.raises(ConfigError, match=r"pip install 'embedding-pipelines\[explore\]'"):
            ask()
