"""Filters: each condition against the same condition in Python, and each wrong one by its words."""

import contextlib
import datetime
import json
import math
import operator
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_pipelines.errors import StoreError
from embedding_pipelines.schemas import METADATA_TYPES
from embedding_pipelines.stores._filter_values import CALLS
from embedding_pipelines.stores.base import Filter
from embedding_pipelines.stores.filters import filter_of, store_filter

UTC = datetime.UTC
NEGATIVE_NAN = struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_0001))[0]
FIELDS = [
    ("text", pa.string()),
    ("brand", METADATA_TYPES["string"]),
    ("year", METADATA_TYPES["int"]),
    ("in_stock", METADATA_TYPES["bool"]),
    ("added", METADATA_TYPES["date"]),
    ("seen_at", METADATA_TYPES["timestamp"]),
    ("tags", METADATA_TYPES["list[string]"]),
    ("size_width", METADATA_TYPES["float"]),
    ("Unit price", METADATA_TYPES["float"]),
    ("price", METADATA_TYPES["float"]),
]
SCHEMA = pa.schema(FIELDS)
COLUMNS = SCHEMA.names
PRICES = [10.0, 900.0, math.nan, NEGATIVE_NAN, None, -3.5, math.inf]
ROWS = [
    {
        "text": f"row {number}",
        "brand": ["Acme", "it's", 'the "b"', None][number % 4],
        "year": [1999, 2024, None][number % 3],
        "in_stock": [True, False, None][number % 3],
        "added": [datetime.date(2024, 1, 1 + number), None][number % 5 == 4],
        "seen_at": datetime.datetime(2024, 1, 1 + number, 12, tzinfo=UTC),
        "tags": [["new", "red"], ["red"], [], None][number % 4],
        "size_width": float(number),
        "Unit price": number / 2,
        "price": PRICES[number % len(PRICES)],
    }
    for number in range(28)
]


@pytest.fixture(scope="module")
def matches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    """The numbers of the rows that pass a filter."""
    connection = lancedb.connect(tmp_path_factory.mktemp("tables"))
    table = connection.create_table("rows", pa.Table.from_pylist(ROWS, SCHEMA))

    def find(filter: Filter) -> list[int]:
        where = store_filter(filter, SCHEMA, COLUMNS)
        texts = table.search().where(where).select(["text"]).limit(99).to_arrow()["text"]
        return sorted(int(text.split()[1]) for text in texts.to_pylist())

    return find


def rows_where(test: Callable[[dict[str, Any]], Any]) -> list[int]:
    return [number for number, row in enumerate(ROWS) if test(row)]


def price(row: dict[str, Any]) -> float | None:
    value = row["price"]
    return None if value is None or math.isnan(value) else value


DAY = datetime.date(2024, 1, 10)
NOON = datetime.datetime(2024, 1, 10, 12, tzinfo=UTC)
CONDITIONS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("price > 500", lambda row: price(row) is not None and price(row) > 500),
    ("NOT price > 500", lambda row: price(row) is not None and price(row) <= 500),
    ("NOT (price > 500 OR price < 0)", lambda row: price(row) is not None and price(row) == 10),
    ("price <> 10", lambda row: price(row) is not None and price(row) != 10),
    ("price != 10.0 and price == '900'", lambda row: price(row) == 900),
    ("price IN (10, 900.0)", lambda row: price(row) in (10, 900)),
    ("price NOT IN (10, 900.0)", lambda row: price(row) not in (10, 900, None)),
    ("price BETWEEN -4 AND 10", lambda row: price(row) in (-3.5, 10)),
    ("price NOT BETWEEN -4 AND 10", lambda row: price(row) in (900, math.inf)),
    ("price IS NULL", lambda row: price(row) is None),
    ("price IS NOT NULL", lambda row: price(row) is not None),
    ("price * 2 + 1 = 21", lambda row: price(row) == 10),
    ("price / 0 > 1", lambda row: False),
    ("price < 1e300", lambda row: price(row) is not None and price(row) < 1e300),
    ("abs(price) < 4", lambda row: price(row) == -3.5),
    ("price > -3.6 AND price < - 3.4", lambda row: price(row) == -3.5),
    ("year > 1999.5", lambda row: row["year"] == 2024),
    ("year < 99999999999999999999", lambda row: row["year"] is not None),
    ("year IN (1999.0, 5)", lambda row: row["year"] == 1999),
    ("2000 < year", lambda row: row["year"] == 2024),
    ("added > '2024-01-10'", lambda row: row["added"] and row["added"] > DAY),
    ("added = DATE '2024-01-10'", lambda row: row["added"] == DAY),
    ("added IN ('2024-01-10', '2024-01-11')", lambda row: row["added"] and 0 <= (row["added"] - DAY).days <= 1),
    ("added BETWEEN '2024-01-02' AND '2024-01-10'", lambda row: row["added"] and 2 <= row["added"].day <= 10),
    ("added <= '2024-01-10T12:00'", lambda row: row["added"] and row["added"] <= DAY),
    ("year(added) = 2024 AND month(added) = 1 AND day(added) < 3", lambda row: row["added"] and row["added"].day < 3),
    ("added >= days_ago(0) OR added < days_ago(100000)", lambda row: False),
    ("seen_at < days_ago(1)", lambda row: True),
    ("lower(brand) > '5'", lambda row: row["brand"] is not None),
    ("brand = '5'", lambda row: False),
    ("seen_at > '2024-01-10'", lambda row: row["seen_at"].day >= 10),
    ("seen_at > '2024-01-10 12:00'", lambda row: row["seen_at"] > NOON),
    ("seen_at = '2024-01-10T13:00:00+01:00'", lambda row: row["seen_at"] == NOON),
    ("seen_at = TIMESTAMP '2024-01-10T12:00:00Z'", lambda row: row["seen_at"] == NOON),
    ("seen_at > added AND added > '2024-01-20'", lambda row: row["added"] and row["added"].day > 20),
    ("'red' IN tags", lambda row: "red" in (row["tags"] or ())),
    ("'new' NOT IN tags", lambda row: row["tags"] is not None and "new" not in row["tags"]),
    ("array_has(tags, 'new')", lambda row: "new" in (row["tags"] or ())),
    ("contains(tags, 'new')", lambda row: "new" in (row["tags"] or ())),
    ("array_has_any(tags, ['new', 'blue'])", lambda row: "new" in (row["tags"] or ())),
    ("array_has_all(tags, ['new', 'red'])", lambda row: "new" in (row["tags"] or ())),
    ("length(tags) > 1", lambda row: len(row["tags"] or ()) > 1),
    ("array_length(tags) = 0", lambda row: not row["tags"]),
    ("in_stock", lambda row: row["in_stock"]),
    ("NOT in_stock", lambda row: row["in_stock"] is False),
    ("in_stock = false", lambda row: row["in_stock"] is False),
    ("in_stock IS NOT TRUE", lambda row: not row["in_stock"]),
    ("brand = 'it''s'", lambda row: row["brand"] == "it's"),
    ("brand = 'the \"b\"'", lambda row: row["brand"] == 'the "b"'),
    ("brand IN ('Acme', 'x;y')", lambda row: row["brand"] == "Acme"),
    ("brand NOT LIKE 'A%'", lambda row: row["brand"] and row["brand"] != "Acme"),
    ("lower(brand) = 'acme'", lambda row: row["brand"] == "Acme"),
    ("brand ILIKE '%ACME%'", lambda row: row["brand"] == "Acme"),
    ("starts_with(brand, 'it') or length(brand) = 7", lambda row: row["brand"] in ("it's", 'the "b"')),
    ("length(brand) = 4", lambda row: row["brand"] in ("Acme", "it's")),
    ("regexp_like(brand, '^A.m')", lambda row: row["brand"] == "Acme"),
    ("size.width = 3", lambda row: row["size_width"] == 3),
    ("Size_Width = 3", lambda row: row["size_width"] == 3),
    ("`Unit price` = 1.5 OR \"Unit price\" = 2", lambda row: row["Unit price"] in (1.5, 2)),
    ("NOT (year = 1999 AND in_stock)", lambda row: row["year"] == 2024 or row["in_stock"] is False),
    ("(((year = 1999))) AND NOT NOT in_stock", lambda row: row["year"] == 1999),
]  # fmt: skip


@pytest.mark.parametrize(("filter", "test"), CONDITIONS, ids=[one for one, _ in CONDITIONS])
def test_a_condition_passes_the_rows_that_it_says(
    filter: str, test: Callable[[dict[str, Any]], Any], matches: Callable[[str], list[int]]
) -> None:
    assert matches(filter) == rows_where(test)


WRONG = {
    "year = 1999 order by price": "'order by price' follows a complete condition",
    "year = 1999; DROP TABLE x": "without a ';'",
    "year = 1999 -- all": "'-- all' is a comment",
    "year = 1999 limit 3": "'limit 3' follows a complete condition",
    "year = 1999 price = 3": "'price = 3' follows a complete condition",
    "year = 1999)": "closes a parenthesis that none opens",
    "(year = 1999": r"it ends, where '\)' has to close a parenthesis",
    "year IN (1999, 2024": "has to close the list after IN",
    "year IN ()": "the list after IN is empty",
    "prize > 5": "no column 'prize'. Did you mean 'price'?",
    "brand = Acme": "Texts stand in single quotes: 'Acme'",
    'brand = "Acme"': "no column 'Acme'.*Texts stand in single quotes: 'Acme'",
    "brand = 'Acme": "the quote of 'Acme is not closed",
    "brand = ‘Acme’": "straight single quotes",
    "price = 'cheap'": r"price holds numbers, and 'cheap' is none. Write price = 5",
    "brand = 5": "brand holds text, and 5 is none. Write brand = 'red'",
    "brand > price": "If brand holds numbers, declare it as float in source.metadata",
    "brand <= 9.5": "If brand holds numbers, declare it as float in source.metadata",
    "brand IN (5, 6)": "If brand holds numbers, declare it as float in source.metadata",
    "brand BETWEEN 5 AND 6": "If brand holds numbers, declare it as float in source.metadata",
    "brand * 1.2 < 10": "If brand holds numbers, declare it as float in source.metadata",
    "brand = true": "If brand holds true or false, declare it as bool in source.metadata",
    "brand IN (Acme)": "Texts stand in single quotes: 'Acme'",
    "in_stock = 1": "in_stock holds true or false, and 1 is none. Write in_stock = true",
    "in_stock > false": "have no order",
    "added = 'x'": "'x' is no day or time, and added holds days. Write '2024-01-31'",
    "added = 5": "added holds days, and 5 is none",
    "added > '2024-13-01'": "no day or time",
    "added >= now() - interval '30 days'": "no function 'now'. Write days_ago",
    "added >= current_date - 30": "no column 'current_date'. Write days_ago",
    "added >= days_ago(1.5)": "days_ago takes one whole number",
    "added >= days_ago(-1)": "days_ago takes one whole number",
    "added >= days_ago(year)": "days_ago takes one whole number",
    "added >= days_ago(999999999999)": "before the year 1",
    "seen_at = days_ago(3)": r"seen_at >= days_ago\(3\) AND seen_at < '20",
    "brand < '100'": "brand holds text, in which '9' comes after '100'. If brand holds numbers, declare it as float",
    "'9.5' >= brand": r"write lower\(brand\) in its place",
    "brand >= '2026-11-01'": "brand holds text, in which '29.10.2026' comes after '2026-11-01'. If brand holds days, "
    "declare it as date",
    "brand >= days_ago(30)": "declare it as date in source.metadata",
    "'2026-11-01T12:00:00' > brand": r"write lower\(brand\) in its place",
    "brand BETWEEN '5' AND '6'": "declare it as float in source.metadata",
    "seen_at = '2024-01-10'": "seen_at >= '2024-01-10' AND seen_at < '2024-01-11'",
    "tags = 'red'": "Write 'red' IN tags",
    "Unit price > 5": "'Unit price' is no plain word. Write it in double quotes: \"Unit price\"",
    "colour = 'red'": "have to be in source.metadata",
    "tags LIKE 'r%'": "tags holds lists of texts",
    "price = NULL": "Write price IS NULL",
    "price <> null": "Write price IS NOT NULL",
    "price IN (1, NULL)": "Write price IS NULL",
    "price": "price is no condition by itself",
    "price >": "it ends where a column or a value belongs",
    "AND": "it has 'AND' where",
    "price > 5 &&  year = 3": "Write AND",
    "price > 5 || year = 3": "Write OR",
    "": "it is empty",
    "  ": "it is empty",
    "brand = repeat('a', 1000000000)": "no function 'repeat'",
    "length(brand, 3) = 5": "takes 1 value, not 2",
    "length(year) = 5": r"year does not fit into length\(text\)",
    "brand + 1 = 2": "brand is no number",
    "(price > 5) = true": "a condition stands where a value belongs",
    "NOT " * 60 + "in_stock": "more than 30 levels",
    "(" * 5_000 + "in_stock" + ")" * 5_000: "more than 30 levels",
    "- " * 5_000 + "1 = 1": "more than 30 levels",
    "1" + " + 1" * 5_000 + " > 3": "more than 30 levels",
    "price = 1e999": "too large",
    "year = 5x": "'5x' is no number",
    "year = $1": "'\\$' stands in it",
    "price BETWEEN 1": "BETWEEN … AND …",
    "price NOT 5": "Write NOT IN, NOT LIKE",
    "price IS 5": "Write IS NULL",
    "CASE WHEN true THEN 1 END": "",
    "SELECT 1": "",
    "vector IS NULL": "no column 'vector'",
}


@pytest.mark.parametrize("filter", WRONG, ids=lambda filter: filter[:40])
def test_a_wrong_filter_is_told_in_our_words(filter: str) -> None:
    with pytest.raises(StoreError, match="(?s)cannot be used: .*" + WRONG[filter]) as caught:
        store_filter(filter, SCHEMA, COLUMNS)
    words = str(caught.value)
    assert "Columns: text (text), brand (text), year (int)" in words
    assert "Operators: = <> < <= > >=, IN, LIKE, ILIKE, BETWEEN, IS NULL, AND, OR, NOT" in words
    assert len(words) < 1_500
    assert words.count("size_width") == 1


def test_the_id_of_the_source_is_the_document_s() -> None:
    schema = pa.schema([("chunk_id", pa.string()), ("document_id", pa.string())])
    with pytest.raises(StoreError, match=r"no column 'id'\. Did you mean 'document_id'"):
        store_filter("id = 'a'", schema, schema.names)


class Column(list[Any]):
    """What has several values and gives them as a list, as columns and arrays do."""

    ndim = 1

    def tolist(self) -> list[Any]:
        return list(self)


def test_a_mapping_takes_columns_and_arrays(matches: Callable[[str], list[int]]) -> None:
    years = Column([1999, 2024])
    expected = matches("year IN (1999, 2024)")
    assert matches(filter_of({"year": years})) == matches(filter_of({"year": {"in": years}}))
    assert matches(filter_of({"year": years})) == expected
    with pytest.raises(StoreError, match="compared with nothing"):
        store_filter({"year": {}}, SCHEMA, COLUMNS)


def test_the_example_of_an_error_is_a_filter_that_works(
    matches: Callable[[Filter], list[int]],
) -> None:
    for at in range(len(COLUMNS)):
        with pytest.raises(StoreError) as caught:
            store_filter("", SCHEMA, COLUMNS[: at + 1])
        example = str(caught.value).partition('Example: "')[2].removesuffix('".')
        matches(example)
        with pytest.raises(StoreError) as caught:
            store_filter({"nothing": 1}, SCHEMA, COLUMNS[: at + 1])
        assert all(name in str(caught.value) for name in COLUMNS[: at + 1])
        matches(json.loads(str(caught.value).partition("Example: ")[2].removesuffix(".")))


SIGNS = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Truth = bool | None


def comparison(column: str, sign: str, value: Any) -> tuple[str, Callable[[dict[str, Any]], Truth]]:
    def test(row: dict[str, Any]) -> Truth:
        cell = row[column]
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return None
        return bool(SIGNS[sign](cell, value))

    if isinstance(value, str):
        value_text = "'" + value.replace("'", "''") + "'"
    elif isinstance(value, datetime.date):
        value_text = f"'{value.isoformat()}'"
    else:
        value_text = repr(value)
    return f"{column} {sign} {value_text}", test


def joined(word: str, parts: list[Any]) -> tuple[str, Callable[[dict[str, Any]], Truth]]:
    def test(row: dict[str, Any]) -> Truth:
        values = [part(row) for _, part in parts]
        decides = word == "OR"
        if decides in values:
            return decides
        return None if None in values else not decides

    return "(" + f" {word} ".join(text for text, _ in parts) + ")", test


def opposite(part: Any) -> tuple[str, Callable[[dict[str, Any]], Truth]]:
    def test(row: dict[str, Any]) -> Truth:
        value = part[1](row)
        return None if value is None else not value

    return f"NOT {part[0]}", test


atoms = st.one_of(
    st.builds(comparison, st.just("price"), st.sampled_from([*SIGNS]), st.sampled_from([10.0, 9.5, -3.5, 900])),
    st.builds(comparison, st.just("year"), st.sampled_from([*SIGNS]), st.sampled_from([1999, 2000, 1999.5])),
    st.builds(comparison, st.just("brand"), st.sampled_from([*SIGNS]), st.sampled_from(["Acme", "it's", ""])),
    st.builds(comparison, st.just("added"), st.sampled_from([*SIGNS]), st.sampled_from([DAY, datetime.date(1, 1, 1)])),
)  # fmt: skip
conditions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds(joined, st.sampled_from(["AND", "OR"]), st.lists(inner, min_size=2, max_size=4)),
        st.builds(opposite, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(condition=conditions)
def test_any_condition_is_true_for_the_rows_that_it_is_true_for(
    condition: tuple[str, Callable[[dict[str, Any]], Truth]],
    matches: Callable[[str], list[int]],
) -> None:
    text, test = condition
    assert matches(text) == rows_where(lambda row: test(row) is True)


WORDS = [
    *"()=>,-[].;5x",
    "price",
    "year",
    "brand",
    "'a'",
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS NULL",
    "LIKE",
]


@given(st.lists(st.sampled_from(WORDS)))
def test_any_words_are_a_filter_or_an_error(words: list[str]) -> None:
    with contextlib.suppress(StoreError):
        store_filter(" ".join(words), SCHEMA, COLUMNS)


def test_long_filters_take_no_long_time(matches: Callable[[str], list[int]]) -> None:
    started = time.process_time()
    assert matches(" OR ".join(f"year = {number}" for number in range(1_990, 3_990)))
    assert matches("brand IN (" + ", ".join(f"'{number}'" for number in range(5_000)) + ")") == []
    with pytest.raises(StoreError):
        store_filter("brand = repeat('a', 1e9)", SCHEMA, COLUMNS)
    assert time.process_time() - started < 3


MAPPINGS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]] = [
    ({}, lambda row: True),
    ({"brand": "it's"}, lambda row: row["brand"] == "it's"),
    ({"brand": ["Acme", "it's"]}, lambda row: row["brand"] in ("Acme", "it's")),
    ({"year": None}, lambda row: row["year"] is None),
    ({"year": {"ne": None}}, lambda row: row["year"] is not None),
    ({"price": {">": 5, "lte": 900.0}}, lambda row: price(row) in (10, 900)),
    ({"in_stock": True, "year": 1999}, lambda row: row["in_stock"]),
    ({"added": {"$gte": DAY}}, lambda row: row["added"] and row["added"] >= DAY),
    ({"seen_at": NOON}, lambda row: row["seen_at"] == NOON),
    ({"tags": {"contains": "red"}}, lambda row: "red" in (row["tags"] or ())),
    ({"brand": {"contains": "cm"}}, lambda row: row["brand"] == "Acme"),
    ({"brand": {"like": "A%"}}, lambda row: row["brand"] == "Acme"),
    ({"Unit price": {"nin": [1, 2, 3.5]}}, lambda row: row["Unit price"] not in (1, 2, 3.5)),
]


@pytest.mark.parametrize(("mapping", "test"), MAPPINGS, ids=[str(one) for one, _ in MAPPINGS])
def test_a_mapping_is_a_filter(
    mapping: dict[str, Any],
    test: Callable[[dict[str, Any]], Any],
    matches: Callable[[str], list[int]],
) -> None:
    assert matches(filter_of(mapping)) == rows_where(test)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"price": {"above": 5}}, "'above', which is no operator.* Operators: =, eq.*, contains"),
        ({"price": math.nan}, "value nan"),
        ({"price": b"x"}, "Write a text, a number"),
        ({"price": {"in": 5}}, "takes a list"),
        ({"price": []}, "takes a list"),
        ({5: 5}, "5 is no key"),
        (["price = 5"], "it is none. Write a condition"),
    ],
)
def test_a_wrong_mapping_is_told_with_the_columns_there_are(mapping: Any, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        store_filter(mapping, SCHEMA, COLUMNS)
    assert f"The filter {mapping!r} cannot be used: " in str(caught.value)
    assert " Columns: text (text), brand (text), " in str(caught.value)


@given(st.text())
def test_any_text_in_a_mapping_is_that_text(text: str) -> None:
    where = store_filter(filter_of({"brand": text}), SCHEMA, COLUMNS)
    assert where == "brand = '" + text.replace("'", "''") + "'"


def test_the_columns_of_a_filter_may_have_any_name(tmp_path: Path) -> None:
    names = ["in", "order", "a b", "ä", "Ümlaut", "a-b", "1st", "select", "text"]
    rows = pa.table({name: [name, "x"] for name in names})
    table = lancedb.connect(tmp_path).create_table("rows", rows)
    for name in names:
        where = store_filter(filter_of({name: name}), rows.schema, names)
        assert table.search().where(where).to_arrow()["text"].to_pylist() == ["text"]


def test_the_page_shows_conditions_that_work_and_names_every_function() -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text("utf-8")
    part = page.partition("`--filter` is an SQL condition")[2].partition("\n\n## ")[0]
    kinds = {"document_id": "string", "unit price": "float"}
    names = [*FIELDS, *((name, METADATA_TYPES[kind]) for name, kind in kinds.items())]
    schema = pa.schema(names)
    table = part.partition("| of a column")[2].partition("\n\n")[0]
    conditions = [one for one in table.split("`")[1::2] if " " in one or "(" in one]
    assert len(conditions) > 12
    for condition in conditions:
        store_filter(condition, schema, schema.names)
    assert all(f"`{name}`" in part for name in CALLS)


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        (
            "sku = 'A1'",
            "'sku' is the id, which is document_id in filters. Write document_id = 'A1'",
        ),
        ({"SKU": "A1"}, "'sku' is the id, which is document_id in filters"),
        ("price > 5 AND title LIKE '%a%'", "'title' is in the text, which is text in filters"),
        ("Long title = 'a'", "'Long title' is in the text, which is text in filters"),
        ("colour = 'red'", "there is no column 'colour'. Other columns of the source"),
    ],
)
def test_a_column_of_id_or_text_is_told_by_its_name_in_filters(filter: Any, words: str) -> None:
    names = {"sku": "document_id", "title": "text", "Long title": "text"}
    with pytest.raises(StoreError, match=words) as caught:
        store_filter(filter, SCHEMA, COLUMNS, names)
    assert "single quotes" not in str(caught.value)
