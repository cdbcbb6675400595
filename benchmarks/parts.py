"""What it costs to divide a large file, and to read its parts in place of the whole.

    python -m benchmarks.parts [--megabytes 64] [--part-megabytes 4 16]

A file of JSON Lines, of CSV (every text quoted, with a line break in every tenth) and of Parquet, of
a dozen words a record. Processor seconds of one thread: to read the whole; to find where parts begin,
which one process does; to read all parts, one after the other.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_pipelines.plugins import parse
from embedding_pipelines.sources.base import ReadLog, Source, SourceFile
from embedding_pipelines.steps.spill import document_digests

WORDS, VOCABULARY = 12, 20_000
GROUP_ROWS = 20_000


def records(megabytes: int) -> Iterator[tuple[str, str]]:
    """About so much text, with ids."""
    numbers = np.random.default_rng(7)
    for row in range(megabytes * 10_000):
        words = [f"w{number:x}" for number in numbers.integers(0, VOCABULARY, WORDS)]
        yield f"d{row}", " ".join(words) + ("\nand more" if row % 10 == 0 else " and more")


def write(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    if path.suffix == ".parquet":
        ids, texts = zip(*rows, strict=True)
        pq.write_table(pa.table({"id": ids, "text": texts}), path, row_group_size=GROUP_ROWS)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            file.write("id,text\n")
            file.writelines(f'{name},"{text}"\n' for name, text in rows)
        else:
            file.writelines(json.dumps({"id": name, "text": text}) + "\n" for name, text in rows)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def read(source: Source, files: Sequence[SourceFile]) -> int:
    """Rows, with the digest of each, as the step `documents` takes them."""
    batches = (batch for file in files for batch in source.read(file, ReadLog(print)))
    return sum(len(document_digests(batch)) for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--part-megabytes", type=int, nargs="+", default=[4, 16])
    arguments = parser.parse_args()
    rows = list(records(arguments.megabytes))
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("jsonl", "csv", "parquet"):
            path = Path(folder) / f"a.{kind}"
            write(path, rows)
            source = parse("sources", Source, {"kind": kind, "path": str(path), "id": "id"})
            (file,) = source.files(Path(folder))
            whole, count = seconds(partial(read, source, [file]))
            print(f"{kind}, {file.size_bytes / 1e6:.0f} MB, {count:,} rows: whole {whole:.2f} s")
            for size in arguments.part_megabytes:
                dividing, parts = seconds(
                    partial(source.divide, file, size * 2**20, ReadLog(print))
                )
                reading, again = seconds(partial(read, source, parts))
                assert again == count
                print(
                    f"  {len(parts)} parts: divided in {dividing:.2f} s ({dividing / whole:.1%}), "
                    f"read in {reading:.2f} s ({reading / whole:.0%})"
                )
            path.unlink()


if __name__ == "__main__":
    main()
