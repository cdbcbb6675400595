"""A file that is read in parts gives what it gives as a whole: documents, rejections, log or error, in
the same order."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, Rejection, Source, SourceFile
from embedding_pipelines.sources.parts import Border, Part, join_logs, parts_between
from embedding_pipelines_tests.contracts_sources import Document, make

Result = tuple[list[Document], list[Rejection], dict[str, Any]] | str

OPTIONS: dict[str, Any] = {"id": "id", "text": "text", "metadata": {"n": "int", "s": "string"}}
unhurried = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def result(source: Source, file: SourceFile, part_bytes: int | None) -> tuple[Result, int]:
    """What the file gives, and of how many parts."""
    documents: list[Document] = []
    rejections: list[Rejection] = []
    log, parts = ReadLog(rejections.append), [file]
    try:
        if part_bytes is not None:
            parts = source.divide(file, part_bytes, log)
        logs = [ReadLog(rejections.append) for _ in parts]
        for part, own in zip(parts, logs, strict=True):
            for batch in source.read(part, own):
                documents += batch.to_pylist()
        if len(parts) == 1:
            log = logs[0]
        else:
            join_logs(source, file.name, log, logs)
    except SourceError as error:
        return str(error), len(parts)
    said = vars(replace(log, reject=print))
    said["absent"] = {name: words for name, words in log.absent.items() if words}
    return (documents, rejections, said), len(parts)


def check(source: Source, home: Path, part_bytes: int, block: int) -> int:
    """How many parts gave the same as the whole."""
    (file,) = source.files(home)
    assert isinstance(file, SourceFile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedding_pipelines.sources.text.BLOCK_BYTES", block)
        whole, _ = result(source, file, None)
        parts, count = result(source, file, part_bytes)
    assert parts == whole
    return count


LINES = [
    b'{"id": "a", "text": "one", "n": 1}',
    b'{"id": "b", "text": "two", "n": "no number", "s": "x"}',
    b'{"id": "c", "text": "none", "n": "NA"}\r',
    b'{"id": "d", "other": {"text": 1}}',
    b'{"id": NaN, "text": "\xe9\xc3"}',
    b'{"id": "\xc3\xa9", "text": "\\n"}',
    b"{",
    b"[1]",
    b"",
    b" \r",
    b"\xef\xbb\xbf",
]
records = st.lists(st.sampled_from(LINES), max_size=14)
sizes, blocks = st.integers(1, 60), st.integers(1, 90)


@given(records, st.sampled_from([b"", b"\n", b"\n\n"]), st.booleans(), sizes, blocks)
@example([b"", b"", b"["], b"\n", False, 1, 1)
@example([LINES[3]] * 9, b"\n", False, 1, 30)
@unhurried
def test_json_lines(
    tmp_path: Path, lines: list[bytes], end: bytes, has_mark: bool, size: int, block: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * has_mark + b"\n".join(lines) + end)
    for encoding in ("utf-8", "auto"):
        check(make("jsonl", "a.jsonl", encoding=encoding, **OPTIONS), tmp_path, size, block)


cells = st.text(st.sampled_from('ab1 ,"\\\r\n#é'), max_size=6)
ODD = b'\n\r",ab1#\\\xef\xbb\xbf\xc3'
odd = st.binary(max_size=40).map(lambda data: bytes(ODD[each % len(ODD)] for each in data))


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


@given(
    st.lists(st.tuples(cells, st.booleans()), max_size=12),
    odd,
    st.sampled_from([b"", b"\xef\xbb\xbf", b"sep=;\n", b"\n\n", b"#"]),
    st.sampled_from([{}, {"comment": "#"}, {"escape": "\\"}, {"skip_rows": 1}, {"quote": None}]),
    sizes,
    blocks,
)
@example([("a", True)] * 9, b"", b"\n\n", {}, 1, 1)
@example([('a"\nb', True)] * 9, b'x,"', b"", {}, 1, 40)
@unhurried
def test_csv(
    tmp_path: Path,
    rows: list[tuple[str, bool]],
    rest: bytes,
    start: bytes,
    options: dict[str, Any],
    size: int,
    block: int,
) -> None:
    lines = ["id,text,n,s"] * (1 + options.get("skip_rows", 0))
    for at, (cell, is_quoted) in enumerate(rows):
        lines.append(f"r{at},{quoted(cell) if is_quoted else cell},{at},x")
    data = "\n".join(lines).encode() + b"\n" + rest
    (tmp_path / "a.csv").write_bytes(start + (data.replace(b",", b";") if b";" in start else data))
    check(make("csv", "a.csv", **OPTIONS, **options), tmp_path, size, block)


@given(st.integers(0, 30), st.integers(1, 9), st.integers(1, 400))
@unhurried
def test_parquet(tmp_path: Path, rows: int, group: int, size: int) -> None:
    table = pa.table(
        {
            "id": [f"r{at}" if at % 7 else None for at in range(rows)],
            "text": [f"text {at}" for at in range(rows)],
            "n": ["1" if at % 5 else "NA" if at % 2 else "none such" for at in range(rows)],
        },
        pa.schema([("id", pa.string()), ("text", pa.string()), ("n", pa.string())]),
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group)
    count = check(make("parquet", "a.parquet", **OPTIONS), tmp_path, size, 1)
    groups = -(-rows // group)
    assert count <= max(1, groups)
    assert count == groups or size > 1 or not rows


def test_parquet_whose_old_times_are_compared(tmp_path: Path) -> None:
    nanos = pa.array([10**9 + at % 3 for at in range(30)], pa.timestamp("ns"))
    table = pa.table({"id": [*map(str, range(30))], "text": ["x"] * 30, "at": nanos})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=4, use_deprecated_int96_timestamps=True)
    source = make("parquet", "a.parquet", id="id", metadata={"at": "timestamp"})
    assert check(source, tmp_path, 1, 1) == 8


def test_a_quoted_record_that_goes_over_a_block_s_end_is_in_one_part(tmp_path: Path) -> None:
    rows = [f'r{at},"line {at}\nand, ""one"" more\n",{at},x' for at in range(200)]
    (tmp_path / "a.csv").write_text("\n".join(["id,text,n,s", *rows, ""]), newline="")
    assert check(make("csv", "a.csv", **OPTIONS), tmp_path, 500, 100) > 10


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv.gz", b""),
        ("a.csv", "id,text,n,s\n".encode("utf-16") * 9),
        ("a.csv", b"id,text,n,s\n" + b'1,a "quote" b,1,x\n2,"c" d,1,x\n' * 20),
    ],
)
def test_what_cannot_be_divided_stays_whole(tmp_path: Path, name: str, data: bytes) -> None:
    import gzip

    (tmp_path / name).write_bytes(data or gzip.compress(b"id,text,n,s\n1,a,1,x\n"))
    assert check(make("csv", name, **OPTIONS), tmp_path, 1, 70) == 1


def test_a_source_that_says_nothing_stays_whole(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"id": str(n), "text": "x"} for n in range(99)]))
    source = make("json", "a.json", id="id")
    (file,) = source.files(tmp_path)
    assert isinstance(file, SourceFile)
    assert source.divide(file, 1, ReadLog(print)) == [file]


def test_parts_are_of_the_size_that_was_named_or_a_little_more() -> None:
    borders = [Border(at, at // 10 + 1, at) for at in (3, 10, 20, 35, 40, 41)]
    assert list(parts_between(borders, 15)) == [Part(3, 20, 1), Part(20, 35, 3), Part(35, 41, 4)]
    assert list(parts_between(borders[:1], 15)) == []
