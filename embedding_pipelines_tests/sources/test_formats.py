"""The same values are the same documents in every format, each exactly right or rejected."""

import csv
import datetime
import decimal
import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_pipelines_tests.contracts_sources import make, read

KINDS = {
    "n": "int",
    "x": "float",
    "ok": "bool",
    "day": "date",
    "at": "timestamp",
    "ms": "timestamp[ms]",
    "s": "string",
    "m.k": "string",
    "tags": "list[string]",
}
EPOCH = datetime.datetime(1970, 1, 1)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=6)
RECORDS = st.fixed_dictionaries(
    {
        "text": TEXTS,
        "n": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9).map(float),
        "x": st.none() | st.floats(width=32) | st.sampled_from([0.1, -1e-300, 1.7e308]),
        "ok": st.none() | st.booleans(),
        "day": st.none() | st.dates(),
        "at": st.none() | st.datetimes(),
        "ms": st.none() | st.integers(-(2**60), 2**60) | st.integers(0, 2**41),
        "s": st.none() | TEXTS,
        "m": st.none() | st.fixed_dictionaries({"k": st.none() | TEXTS}),
        "tags": st.none() | st.lists(st.none() | TEXTS, max_size=3),
    }
)


def expected(record: dict[str, Any]) -> dict[str, Any] | None:
    """The document; None for a record that must be rejected."""
    first, last = (
        (moment - EPOCH) // datetime.timedelta(milliseconds=1)
        for moment in (datetime.datetime.min, datetime.datetime.max)
    )
    ms = record["ms"]
    if ms is not None and not first <= ms <= last:
        return None
    number = record["x"]
    at = record["at"]
    return {
        "text": record["text"],
        "n": None if record["n"] is None else int(record["n"]),
        "x": number if number is not None and math.isfinite(number) else None,
        "ok": record["ok"],
        "day": record["day"],
        "at": at and at.replace(tzinfo=datetime.UTC),
        "ms": None if ms is None else utc(ms),
        "s": record["s"],
        "m_k": record["m"] and record["m"]["k"],
        "tags": record["tags"],
    }


def utc(milliseconds: int) -> datetime.datetime:
    return (EPOCH + datetime.timedelta(milliseconds=milliseconds)).replace(tzinfo=datetime.UTC)


def write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["id", "text", *KINDS])
        for record in records:
            cells = {**record, "m.k": (record["m"] or {}).get("k")}
            cells["tags"] = None if record["tags"] is None else json.dumps(record["tags"])
            writer.writerow(
                ["" if cells[name] is None else cells[name] for name in ("id", "text", *KINDS)]
            )


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    numbers = [record["n"] for record in records]
    kinds = {
        "id": pa.int64(),
        "text": pa.string(),
        "n": pa.decimal128(21, 1) if any(isinstance(n, float) for n in numbers) else pa.int64(),
        "x": pa.float64(),
        "ok": pa.bool_(),
        "day": pa.date32(),
        "at": pa.timestamp("us"),
        "ms": pa.int64(),
        "s": pa.string(),
        "m": pa.struct({"k": pa.string()}),
        "tags": pa.list_(pa.string()),
    }
    columns = {name: [record[name] for record in records] for name in kinds}
    if kinds["n"] != pa.int64():
        columns["n"] = [None if n is None else decimal.Decimal(int(n)) for n in numbers]
    arrays = {name: pa.array(columns[name], kind) for name, kind in kinds.items()}
    pq.write_table(pa.table(arrays), path)


def write_sql(path: Path, records: list[dict[str, Any]]) -> None:
    columns = ["id", "text", *(name for name in KINDS if name != "m.k"), "m"]
    rows = [[record[name] for name in columns] for record in records]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("drop table if exists a")
        connection.execute(f"create table a ({', '.join(columns)})")
        for row in rows:
            is_json = [isinstance(value, list | dict) for value in row]
            cells = [
                json.dumps(value)
                if nested
                else str(value)
                if isinstance(value, datetime.date)
                else value
                for value, nested in zip(row, is_json, strict=True)
            ]
            connection.execute(f"insert into a values ({', '.join('?' * len(cells))})", cells)
        connection.commit()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RECORDS, min_size=1, max_size=5))
def test_records_are_the_same_documents_in_every_format(
    tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    records = [{"id": number, **record} for number, record in enumerate(records)]
    lines = [json.dumps(record, ensure_ascii=False, default=str) for record in records]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "a.json").write_text(f"[{','.join(lines)}]", encoding="utf-8")
    write_csv(tmp_path / "a.csv", records)
    write_parquet(tmp_path / "a.parquet", records)
    write_sql(tmp_path / "a.db", records)
    right = {str(record["id"]): expected(record) for record in records}
    for kind in ("json", "jsonl", "parquet", "sql", "csv"):
        options: dict[str, Any] = {"path": f"a.{kind}", "encoding": "utf-8"}
        if kind == "parquet":
            del options["encoding"]
        if kind == "sql":
            options = {"url": "sqlite:///a.db", "table": "a"}
        source = make(kind, id="id", metadata=KINDS, **options)
        documents, rejections, _ = read(source, tmp_path)
        values = {
            row["document_id"]: {name: row[name] for name in ("text", *source.metadata_types)}
            for row in documents
        }
        usable = {name: row for name, row in right.items() if row is not None}
        if kind == "csv":  # whose cells do not tell no text from an empty one
            for row in [*values.values(), *usable.values()]:
                row.update({name: row[name] or "" for name in ("s", "m_k")})
        assert values == usable
        assert len(rejections) == len(right) - len(usable)
        assert all("beyond the years" in each.reason for each in rejections)
