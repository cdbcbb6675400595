"""How a chain grows with its corpus: each step in a process of its own, at two sizes or more.

    python -m benchmarks.scale [--chunks 100000 1000000] [--dimensions 384] [--index sq]
        [--work FOLDER] [--json FILE]

Documents are a dozen words each, a chunk a document, in Parquet files of 100,000, embedded by
`hashing`, so that what is measured is this project and not a model; a partition has PARTITION_ROWS,
as docs/scale.md advises. For each size: the first run, a look that finds no work, and runs after one
document in a hundred was changed, in one file, and spread over all files. Seconds are of the
processor, threads included, and of the clock; memory is the peak of the step's process, of which
imports take 150 MB; bytes are what the step has left on the disk, of `embeddings` with the cache.
Below the table stands what grows faster than the corpus.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.measure import measure
from embedding_pipelines.run import Run
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.chain import CHAIN, step_named
from embedding_pipelines.storage.warehouse import Warehouse

FILE_ROWS = 100_000
PARTITION_ROWS, PARTITIONS = 62_500, (16, 256)
LEVELS, CHOICE = (16, 160, 1_600, 16_000), 5  # fields to themes, and words of each
STEPS = ("documents", "chunks", "embeddings", "codec", "vector_store", "checks", "release")
FOLDERS = {
    "documents": ("pipelines/p/documents",),
    "chunks": ("pipelines/p/chunks",),
    "embeddings": ("pipelines/p/embeddings", "cache.sqlite"),
    "codec": ("pipelines/p/codec",),
    "vector_store": ("tables",),
}
PHASES = {"first": 0, "no work": None, "1% in one file": 1, "1% in all files": 2}  # changes so far
FASTER = 1.5  # times as much per chunk as at the smaller size
PIPELINE = """\
source: {{kind: parquet, path: 'data/*.parquet', id: id, text: [text]}}
model: {{provider: hashing, dimensions: {dimensions}}}
compression: [int8]
store: {{kind: lancedb, index: {index}}}
partitions: {partitions}
evaluation: {{known_items: 32, may_shrink: 1}}
"""


def write_corpus(home: Path, chunks: int, changes: int) -> None:
    """The files of the source, after so many of the two changes, each of a hundredth of it."""
    (home / "data").mkdir(parents=True, exist_ok=True)
    step = max(1, 100 * FILE_ROWS // max(chunks, FILE_ROWS))
    for start in range(0, chunks, FILE_ROWS):
        if changes == 1 and start:
            break
        count = min(FILE_ROWS, chunks - start)
        texts = [" ".join(map("w{:x}".format, row)) for row in _words(start, count).tolist()]
        if changes and not start:
            texts[::step] = [f"{text} more" for text in texts[::step]]
        if changes == 2:
            texts[::100] = [f"{text} others" for text in texts[::100]]
        ids = [f"d{start + row}" for row in range(count)]
        table = pa.table({"id": ids, "text": texts})
        pq.write_table(table, home / "data" / f"{start // FILE_ROWS:06d}.parquet")


def _words(seed: int, count: int) -> NDArray[np.int64]:
    """int64[count, WORDS]: three words each of a document's field, subject, topic and theme, as texts
    have them. Of words that know no topic the ten nearest lie all over an index, as no corpus has it."""
    generator = np.random.default_rng(seed)
    themes = generator.integers(0, LEVELS[-1], (count, 1))
    words = [
        (themes // (LEVELS[-1] // groups) * CHOICE + generator.integers(0, CHOICE, (count, 3)))
        * len(LEVELS)
        + level
        for level, groups in enumerate(LEVELS)
    ]
    return np.concatenate(words, axis=1)


def work(home: Path, name: str) -> None:
    """One step, in the process that is measured."""
    with Run(find_pipeline("p", home), Warehouse(home)) as run:
        for report in step_named(name).work(run, run.spec.partition_names):
            print(json.dumps(report.statistics, default=str), file=sys.stderr)


def look(home: Path) -> None:
    """What a run without work asks each step."""
    with Run(find_pipeline("p", home), Warehouse(home)) as run:
        stale = [step.name for step in CHAIN if step.applies(run.spec) and not step.whole(run)]
        assert not stale, stale


def size_of(root: Path, name: str) -> int:
    """Bytes on the disk of what a step has written."""
    paths = [root / part for part in FOLDERS.get(name, ())]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def rows(home: Path, chunks: int, dimensions: int, index: str) -> Iterator[dict[str, Any]]:
    """What each step took, one run after the other."""
    least, most = PARTITIONS
    partitions = min(max(chunks // PARTITION_ROWS, least), most)
    (home / "pipelines").mkdir(parents=True, exist_ok=True)
    (home / "pipelines" / "p.yaml").write_text(
        PIPELINE.format(dimensions=dimensions, index=index, partitions=partitions)
    )
    for phase, changes in PHASES.items():
        if changes is not None:
            write_corpus(home, chunks, changes)
        for name in ("look",) if changes is None else STEPS:
            options = ["--home", str(home), "--step", name]
            command = [sys.executable, "-m", "benchmarks.scale", *options]
            measured = measure(command, os.environ, home / "log")
            if measured.code:
                raise SystemExit(f"{name} failed: {measured.stderr[-2_000:]}")
            yield {
                "chunks": chunks,
                "phase": phase,
                "step": name,
                "cpu_seconds": round(measured.cpu_seconds, 1),
                "seconds": round(measured.seconds, 1),
                "peak_mb": round(measured.peak_bytes / 1e6),
                "bytes": size_of(home / "data" / "warehouse", name),
            }


def table_of(results: Sequence[dict[str, Any]], sizes: Sequence[int]) -> Table:
    table = Table(
        "run", "step", title="by number of chunks: processor s, s, peak MB, MB on the disk"
    )
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    for phase, step in dict.fromkeys((row["phase"], row["step"]) for row in results):
        cells = [
            f"{row['cpu_seconds']:,} s, {row['seconds']:,} s, {row['peak_mb']:,} MB, "
            f"{row['bytes'] / 1e6:,.0f} MB"
            for row in results
            if (row["phase"], row["step"]) == (phase, step)
        ]
        table.add_row(phase, step, *cells)
    return table


def grows_faster(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Steps whose time per chunk, or whose memory, is more than FASTER times that of the size before."""
    for phase, step in dict.fromkeys((row["phase"], row["step"]) for row in results):
        same = [row for row in results if (row["phase"], row["step"]) == (phase, step)]
        for small, large in itertools.pairwise(same):
            factor = large["chunks"] / small["chunks"]
            seconds = large["cpu_seconds"] / max(small["cpu_seconds"], 1.0)
            memory = large["peak_mb"] / small["peak_mb"]
            if seconds > FASTER * factor:
                yield f"{phase}, {step}: {seconds:.1f} times the seconds of a corpus {factor:g} times as large"
            if memory > FASTER:
                yield f"{phase}, {step}: {memory:.1f} times the memory of a corpus {factor:g} times as large"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--index", default="sq", help="as `store.index`")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        look(options.home) if options.step == "look" else work(options.home, options.step)
        return 0
    results: list[dict[str, Any]] = []
    for chunks in sorted(options.chunks):
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            for row in rows(Path(folder), chunks, options.dimensions, options.index):
                results.append(row)
                print(row, file=sys.stderr, flush=True)
    Console().print(table_of(results, sorted(options.chunks)))
    for line in grows_faster(results):
        print(line)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
