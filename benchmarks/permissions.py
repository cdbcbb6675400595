"""Searches of somebody who may see few, some or most of 100,000 documents: right, and how fast.

`python -m benchmarks.permissions [FOLDER]` makes the table in FOLDER, and keeps it there. Vectors are
random and lie in 400 clusters, so no model is part of the figures. Times are of this process's
processor, median of the queries; recall is of the 10 that an exact scan of the visible rows finds.
"""

import csv
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from embedding_pipelines import OPERATOR, Searcher
from embedding_pipelines.access import Access
from embedding_pipelines.explore.table import load_vectors
from embedding_pipelines.orchestration.launch import run_named
from embedding_pipelines.vectors import Vectors, unit

DOCUMENTS, DIMENSIONS, QUERIES, K = 100_000, 128, 40, 10
SEES = {"ten": 10, "thousand": 1_000, "tenth": 10_000, "half": 50_000, "all": DOCUMENTS}
FILE = """\
source: {kind: csv, path: data/*.csv, id: id, text: [text]}
model: {provider: hashing, dimensions: 128}
evaluation: {known_items: 0}
permissions: {kind: csv, path: acl.csv, id: id, principals: who}
"""


def build(home: Path) -> None:
    (home / "pipelines").mkdir(parents=True)
    (home / "data").mkdir()
    (home / "pipelines" / "p.yaml").write_text(FILE)
    random = np.random.default_rng(0)
    topics = [[f"w{word}" for word in random.integers(0, 20_000, 12)] for _ in range(400)]
    with (home / "data" / "a.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text"])
        for number in range(DOCUMENTS):
            words = random.permutation(topics[number % 400])[:7].tolist()
            rows.writerow([f"document-{number:06}", f"{' '.join(words)} only{number}"])
    with (home / "acl.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "who"])
        for name, count in SEES.items():
            for number in np.sort(random.choice(DOCUMENTS, count, replace=False)).tolist():
                rows.writerow([f"document-{number:06}", name])
    run_named(home, "p")


def exact(vectors: Vectors, query: Vectors, visible: np.ndarray) -> float:
    """The cosine of the K-th best visible row."""
    scores = np.sort((vectors @ query)[visible])[::-1]
    return float(scores[min(K, len(scores)) - 1])


def measure(home: Path) -> Iterator[dict[str, object]]:
    vectors = unit(load_vectors(home, "p", "stored", OPERATOR))
    with Searcher(home, "p") as searcher:
        batches = searcher.rows.current.table.scan(
            ["document_id", "text"], version=searcher.release.version
        )
        rows = [
            pair
            for each in batches
            for pair in zip(
                *map(list, (each["document_id"].to_pylist(), each["text"].to_pylist())), strict=True
            )
        ]
        names = np.array([name for name, _ in rows])
        random = np.random.default_rng(1)
        queries = [" ".join(rows[at][1].split()[:5]) for at in random.choice(len(rows), QUERIES)]
        query_vectors = unit(searcher.model.embed(queries, "query").vectors)
        for where in ("table", "memory"):
            if where == "memory" and not searcher.load_memory():
                return
            for name in ("operator", *SEES):
                principals = OPERATOR if name == "operator" else [name]
                started = time.process_time()
                visible = searcher.visible(principals)
                first = time.process_time() - started
                mask = np.isin(names, sorted(visible.ids)) if visible else np.ones(len(names), bool)
                searcher.search(queries[0], K, principals=principals)
                seconds, hits, right = list[float](), 0, 0
                for text, vector in zip(queries, query_vectors, strict=True):
                    started = time.process_time()
                    own = searcher.search(text, K, principals=principals).hits
                    seconds.append(time.process_time() - started)
                    bound = exact(vectors, vector, mask) - 2e-3
                    hits += len(own)
                    right += sum(hit.score >= bound for hit in own)
                yield {
                    "where": where,
                    "sees": name,
                    "hits": hits / QUERIES,
                    "recall": right / (QUERIES * min(K, int(mask.sum()))),
                    "ms": round(1000 * float(np.median(seconds)), 1),
                    "first_ms": round(1000 * first, 1),
                }
    started = time.process_time()
    Access(home, "p", None).visible(["ten"])
    yield {"read_ms": round(1000 * (time.process_time() - started), 1)}


def main() -> None:
    home = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    if not (home / "pipelines").exists():
        build(home)
    for row in measure(home):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
