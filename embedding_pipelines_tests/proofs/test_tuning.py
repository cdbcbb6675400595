"""Compression with a proven floor, on captions and a real model: small where it may be, refused
where it may not."""

import csv
import itertools
from pathlib import Path

import pytest

from embedding_pipelines.errors import CompressionError
from embedding_pipelines.metrics.neighbours import Neighbours, recall
from embedding_pipelines.optimize import optimizer as tune_step
from embedding_pipelines.optimize.optimizer import Tuned, Wish, refit, tune
from embedding_pipelines.optimize.trial import Corpus
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.edit import edit_pipeline
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.chain import run_of, run_steps, steps, write_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

CAPTIONS, OTHERS = 8_000, 500
FLOOR = 0.99
PIPELINE = """\
source: {kind: csv, path: data/captions.csv, id: id, text: [caption], metadata: [image]}
model: hf:sentence-transformers/all-MiniLM-L6-v2
store: {kind: lancedb, index_rows: 4000}
"""


@pytest.fixture(scope="module")
def embedded(shared: Path, proof_home: Path) -> Path:
    (proof_home / "data").mkdir()
    with (shared / "captions" / "captions_en.csv").open(encoding="utf-8") as file:
        (proof_home / "data" / "captions.csv").write_text(
            "".join(itertools.islice(file, CAPTIONS + 1))
        )
    write_pipeline(proof_home, "captions", PIPELINE)
    context = run_of(proof_home, "captions")
    for step, _ in steps(context):
        if step == "codec":
            break
    return proof_home


@pytest.fixture(scope="module")
def tuned(embedded: Path) -> Tuned:
    return tune(run_of(embedded, "captions"), Wish(("auto",), floor=FLOOR))


def test_vectors_are_four_times_smaller_and_keep_the_floor(tuned: Tuned) -> None:
    assert not tuned.problem
    found = tuned.spec.optimized
    assert found is not None
    assert found.queries == tune_step.QUERIES
    assert found.times_smaller is not None
    assert found.times_smaller >= 4
    assert found.recall_at_10 is not None
    assert found.lower_bound is not None
    assert found.recall_at_10 >= found.lower_bound >= FLOOR


def test_the_released_table_finds_what_was_promised_of_it(
    tuned: Tuned, embedded: Path, shared: Path
) -> None:
    """Other captions are asked, which are not in the corpus at all."""
    path = embedded / "pipelines" / "captions.yaml"
    with edit_pipeline(path, tuned.options, tuned.spec):
        refit(run_of(embedded, "captions"))
        run_steps(embedded, "captions")
    searcher = Searcher(Warehouse(embedded), "captions")
    release, context = searcher.release, run_of(embedded, "captions")
    assert release.spec.compression == tuned.spec.compression
    with (shared / "captions" / "captions_en.csv").open(encoding="utf-8", newline="") as file:
        texts = [
            row["caption"]
            for row in itertools.islice(csv.DictReader(file), CAPTIONS, CAPTIONS + OTHERS)
        ]
    asked = Corpus(context).asked(searcher.model.embed(texts, "query").vectors)
    names = [
        name
        for partition in context.spec.partition_names
        for batch in context.folder.embeddings.read(partition, ["chunk_id"])
        for name in batch["chunk_id"].to_pylist()
    ]
    truth = Neighbours(
        [[names[row] for row in rows] for rows in asked.exact.ids], asked.exact.cosines
    )
    found = [
        [hit.chunk_id for hit in searcher.search_vector(vector, searcher.model.space).hits]
        for vector in asked.vectors
    ]
    assert recall(found, truth).mean() > 0.985


def test_what_no_compression_keeps_is_refused(tuned: Tuned, embedded: Path) -> None:
    context = run_of(embedded, "captions")
    before = (embedded / "pipelines" / "captions.yaml").read_bytes()
    refused = tune(context, Wish(("auto",), 96, FLOOR))
    assert "no compression is proven to keep a recall of 0.99" in refused.problem
    assert "The best is pca 96" in refused.problem
    with pytest.raises(CompressionError, match=r"2000 queries cannot prove a recall of 0\.9999"):
        tune(context, Wish(("auto",), floor=0.9999))
    assert (embedded / "pipelines" / "captions.yaml").read_bytes() == before
