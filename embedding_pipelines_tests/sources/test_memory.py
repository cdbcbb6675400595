"""Memory stays the same however large the file is; measured in a process of its own."""

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.measure import measure

MAX_GROWTH_MB = 250  # for 200 MB of input; of 2 GB it was measured to be the same

SCRIPT = """
import resource, sys
from pathlib import Path
from embedding_pipelines_tests.contracts_sources import make
from embedding_pipelines.sources.base import ReadLog

place = {"path": sys.argv[2]}
if sys.argv[1] == "sql":
    place = {"url": f"sqlite:///{sys.argv[2]}", "table": "big"}
source = make(sys.argv[1], id="id", **place)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = 0
for file in source.files(Path("/")):
    for batch in source.read(file, ReadLog(print)):
        rows += batch.num_rows
print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""

TEXT = "naïve words about nothing, " * 30
ROWS = 250_000


def _write(kind: str, path: Path) -> None:
    if kind == "parquet":
        text = pa.array([f"{row} {TEXT}" for row in range(ROWS)])
        pq.write_table(pa.table({"id": range(ROWS), "text": text}), path, use_dictionary=False)
        return
    if kind == "sql":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("create table big (id integer, text text)")
            rows = ((row, TEXT) for row in range(ROWS))
            connection.executemany("insert into big values (?, ?)", rows)
            connection.commit()
        return
    with path.open("w", encoding="utf-8") as opened:
        opened.write({"csv": "id,text\n", "jsonl": "", "json": "["}[kind])
        for row in range(ROWS):
            record = json.dumps({"id": row, "text": TEXT}, ensure_ascii=False)
            comma = "," if row and kind == "json" else ""
            opened.write(f'{row},"{TEXT}"\n' if kind == "csv" else f"{comma}{record}\n")
        opened.write("]" if kind == "json" else "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet", "sql"])
def test_two_hundred_megabytes_take_no_more_memory_than_a_few_blocks(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"big.{kind}"
    _write(kind, path)
    done = measure([sys.executable, "-c", SCRIPT, kind, str(path)], os.environ, tmp_path / "read")
    path.unlink()
    assert done.code == 0, done.stderr
    rows, growth = done.stdout.split()
    assert int(rows) == ROWS
    assert float(growth) < MAX_GROWTH_MB
