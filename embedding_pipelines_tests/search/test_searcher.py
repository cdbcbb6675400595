"""Search: the nearest first, from the live release alone, and readable refusals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import (
    ConfigError,
    SpaceMismatchError,
    StoreError,
)
from embedding_pipelines.inference import cross_encoder
from embedding_pipelines.search import Searcher, search
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import (
    copy_home,
    hashing,
    run_steps,
    write_csv,
    write_pipeline,
)
from embedding_pipelines_tests.conftest import HASHING, UNMEASURED

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
    filters: list[Any] = ["nothing = 1", "year =", "year = 'x' 'y'", {"year": {"above": 5}}]
    for wrong in filters:
        with pytest.raises(StoreError, match=r"(?s)cannot be used.*year") as caught:
            searcher.search("x", 1, wrong)
        assert "Traceback" not in str(caught.value)
    with pytest.raises(StoreError, match="'id' is the id, which is document_id in filters"):
        searcher.search("x", 1, "id = 'id-3'")
    with pytest.raises(StoreError, match="'title' is in the text, which is text in filters"):
        searcher.search("x", 1, "title = 'x'")
    not_filters: list[Any] = [["year = 5"], 5, True]
    for wrong in not_filters:
        with pytest.raises(StoreError, match=r"Write a condition.*Columns: .*year"):
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
