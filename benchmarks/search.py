"""Search side by side: `python -m benchmarks.search` prints one table for one query at a time over
real vectors.

This project's own read path, on the disk and in memory, plain `lancedb` calls on the same table, and
libraries that search in memory: recall@10 against exact search, p50 and p99, the seconds to build, the bytes it takes.
Vectors are MiniLM's, of captions; the queries are captions that are not in the table. Of each
system the fastest of its settings that reaches the floor in recall is shown. Embedding the query is
left out everywhere.
"""

import argparse
import csv
import importlib.util
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.search_systems import NAME, SYSTEMS, Data, K, System, Vectors
from embedding_pipelines.errors import ConfigError, EmbeddingPipelinesError
from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines.spec.pipeline import PipelineSpec

CAPTIONS = Path(__file__).parents[2] / "shared" / "data" / "captions" / "captions_en.csv"
PIPELINE = f"""\
source: {{kind: csv, path: {CAPTIONS}, id: id, text: [caption], metadata: {{image: string, caption_no: int}}}}
model: hf:sentence-transformers/all-MiniLM-L6-v2
"""
HELD_OUT = 100_000  # queries are the captions from here on, or from `--vectors` on if that is more
BLOCK = 25  # queries that a setting answers before it is another's turn: noise hits all alike, caches stay warm
WARM_UP = 10  # queries of each setting that are not counted
TIE = 1e-5  # vectors as near as the tenth are as right as the tenth; float32 products differ by less than this
EMBED_TEXTS = 1_024  # per call


def measure(data: Data, systems: Sequence[System]) -> None:
    """Ask all systems every query by every choice, in blocks by turns; fills in their figures."""
    turns = [
        (system, label, choice) for system in systems for label, choice in system.choices.items()
    ]
    tenth = [np.partition(data.vectors @ query, -K)[-K] for query in data.queries]
    for (system, _, choice), query in itertools.product(turns, data.queries[:WARM_UP]):
        system.ask(choice, query)
    order = random.Random(0)
    for first in range(0, len(data.queries), BLOCK):
        for system, label, choice in order.sample(turns, len(turns)):
            for query, least in zip(
                data.queries[first : first + BLOCK], tenth[first : first + BLOCK], strict=True
            ):
                started = time.perf_counter()
                result = system.ask(choice, query)
                system.milliseconds[label].append((time.perf_counter() - started) * 1000)
                nearness = data.vectors[system.row_numbers(result)] @ query
                system.recalls[label].append(float(np.sum(nearness >= least - TIE)) / K)


def load(vectors: int, queries: int, work: Path) -> Data:
    """The captions and their vectors, embedded at most once per model and folder."""
    spec = parse_pipeline(PIPELINE, NAME, f"{NAME}.yaml")
    if not CAPTIONS.is_file():
        raise ConfigError(f"{CAPTIONS} is missing: the captions that are searched.")
    with CAPTIONS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first = max(HELD_OUT, vectors)
    if first + queries > len(rows):
        raise ConfigError(
            f"{CAPTIONS} has {len(rows)} rows; {vectors} vectors and {queries} queries need more."
        )
    query_rows = rows[first : first + queries]
    matrices = [
        _vectors(spec, part, work / f"{NAME}-{at}")
        for at, part in ((0, rows[:vectors]), (first, query_rows))
    ]
    return Data(spec, rows[:vectors], *matrices)


def _vectors(spec: PipelineSpec, rows: Sequence[dict[str, str]], start: Path) -> Vectors:
    """Of the rows' captions; a longer file that was left by an earlier run is cut."""
    model = spec.model.open(start.parent)
    path = start.with_name(f"{start.name}-{model.space.id[:12]}.npy")
    if path.exists() and len(cached := np.load(path, mmap_mode="r")) >= len(rows):
        return np.array(cached[: len(rows)])
    vectors = np.empty((len(rows), model.space.dimensions), np.float32)
    order = sorted(
        range(len(rows)), key=lambda at: len(rows[at]["caption"])
    )  # alike in length: little padding
    for first in range(0, len(order), EMBED_TEXTS):
        part = order[first : first + EMBED_TEXTS]
        vectors[part] = model.embed([rows[at]["caption"] for at in part], "document").vectors
        print(f"embedded {first + len(part):,} of {len(rows):,} captions", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors)
    return vectors


def figures(name: str, system: System, label: str, base: float) -> dict[str, Any]:
    return {
        "system": name,
        "setting": label,
        "recall@10": round(system.recall(label), 4),
        "p50 ms": round(system.p50(label), 3),
        "p99 ms": round(float(np.percentile(system.milliseconds[label], 99)), 3),
        "p50 to project's": round(system.p50(label) / base, 3),
        "build s": system.build_seconds and round(system.build_seconds, 2),
        "MB": system.size_bytes and round(system.size_bytes / 1e6, 1),
        "kept": system.kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench_search"), help="where embeddings are kept"
    )
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="beside this project"
    )
    parser.add_argument("--json", type=Path, help="write the figures of every setting to a file")
    options = parser.parse_args()
    names = [name for name in SYSTEMS if name in {"project", *options.systems}]
    if missing := [
        name
        for name in names
        if (module := name.partition("-")[0]) != "project"
        and importlib.util.find_spec(module) is None
    ]:
        parser.error(
            f"{', '.join(missing)}: not installed. pip install -e '.[bench]', or name others by --systems"
        )
    systems = {}
    try:
        data = load(options.vectors, options.queries, options.work)
        with tempfile.TemporaryDirectory(dir=options.work) as home:
            for name in names:
                print(f"building {name}", file=sys.stderr)
                systems[name] = SYSTEMS[name](data, Path(home))
            measure(data, list(systems.values()))
    except EmbeddingPipelinesError as error:
        sys.exit(str(error))
    base = systems["project"].p50("default")
    best = [figures(name, system, system.best(), base) for name, system in systems.items()]
    title = f"{len(data.vectors):,} vectors of {data.vectors.shape[1]} dimensions, {len(data.queries)} queries"
    table = Table(
        *best[0],
        title=title,
        caption="project and lancedb give all columns, the others row numbers alone",
    )
    for row in best:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if options.json:
        rows = [
            figures(name, system, label, base)
            for name, system in systems.items()
            for label in system.choices
        ]
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
