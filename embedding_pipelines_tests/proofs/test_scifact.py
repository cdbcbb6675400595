"""SciFact through a pipeline file: the model's published retrieval figure, then what a change of 1% costs.

The tests of this module build on one another, because embedding the corpus takes minutes.
"""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from embedding_pipelines.evaluation.retrieval import mean_ndcg
from embedding_pipelines.preprocessing.clean import Clean
from embedding_pipelines.search import Searcher
from embedding_pipelines.warehouse import Warehouse
from embedding_pipelines_tests.chain import live_rows, write_pipeline
from embedding_pipelines_tests.runs import Collected, run_whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

PIPELINE = """\
source: {kind: jsonl, path: data/*.jsonl, id: _id, text: [title, text]}
preprocessing: {chunk: null}
model: hf:sentence-transformers/all-MiniLM-L6-v2
"""
DOCUMENTS, QUERIES = 5_183, 300
PUBLISHED_NDCG = 0.645  # MTEB's for all-MiniLM-L6-v2
EDITED, DELETED, ADDED = 52, 26, 26  # 1% of the corpus, half a percent each way
COPIED = 120


@pytest.fixture(scope="module")
def first_run(shared: Path, proof_home: Path) -> Collected:
    (proof_home / "data").mkdir()
    shutil.copy(shared / "scifact" / "corpus.jsonl", proof_home / "data" / "corpus.jsonl")
    (proof_home / "data" / "corpus.jsonl").chmod(0o644)
    write_pipeline(proof_home, "scifact", PIPELINE)
    return run_whole(proof_home, "scifact")


def test_every_document_of_the_corpus_is_embedded_and_released(first_run: Collected, proof_home: Path) -> None:
    assert first_run.reports["documents"].facts["documents"] == DOCUMENTS
    assert first_run.reports["documents"].facts["rejected"] == 0
    assert first_run.reports["embeddings"].facts["embedded"] == DOCUMENTS
    assert Searcher(Warehouse(proof_home), "scifact").release.rows == DOCUMENTS


def test_the_published_ndcg_is_reached(first_run: Collected, proof_home: Path, shared: Path) -> None:
    searcher = Searcher(Warehouse(proof_home), "scifact")
    queries = {entry["_id"]: entry["text"] for entry in _lines(shared / "scifact" / "queries.jsonl")}
    judgements: dict[str, dict[str, float]] = {}
    with (shared / "scifact" / "qrels" / "test.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judgements.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
    assert len(judgements) == QUERIES
    rankings = {name: [hit.document_id for hit in searcher.search(queries[name]).hits] for name in judgements}
    assert mean_ndcg(rankings, judgements) == pytest.approx(PUBLISHED_NDCG, abs=0.002)


def test_a_change_of_one_percent_embeds_just_the_new_texts(first_run: Collected, proof_home: Path) -> None:
    corpus = proof_home / "data" / "corpus.jsonl"
    entries = _lines(corpus)
    for entry in entries[:EDITED]:
        entry["text"] = f"Corrected. {entry['text']}"
    entries = entries[:-DELETED]
    entries += [
        {"_id": f"new-{number}", "title": f"A new study, number {number}", "text": "It was added later."}
        for number in range(ADDED)
    ]
    _write(corpus, entries)
    reports = run_whole(proof_home, "scifact").reports
    assert reports["embeddings"].facts["embedded"] == EDITED + ADDED
    assert reports["vector_store"].facts["added"] == EDITED + ADDED
    assert reports["vector_store"].facts["removed"] == EDITED + DELETED
    stored = {row["document_id"]: row["text"] for row in live_rows(proof_home, "scifact").values()}
    wanted = {entry["_id"]: Clean().text(f"{entry['title']}\n{entry['text']}") for entry in entries}
    assert stored.keys() == wanted.keys()
    assert all(text and wanted[name].startswith(text) for name, text in stored.items())  # cut at 256 tokens


def test_copies_under_other_ids_embed_nothing(first_run: Collected, proof_home: Path) -> None:
    before = live_rows(proof_home, "scifact")
    entries = _lines(proof_home / "data" / "corpus.jsonl")[:COPIED]
    _write(proof_home / "data" / "copies.jsonl", [{**entry, "_id": f"copy-{entry['_id']}"} for entry in entries])
    reports = run_whole(proof_home, "scifact").reports
    assert reports["embeddings"].facts["embedded"] == 0
    assert reports["vector_store"].facts["added"] == COPIED
    after = live_rows(proof_home, "scifact")
    assert before.items() <= after.items()
    assert len(after) == len(before) + COPIED


def test_a_renamed_file_embeds_nothing_and_changes_no_row(first_run: Collected, proof_home: Path) -> None:
    before = live_rows(proof_home, "scifact")
    os.rename(proof_home / "data" / "corpus.jsonl", proof_home / "data" / "renamed.jsonl")
    reports = run_whole(proof_home, "scifact").reports
    assert reports["documents"].changed
    assert reports["embeddings"].facts["embedded"] == 0
    assert reports["vector_store"].facts["added"] == reports["vector_store"].facts["removed"] == 0
    assert live_rows(proof_home, "scifact") == before


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
