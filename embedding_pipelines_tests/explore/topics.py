"""Documents of three topics with words of their own, and a few that are about nothing of the
kind."""

from pathlib import Path

import numpy as np

from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline

PIPELINE = """\
source:
  kind: csv
  path: 'data/*.csv'
  id: id
  text: [title]
  metadata: {topic: string, year: int, tags: 'list[string]'}
model: {provider: hashing}
partitions: 4
evaluation: {known_items: 0, may_shrink: 1}
"""
COMPRESSED = f"{PIPELINE}compression: [{{kind: pca, dimensions: 40}}, int8]\n"
HEADER = "id,title,topic,year,tags"
TOPICS = {
    "animals": "fox wolf bear deer badger otter mouse horse camel goat sheep llama",
    "drinks": "tea coffee cocoa juice water milk lemonade cider beer wine punch rum",
    "houses": "roof wall door window floor stairs cellar attic porch gable tiles chimney",
}
ODD = ("quantum chromodynamics lecture", "zeppelin timetable 1931", "how to knit a scarf")


def write_topics(home: Path, pipeline: str = PIPELINE, header: str = HEADER) -> None:
    """A pipeline `p` of 40 documents per topic, each of nine of its twelve words, and of ODD; and
    its release."""
    random = np.random.default_rng(0)
    rows = [
        (
            f"{topic}-{number}",
            " ".join(random.permutation(words.split())[:9]),
            topic,
            number,
            '["a", "b"]',
        )
        for number in range(40)
        for topic, words in TOPICS.items()
    ]
    rows += [(f"odd-{number}", text, "", "", "") for number, text in enumerate(ODD)]
    write_pipeline(home, "p", pipeline)
    write_csv(home, "topics.csv", rows, header)
    run_steps(home, "p")
