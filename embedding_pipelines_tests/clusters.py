"""A Ray cluster of several nodes on this machine, and a model that says which process was asked for
which texts, and can be ended by one."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from embedding_pipelines.embedding.cluster import KNOWN_TEXTS
from embedding_pipelines.engines.inline import Inline
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.chain import step_named
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import to_matrix
from embedding_pipelines_tests.chain import write_csv, write_pipeline

STORE_BYTES = 80 << 20  # of each node's object store; Ray takes no less than 75 MiB
START_SECONDS = 300  # of a node, where Ray gives each of its processes 30
PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": str(START_SECONDS),
    "RAY_agent_register_timeout_ms": str(1_000 * START_SECONDS),
}
DIMENSIONS = 16

MODEL = f"""\
import json, os, time, zlib
from pathlib import Path
import numpy as np
from embedding_pipelines.errors import DeviceError

class Model:
    dimensions = {DIMENSIONS}

    def __init__(self, seconds=0.0):
        self.seconds, self.folder, self.is_broken = seconds, Path(__file__).parent, False

    def embed(self, texts, input_type):
        for text in texts:
            died = self.folder / "died"
            if "dies once" in text and not died.exists():
                died.touch()
                os._exit(9)
            broken = self.folder / "broken"
            if "breaks once" in text and not broken.exists():
                broken.touch()
                self.is_broken = True
            if "poison" in text and not (self.folder / "healed").exists():
                os._exit(9)
        if self.is_broken:
            raise DeviceError("CUDA error: an illegal memory access was encountered")
        time.sleep(self.seconds * len(texts))
        line = json.dumps([os.getpid(), os.environ.get("NODE", ""), list(texts)]) + "\\n"
        with (self.folder / "log").open("ab", buffering=0) as file:
            file.write(line.encode())
        seeds = [zlib.crc32(text.encode()) for text in texts]
        vectors = np.stack([np.random.default_rng(seed).standard_normal({DIMENSIONS}) for seed in seeds])
        if os.environ.get("OTHER_PRECISION"):
            vectors += 0.05 * np.sign(np.roll(vectors, 1, axis=1))
        return vectors.astype(np.float32)
"""


@contextlib.contextmanager
def local_cluster(nodes: int) -> Iterator[Any]:
    """`ray.cluster_utils.Cluster`: a head for drivers and hubs, and nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets need a short path
    Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray notes the address, wherever its files are
    head = {
        "num_cpus": 0,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
        "temp_dir": folder,
    }
    with _patience():
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(nodes):
                add_node(cluster)
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def add_node(cluster: Any, **variables: str) -> Any:
    """One more node, with variables of its environment."""
    return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, env_vars=variables)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Ray asks for 30 seconds whether a node that it started is there, and leaves its processes to
    themselves then. A busy machine takes longer, so each such question waits for its answer."""
    from ray._private import services

    ask = services.get_node

    def get_node(address: str, node: str) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return ask(address, node)
            except RuntimeError:  # not yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    with (
        mock.patch.dict(os.environ, PATIENCE),
        mock.patch.object(services, "get_node", get_node),
    ):
        yield


def write_home(
    home: Path, engine: str, texts: list[str], seconds: float = 0.0, is_cut: bool = True
) -> Run:
    """A home with one pipeline of these texts; `is_cut`: into chunks, by this process."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "own.py").write_text(MODEL, encoding="utf-8")
    write_csv(home, "a.csv", [(f"d{n}", text, "x") for n, text in enumerate(texts)])
    model = f"{{provider: custom, cls: 'own:Model', request_texts: 10, options: {{seconds: {seconds}}}}}"
    write_pipeline(
        *(home, "p"),
        "source: {kind: csv, path: 'data/*.csv', id: id, text: [title], metadata: [cat]}\n"
        f"model: {model}\nengine: {engine}\npartitions: 4\n"
        "evaluation: {known_items: 0, may_shrink: 1}\n",
    )
    spec = find_pipeline("p", home)
    first = Run(spec.model_copy(update={"engine": Inline()}), Warehouse(home))
    for name in ("documents", "chunks") if is_cut else ("documents",):
        work(first, name)
    return Run(spec, Warehouse(home), Noted())


class Noted:
    """A progress that keeps notes, and how far the step has come."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done = self.total = 0

    def update(self, step: str, done: int, total: int | None, unit: str) -> None:
        self.done, self.total = done, total or 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self, report: Any) -> None:
        pass


def work(run: Run, name: str) -> list[Any]:
    """A step, from its beginning to its end."""
    return list(step_named(name).work(run, run.spec.partition_names))


def embed(run: Run) -> list[Any]:
    return work(run, "embeddings")


def vectors_of(run: Run) -> dict[str, Any]:
    """The vector of each chunk, of partitions that are embedded."""
    rows: dict[str, Any] = {}
    for partition in run.spec.partition_names:
        for batch in run.folder.embeddings.read(partition):
            rows |= zip(batch["chunk_id"].to_pylist(), to_matrix(batch[VECTOR]), strict=True)
    return rows


def requests(home: Path) -> list[tuple[int, str, list[str]]]:
    """The process, the variable NODE of its node and the texts of each request so far, without
    probes."""
    path = home / "log"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [
        (process, node, texts)
        for process, node, texts in map(json.loads, lines)
        if not set(texts) & set(KNOWN_TEXTS)
    ]


def times_embedded(home: Path) -> Counter[str]:
    """How often each text was embedded."""
    return Counter(text for *_, texts in requests(home) for text in texts)


def assert_same_vectors(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, vector in left.items():
        other = right[name]
        cosine = vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
        assert cosine >= 0.99999, name
