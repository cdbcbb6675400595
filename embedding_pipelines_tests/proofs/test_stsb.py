"""STS-B: the model orders pairs of sentences as people do, to its published figure."""

import csv
from pathlib import Path

import pytest

from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.metrics.similarity import cosine_spearman
from embedding_pipelines.spec.load import parse_pipeline

pytestmark = [pytest.mark.slow]

PIPELINE = (
    "source: {kind: csv, path: unread.csv}\nmodel: hf:sentence-transformers/all-MiniLM-L6-v2\n"
)
PAIRS = 1_379
PUBLISHED_SPEARMAN = 0.820  # MTEB's STSBenchmark for all-MiniLM-L6-v2


def test_the_published_spearman_is_reached(shared: Path, proof_home: Path) -> None:
    with (shared / "stsb" / "test.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(
            csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        )  # cells may begin with a quote
    assert len(rows) == PAIRS
    spec = parse_pipeline(PIPELINE, "stsb", "stsb.yaml")
    texts = spec.preprocessing.clean.texts(
        [row[side] for side in ("sentence1", "sentence2") for row in rows]
    )
    model = spec.model.open(proof_home)
    vectors = embed_all(texts, model, None).vectors
    spearman = cosine_spearman(
        vectors[:PAIRS], vectors[PAIRS:], [float(row["score"]) for row in rows]
    )
    assert spearman == pytest.approx(PUBLISHED_SPEARMAN, abs=0.002)
