"""The systems that `benchmarks.search` asks: how each is built, asked, and with which settings."""

import functools
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedding_pipelines import schemas
from embedding_pipelines.codes import encoded
from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.files import write_json
from embedding_pipelines.releases import Release, Releases
from embedding_pipelines.search import Searcher, SearchResult
from embedding_pipelines.spec.pipeline import PipelineSpec, partition_of
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import checksums, to_column

Vectors = NDArray[np.float32]
NAME = "captions"  # of the pipeline and its table
K = 10
FLOOR = 0.99  # recall that a setting needs to be its system's best
ADD_ROWS = 4_096  # per batch, as a pipeline's shards are read
HNSW_LINKS = 32  # of each node in a graph; FAISS's name for such an index is HNSW32
HNSW_BREADTH = 200  # candidates while a graph is built, hnswlib's default
HNSW_SEARCH = (16, 32, 64, 128, 256)  # candidates while it is searched


@dataclass
class Data:
    """What all systems are given; vectors are float32[n, d] of unit length."""

    spec: PipelineSpec
    rows: list[dict[str, str]]  # the captions in the table, in the order of `vectors`
    vectors: Vectors
    queries: Vectors

    @functools.cached_property
    def numbers(self) -> dict[str, int]:  # by chunk id
        return {f"{row['id']}#0": at for at, row in enumerate(self.rows)}


@dataclass
class System:
    """One that was built, with the choices to try and how each did."""

    choices: dict[str, Any]  # by label
    ask: Callable[[Any, Vectors], Any]  # with a choice; this is timed
    row_numbers: Callable[[Any], Sequence[int]]  # the row numbers in what `ask` gave
    build_seconds: float | None
    size_bytes: int | None
    kept: str  # "disk", or "memory": the bytes are then those of its index when it is saved
    recalls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    milliseconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def recall(self, label: str) -> float:
        return float(np.mean(self.recalls[label]))

    def p50(self, label: str) -> float:
        return float(np.median(self.milliseconds[label]))

    def best(self) -> str:
        """The fastest choice at the floor; if none reaches it, the one that comes nearest."""
        good = [label for label in self.choices if self.recall(label) >= FLOOR]
        return min(good, key=self.p50) if good else max(self.choices, key=self.recall)


def project(data: Data, home: Path) -> System:
    """A pipeline's table and release, as the steps make them, read through `Searcher`."""
    warehouse, codec, space = (
        Warehouse(home),
        CodecChain([], data.vectors.shape[1]),
        data.spec.model.open(home).space,
    )
    folder, table = warehouse.pipeline(NAME), data.spec.store.table(warehouse.tables, NAME)
    stored = space.with_codec(codec.id)
    rows = _table_rows(data, codec, stored.id)
    started = time.perf_counter()
    table.apply(rows.schema, [], rows.to_batches(ADD_ROWS))
    table.index(codec.metric, 0)
    seconds = time.perf_counter() - started
    version = table.version
    assert version is not None
    table.tag({"release-1": version})
    codec.save(folder.codecs / "codec.npz")
    release = Release(
        number=1, table=NAME, version=version, rows=len(data.rows), space=stored, codec="codec.npz",
        cleaning=data.spec.preprocessing.clean.version, spec=data.spec, released_at=datetime.now(UTC), checks={},
    )  # fmt: skip
    write_json(folder.releases, Releases(live=1, releases=[release]).model_dump(mode="json"))
    return _system(data, Searcher(warehouse, NAME), seconds, table.size_bytes(), "disk")


def memory(data: Data, home: Path) -> System:
    """The project's release as a server holds it: the whole read path, from a query's vector to hits."""
    searcher = Searcher(Warehouse(home), NAME)
    started = time.perf_counter()
    if not searcher.load_memory():
        raise ConfigError(
            "project-memory: the vectors do not fit into half of the free memory. "
            "Take fewer by --vectors."
        )
    return _system(data, searcher, time.perf_counter() - started, None, "memory")


def _system(data: Data, searcher: Searcher, seconds: float, size: int | None, place: str) -> System:
    space = searcher.model.space

    def row_numbers(result: SearchResult) -> list[int]:
        return [data.numbers[hit.chunk_id] for hit in result.hits]

    def ask(_: None, query: Vectors) -> SearchResult:
        return searcher.search_vector(query, space, K)

    return System({"default": None}, ask, row_numbers, seconds, size, place)


def lancedb(data: Data, home: Path) -> System:
    """The project's table by lancedb's own calls: the same columns, as Arrow, the fastest form it
    gives."""
    table: Any = importlib.import_module("lancedb").connect(Warehouse(home).tables).open_table(NAME)
    columns = [
        name
        for name in table.schema.names
        if name not in ("partition", "chunk_digest", schemas.VECTOR)
    ]

    def ask(choice: tuple[int, int], query: Vectors) -> pa.Table:
        search = (
            table.search(query, vector_column_name=schemas.VECTOR)
            .distance_type("cosine")
            .nprobes(choice[0])
        )
        return search.refine_factor(choice[1]).select([*columns, "_distance"]).limit(K).to_arrow()

    choices = {f"nprobes {n}, refine {r}": (n, r) for n in (5, 10, 20, 40) for r in (1, 2, 4)}
    return System(
        choices,
        ask,
        lambda result: [data.numbers[name] for name in result["chunk_id"].to_pylist()],
        None,
        None,
        "same",
    )


def faiss(kind: str, data: Data, _: Path) -> System:
    library, choices = importlib.import_module("faiss"), {"exact": None}
    index = library.index_factory(data.vectors.shape[1], kind, library.METRIC_INNER_PRODUCT)
    if kind.startswith("HNSW"):
        index.hnsw.efConstruction = HNSW_BREADTH
        choices = {f"efSearch {n}": library.SearchParametersHNSW(efSearch=n) for n in HNSW_SEARCH}
    elif kind.startswith("IVF"):
        choices = {
            f"nprobe {n}": library.SearchParametersIVF(nprobe=n) for n in (8, 16, 32, 64, 128)
        }
    started = time.perf_counter()
    index.train(data.vectors)
    index.add(data.vectors)
    seconds = time.perf_counter() - started
    size = len(library.serialize_index(index))
    return System(
        choices,
        lambda c, q: index.search(q[None], K, params=c),
        lambda r: r[1][0].tolist(),
        seconds,
        size,
        "memory",
    )


def hnswlib(data: Data, _: Path) -> System:
    index = importlib.import_module("hnswlib").Index("ip", data.vectors.shape[1])
    started = time.perf_counter()
    index.init_index(len(data.vectors), M=HNSW_LINKS, ef_construction=HNSW_BREADTH, random_seed=0)
    index.add_items(data.vectors)
    seconds = time.perf_counter() - started

    def ask(breadth: int, query: Vectors) -> Any:
        index.set_ef(breadth)
        return index.knn_query(query, K)

    choices, size = {f"ef {n}": n for n in HNSW_SEARCH}, index.index_file_size()
    return System(choices, ask, lambda result: result[0][0].tolist(), seconds, size, "memory")


def usearch(data: Data, _: Path) -> System:
    index = importlib.import_module("usearch.index").Index(
        ndim=data.vectors.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=HNSW_LINKS,
        expansion_add=HNSW_BREADTH,
    )
    started = time.perf_counter()
    index.add(np.arange(len(data.vectors)), data.vectors)
    seconds = time.perf_counter() - started

    def ask(breadth: int, query: Vectors) -> Any:
        index.expansion_search = breadth
        return index.search(query, K)

    choices, size = {f"expansion {n}": n for n in HNSW_SEARCH}, index.serialized_length
    return System(choices, ask, lambda result: result.keys.tolist(), seconds, size, "memory")


def _table_rows(data: Data, codec: CodecChain, space_id: str) -> pa.Table:
    """What the table holds: each caption is a document of one chunk."""
    rows, texts = data.rows, [row["caption"] for row in data.rows]
    column = pa.list_(pa.float32(), codec.dimensions)
    columns = {
        "chunk_id": list(data.numbers),
        "document_id": [row["id"] for row in rows],
        "start": [0] * len(rows),
        "end": [len(text) for text in texts],
        "text": texts,
        "chunk_digest": [schemas.digest(text.encode()) for text in texts],
        "partition": [f"b{partition_of(row['id'], data.spec.partitions):02d}" for row in rows],
        "vector_checksum": checksums(to_column(data.vectors)),
        "image": [row["image"] for row in rows],
        "caption_no": [int(row["caption_no"]) for row in rows],
        **encoded(data.spec.store, codec, data.vectors),
    }
    return pa.table(
        columns, schemas.table_schema(data.spec.source.metadata_types, column, space_id)
    )


# By name, up to the hyphen that of the module it needs, or `project`. That comes first: it makes the
# table.
SYSTEMS: dict[str, Callable[[Data, Path], System]] = {
    "project": project,
    "project-memory": memory,
    "lancedb": lancedb,
    "faiss-hnsw": functools.partial(faiss, f"HNSW{HNSW_LINKS}"),
    "faiss-ivf": functools.partial(faiss, "IVF1024,Flat"),  # about 100 rows a list, of 100,000
    "faiss-flat": functools.partial(faiss, "Flat"),
    "hnswlib": hnswlib,
    "usearch": usearch,
}
