"""A corpus with relevance judgements through a pipeline file: the retrieval figure that
sentence-transformers has of it, on SciFact the published one, then what a change of 1% costs.

The tests of a corpus build on one another, because embedding SciFact takes minutes.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from embedding_pipelines.compression.base import CodecChain, Compressor
from embedding_pipelines.compression.binary import Binary
from embedding_pipelines.compression.int8 import Int8
from embedding_pipelines.compression.pca import Pca
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.preprocessing.clean import Clean
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors, unit
from embedding_pipelines_tests.chain import live_rows, run_of, write_pipeline
from embedding_pipelines_tests.corpora import (
    OWN,
    Judged,
    judged_corpus,
    own_and,
    reference_vectors,
)
from embedding_pipelines_tests.rankings import mean_ndcg
from embedding_pipelines_tests.runs import Collected, run_whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

PIPELINE = """\
source: {kind: jsonl, path: data/*.jsonl, id: _id, text: [title, text]}
preprocessing: {chunk: null}
model: hf:sentence-transformers/all-MiniLM-L6-v2
"""
DOCUMENTS, QUERIES = {OWN: 400, "scifact": 5_183}, 300
PUBLISHED_NDCG = 0.645  # MTEB's for all-MiniLM-L6-v2, of SciFact
# By words and vectors, of the test queries; constants were chosen by SciFact's training queries.
HYBRID_NDCG = 0.70
COPIED = 120


class Built(NamedTuple):
    """A corpus, the home folder whose pipeline it is, and the pipeline's first run."""

    name: str
    judged: Judged
    home: Path
    run: Collected


@pytest.fixture(scope="module", params=own_and("scifact"))
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Built]:
    home, judged = tmp_path_factory.mktemp("home"), judged_corpus(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        patch.delenv("DAGSTER_HOME", raising=False)
        (home / "data").mkdir()
        _write(home / "data" / "corpus.jsonl", judged.entries)
        write_pipeline(home, "corpus", PIPELINE)
        yield Built(request.param, judged, home, run_whole(home, "corpus"))


def test_every_document_of_the_corpus_is_embedded_and_released(built: Built) -> None:
    reports, documents = built.run.reports, DOCUMENTS[built.name]
    assert reports["documents"].statistics["documents"] == documents
    assert reports["documents"].statistics["rejected"] == 0
    assert reports["embeddings"].statistics["embedded"] == documents
    assert Searcher(Warehouse(built.home), "corpus").release.rows == documents


def test_the_ndcg_of_the_model_is_reached(built: Built) -> None:
    searcher, judged = Searcher(Warehouse(built.home), "corpus"), built.judged
    assert len(judged.qrels) == QUERIES
    rankings = {
        name: [hit.document_id for hit in searcher.search(judged.queries[name]).hits]
        for name in judged.qrels
    }
    published = built.name == "scifact"
    expected = PUBLISHED_NDCG if published else _reference_ndcg(judged)
    tolerance = 0.002 if published else 0.005  # for processors that compute in bfloat16
    assert mean_ndcg(rankings, judged.qrels) == pytest.approx(expected, abs=tolerance)


def _reference_ndcg(judged: Judged) -> float:
    """What an exact search over sentence-transformers' own vectors reaches."""
    texts = [f"{entry['title']}\n{entry['text']}" for entry in judged.entries]
    queries = [judged.queries[name] for name in judged.qrels]
    vectors = reference_vectors(Clean().texts([*texts, *queries]))
    cosines = vectors[len(texts) :] @ vectors[: len(texts)].T
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :10]
    ids = [[judged.entries[row]["_id"] for row in rows] for rows in best]
    return mean_ndcg(dict(zip(judged.qrels, ids, strict=True)), judged.qrels)


def test_words_and_vectors_together_find_more_than_the_weaker_and_on_scifact_than_either(
    built: Built,
) -> None:
    """By the release's own figures. It embeds nothing and writes no row."""
    _write(built.home / "queries.jsonl", _judged_queries(built.judged))
    lines = ["query-id\tcorpus-id\tscore"]
    for query, gains in built.judged.qrels.items():
        lines += [f"{query}\t{document}\t{int(gain)}" for document, gain in gains.items()]
    (built.home / "qrels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    evaluation = "evaluation: {queries: queries.jsonl, qrels: qrels.tsv, may_lose: 1}\n"
    ndcg = {}
    for mode in ("text", "hybrid", "vector"):  # the tests below go on with vectors alone
        write_pipeline(built.home, "corpus", f"{PIPELINE}search: {{mode: {mode}}}\n{evaluation}")
        reports = run_whole(built.home, "corpus").reports
        assert reports["embeddings"].statistics["embedded"] == 0
        assert reports["vector_store"].statistics["added"] == 0
        ndcg[mode] = reports["release"].statistics["ndcg_at_10"]
    assert ndcg["hybrid"] > min(ndcg["text"], ndcg["vector"]), ndcg
    if built.name == "scifact":  # docstrings share few words with their summaries
        assert ndcg["hybrid"] > max(ndcg["text"], ndcg["vector"])
        assert ndcg["hybrid"] >= HYBRID_NDCG


def _judged_queries(judged: Judged) -> list[dict[str, Any]]:
    return [{"_id": name, "text": judged.queries[name]} for name in judged.qrels]


@pytest.fixture(scope="module")
def vectors(built: Built) -> tuple[list[str], Vectors, list[str], Vectors]:
    """Document ids and their vectors, query ids and theirs, as the model gives them."""
    context = run_of(built.home, "corpus")
    ids, blocks = [], []
    for partition in context.spec.partition_names:
        for batch in context.folder.embeddings.read(partition):
            ids += [name.rpartition("#")[0] for name in batch["chunk_id"].to_pylist()]
            blocks.append(batch[VECTOR].flatten().to_numpy().reshape(batch.num_rows, -1))
    queries, names = built.judged.queries, list(built.judged.qrels)
    asked = context.spec.preprocessing.clean.texts([queries[name] for name in names])
    return ids, np.concatenate(blocks), names, context.model.embed(asked, "query").vectors


@pytest.mark.parametrize(
    ("compression", "may_lose", "bytes_per_vector"),
    [
        ([Pca(dimensions=128)], 0.016, 512),
        ([Pca(dimensions=256)], 0.005, 1_024),
        ([Int8()], 0.004, 384),
        ([Binary()], 0.004, 48 + 384),
        ([Pca(dimensions=128), Int8()], 0.016, 128),
    ],
)
def test_each_compression_loses_no_more_ndcg_than_it_promises(
    vectors: tuple[list[str], Vectors, list[str], Vectors],
    built: Built,
    compression: list[Compressor],
    may_lose: float,
    bytes_per_vector: int,
) -> None:
    """Beside the same vectors uncompressed: processors that compute in bfloat16 give other vectors,
    and SciFact's nDCG@10 of these is 0.6466, not the published 0.645."""
    ids, documents, names, queries = vectors

    def ndcg(best: list[NDArray[np.int64]]) -> float:
        rankings = {
            name: [ids[row] for row in rows] for name, rows in zip(names, best, strict=True)
        }
        return mean_ndcg(rankings, built.judged.qrels)

    exact = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :10]
    chain = CodecChain.fit(compression, lambda: [documents], documents.shape[1])
    loss = ndcg(list(exact)) - ndcg(_exact_search(chain, documents, queries, 10))
    assert loss <= may_lose
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


def test_a_change_of_one_percent_embeds_just_the_new_texts(built: Built) -> None:
    corpus = built.home / "data" / "corpus.jsonl"
    entries = _lines(corpus)
    edit_pipeline, deleted = len(entries) // 100, len(entries) // 200
    added = deleted
    for entry in entries[:edit_pipeline]:
        entry["text"] = f"Corrected. {entry['text']}"
    entries = entries[:-deleted]
    entries += [
        {
            "_id": f"new-{number}",
            "title": f"A new study, number {number}",
            "text": "It was added later.",
        }
        for number in range(added)
    ]
    _write(corpus, entries)
    reports = run_whole(built.home, "corpus").reports
    assert reports["embeddings"].statistics["embedded"] == edit_pipeline + added
    assert reports["vector_store"].statistics["added"] == edit_pipeline + added
    assert reports["vector_store"].statistics["removed"] == edit_pipeline + deleted
    stored = {row["document_id"]: row["text"] for row in live_rows(built.home, "corpus").values()}
    wanted = {entry["_id"]: Clean().text(f"{entry['title']}\n{entry['text']}") for entry in entries}
    assert stored.keys() == wanted.keys()
    assert all(
        text and wanted[name].startswith(text) for name, text in stored.items()
    )  # cut at 256 tokens


def test_copies_under_other_ids_embed_nothing(built: Built) -> None:
    before = live_rows(built.home, "corpus")
    entries = _lines(built.home / "data" / "corpus.jsonl")[:COPIED]
    _write(
        built.home / "data" / "copies.jsonl",
        [{**entry, "_id": f"copy-{entry['_id']}"} for entry in entries],
    )
    reports = run_whole(built.home, "corpus").reports
    assert reports["embeddings"].statistics["embedded"] == 0
    assert reports["vector_store"].statistics["added"] == COPIED
    after = live_rows(built.home, "corpus")
    assert before.items() <= after.items()
    assert len(after) == len(before) + COPIED


def test_a_renamed_file_embeds_nothing_and_changes_no_row(built: Built) -> None:
    before = live_rows(built.home, "corpus")
    os.rename(built.home / "data" / "corpus.jsonl", built.home / "data" / "renamed.jsonl")
    reports = run_whole(built.home, "corpus").reports
    assert reports["documents"].changed
    assert reports["embeddings"].statistics["embedded"] == 0
    assert (
        reports["vector_store"].statistics["added"]
        == reports["vector_store"].statistics["removed"]
        == 0
    )
    assert live_rows(built.home, "corpus") == before


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
