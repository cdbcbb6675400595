"""Exports read back equal to the live table, replace only exports, and are written in bounded
memory."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.measure import measure
from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.explore import export as exporting
from embedding_pipelines.explore.export import ABOUT, Format, export
from embedding_pipelines.explore.table import Kind, LiveTable, load_table
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.report import layout as report_layout
from embedding_pipelines.report import map as report_map
from embedding_pipelines.schemas import DIGEST, SPACE_ID_KEY, VECTOR
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.explore.topics import COMPRESSED, HEADER, PIPELINE, write_topics

FORMATS: list[Format] = ["parquet", "npy", "torch", "atlas"]


def same(rows: pd.DataFrame, home: Path, kind: Kind = "exact") -> None:
    """Whether these are the rows of the live table, in its order."""
    live = load_table(home, "p", kind)
    pd.testing.assert_frame_equal(
        rows.drop(columns=VECTOR), live.drop(columns=VECTOR), check_dtype=False
    )
    assert np.array_equal(np.stack(rows[VECTOR]), np.stack(live[VECTOR]))


@pytest.mark.parametrize("kind", ["exact", "stored"])
def test_parquet_holds_the_live_table(home: Path, kind: Kind) -> None:
    write_topics(home, pipeline=COMPRESSED)
    about = export(home, "p", "parquet", vectors=kind)
    folder = home / "data" / "warehouse" / "exports" / "p-parquet"
    assert (about.folder, about.files, about.rows) == (str(folder), ["table.parquet"], 123)
    same(pd.read_parquet(folder / "table.parquet"), home, kind)
    schema = pq.read_schema(folder / "table.parquet")
    assert schema.field(VECTOR).type == pa.list_(pa.float32(), 64)
    assert schema.metadata[SPACE_ID_KEY].decode() == about.space_id
    written = read_json(folder / ABOUT)
    assert written == {
        "pipeline": "p",
        "release": 1,
        "format": "parquet",
        "vectors": kind,
        "space": f"hashing:words (64 dimensions, space {about.space_id[:12]})",
        "space_id": about.space_id,
        "rows": 123,
        "dimensions": 64,
        "files": ["table.parquet"],
        "folder": str(folder),
    }


def test_npy_is_a_matrix_and_its_rows(home: Path) -> None:
    write_topics(home, pipeline=COMPRESSED)
    export(home, "p", "npy", home / "out")
    vectors = np.load(home / "out" / "vectors.npy", mmap_mode="r", allow_pickle=False)
    assert (vectors.dtype, vectors.shape) == (np.float32, (123, 64))
    rows = pd.read_parquet(home / "out" / "rows.parquet")
    same(rows.assign(vector=list(vectors)), home)


def test_torch_loads_weights_only_and_trains(home: Path) -> None:
    write_topics(home, pipeline=COMPRESSED)
    about = export(home, "p", "torch", home / "out")
    assert about.files == ["rows.parquet", "vectors.pt"]
    loaded = torch.load(home / "out" / "vectors.pt", weights_only=True, mmap=True)
    rows = pd.read_parquet(home / "out" / "rows.parquet")
    assert loaded["ids"] == rows["chunk_id"].tolist()
    same(rows.assign(vector=list(loaded["vectors"].numpy())), home)
    # What it is for: a linear classifier of the topics, trained on the file.
    names, kinds = np.unique(rows["topic"], return_inverse=True)
    torch.manual_seed(0)
    head = torch.nn.Linear(64, len(names))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(loaded["vectors"]), torch.tensor(kinds))
        loss.backward()
        optimizer.step()
    right = head(loaded["vectors"]).argmax(dim=1) == torch.tensor(kinds)
    assert right[torch.tensor(rows["topic"] != "")].all()


def test_atlas_has_the_places_of_the_map_and_places_what_the_map_leaves_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_topics(home, PIPELINE.replace("year:", "x:"), HEADER.replace("year", "x"))
    for module in (report_map, report_layout):
        monkeypatch.setattr(module, "MAX_POINTS", 60)
    export(home, "p", "atlas", home / "out")
    frame = pd.read_parquet(home / "out" / "atlas.parquet")
    assert list(frame) == [
        *("id", "document_id", "text", "topic", "metadata_x", "tags", "x", "y", "vector")
    ]
    live = load_table(home, "p")
    assert frame["id"].tolist() == live["chunk_id"].tolist()
    assert np.array_equal(np.stack(frame["vector"]), np.stack(live["vector"]))
    (kept,) = (home / "data" / "warehouse" / "pipelines" / "p" / "maps").iterdir()
    layout = pd.read_parquet(kept)
    places = set(zip(layout["x"], layout["y"], strict=True))
    on_map = np.array([place in places for place in zip(frame["x"], frame["y"], strict=True)])
    assert len(layout) == 60
    assert on_map.sum() >= 60
    # Every row lies in the midst of its topic, whether the map holds it or not.
    xy = frame[["x", "y"]].to_numpy()
    middles = frame[on_map].groupby("topic")[["x", "y"]].mean()
    usual = (frame["topic"] != "").to_numpy()
    gaps = np.linalg.norm(xy[usual, None] - middles.drop("").to_numpy()[None], axis=2)
    topics = middles.drop("").index.to_numpy()[gaps.argmin(axis=1)]
    assert (topics == frame["topic"][usual]).all()


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_replaces_the_one_before_and_nothing_else(home: Path, format: Format) -> None:
    write_topics(home)
    target = home / "out"
    export(home, "p", format, target)
    (target / "left.txt").touch()
    export(home, "p", format, target)
    assert not (target / "left.txt").exists()
    assert (target / ABOUT).exists()
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []
    mine = home / "mine"
    mine.mkdir()
    export(home, "p", format, mine)  # empty
    (mine / ABOUT).unlink()
    with pytest.raises(ConfigError, match="mine is there and is no export"):
        export(home, "p", format, mine)


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_without_rows_is_exported_too(home: Path, format: Format) -> None:
    write_pipeline(home, "p", PIPELINE + "store: {kind: lancedb, keep_releases: 2}\n")
    write_csv(home, "a.csv", [(1, "one text", "", "", "")], HEADER)
    run_steps(home, "p")
    table = LiveTable(home, "p")
    table.table.apply(table.table.schema(), ["1#0"], [])
    _release_now(home, table)
    about = export(home, "p", format, home / "out")
    assert (about.rows, len(load_table(home, "p"))) == (0, 0)


def test_what_fails_leaves_the_export_before(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_topics(home, pipeline=COMPRESSED)
    target = home / "out"
    export(home, "p", "npy", target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    cache = LiveTable(home, "p").warehouse.cache
    for file in cache.parent.glob(f"{cache.name}*"):
        file.unlink()
    with pytest.raises(StoreError, match="--vectors stored"):
        export(home, "p", "npy", target)

    def fails(*arguments: object) -> int:
        raise OSError("disk full")

    monkeypatch.setitem(exporting.WRITERS, "npy", fails)
    with pytest.raises(OSError, match="disk full"):
        export(home, "p", "npy", target)
    monkeypatch.setitem(exporting.WRITERS, "npy", lambda *arguments: 5)
    with pytest.raises(StoreError, match="holds 5 rows, its release 123"):
        export(home, "p", "npy", target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


ROWS, DIMENSIONS = 200_000, 384  # 307 MB of numbers
MAX_GROWTH_MB = 150
SCRIPT = """
import re, sys, threading, time
from pathlib import Path
from embedding_pipelines.explore.export import export

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def watch():
    while True:
        peaks.append(anonymous())
        time.sleep(0.01)

home, format = Path(sys.argv[1]), sys.argv[2]
export(home, "small", format, home / "warm")
peaks, before = [], anonymous()
threading.Thread(target=watch, daemon=True).start()
about = export(home, "p", format, home / "out")
print(about.rows, max(peaks) - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a release `p` of ROWS rows, and `small` of one."""
    home = tmp_path_factory.mktemp("large")
    pipeline = PIPELINE.replace(
        "{provider: hashing}", f"{{provider: hashing, dimensions: {DIMENSIONS}}}"
    )
    write_csv(home, "a.csv", [(1, "one text", "", "", "")], HEADER)
    for name in ("small", "p"):
        write_pipeline(home, name, pipeline)
        run_steps(home, name)
    table = LiveTable(home, "p")
    schema, step = table.table.schema(), 10_000
    random = np.random.default_rng(0)

    def rows(first: int) -> pa.RecordBatch:
        names = [f"d{number}#0" for number in range(first, first + step)]
        numbers = random.normal(size=step * DIMENSIONS).astype(np.float32)
        columns = {name: pa.nulls(step, schema.field(name).type) for name in schema.names} | {
            "chunk_id": pa.array(names),
            "document_id": pa.array(names),
            "text": pa.array([f"{name} about nothing" for name in names]),
            "chunk_digest": pa.array([b"0" * 16] * step, DIGEST),
            VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(numbers), DIMENSIONS),
        }
        return pa.RecordBatch.from_pydict(columns, schema=schema)

    table.table.apply(schema, ["1#0"], map(rows, range(0, ROWS, step)))
    _release_now(home, table)
    return home


def _release_now(home: Path, table: LiveTable) -> None:
    """Have the live release be what the table now holds."""
    known = read_json(table.folder.releases)
    assert known is not None
    known["releases"][-1] |= {"version": table.table.version, "rows": table.table.rows()}
    write_json(table.folder.releases, known)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["parquet", "npy", "torch"])
def test_three_hundred_megabytes_are_written_in_the_memory_of_a_few_batches(
    large: Path, tmp_path: Path, format: Format
) -> None:
    done = measure(
        [sys.executable, "-c", SCRIPT, str(large), format], os.environ, tmp_path / "measured"
    )
    assert done.code == 0, done.stderr
    rows, growth = done.stdout.split()
    assert int(rows) == ROWS
    assert float(growth) < MAX_GROWTH_MB
