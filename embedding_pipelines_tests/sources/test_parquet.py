import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_pipelines.errors import SourceError
from embedding_pipelines_tests.contracts_sources import check_source, make, read


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
