import bz2
import codecs
import csv
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources import csv_records, text
from embedding_pipelines.sources.base import Rejection
from embedding_pipelines_tests.contracts_sources import Document, check_source, make, read
from embedding_pipelines_tests.corpora import messy_csv, own_and, records_of


def test_a_record_becomes_a_document_with_typed_metadata(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "id,title,body,n,x,ok,day,at,tags\n"
        '42,T,"B ""q""",7,1.5,true,2024-01-31,2024-01-31 10:00,"[""a"", ""b""]"\n'
        "43,,only body,,,,,,\n"
    )
    kinds = {
        "n": "int",
        "x": "float",
        "ok": "bool",
        "day": "date",
        "at": "timestamp",
        "tags": "list[string]",
    }
    source = make("csv", "a.csv", id="id", text=["title", "body"], metadata=kinds)
    first, second = check_source(source, tmp_path, 2)[0]
    assert first["document_id"] == "42"
    assert first["text"] == 'T\nB "q"'
    assert [first[name] for name in ("n", "x", "ok", "tags")] == [7, 1.5, True, ["a", "b"]]
    assert first["day"].isoformat() == "2024-01-31"
    assert first["at"].isoformat() == "2024-01-31T10:00:00+00:00"
    assert second["text"] == "only body"
    assert all(second[name] is None for name in kinds)


def test_source_row_is_the_physical_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b'\nid,text\n1,x\n\n2,"a\nb\r\nc\rd"\r\n3\n\n\n4,y,z\r5,"quo""ted"\n,\n6,5" pipe\n7,last'
    )
    source = make("csv", "a.csv", id="id")
    documents, rejections = check_source(source, tmp_path, 5, 3)
    assert {row["document_id"]: row["source_row"] for row in documents} == {
        "1": 3,
        "2": 5,
        "5": 13,
        "6": 15,
        "7": 16,
    }
    assert {(each.row, each.raw) for each in rejections} == {
        (9, b"3"),
        (12, b"4,y,z"),
        (14, b","),
    }


def test_a_ragged_record_is_rejected_with_both_counts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,c,d,e\n1,a,b\n2,a,b,c,d,e\n3,a,b,c,d\n")
    _, rejections = check_source(make("csv", "a.csv"), tmp_path, 1, 2)
    assert [each.reason for each in rejections] == [
        "expected 5 columns, got 3",
        "expected 5 columns, got 6",
    ]


def test_a_value_that_is_not_of_its_type_is_rejected_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\na,1\nb,many\nc, 3 \n")
    documents, rejections = check_source(
        make("csv", "a.csv", metadata={"n": "int"}), tmp_path, 2, 1
    )
    assert [row["n"] for row in documents] == [1, 3]
    assert (rejections[0].row, rejections[0].raw) == (3, b"b,many")
    assert rejections[0].reason == (
        "column 'n' is 'many', not int; if it stands for no value, add it to source.missing"
    )


def test_a_row_without_id_is_rejected_and_one_without_text_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n,a\n2,\n")
    documents, rejections = check_source(make("csv", "a.csv", id="id"), tmp_path, 1, 1)
    assert documents[0]["text"] == ""
    assert rejections[0].reason == "the id column 'id' is empty"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-16"), ("cp1252", "cp1252")],
)
def test_the_encoding_is_found_out_and_reported(
    tmp_path: Path, encoding: str, expected: str
) -> None:
    (tmp_path / "a.csv").write_bytes(
        "id,text\r\n1,le café à côté – très naïve et élégant\r\n2,x\r\n".encode(encoding)
    )
    documents, _, logs = read(make("csv", "a.csv", id="id"), tmp_path)
    assert [row["text"] for row in documents] == ["le café à côté – très naïve et élégant", "x"]
    assert logs[0].encoding == expected
    assert bool(logs[0].notes) == (encoding == "cp1252")


def test_utf8_with_a_broken_row_loses_only_that_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\né\nü\n".encode() + b"broken \xe9\n" + "ß\n".encode())
    documents, rejections = check_source(make("csv", "a.csv"), tmp_path, 3, 1)
    assert [row["text"] for row in documents] == ["é", "ü", "ß"]
    assert (rejections[0].row, rejections[0].raw) == (4, b"broken \xe9")
    assert "not valid utf-8" in rejections[0].reason


@pytest.mark.parametrize(
    ("encoding", "bad"),
    [("utf-8", b"\xff"), ("cp1252", b"\x81"), ("shift_jis", b"\x81\xff"), ("ascii", b"\xe9")],
)
def test_an_explicit_encoding_is_obeyed_and_gives_back_bad_bytes(
    tmp_path: Path, encoding: str, bad: bytes
) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\nx\nbad " + bad + b"!\ny\n")
    documents, rejections = check_source(make("csv", "a.csv", encoding=encoding), tmp_path, 2, 1)
    assert [row["text"] for row in documents] == ["x", "y"]
    assert rejections[0].raw == b"bad " + bad + b"!"


def test_half_a_surrogate_pair_in_utf16_is_rejected_with_its_bytes(tmp_path: Path) -> None:
    bad = "b".encode("utf-16-le") + b"\x00\xd8"
    end = "\n".encode("utf-16-le")
    (tmp_path / "a.csv").write_bytes(
        "text\nx\n".encode("utf-16") + bad + end + "y\n".encode("utf-16-le")
    )
    _, rejections = check_source(make("csv", "a.csv"), tmp_path, 2, 1)
    assert rejections[0].raw == bad


def _zip(data: bytes, *names: str) -> bytes:
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, data)
        return buffer.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    ".zip": lambda data: _zip(data, "a.csv", "__MACOSX/._a.csv"),
}


@pytest.mark.parametrize("suffix", PACK)
def test_compression_is_transparent(tmp_path: Path, suffix: str) -> None:
    data = b"text\n" + b"".join(b"row %d\n" % row for row in range(20_000))
    (tmp_path / f"a.csv{suffix}").write_bytes(PACK[suffix](data))
    documents, _ = check_source(make("csv", "."), tmp_path, 20_000)
    assert documents[-1]["text"] == "row 19999"
    assert documents[-1]["source_row"] == 20_001


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_archives_put_together_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    pack = PACK[suffix]
    (tmp_path / f"a.csv{suffix}").write_bytes(pack(b"text\na\n") + pack(b"b\n"))
    check_source(make("csv", "."), tmp_path, 2)


@pytest.mark.parametrize("suffix", [each for each in PACK if each])
@pytest.mark.parametrize("cut", [20, 4])
def test_an_archive_that_is_cut_short_is_an_error_with_its_name(
    tmp_path: Path, suffix: str, cut: int
) -> None:
    data = os.urandom(20_000).hex().encode()
    (tmp_path / f"a.csv{suffix}").write_bytes(PACK[suffix](data)[:-cut])
    with pytest.raises(
        SourceError, match=rf"a\.csv\{suffix}: the .* archive is cut short or damaged"
    ):
        read(make("csv", "a.csv*"), tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".zip"])
def test_an_archive_under_a_plain_name_is_told(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a.csv").write_bytes(PACK[suffix](b"text\na\n"))
    with pytest.raises(SourceError, match=rf"a\.csv: the file is .*name end with \{suffix}"):
        read(make("csv", "a.csv"), tmp_path)


def test_an_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv.zip").write_bytes(_zip(b"text\na\n", "a.csv", "b.csv"))
    with pytest.raises(SourceError, match=r"a\.csv\.zip: the archive holds 2 files, not one"):
        read(make("csv", "."), tmp_path)


@pytest.mark.parametrize("data", [b"text\n", b"\xef\xbb\xbftext"])
def test_a_header_alone_is_no_documents(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    documents, rejections, _ = read(make("csv", "a.csv"), tmp_path)
    assert (documents, rejections) == ([], [])


@pytest.mark.parametrize("data", [b"", b"\n\n", b"  \n\n"])
def test_a_file_without_a_header_is_an_error_because_it_may_be_half_written(
    tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(SourceError, match="the file is empty, it has no header"):
        read(make("csv", "a.csv"), tmp_path)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("id,title\n1,x\n")
    with pytest.raises(SourceError) as caught:
        read(make("csv", "products.csv", id="sku", text="title"), tmp_path)
    assert str(caught.value) == (
        "products.csv:1: column 'sku' is missing; found 'id', 'title'. "
        "Set source.id to one of them."
    )
    with pytest.raises(SourceError, match=r"Did you mean 'title'\? Set source\.text"):
        read(make("csv", "products.csv", text="tilte"), tmp_path)


def test_a_wrong_delimiter_is_guessed_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;x\n")
    with pytest.raises(SourceError, match=r"Is the delimiter ';'\? Then set source\.delimiter"):
        read(make("csv", "a.csv"), tmp_path)
    check_source(make("csv", "a.csv", delimiter=";"), tmp_path, 1)


def test_a_comment_before_the_header_is_guessed_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("# exported, 2024\nid,text\n1,x\n")
    with pytest.raises(SourceError, match=r"a comment\? Then set source\.comment to '#', or"):
        read(make("csv", "a.csv"), tmp_path)
    check_source(make("csv", "a.csv", comment="#"), tmp_path, 1)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_a_pointer_in_place_of_the_data_is_told(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4\n"
    )
    with pytest.raises(SourceError, match="is a pointer of Git LFS to the data"):
        read(make(kind, f"a.{kind}"), tmp_path)


def test_tab_is_the_delimiter_of_a_tsv_file(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"id\ttext\n1\ta, b\n"))
    assert check_source(make("csv", "a.tsv.gz"), tmp_path, 1)[0][0]["text"] == "a, b"


def test_a_name_that_two_columns_have_is_an_error_only_if_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,x,x,,\na,1,2,,\n")
    check_source(make("csv", "a.csv"), tmp_path, 1)
    with pytest.raises(
        SourceError, match=r"a\.csv:1: 2 columns are named 'x'\. Rename all but one"
    ):
        read(make("csv", "a.csv", metadata=["x"]), tmp_path)


def test_a_quote_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    lines = [f"{row},text {row}" for row in range(10)]
    lines[3] = '3,"text 3'
    (tmp_path / "a.csv").write_text("\n".join(["id,text", *lines]))
    documents, rejections = check_source(make("csv", "a.csv", id="id"), tmp_path, 9, 1)
    assert (rejections[0].row, rejections[0].raw) == (5, b'3,"text 3')
    assert [(int(row["document_id"]), row["source_row"]) for row in documents] == [
        (row, row + 2) for row in range(10) if row != 3
    ]


def test_a_quote_that_the_next_quoted_cell_would_close_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"open\n2,fine\n3,"quoted, too"\n4,"two\nlines"\n')
    documents, rejections = check_source(make("csv", "a.csv", id="id"), tmp_path, 3, 1)
    assert [row["text"] for row in documents] == ["fine", "quoted, too", "two\nlines"]
    assert rejections[0].raw == b'1,"open'


def test_a_quote_in_the_header_that_is_not_closed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,"text\n1,x\n')
    with pytest.raises(SourceError, match=r"a\.csv:1: a quote in the header is not closed"):
        read(make("csv", "a.csv"), tmp_path)


def test_quotes_inside_of_cells_are_characters(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,5" pipe\n2,a "b" c\n4,""\n5,""""\n')
    documents, _ = check_source(make("csv", "a.csv"), tmp_path, 4)
    assert [row["text"] for row in documents] == ['5" pipe', 'a "b" c', "", '"']


def test_large_cells_and_nul_bytes_come_through(tmp_path: Path) -> None:
    large = "x\n" * 5_000_000
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,a\x00b\n2,"' + large.encode() + b'"\n3,c\n')
    documents, _ = check_source(make("csv", "a.csv", id="id"), tmp_path, 3)
    assert [row["text"] for row in documents] == ["a\x00b", large, "c"]
    assert documents[2]["source_row"] == 3 + 5_000_001


def test_a_file_of_one_endless_line_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"x" * (text.MAX_RECORD_BYTES + 2**23))
    with pytest.raises(SourceError, match=r"a\.csv:2: the line is longer than 32 MiB"):
        read(make("csv", "a.csv"), tmp_path)


def test_a_quote_that_swallows_more_than_fits_in_memory_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_records, "MAX_RECORD_BYTES", 2**20)
    rows = b"".join(b"%d,some text\n" % row for row in range(800_000))
    (tmp_path / "a.csv").write_bytes(b'id,text\n-1,"open\n' + rows)
    documents, rejections = check_source(make("csv", "a.csv", id="id"), tmp_path, 800_000, 1)
    assert rejections[0].row == 2
    assert documents[-1]["source_row"] == 800_002


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n", "é"])
def test_a_delimiter_that_cannot_be_one_is_rejected_when_the_file_loads(delimiter: str) -> None:
    with pytest.raises(ValidationError, match="cannot separate cells"):
        make("csv", "a.csv", delimiter=delimiter)


cells = st.text(st.sampled_from('ab,"\n\r é\0'), max_size=6)
tables = st.lists(st.lists(cells, min_size=1, max_size=4), max_size=12)


@given(tables, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.integers(1, 9))
@example(table=[["", "\r", "\r,\r", ""]], end="\n", quote_all=True, block=1)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_well_formed_records_come_in_as_the_standard_library_wrote_them(
    tmp_path: Path, table: list[list[str]], end: str, quote_all: bool, block: int
) -> None:
    buffer = io.StringIO(newline="")
    # Of line breaks in cells, the writer leaves bare those that are not its own line end.
    quote_all = quote_all or any(
        character in "\r\n" for row in table for cell in row for character in cell
    )
    quoting: Literal[0, 1] = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    writer = csv.writer(buffer, lineterminator=end, quoting=quoting)
    writer.writerow(["id", "text"])
    lines = [2]  # that rows begin on, and the one behind them
    for row in table:
        writer.writerow(row)
        lines.append(_count_breaks(buffer.getvalue()) + 1)
    (tmp_path / "a.csv").write_bytes(buffer.getvalue().encode())
    documents, rejections = _read_in_blocks(tmp_path, block)
    expected = {
        line: "\n".join(filter(None, row))
        for line, row in zip(lines[:-1], table, strict=True)
        if len(row) == 2
    }
    assert {row["source_row"]: row["text"] for row in documents} == expected
    rejected = {each.row for each in rejections}
    for row, begin, end_line in zip(table, lines[:-1], lines[1:], strict=True):
        own = {line for line in rejected if begin <= line < end_line}
        if len(row) == 2:
            assert not own
        else:  # as a whole, or line by line where quotes may have swallowed records
            assert own in ({begin}, set(range(begin, end_line)))
        rejected -= own
    assert not rejected


@given(
    st.binary(max_size=60) | st.text(st.sampled_from('a,"\n\r'), max_size=60).map(str.encode),
    st.integers(1, 9),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_each_letter_is_in_one_document_or_in_one_rejection(
    tmp_path: Path, body: bytes, block: int
) -> None:
    body = body.replace(codecs.BOM_UTF8, b"")  # a line of which there is nothing else is empty
    (tmp_path / "a.csv").write_bytes(b"id,text\n" + body)
    documents, rejections = _read_in_blocks(tmp_path, 2**22)
    assert _read_in_blocks(tmp_path, block) == (documents, rejections)
    lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    starts = {number for number, line in enumerate(lines, start=2) if line}
    places = {row["source_row"] for row in documents} | {each.row for each in rejections}
    assert places == starts if b'"' not in body else places <= starts
    parts = [row["text"].encode() for row in documents] + [each.raw for each in rejections]
    assert sum(part.count(b"a") for part in parts) == body.count(b"a")


def _read_in_blocks(home: Path, block: int) -> tuple[list[Document], list[Rejection]]:
    """Documents and rejections, both by line, reading `block` bytes at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedding_pipelines.sources.text.BLOCK_BYTES", block)
        source = make("csv", "a.csv", text=["id", "text"], encoding="utf-8")
        documents, rejections, _ = read(source, home)
    places = [row["source_row"] for row in documents] + [each.row for each in rejections]
    assert len(places) == len(set(places))
    return documents, sorted(rejections, key=lambda each: each.row)


def _count_breaks(text: str) -> int:
    return text.replace("\r\n", "\n").replace("\r", "\n").count("\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", own_and("messy_csv/sms_spam_latin1_ragged.csv"))
def test_every_record_of_a_messy_export_is_accounted_for(tmp_path: Path, name: str) -> None:
    path = messy_csv(name, tmp_path)
    header, *oracle = records_of(path)
    documents, rejections, logs = read(
        make("csv", str(path), text="v2", metadata=["v1"]), Path("/")
    )
    kept = [row for row in oracle if len(row) == len(header)]
    assert len(oracle) == len(documents) + len(rejections) >= 3000
    assert [(row["v1"], row["text"]) for row in documents] == [(row[0], row[1]) for row in kept]
    assert logs[0].encoding == "cp1252"
    assert "read as cp1252" in logs[0].notes[0]


def test_a_column_that_a_file_lacks_has_no_value_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,x\n2,y\n")
    kinds = {"price": "float", "tags": "list[string]", "brand": "string"}
    source = make("csv", "a.csv", id="id", text=["title", "text"], metadata=kinds)
    documents, _, logs = read(source, tmp_path)
    assert [(row["text"], row["price"], row["tags"], row["brand"]) for row in documents] == [
        ("x", None, None, None),
        ("y", None, None, None),
    ]
    assert logs[0].lacking == ["title", "price", "tags", "brand"]
