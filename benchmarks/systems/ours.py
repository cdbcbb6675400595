"""This project: the real command `embedding-pipelines run` in a home folder of its own, checks and
release included."""

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.systems import MODEL, Stored, Synced, System

PIPELINE = "scifact"
FILE = f"""\
source: {{kind: jsonl, path: corpus/*.jsonl, id: _id, text: [title, text]}}
preprocessing: {{chunk: null}}
model: hf:{MODEL}
"""


class Ours(System):
    title = "embedding-pipelines"
    requires = ("embedding-pipelines", "dagster", "openvino", "lancedb")
    warms = (
        "embedding_pipelines.orchestration.launch",
        "embedding_pipelines.cli.terminal",
        "lancedb",
    )

    def command(self, folder: Path) -> list[str]:
        executable = Path(sys.executable).with_name("embedding-pipelines")
        if not executable.exists():
            raise BenchmarkError(f"{executable} is not there: pip install -e '.[bench]'")
        return [str(executable), "--home", str(folder), "run", PIPELINE, "--json"]

    def read(self, stdout: str) -> Synced:
        (run,) = json.loads(stdout)["results"]
        return Synced(
            sum(step["embedded"] for step in run["steps"] if step["step"] == "embeddings")
        )

    def text(self, text: str) -> str:
        from embedding_pipelines.preprocessing.clean import Clean

        return Clean().text(text)

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        path = folder / "pipelines" / f"{PIPELINE}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FILE, encoding="utf-8")

        from embedding_pipelines.providers.hf import Hf

        with Hf(model=MODEL).open(folder) as model:
            model.embed(["one text, so that the model is converted"], "document")

    def sync(self, folder: Path) -> Synced:
        raise NotImplementedError("the command line is what is measured")

    def dump(self, folder: Path) -> Stored:
        """What a searcher would see: the live release."""
        from embedding_pipelines.errors import ReleaseError
        from embedding_pipelines.releases import live_release
        from embedding_pipelines.storage.warehouse import Warehouse

        warehouse = Warehouse(folder)
        try:
            release = live_release(warehouse.pipeline(PIPELINE))
        except ReleaseError:
            return Stored([], np.zeros((0, 0), np.float32))
        table = release.spec.store.table(warehouse.tables, release.table)
        columns = ["document_id", "vector", "text"]
        rows = [
            row
            for batch in table.scan(columns, version=release.version)
            for row in batch.to_pylist()
        ]
        vectors = np.array([row["vector"] for row in rows], np.float32)
        return Stored([row["document_id"] for row in rows], vectors, [row["text"] for row in rows])
