import contextlib
import datetime
import json
import random
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import SourceError
from embedding_pipelines_tests.contracts_sources import check_source, make, read
from embedding_pipelines_tests.faults.fuzz import forget_peak, peak_megabytes


def test_rows_come_in_whatever_their_arrow_types(tmp_path: Path) -> None:
    rows = 20_000
    table = pa.table(
        {
            "id": pa.array(range(rows), pa.int32()),
            "title": pa.array([f"t{row % 3}" for row in range(rows)]).dictionary_encode(),
            "text": pa.array(
                [None if row == 1 else f"x{row}" for row in range(rows)], pa.large_string()
            ),
            "m": pa.array([{"k": {"n": row}, "a": ["p"]} for row in range(rows)]),
            "at": pa.array([datetime.datetime(2024, 1, 31)] * rows),
            "m.k": pa.array(["literal"] * rows),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7_000)
    kinds = {
        "m.k.n": "int",
        "m.a": "list[string]",
        "at": "timestamp",
        "m.k": "string",
        "title": "string",
    }
    source = make("parquet", "a.parquet", id="id", text=["title", "text"], metadata=kinds)
    documents, _ = check_source(source, tmp_path, rows)
    assert documents[1]["text"] == "t1"
    assert documents[9_999] == {
        "document_id": "9999",
        "text": "t0\nx9999",
        "source_file": "a.parquet",
        "source_row": 10_000,
        "m_k_n": 9_999,
        "m_a": ["p"],
        "at": datetime.datetime(2024, 1, 31, tzinfo=datetime.UTC),
        "m_k": "literal",
        "title": "t0",
    }


def test_a_value_that_does_not_convert_is_rejected_alone(tmp_path: Path) -> None:
    table = pa.table(
        {"id": ["a", None, "c", ""], "text": [b"x", b"y", b"\xff", b"z"], "n": ["1", "2", "3", "4"]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = make("parquet", "a.parquet", id="id", metadata={"n": "int"})
    documents, rejections = check_source(source, tmp_path, 1, 3)
    assert documents[0]["text"] == "x"
    assert [each.row for each in rejections] == [2, 3, 4]
    assert b'"c"' in rejections[1].raw


def test_long_texts_make_small_batches(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{row}" + "x" * 1_000_000 for row in range(60)]})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    check_source(make("parquet", "a.parquet"), tmp_path, 60)


def test_a_missing_or_nested_column_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "m": [{"k": 1}]}), tmp_path / "a.parquet")
    with pytest.raises(
        SourceError,
        match=r"a\.parquet: column 'text' is missing; found 'body', 'm'\. Set source\.text",
    ):
        read(make("parquet", "a.parquet"), tmp_path)
    with pytest.raises(SourceError, match=r"column 'm\.z' is missing"):
        read(make("parquet", "a.parquet", text="m.z"), tmp_path)
    with pytest.raises(
        SourceError, match=r"column 'm' is struct<k: int64>, not text or a number\. Name a field"
    ):
        read(make("parquet", "a.parquet", text="m"), tmp_path)


@pytest.mark.parametrize("size", [0, 10, 300])
def test_a_file_that_is_cut_short_is_an_error_with_its_name(tmp_path: Path, size: int) -> None:
    pq.write_table(pa.table({"text": [f"{row}" for row in range(1000)]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:size])
    with pytest.raises(SourceError, match=r"a\.parquet: not a whole Parquet file"):
        read(make("parquet", "a.parquet"), tmp_path)


def test_a_file_without_rows_has_no_documents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    check_source(make("parquet", "a.parquet"), tmp_path, 0)


def test_the_old_times_of_parquet_keep_their_year_and_their_nanoseconds_are_told(
    tmp_path: Path,
) -> None:
    micros = [253_402_300_799 * 10**6, 0, -62_135_596_800 * 10**6, None]
    nanos = [1_000, 123_456_789, -1, None]
    for name, counts, unit in (("a", micros, "us"), ("b", nanos, "ns")):
        times = pa.array(counts, pa.int64()).cast(pa.timestamp(unit))
        pq.write_table(
            pa.table({"text": ["x"] * 4, "at": times}),
            tmp_path / f"{name}.parquet",
            use_deprecated_int96_timestamps=True,
        )
    source = make("parquet", "a.parquet", metadata={"at": "timestamp"})
    documents, _ = check_source(source, tmp_path, 4)
    assert [row["at"] and row["at"].year for row in documents] == [9999, 1970, 1, None]
    source = make("parquet", "b.parquet", metadata={"at": "timestamp"})
    documents, rejections = check_source(source, tmp_path, 2, 2)
    assert documents[0]["at"].microsecond == 1
    assert rejections[0].reason == (
        "column 'at' is '1970-01-01 00:00:00.123456789', and a timestamp holds microseconds; set "
        "source.nanoseconds to cut, or declare it as string"
    )
    source = make("parquet", "b.parquet", metadata={"at": "timestamp"}, nanoseconds="cut")
    documents, _ = check_source(source, tmp_path, 4)
    assert [row["at"] and row["at"].microsecond for row in documents] == [1, 123456, 999999, None]


def test_a_column_that_is_there_twice_is_an_error_where_it_is_used(tmp_path: Path) -> None:
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["k", "k"])
    columns = [pa.array(["x"]), pa.array([10]), pa.array([100]), twice]
    table = pa.Table.from_arrays(columns, names=["text", "value", "value", "m"])
    pq.write_table(table, tmp_path / "a.parquet")
    check_source(make("parquet", "a.parquet"), tmp_path, 1)
    with pytest.raises(
        SourceError, match=r"^a\.parquet: 2 columns are named 'value'\. Rename all but one\.$"
    ):
        read(make("parquet", "a.parquet", metadata={"value": "int"}), tmp_path)
    with pytest.raises(SourceError, match=r"more than one field is named 'm\.k'\. Rename"):
        read(make("parquet", "a.parquet", metadata={"m.k": "int"}), tmp_path)


def test_a_column_that_a_file_lacks_has_no_value_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "tags": [["a", "b"]]}), tmp_path / "a.parquet")
    kinds = {"price": "float", "m.k": "list[string]"}
    source = make("parquet", "a.parquet", text=["title", "text", "tags"], metadata=kinds)
    documents, _, logs = read(source, tmp_path)
    assert (documents[0]["text"], documents[0]["price"]) == ("x\na\nb", None)
    assert logs[0].lacking == ["title", "price", "m.k"]
    assert logs[0].columns == ["text", "tags"]


def test_uuids_are_texts_and_what_has_no_text_is_rejected_with_all_of_its_row(
    tmp_path: Path,
) -> None:
    ids = [uuid.UUID(int=row) for row in range(3)]
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"fine", b"\xff\xfe", b"x"]).buffers())
    table = pa.table(
        {
            "id": pa.array([each.bytes for each in ids], pa.uuid()),
            "text": broken,
            "at": pa.array([0, 0, 2**62], pa.int64()).cast(pa.timestamp("us")),
        }
    )
    for store_schema in (True, False):
        pq.write_table(table, tmp_path / "a.parquet", store_schema=store_schema)
        source = make("parquet", "a.parquet", id="id", metadata={"at": "timestamp"})
        documents, rejections = check_source(source, tmp_path, 1, 2)
        assert documents[0]["document_id"] == str(ids[0])
        assert [each.reason for each in rejections] == [
            "column 'text' is not valid UTF-8",
            "column 'at' is beyond the years 1 to 9999",
        ]
        assert [set(json.loads(each.raw)) for each in rejections] == [{"id", "text", "at"}] * 2


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_whatever_bytes_are_damaged_a_sentence_says_so(tmp_path: Path, compression: str) -> None:
    rows = 60
    table = pa.table(
        {
            "id": [f"id{row}" for row in range(rows)],
            "text": [f"é {row}" for row in range(rows)],
            "tags": [["a", f"b{row}"] for row in range(rows)],
            "m": [{"k": row} for row in range(rows)],
            "at": [datetime.datetime(2024, 1, 1 + row % 28) for row in range(rows)],
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression=compression, row_group_size=25)
    whole, chance = path.read_bytes(), random.Random(0)
    kinds = {"m.k": "int", "at": "timestamp", "tags": "list[string]"}
    source = make("parquet", "a.parquet", id="id", metadata=kinds)
    errors: list[str] = []
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            _, rejections, _ = read(source, tmp_path)
        except SourceError as error:
            errors.append(str(error))
        else:
            assert all(each.reason for each in rejections)
    assert len(errors) > 10
    assert {(error[:11], len(error.splitlines())) for error in errors} == {("a.parquet: ", 1)}


def test_a_damaged_page_of_a_small_file_takes_no_memory(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "text": ["one", "two"]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    source = make("parquet", "a.parquet", id="id")
    before = forget_peak()
    for at in range(4, 24):  # the header of the first page, which says how long the page is
        path.write_bytes(whole[:at] + b"\xfe\xff\xff\xff\x0e" + whole[at + 1 :])
        with contextlib.suppress(SourceError):
            read(source, tmp_path)
    assert peak_megabytes() - before < 100
