"""Decodes every file of a home and says which of them hold a marker.

Parquet, Lance, SQLite and gzip compress texts, so that a search of a file's bytes proves nothing.
Of Lance each data file is read as it is on the disk, rows that were deleted and files that no
version names included: through a manifest that names this file alone and no deletion.
"""

import gzip
import json
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Fields = list[tuple[int, int | bytes]]  # of a protobuf message: number, value
FRAGMENTS, INDEX_SECTION, TRANSACTION_FILE, TRANSACTION_SECTION = 2, 6, 12, 21  # of a manifest


def files_with(home: Path, *markers: str) -> list[str]:
    """The files below a home that hold one of these texts, with how it was seen there."""
    holding = set[str]()
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        name = path.relative_to(home).as_posix()
        if any(marker in text for text in texts_of(path) for marker in markers):
            holding.add(name)
    return sorted(holding)


def texts_of(path: Path) -> Iterator[str]:
    """All that a file holds: its bytes as they are, and what they decode to."""
    content = path.read_bytes()
    yield content.decode("utf-8", "replace")
    yield content.decode("utf-16-le", "replace")
    if content.startswith(b"PAR1"):
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            yield from _of_batches(file.iter_batches())
            yield str(file.schema_arrow.metadata)
    elif content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content).decode("utf-8", "replace")
    elif content.startswith(b"SQLite format 3\0"):
        yield from _of_sqlite(path)
    elif content.startswith(b"PK\x03\x04"):
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                yield f"{name} {arrays[name].tolist()}"
    elif content.endswith(b"LANC") and path.parent.name == "data":
        yield from _of_batches(read_data_file(path))
    elif path.suffix in (".json", ".jsonl"):
        for part in [content, *content.splitlines()]:
            try:
                yield from _strings(json.loads(part))
            except ValueError:
                continue
    elif path.suffix == ".html":
        yield json.dumps(content.decode("utf-8", "replace"))
        yield content.decode("unicode_escape", "replace")


def _of_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[str]:
    for batch in batches:
        for row in batch.to_pylist():
            for value in row.values():
                yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    """The texts within a value, keys included; bytes as UTF-8."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield str(key)
            yield from _strings(part)
    elif isinstance(value, list):
        if not value or not isinstance(value[0], float):
            for part in value:
                yield from _strings(part)
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif isinstance(value, str):
        yield value
        if value[:1] in "{[":  # Dagster keeps events as JSON
            try:
                yield from _strings(json.loads(value))
            except ValueError:
                return


def _of_sqlite(path: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for beside in path.parent.glob(f"{path.name}*"):
            shutil.copy(beside, folder)  # with its log; reading would change the file
        with closing(sqlite3.connect(Path(folder, path.name))) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (name,) in names.fetchall():
                for row in database.execute(f'SELECT * FROM "{name}"'):
                    for value in row:
                        yield from _strings(value)


def read_data_file(path: Path) -> Iterator[pa.RecordBatch]:
    """All rows of one data file of a Lance table, whatever the table's versions say of it."""
    table = path.parent.parent
    manifests = sorted((table / "_versions").glob("*.manifest"))
    shape = next((shape for file in manifests if (shape := _shape(file.read_bytes()))), None)
    if shape is None:
        raise AssertionError(f"no manifest tells how {path} is to be read")
    fields, data_file = shape
    data_file = [entry for entry in data_file if entry[0] not in (1, 6)]  # path, size
    data_file.insert(0, (1, path.name.encode()))
    fragment = _encode([(1, 0), (2, _encode(data_file)), (4, _rows(path.read_bytes()))])
    message = _encode([*fields, (FRAGMENTS, fragment)])
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "t.lance")
        (copy / "data").mkdir(parents=True)
        (copy / "_versions").mkdir()
        shutil.copy(path, copy / "data")
        footer = struct.pack("<QHH", 0, 0, 1) + b"LANC"  # where the message begins; version
        content = struct.pack("<I", len(message)) + message + footer
        version = next(value for number, value in fields if number == 3)
        assert isinstance(version, int)
        (copy / "_versions" / f"{2**64 - 1 - version:020}.manifest").write_bytes(content)
        yield from lancedb.connect(folder).open_table("t").search().to_batches()


def _shape(manifest: bytes) -> tuple[Fields, Fields] | None:
    """What a manifest says but for its fragments, and one of their data files; None without."""
    (start,) = struct.unpack("<Q", manifest[-16:-8])
    (size,) = struct.unpack("<I", manifest[start : start + 4])
    fields = _decode(manifest[start + 4 : start + 4 + size])
    left_out = (FRAGMENTS, INDEX_SECTION, TRANSACTION_FILE, TRANSACTION_SECTION)
    for number, value in fields:
        if number == FRAGMENTS:
            assert isinstance(value, bytes)
            data_file = next(part for name, part in _decode(value) if name == 2)
            assert isinstance(data_file, bytes)
            return [field for field in fields if field[0] not in left_out], _decode(data_file)
    return None


def _rows(data_file: bytes) -> int:
    """The rows of a file, from the descriptor that its footer leads to."""
    start, _ = struct.unpack("<QI", data_file[-24:-12])
    position, size = struct.unpack("<QQ", data_file[start : start + 16])
    descriptor = _decode(data_file[position : position + size])
    return next(value for number, value in descriptor if number == 2)  # type: ignore[return-value]


def _decode(message: bytes) -> Fields:
    fields, at = Fields(), 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            fields.append((key >> 3, varint()))
            continue
        assert key & 7 == 2, f"wire type {key & 7} is not known here"
        size = varint()
        fields.append((key >> 3, message[at : at + size]))
        at += size
    return fields


def _encode(fields: Fields) -> bytes:
    return b"".join(
        _varint(number << 3) + _varint(value)
        if isinstance(value, int)
        else _varint(number << 3 | 2) + _varint(len(value)) + value
        for number, value in fields
    )


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
