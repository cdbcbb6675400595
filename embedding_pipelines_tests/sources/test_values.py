"""Values of every Arrow type become what they say, or are refused with a reason."""

import datetime
import decimal
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.sources.values import UNITS, Column

WORDS = frozenset({"na", "n/a", "nan"})
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
NOON = 1_706_702_400  # 2024-01-31 12:00 UTC
BEYOND = "column 'c' is beyond the years 1 to 9999"


def convert(array: pa.Array, declared: str, **options: Any) -> tuple[list[Any], dict[int, str]]:
    column = Column("c", missing=WORDS, **options)
    values = column.convert(array, declared)
    values.validate(full=True)
    return values.to_pylist(), column.reasons


def texts(array: pa.Array) -> tuple[list[Any], dict[int, str]]:
    column = Column("c")
    return column.text(array).to_pylist(), column.reasons


def times(unit: str, *counts: int, zone: str | None = None) -> pa.Array:
    return pa.array(counts, pa.int64()).cast(pa.timestamp(unit, zone))


@pytest.mark.parametrize(
    ("declared", "text", "value"),
    [
        ("int", "12.0", 12),
        ("int", " +7 ", 7),
        ("int", "1e3", 1000),
        ("int", "9223372036854775807", 2**63 - 1),
        ("int", "n/a", None),
        ("int", "", None),
        ("float", "NaN", None),
        ("float", "-Infinity", None),
        ("float", "1e-400", 0.0),
        ("bool", "TRUE", True),
        ("bool", "Yes", True),
        ("bool", "f", False),
        ("bool", "0.0", False),
        ("bool", "n/a", None),
        ("date", "2024-01-31T00:00:00.000Z", datetime.date(2024, 1, 31)),
        ("date", "2024-01-31 00:00:00", datetime.date(2024, 1, 31)),
    ],
)
def test_a_text_is_the_value_that_it_says(declared: str, text: str, value: Any) -> None:
    assert convert(pa.array([text]), declared) == ([value], {})


@pytest.mark.parametrize(
    ("declared", "text", "reason"),
    [
        ("int", "1.5", "not int"),
        ("int", "0x1F", "not int"),
        ("int", "1_000", "not int"),
        ("int", "١", "not int"),
        ("int", "9223372036854775808", "not int"),
        ("int", "1e999999999", "not int"),
        ("int", "1e9999999999999999999", "not int"),
        ("int", "1e-9999999999999999999", "not int"),
        ("int", "tba", "not int; if it stands for no value, add it to source.missing"),
        ("float", "1e400", "not float: it is too large"),
        ("float", "1,5", "not float"),
        ("float", "1.199,00", "a number is written as 1234.5; else declare it as string"),
        ("float", "€ 9", "a number is written as 1234.5; else declare it as string"),
        ("int", "12%", "a number is written as 1234.5; else declare it as string"),
        ("bool", "5", "not bool: it is none of true, false, yes, no"),
        ("date", "31.01.2024", "a day is written as 2024-01-31; else declare it as string"),
        ("date", "2024-1-5", "a day is written as 2024-01-31; else declare it as string"),
        ("date", "2024-01-31T10:00", "not date; declare it as timestamp"),
        ("date", "2024", "not date: a number has no unit; declare it as int"),
        ("date", "2024-02-30", "not date"),
        ("date", "0000-01-01", "beyond the years 1 to 9999"),
        ("timestamp", "1704067200", "has no unit; declare it as timestamp[s] or int"),
        ("timestamp", "1704067200000", "has no unit; declare it as timestamp[ms] or int"),
        ("timestamp", "1e9999999999999999999", "has no unit; declare it as timestamp[ns] or int"),
        ("timestamp", "infinity", "not timestamp; if it stands for no value, add it to"),
        ("timestamp", "01/31/2024", "not timestamp"),
        ("timestamp", "9999-12-31T23:59:59-02:00", "beyond the years 1 to 9999"),
        ("timestamp", "2024-01-31 10:00:00.123456789Z", "set source.nanoseconds to cut"),
        ("timestamp[s]", "1e99999", "beyond the years 1 to 9999"),
        ("timestamp[s]", "1e9999999999999999999", "beyond the years 1 to 9999"),
        ("timestamp[ns]", "1704067200123456789", "set source.nanoseconds to cut"),
        ("list[string]", "[[1]]", "not list[string]"),
    ],
)
def test_a_text_that_says_no_value_has_a_reason(declared: str, text: str, reason: str) -> None:
    values, reasons = convert(pa.array(["", text], pa.string()), declared)
    assert values == [None, None]
    assert reason in reasons[1]


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-31T12:00:00Z",
        "2024-01-31 12:00:00",
        "2024-01-31t12:00z",
        "2024-01-31 12:00:00 UTC",
        "2024-01-31 12:00:00.000000000 GMT",
        "2024-01-31 12:00:00 +0000 UTC",
        "2024-01-31T14:00:00+02",
        "2024-01-31 14:00:00,000 +02:00",
    ],
)
def test_every_way_to_write_a_time_is_that_time(text: str) -> None:
    noon = datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC)
    assert convert(pa.array([text, None, "2024-01-31"]), "timestamp") == (
        [noon, None, noon.replace(hour=0)],
        {},
    )


@pytest.mark.parametrize("unit", UNITS)
def test_timestamps_of_every_unit_are_one_time_and_one_text(unit: str) -> None:
    array = times(unit, NOON * PER_SECOND[unit])
    noon = datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.UTC)
    assert convert(array, "timestamp") == ([noon], {})
    assert convert(array.cast(pa.timestamp(unit, "Nowhere/City")), "timestamp") == ([noon], {})
    assert texts(array) == (["2024-01-31 12:00:00"], {})
    assert texts(array.cast(pa.timestamp(unit, "+02:00"))) == (["2024-01-31 14:00:00+0200"], {})
    assert convert(array, "date")[1] == {
        0: "column 'c' is '2024-01-31 12:00:00', not date; declare it as timestamp"
    }
    midnight = times(unit, (NOON - 13 * 3600) * PER_SECOND[unit], zone="Europe/Berlin")
    assert convert(midnight, "date") == ([datetime.date(2024, 1, 31)], {})
    counts = pa.array([NOON * PER_SECOND[unit]])
    assert convert(counts, f"timestamp[{unit}]") == ([noon], {})
    assert convert(counts.cast(pa.string()), f"timestamp[{unit}]") == ([noon], {})
    assert convert(counts, "timestamp")[0] == [None]
    duration = pa.array([5]).cast(pa.duration(unit))
    for declared in ("int", "float", "string", "timestamp"):
        assert convert(duration, declared)[1] == {
            0: "column 'c' is a duration; write it as a number or as text"
        }


@pytest.mark.parametrize("declared", ["timestamp", "date", "string"])
def test_a_time_that_python_does_not_know_is_refused(declared: str) -> None:
    far = [times(unit, 2**62) for unit in ("s", "ms", "us")]
    far += [pa.array([2**30], pa.int32()).cast(pa.date32()), times("us", -(2**63))]
    far.append(pa.array([2**60], pa.int64()).cast(pa.date64()))
    for array in far:
        assert convert(array, declared) == ([None], {0: BEYOND})


def test_nanoseconds_are_exact_or_cut_when_asked() -> None:
    array = times("ns", 1, 1_000, -1)
    values, reasons = convert(array, "timestamp")
    assert [value and value.microsecond for value in values] == [None, 1, None]
    assert "set source.nanoseconds to cut" in reasons[0]
    values, reasons = convert(array, "timestamp", cut_nanoseconds=True)
    assert [value.microsecond for value in values] == [0, 1, 999_999]
    assert reasons == {}


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_whole_floats_are_whole_numbers_and_no_number_is_no_value(kind: pa.DataType) -> None:
    values = [0.1, 1024.0, float("nan"), float("inf"), None, -0.0]
    array = pa.array(np.array([0.0 if v is None else v for v in values]).astype(kind.to_pandas_dtype()),
                     mask=np.array([v is None for v in values]))  # fmt: skip
    column = Column("c")
    assert column.text(array).to_pylist() == ["0.1", "1024", None, None, None, "0"]
    assert column.absent == {"NaN": 1, "inf": 1}
    assert convert(array[1:3], "int") == ([1024, None], {})
    assert convert(array[1:4], "float") == ([1024.0, None, None], {})


def test_large_numbers_keep_their_digits() -> None:
    assert texts(pa.array([100200300400.0, 2.0**63, 1e22])) == (
        ["100200300400", str(2**63), "1" + "0" * 22],
        {},
    )
    assert texts(pa.array([2**64 - 1], pa.uint64())) == ([str(2**64 - 1)], {})


@pytest.mark.parametrize(
    "kind",
    [pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal128(20, 10), pa.decimal256(60, 30)],
)
def test_decimals_are_written_without_exponents(kind: pa.DataType) -> None:
    array = pa.array([decimal.Decimal("100.00"), decimal.Decimal("1.10"), decimal.Decimal(0)], kind)
    one_ten = f"{decimal.Decimal('1.10'):.{kind.scale}f}"
    assert texts(array) == (["100", one_ten, "0"], {})
    assert convert(array, "int")[0] == [100, None, 0]
    assert convert(array, "float")[0] == [100.0, 1.1, 0.0]


def test_uuids_are_their_text_and_other_bytes_are_text_or_refused() -> None:
    name = uuid.UUID(int=5)
    assert texts(pa.array([name.bytes, None], pa.uuid())) == ([str(name), None], {})
    fixed, reasons = texts(pa.array([b"DE", b"\0\1", b"\xff\xff"], pa.binary(2)))
    assert fixed == ["DE", None, None]
    assert reasons == {
        1: "column 'c' is binary data, not text",
        2: "column 'c' is not valid UTF-8",
    }
    buffers = pa.array([b"\xff", b"ok"]).buffers()
    broken = pa.Array.from_buffers(pa.string(), 2, buffers)
    for array in (broken, broken.dictionary_encode()):
        assert texts(array) == ([None, "ok"], {0: "column 'c' is not valid UTF-8"})


def test_numbers_of_other_kinds_are_what_their_text_says() -> None:
    assert convert(pa.array([1, 0, 5]), "bool")[0] == [True, False, None]
    assert convert(pa.array([True]), "int")[0] == [None]
    assert convert(times("s", 0), "int")[0] == [None]
    assert convert(pa.array([2**53 + 1]), "float") == ([2.0**53], {})


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float64()), pa.large_list(pa.float64()), pa.list_view(pa.float64()),
     pa.list_(pa.float64(), 2)],
)  # fmt: skip
def test_lists_of_every_kind_are_lists_of_texts(kind: pa.DataType) -> None:
    array = pa.array([[1.0, 2.5], None, [float("nan"), 3]], kind)
    assert convert(array, "list[string]") == ([["1", "2.5"], None, [None, "3"]], {})
    assert texts(array) == (["1\n2.5", None, "3"], {})
    nested = pa.array([[[1]], None])
    assert convert(nested, "list[string]")[1] == {
        0: "column 'c' is list<item: int64>, not text or a number"
    }
    assert texts(pa.array([{"a": 1}]))[1] == {
        0: "column 'c' is struct<a: int64>, not text or a number"
    }
    assert convert(pa.array(['["a", 1.10, true, null]', " "]), "list[string]") == (
        [["a", "1.10", "true", None], None],
        {},
    )
