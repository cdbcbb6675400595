"""Labels by the vote of neighbours."""

from pathlib import Path

import pytest

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.explore.classify import classify
from embedding_pipelines_tests.explore.topics import ODD, PIPELINE, write_topics


def test_a_label_that_cannot_be_is_a_readable_error(home: Path) -> None:
    write_topics(home)
    with pytest.raises(ConfigError, match="Name the column of the labels: the metadata of release"):
        classify(home, "p", ["tea"])
    with pytest.raises(ConfigError, match=r"There is no 'colour': .* has topic, year, tags"):
        classify(home, "p", ["tea"], "colour")


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
