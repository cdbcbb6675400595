"""SciFact through a pipeline file: the model's published retrieval figure, then what a change of 1%
costs.

The tests of this module build on one another, because embedding the corpus takes minutes.
"""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedding_pipelines.compression.base import CodecChain, Compressor
from embedding_pipelines.compression.binary import Binary
from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.compression.pca import Pca
from embedding_pipelines.preprocessing.clean import Clean
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors, unit
from embedding_pipelines_tests.chain import live_rows, run_of, write_pipeline
from embedding_pipelines_tests.rankings import mean_ndcg
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


def test_every_document_of_the_corpus_is_embedded_and_released(
    first_run: Collected, proof_home: Path
) -> None:
    assert first_run.reports["documents"].statistics["documents"] == DOCUMENTS
    assert first_run.reports["documents"].statistics["rejected"] == 0
    assert first_run.reports["embeddings"].statistics["embedded"] == DOCUMENTS
    assert Searcher(Warehouse(proof_home), "scifact").release.rows == DOCUMENTS


def test_the_published_ndcg_is_reached(
    first_run: Collected, proof_home: Path, shared: Path
) -> None:
    searcher = Searcher(Warehouse(proof_home), "scifact")
    queries, judgements = _judged(shared)
    rankings = {
        name: [hit.document_id for hit in searcher.search(queries[name]).hits]
        for name in judgements
    }
    assert mean_ndcg(rankings, judgements) == pytest.approx(PUBLISHED_NDCG, abs=0.002)


@pytest.fixture(scope="module")
def vectors(
    first_run: Collected, proof_home: Path, shared: Path
) -> tuple[list[str], Vectors, list[str], Vectors]:
    """Document ids and their vectors, query ids and theirs, as the model gives them."""
    context = run_of(proof_home, "scifact")
    ids, blocks = [], []
    for partition in context.spec.partition_names:
        for batch in context.folder.embeddings.read(partition):
            ids += [name.rpartition("#")[0] for name in batch["chunk_id"].to_pylist()]
            blocks.append(batch[VECTOR].flatten().to_numpy().reshape(batch.num_rows, -1))
    queries, judgements = _judged(shared)
    asked = context.spec.preprocessing.clean.texts([queries[name] for name in judgements])
    return (
        ids,
        np.concatenate(blocks),
        list(judgements),
        context.model.embed(asked, "query").vectors,
    )


@pytest.mark.parametrize(
    ("compression", "least_ndcg", "bytes_per_vector"),
    [
        ([Pca(dimensions=128)], 0.630, 512),
        ([Pca(dimensions=256)], 0.643, 1_024),
        ([Int8()], 0.644, 384),
        ([Binary()], 0.635, 48 + 384),
        ([Pca(dimensions=128), Int8()], 0.628, 128),
    ],
)
def test_each_compression_keeps_the_ndcg_that_it_promises(
    vectors: tuple[list[str], Vectors, list[str], Vectors],
    shared: Path,
    compression: list[Compressor],
    least_ndcg: float,
    bytes_per_vector: int,
) -> None:
    ids, documents, names, queries = vectors
    chain = CodecChain.fit(compression, lambda: [documents], documents.shape[1])
    best = _exact_search(chain, documents, queries, 10)
    rankings = {name: [ids[row] for row in rows] for name, rows in zip(names, best, strict=True)}
    assert mean_ndcg(rankings, _judged(shared)[1]) >= least_ndcg
    assert chain.bytes_per_vector == bytes_per_vector


def _exact_search(
    chain: CodecChain, documents: Vectors, queries: Vectors, k: int
) -> list[NDArray[np.int64]]:
    """The rows of the k nearest documents of each query by their codes, rescored where there are
    copies."""
    codes, asked = chain.encode(documents), chain.encode(queries)
    if chain.metric == "hamming":
        codes, asked = (
            np.unpackbits(each, axis=1).astype(np.float32) - 0.5 for each in (codes, asked)
        )
    near = np.argsort(
        -(asked.astype(np.float32) @ unit(codes.astype(np.float32)).T), axis=1, kind="stable"
    )
    copies = chain.encode_rescoring(documents)
    if copies is None:
        return list(near[:, :k])
    found = []
    for query, rows in zip(queries, near[:, : k * chain.oversample], strict=True):
        found.append(rows[np.argsort(-chain.rescore(query, copies[rows]), kind="stable")][:k])
    return found


def test_a_change_of_one_percent_embeds_just_the_new_texts(
    first_run: Collected, proof_home: Path
) -> None:
    corpus = proof_home / "data" / "corpus.jsonl"
    entries = _lines(corpus)
    for entry in entries[:EDITED]:
        entry["text"] = f"Corrected. {entry['text']}"
    entries = entries[:-DELETED]
    entries += [
        {
            "_id": f"new-{number}",
            "title": f"A new study, number {number}",
            "text": "It was added later.",
        }
        for number in range(ADDED)
    ]
    _write(corpus, entries)
    reports = run_whole(proof_home, "scifact").reports
    assert reports["embeddings"].statistics["embedded"] == EDITED + ADDED
    assert reports["vector_store"].statistics["added"] == EDITED + ADDED
    assert reports["vector_store"].statistics["removed"] == EDITED + DELETED
    stored = {row["document_id"]: row["text"] for row in live_rows(proof_home, "scifact").values()}
    wanted = {entry["_id"]: Clean().text(f"{entry['title']}\n{entry['text']}") for entry in entries}
    assert stored.keys() == wanted.keys()
    assert all(
        text and wanted[name].startswith(text) for name, text in stored.items()
    )  # cut at 256 tokens


def test_copies_under_other_ids_embed_nothing(first_run: Collected, proof_home: Path) -> None:
    before = live_rows(proof_home, "scifact")
    entries = _lines(proof_home / "data" / "corpus.jsonl")[:COPIED]
    _write(
        proof_home / "data" / "copies.jsonl",
        [{**entry, "_id": f"copy-{entry['_id']}"} for entry in entries],
    )
    reports = run_whole(proof_home, "scifact").reports
    assert reports["embeddings"].statistics["embedded"] == 0
    assert reports["vector_store"].statistics["added"] == COPIED
    after = live_rows(proof_home, "scifact")
    assert before.items() <= after.items()
    assert len(after) == len(before) + COPIED


def test_a_renamed_file_embeds_nothing_and_changes_no_row(
    first_run: Collected, proof_home: Path
) -> None:
    before = live_rows(proof_home, "scifact")
    os.rename(proof_home / "data" / "corpus.jsonl", proof_home / "data" / "renamed.jsonl")
    reports = run_whole(proof_home, "scifact").reports
    assert reports["documents"].changed
    assert reports["embeddings"].statistics["embedded"] == 0
    assert (
        reports["vector_store"].statistics["added"]
        == reports["vector_store"].statistics["removed"]
        == 0
    )
    assert live_rows(proof_home, "scifact") == before


def _judged(shared: Path) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """All queries by id, and the gains of documents by query, of those that are judged."""
    queries = {
        entry["_id"]: entry["text"] for entry in _lines(shared / "scifact" / "queries.jsonl")
    }
    judgements: dict[str, dict[str, float]] = {}
    with (shared / "scifact" / "qrels" / "test.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judgements.setdefault(row["query-id"], {})[row["corpus-id"]] = float(row["score"])
    assert len(judgements) == QUERIES
    return queries, judgements


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
