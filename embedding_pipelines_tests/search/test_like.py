"""What is like a document, or like several: recommendations."""

from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.errors import ConfigError, ReleaseError, StoreError
from embedding_pipelines.push import Pusher
from embedding_pipelines.search import Searcher, search
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.stores.lancedb import LanceTable
from embedding_pipelines_tests.chain import run_of, run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.explore.topics import COMPRESSED, PIPELINE, TOPICS, write_topics

BINARY = f"{PIPELINE}compression: [{{kind: binary, rescore: int8}}]\n"


@pytest.mark.parametrize("pipeline", [PIPELINE, COMPRESSED, BINARY])
def test_what_is_like_a_document_is_of_its_topic_and_not_itself(home: Path, pipeline: str) -> None:
    write_topics(home, pipeline)
    result = search(home, "p", like="drinks-7", k=12)
    assert (result.query, len(result.hits)) == ("like drinks-7", 12)
    assert {hit.metadata["topic"] for hit in result.hits} == {"drinks"}
    assert "drinks-7" not in {hit.document_id for hit in result.hits}
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    others = search(home, "p", like="drinks-7", k=3, filter="topic = 'houses'")
    assert {hit.metadata["topic"] for hit in others.hits} == {"houses"}


def test_what_is_like_several_is_near_each_of_them(home: Path) -> None:
    write_topics(home)
    liked = ["drinks-7", "animals-3", "drinks-7"]
    with Searcher(home, "p") as searcher:
        result = searcher.search_like(liked, 20)
        held = searcher.load_memory()
        assert [hit.document_id for hit in searcher.search_like(liked, 20).hits] == [
            hit.document_id for hit in result.hits
        ]
    assert held
    assert {hit.metadata["topic"] for hit in result.hits} == {"drinks", "animals"}
    assert not {hit.document_id for hit in result.hits} & set(liked)


def test_a_document_of_many_chunks_is_one(home: Path) -> None:
    chunked = PIPELINE + "preprocessing: {chunk: {max_tokens: 8, overlap: 0}}\n"
    write_pipeline(home, "p", chunked)
    words = " ".join([TOPICS["animals"], TOPICS["drinks"]])
    rows = [("long", words, "", "", ""), ("near", TOPICS["drinks"][:30], "", "", "")]
    write_csv(home, "topics.csv", rows, "id,title,topic,year,tags")
    run_steps(home, "p")
    result = search(home, "p", like="long")
    assert {hit.document_id for hit in result.hits} == {"near"}


def test_what_was_pushed_counts_at_once(home: Path) -> None:
    write_topics(home)

    def push(**documents: str | None) -> None:
        with Pusher(run_of(home, "p").spec, Warehouse(home)) as pusher:
            pusher.delete([name for name, text in documents.items() if text is None])
            pusher.put([{"id": name, "title": text} for name, text in documents.items() if text])

    def like(name: str, **options: Any) -> list[str]:
        return [hit.document_id for hit in search(home, "p", like=name, **options).hits]

    near = like("drinks-7", k=5)
    with Searcher(home, "p") as searcher:
        push(**{near[0]: None, "new": TOPICS["drinks"], "drinks-8": TOPICS["houses"]})
        again = [hit.document_id for hit in searcher.search_like("drinks-7", 200).hits]
    assert near[0] not in again
    assert "new" in again[:40]
    assert {name.partition("-")[0] for name in like("new", k=20)} == {"drinks"}
    assert {name.partition("-")[0] for name in like("drinks-8", k=20)} == {"houses"}
    with pytest.raises(ConfigError, match=f"has no document '{near[0]}'"):
        like(near[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"like": "drinks-400"}, "Release 1 of 'p' has no document 'drinks-400'. A search shows"),
        ({"like": []}, "Give the id of a document, or of several"),
        ({"like": [7]}, r"like is \[7\]. Give the id"),
        ({"like": "drinks-1", "k": 0}, "k is 0"),
        ({"like": "drinks-1", "query": "tea"}, "Give one of: a query, image=, or like="),
        ({"like": "drinks-1", "mode": "text"}, "compared by vectors alone"),
    ],
)
def test_what_cannot_be_is_a_readable_error(
    topics: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        search(topics, "p", **options)


def test_a_partition_is_read_once_however_many_of_its_documents_are_meant(
    topics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, partitions = LanceTable.scan, list[str]()

    def noted(table: LanceTable, columns: Any, partition: str, version: int) -> Any:
        partitions.append(partition)
        return scan(table, columns, partition, version)

    monkeypatch.setattr(LanceTable, "scan", noted)
    liked = [f"drinks-{n}" for n in range(20)]
    assert len(search(topics, "p", like=liked, k=5).hits) == 5
    assert len(set(partitions)) == len(partitions) > 1


def test_a_wrong_filter_and_no_release_are_readable_errors(topics: Path) -> None:
    with pytest.raises(StoreError, match="filter"):
        search(topics, "p", like="drinks-1", filter="nonsense = 1")
    write_pipeline(topics, "new", PIPELINE)
    with pytest.raises(ReleaseError):
        search(topics, "new", like="1")


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("topics")
    write_topics(home)
    return home
