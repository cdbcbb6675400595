"""Decodes what a home keeps and says which files still hold some texts.

Parquet, Lance and SQLite compress or cut texts, so that the bytes of a file say nothing.
"""

import gzip
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_pipelines.errors import StoreError
from embedding_pipelines.storage.quotes import Needles, json_texts
from embedding_pipelines.stores.base import Store

IGNORED = (".lock", "-shm")  # without content of anybody's


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
