"""Decodes what a home keeps and says which files still hold some texts.

Searches are asked, too. Parquet, Lance and SQLite compress or cut texts, so that the bytes of a
file say nothing.
"""

import gzip
import re
import sqlite3
import zlib
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.deployments import read_deployments
from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import list_files
from embedding_pipelines.forget.receipt import Receipt
from embedding_pipelines.forget.traces import Traces, rows_of
from embedding_pipelines.ranking import nearest
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.storage.pushed import pushed_log
from embedding_pipelines.storage.quotes import Needles, json_texts
from embedding_pipelines.stores.base import Store

IGNORED = (".lock", "-shm")  # without content of anybody's
NEAREST = 10  # rows that each search looks at


@dataclass
class Proof:
    """What was looked at, and which files hold a text still, relative to the warehouse."""

    files: int = 0
    tables: int = 0
    rows: int = 0  # of Parquet files and tables
    left: list[str] = field(default_factory=list)


def look_for(root: Path, store: Store, needles: Needles) -> Proof:
    """Look for texts in all files of a warehouse but exports, which are the user's."""
    proof = Proof()
    tables, exports = root / "tables", root / "exports"
    for path in sorted(root.rglob("*")):
        inside = exports in path.parents or any(part.endswith(".lance") for part in path.parts)
        if inside or not path.is_file() or path.name.endswith(IGNORED):
            continue
        proof.files += 1
        if _holds(path, needles, proof):
            proof.left.append(path.relative_to(root).as_posix())
    for name in store.names(tables):
        proof.tables += 1
        if _table_holds(store, tables, name, needles, proof):
            proof.left.append(f"tables/{name}.lance")
    return proof


def _table_holds(store: Store, folder: Path, name: str, needles: Needles, proof: Proof) -> bool:
    table = store.table(folder, name)
    try:
        if table.version is None:
            return table.size_bytes() > 0  # the rest of one that could not be deleted
        for batch in table.scan(["text"]):
            proof.rows += batch.num_rows
            if needles.are_in_rows(batch):
                return True
    except StoreError:
        return True  # nobody knows
    return False


def _holds(path: Path, needles: Needles, proof: Proof) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head.startswith(b"PAR1"):
            with pq.ParquetFile(path, pre_buffer=False) as parquet:
                proof.rows += parquet.metadata.num_rows
                columns = sorted({"text", "raw"} & {*parquet.schema_arrow.names})
                batches = parquet.iter_batches(columns=columns) if columns else ()
                return any(map(needles.are_in_rows, batches))
        if head.startswith(b"SQLite format 3"):
            return any(needles.are_in(text) for text in database_texts(path))
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    except (pa.ArrowException, sqlite3.Error):
        return True  # nobody knows
    if head.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return True
    text = content.decode("utf-8", "replace")
    return any(map(needles.are_in, json_texts(text)))


def database_texts(path: Path) -> Iterator[str]:
    """Every text of an SQLite file; of its JSON the values."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            quoted = str(table).replace('"', '""')
            columns = database.execute(f'PRAGMA table_info("{quoted}")').fetchall()
            kinds = {str(kind).upper() for _, _, kind, *_ in columns}
            if kinds <= {"BLOB", "INTEGER", "FLOAT", "DATETIME"}:
                continue  # the cache's vectors under their keys
            for row in database.execute(f'SELECT * FROM "{quoted}"'):
                for value in row:
                    if isinstance(value, str):
                        yield from json_texts(value)


def check(run: Run, traces: Traces, needles: Needles, receipt: Receipt) -> None:
    """See that searches and files hold nothing of it."""
    name, warehouse = run.spec.name, run.warehouse
    releases = read_releases(run.folder)
    live, hits = releases.get(releases.live), 0
    if live is not None:
        table = live.spec.store.table(run.folder.tables, live.table)
        codec = CodecChain.load(run.folder.codecs / live.codec)
        vectors = [row for row in traces.vectors if len(row) == codec.input_dimensions]
        for vector in vectors:
            rows = nearest(table, codec, vector, NEAREST, None, live.version)
            hits += pc.sum(rows_of(rows, traces.ids)).as_py() or 0
        receipt.checked["searches"] = len(vectors)
        for batch in table.scan(["document_id"], version=live.version):
            hits += rows_of(batch, traces.ids).true_count
    proof = look_for(warehouse.root, run.spec.store, needles)
    receipt.checked |= {
        "files": proof.files,
        "tables": proof.tables,
        "rows": proof.rows,
        "texts": len(needles.texts),
    }
    other = re.compile(
        r"(?:(?:pipelines|pushed)/([^/]+)/|tables/(.+)-[^-]+\.lance|reports/(.+)\.html)"
    )
    others = set[str]()
    for path in proof.left:
        owner = next(filter(None, match.groups()), name) if (match := other.match(path)) else name
        if owner == name:
            receipt.left.append(path)
        else:
            others.add(owner)
    for word in map(pushed_log(warehouse, name).words().get, sorted(traces.ids)):
        if word is not None and f"pushed/{name}/{word.segment}" not in receipt.left:
            receipt.left.append(f"pushed/{name}/{word.segment}")
    if hits:
        receipt.left.append(f"tables/{live.table}.lance" if live else "")
    _note_copies(run, others, receipt)


def _note_copies(run: Run, others: Collection[str], receipt: Receipt) -> None:
    """Say where else texts are, which is not this command's to erase."""
    name = run.spec.name
    for each in sorted(others):
        receipt.notes.append(
            f"Pipeline {each!r} holds some of the texts too: forget them there as well."
        )
    if places := [each.endpoint for each in read_deployments(run.folder)]:
        receipt.notes.append(
            f"{name!r} is deployed to {', '.join(places)}, where its releases are as they were: "
            "undeploy it there, then deploy it again."
        )
    if exports := [path.name for path in list_files(run.warehouse.root / "exports", f"{name}-*")]:
        receipt.notes.append(
            f"Exports are yours, and were not looked into: {', '.join(exports)}. Export again, or "
            "delete them."
        )
