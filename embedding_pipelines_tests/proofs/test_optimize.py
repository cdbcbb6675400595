"""Compression with a proven floor, on short texts and a real model: small where it may be, refused
where it may not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.errors import CompressionError
from embedding_pipelines.metrics.neighbours import Neighbours, recall
from embedding_pipelines.optimize.optimize import (
    QUERIES,
    Goal,
    OptimizeResult,
    optimize_pipeline,
    refit,
)
from embedding_pipelines.optimize.tables import Corpus
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.edit import edit_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_of, run_steps, steps, write_pipeline
from embedding_pipelines_tests.corpora import OWN, captions, own_and, sentences

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

TEXTS, OTHERS = {OWN: 2_500, "captions/captions_en.csv": 5_000}, 500
FLOORS = {OWN: 0.97, "captions/captions_en.csv": 0.99}  # fewer queries prove less
PIPELINE = """\
source: {kind: jsonl, path: data/texts.jsonl, text: text}
model: hf:sentence-transformers/all-MiniLM-L6-v2
store: {kind: lancedb, index_rows: 4000}
"""


class Embedded(NamedTuple):
    """A home folder whose pipeline has its embeddings, and texts that are not among them."""

    home: Path
    floor: float
    others: list[str]


@pytest.fixture(scope="module", params=own_and("captions/captions_en.csv"))
def embedded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedded]:
    home, count = tmp_path_factory.mktemp("home"), TEXTS[request.param]
    texts = sentences() if request.param == OWN else captions(count + OTHERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        (home / "data").mkdir()
        lines = (json.dumps({"text": text}) + "\n" for text in texts[:count])
        (home / "data" / "texts.jsonl").write_text("".join(lines))
        write_pipeline(home, "texts", PIPELINE)
        run = run_of(home, "texts")
        for step, _ in steps(run):
            if step == "codec":
                break
        yield Embedded(home, FLOORS[request.param], texts[count : count + OTHERS])


@pytest.fixture(scope="module")
def result(embedded: Embedded) -> OptimizeResult:
    return optimize_pipeline(run_of(embedded.home, "texts"), Goal(("auto",), floor=embedded.floor))


def test_vectors_are_four_times_smaller_and_keep_the_floor(
    result: OptimizeResult, embedded: Embedded
) -> None:
    assert not result.problem
    optimized = result.spec.optimized
    assert optimized is not None
    assert optimized.queries is not None
    # A sentence that has no beginning to ask for gives no query.
    assert 0.9 * min(QUERIES, TEXTS[OWN] // 2) < optimized.queries <= QUERIES
    assert optimized.times_smaller is not None
    assert optimized.times_smaller >= 4
    assert optimized.recall_at_10 is not None
    assert optimized.lower_bound is not None
    assert optimized.recall_at_10 >= optimized.lower_bound >= embedded.floor


def test_the_released_table_finds_what_was_promised_of_it(
    result: OptimizeResult, embedded: Embedded
) -> None:
    """The queries are other texts, which are not in the corpus at all."""
    path = embedded.home / "pipelines" / "texts.yaml"
    with edit_pipeline(path, result.options, result.spec):
        refit(run_of(embedded.home, "texts"))
        run_steps(embedded.home, "texts")
    searcher = Searcher(Warehouse(embedded.home), "texts")
    release, run = searcher.release, run_of(embedded.home, "texts")
    assert release.spec.compression == result.spec.compression
    vectors = searcher.model.embed(embedded.others, "query").vectors
    exact = Corpus(run).query_set(vectors).exact
    names = [
        name
        for partition in run.spec.partition_names
        for batch in run.folder.embeddings.read(partition, ["chunk_id"])
        for name in batch["chunk_id"].to_pylist()
    ]
    truth = Neighbours([[names[row] for row in rows] for rows in exact.ids], exact.cosines)
    results = [
        [hit.chunk_id for hit in searcher.search_vector(vector, searcher.model.space).hits]
        for vector in vectors
    ]
    assert recall(results, truth).mean() > embedded.floor - 0.005


def test_what_no_compression_keeps_is_refused(result: OptimizeResult, embedded: Embedded) -> None:
    run = run_of(embedded.home, "texts")
    path = embedded.home / "pipelines" / "texts.yaml"
    before = path.read_bytes()
    refused = optimize_pipeline(run, Goal(("auto",), 96, embedded.floor))
    assert f"no compression is proven to keep a recall of {embedded.floor}" in refused.problem
    assert "The best is pca 96" in refused.problem
    assert result.spec.optimized is not None
    queries = result.spec.optimized.queries
    with pytest.raises(CompressionError, match=rf"{queries} queries cannot prove a .* 0\.9999"):
        optimize_pipeline(run, Goal(("auto",), floor=0.9999))
    assert path.read_bytes() == before
