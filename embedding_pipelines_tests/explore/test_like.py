"""Items like an item, and labels by the vote of neighbours."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import ConfigError, ReleaseError, StoreError
from embedding_pipelines.explore.classify import classify
from embedding_pipelines.explore.like import find_like
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.explore.topics import (
    COMPRESSED,
    ODD,
    PIPELINE,
    TOPICS,
    write_topics,
)

BINARY = f"{PIPELINE}compression: [{{kind: binary, rescore: int8}}]\n"


@pytest.mark.parametrize("pipeline", [PIPELINE, COMPRESSED, BINARY])
def test_items_like_an_item_are_of_its_topic_and_not_itself(home: Path, pipeline: str) -> None:
    write_topics(home, pipeline)
    result = find_like(home, "p", "drinks-7", 12)
    assert len(result.hits) == 12
    assert {hit.metadata["topic"] for hit in result.hits} == {"drinks"}
    assert "drinks-7" not in {hit.document_id for hit in result.hits}
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    others = find_like(home, "p", "drinks-7", 3, "topic = 'houses'")
    assert {hit.metadata["topic"] for hit in others.hits} == {"houses"}


def test_a_document_of_many_chunks_is_one_item(home: Path) -> None:
    chunked = PIPELINE + "preprocessing: {chunk: {max_tokens: 8, overlap: 0}}\n"
    write_pipeline(home, "p", chunked)
    words = " ".join([TOPICS["animals"], TOPICS["drinks"]])
    rows = [("long", words, "", "", ""), ("near", TOPICS["drinks"][:30], "", "", "")]
    write_csv(home, "topics.csv", rows, "id,title,topic,year,tags")
    run_steps(home, "p")
    result = find_like(home, "p", "long", 10)
    assert {hit.document_id for hit in result.hits} == {"near"}


def test_what_cannot_be_is_a_readable_error(home: Path) -> None:
    write_topics(home)
    with pytest.raises(ConfigError, match="There is no document 'drinks-400' in release 1 of 'p'"):
        find_like(home, "p", "drinks-400")
    with pytest.raises(ConfigError, match="k is 0"):
        find_like(home, "p", "drinks-1", 0)
    with pytest.raises(StoreError, match="filter"):
        find_like(home, "p", "drinks-1", filter="nonsense = 1")
    with pytest.raises(ConfigError, match="Name the column of the labels: the metadata of release"):
        classify(home, "p", ["tea"])
    with pytest.raises(ConfigError, match=r"There is no 'colour': .* has topic, year, tags"):
        classify(home, "p", ["tea"], "colour")
    write_pipeline(home, "new", PIPELINE)
    with pytest.raises(ReleaseError):
        find_like(home, "new", "1")


def test_neighbours_vote_for_a_label(home: Path) -> None:
    write_topics(home, f"{PIPELINE}".replace("known_items: 0", "known_items: 0, label: topic"))
    drink, house, mixed = classify(home, "p", ["beer wine rum", "roof cellar", "wolf bear tea"])
    assert (drink.label, house.label, mixed.label) == ("drinks", "houses", "animals")
    assert drink.share == pytest.approx(1.0)
    assert sum(mixed.votes.values()) == pytest.approx(1.0)
    assert all(name.startswith("drinks-") for name in drink.neighbours)
    (by_year,) = classify(home, "p", ["tea coffee"], "year", k=1)
    assert by_year.label == by_year.neighbours[0].partition("-")[2]


def test_neighbours_without_labels_do_not_vote(home: Path) -> None:
    write_topics(home)
    (odd,) = classify(home, "p", [ODD[0]], "topic", k=1)
    assert (odd.label, odd.share, odd.votes, odd.neighbours) == (None, 0.0, {}, [])
