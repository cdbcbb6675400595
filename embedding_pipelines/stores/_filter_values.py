"""What a filter compares: columns, constants and what is computed of them, in the store's SQL.

Texts become the days, times and numbers of the column that they are compared with. NaN is as null:
no comparison holds for it, nor the opposite of one.
"""

import datetime
import math
import re
from dataclasses import dataclass
from typing import Any

from embedding_pipelines.errors import counted

NUMBERS = ("int", "float")
INT64 = 2**63
FIGURE = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
# What a text column would order by its letters: the type to declare, how such a value is written,
# and what comes of it.
ORDERS = (
    ("float", FIGURE, "'9' comes after '100'"),
    ("date", re.compile(r"\d{4}-\d\d-\d\d([T ].*)?"), "'29.10.2026' comes after '2026-11-01'"),
)
SHOWN = 200  # characters of a filter in an error
KEYWORDS = {"and", "or", "not", "in", "between", "is", "null", "like", "ilike", "true", "false"}
OPPOSITE = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
CALLS = {  # argument kinds, kind of the result, and how the store writes it
    "lower": (("text",), "text", "lower({0})"),
    "upper": (("text",), "text", "upper({0})"),
    "trim": (("text",), "text", "btrim({0})"),
    "length": (("text",), "int", "character_length({0})"),
    "starts_with": (("text", "text"), "condition", "starts_with({0}, {1})"),
    "ends_with": (("text", "text"), "condition", "ends_with({0}, {1})"),
    "contains": (("text", "text"), "condition", "contains({0}, {1})"),
    "regexp_like": (("text", "text"), "condition", "regexp_like({0}, {1})"),
    "abs": (("float",), "float", "abs({0})"),
    "round": (("float",), "float", "round({0})"),
    "floor": (("float",), "float", "floor({0})"),
    "ceil": (("float",), "float", "ceil({0})"),
    "year": (("timestamp",), "int", "CAST(date_part('year', {0}) AS BIGINT)"),
    "month": (("timestamp",), "int", "CAST(date_part('month', {0}) AS BIGINT)"),
    "day": (("timestamp",), "int", "CAST(date_part('day', {0}) AS BIGINT)"),
    "array_has": (("list", "text"), "condition", "array_has({0}, {1})"),
    "array_has_any": (("list", "texts"), "condition", "array_has_any({0}, {1})"),
    "array_has_all": (("list", "texts"), "condition", "array_has_all({0}, {1})"),
    "array_length": (("list",), "int", "CAST(coalesce(array_length({0}), 0) AS BIGINT)"),
}
HOLDS = {  # what a column of a kind holds, and how a value is written
    "text": ("text", "'red'"),
    "int": ("whole numbers", "5"),
    "float": ("numbers", "5"),
    "bool": ("true or false", "true"),
    "date": ("days", "'2024-01-31'"),
    "timestamp": ("times", "'2024-01-31T12:00:00'"),
    "list": ("lists of texts", "'red'"),
}


@dataclass(frozen=True)
class Value:
    """A column, a constant or what is computed of them, in the store's SQL."""

    sql: str
    kind: str  # of HOLDS, "null" or "texts"
    name: str  # as the filter has it
    constant: Any = None  # its value, if it is one


@dataclass(frozen=True)
class Condition:
    """What holds, and what holds where its opposite does; neither does where a value is null."""

    yes: str
    no: str


class Wrong(Exception):
    """What is wrong with a filter, in sentences."""


def join(word: str, parts: list[Condition]) -> Condition:
    """All parts or one of them. Halved again and again: a store recurses into each join."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = join(word, parts[:middle]), join(word, parts[middle:])
    other = "OR" if word == "AND" else "AND"
    return Condition(f"({left.yes} {word} {right.yes})", f"({left.no} {other} {right.no})")


def compare(left: Value, sign: str, right: Value) -> Condition:
    left, right = make_alike(left, right, sign)
    _refuse_order_of_letters(left, right, sign)
    values = [value for value in (left, right) if value.kind == "float" and value.constant is None]
    guards = [f" AND NOT isnan({value.sql})" for value in values]
    texts = [f"{left.sql} {one} {right.sql}{''.join(guards)}" for one in (sign, OPPOSITE[sign])]
    yes, no = (f"({text})" if guards else text for text in texts)
    return Condition(yes, no)


def _refuse_order_of_letters(left: Value, right: Value, sign: str) -> None:
    """Texts have the order of their letters, in which '9' comes after '100', and '29.10.2026' after
    '2026-11-01': nobody who writes a number or a day means it."""
    for column, other in ((left, right), (right, left)):
        if sign in ("=", "<>") or not isinstance(other.constant, str):
            continue
        for kind, shape, order in ORDERS:
            remedy = _declare(kind, column)
            if remedy and shape.fullmatch(other.constant.strip()):
                raise Wrong(
                    f"{column.name} holds text, in which {order}.{remedy} To compare letter by "
                    f"letter all the same, write lower({column.name}) in its place."
                )


def make_alike(left: Value, right: Value, sign: str) -> tuple[Value, Value]:
    """Both values, made comparable."""
    for one, other in ((left, right), (right, left)):
        if one.kind == "null":
            word = "IS NOT NULL" if sign == "<>" else "IS NULL"
            raise Wrong(f"nothing equals null. Write {other.name} {word}.")
        if one.kind in ("list", "texts"):
            element = other.name if other.kind == "text" else "'red'"
            column = one.name if one.kind == "list" else other.name
            raise Wrong(
                f"{column} holds lists of texts. Write {element} IN {column}, or in a mapping "
                f"'contains'."
            )
    kinds = {left.kind, right.kind}
    if kinds & {"date", "timestamp"}:
        return _alike_times(left, right, sign)
    if kinds & {*NUMBERS}:
        left, right = as_number(left, right), as_number(right, left)
        if left.kind == right.kind == "int":
            return left, right
        return _to_float(left), _to_float(right)
    if len(kinds) > 1:
        first, second = (right, left) if left.constant is not None else (left, right)
        raise mismatch(first, second.name, _declare("bool", left, right))
    if kinds == {"bool"} and sign not in ("=", "<>"):
        raise Wrong(f"true and false have no order. Write = or <> instead of {sign}.")
    return left, right


def _alike_times(left: Value, right: Value, sign: str) -> tuple[Value, Value]:
    values = []
    for one, other in ((left, right), (right, left)):
        if one.kind == "text" and isinstance(one.constant, str):
            one = _time(one, other, sign)
        elif one.kind not in ("date", "timestamp"):
            raise mismatch(other, one.name)
        values.append(one)
    if values[0].kind != values[1].kind:
        values = [
            Value(f"CAST({value.sql} AS TIMESTAMP)", "timestamp", value.name)
            if value.kind == "date"
            else value
            for value in values
        ]
    return values[0], values[1]


def _time(value: Value, other: Value, sign: str) -> Value:
    """A text as the day or time (UTC, if it names no offset) that it is compared as."""
    text = value.constant.strip()
    try:
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        what, example = HOLDS[other.kind]
        raise Wrong(f"{value.name} is no day or time, and {other.name} holds {what}. Write "
                     f"{example}.") from None  # fmt: skip
    is_day = re.fullmatch(r"\d{4}-?\d\d-?\d\d", text) is not None
    if other.kind == "date" and is_day:
        return Value(f"DATE '{moment.date().isoformat()}'", "date", value.name, moment)
    if is_day and sign in ("=", "<>"):
        after = moment.date() + datetime.timedelta(1) if moment.year < 9999 else moment.date()
        raise Wrong(
            f"{other.name} holds times, and {value.name} is a whole day. Write {other.name} >= "
            f"{value.name} AND {other.name} < '{after.isoformat()}'."
        )
    time = moment.isoformat(sep=" ", timespec="microseconds")
    return Value(f"TIMESTAMP '{time}'", "timestamp", value.name, moment)


def as_number(value: Value, other: Value | None = None) -> Value:
    """A number; a text that is one counts where it stands beside a number."""
    if value.kind in NUMBERS:
        return value
    if isinstance(value.constant, str) and value.kind == "text" and other is not None:
        text = value.constant.strip()
        if FIGURE.fullmatch(text):
            return literal(parse_number(text))
    if other is None:
        declare = _declare("float", value)
        raise Wrong(f"{value.name} is no number, and only numbers can be computed with.{declare}")
    column, wrong = (other, value) if other.constant is None else (value, other)
    raise mismatch(column, wrong.name, _declare("float", value, other))


def mismatch(column: Value, other: str, remedy: str = "") -> Wrong:
    what, _ = HOLDS.get(column.kind, ("something else", ""))
    return Wrong(
        f"{column.name} holds {what}, and {other} is none. Write {example_of(column)}.{remedy}"
    )


def _declare(kind: str, *values: Value) -> str:
    """A remedy, where a column of texts is taken for one of this kind."""
    for value in values:
        if value.kind == "text" and value.constant is None and "(" not in value.name:
            return (
                f" If {value.name} holds {HOLDS[kind][0]}, declare it as {kind} in source.metadata."
            )
    return ""


def example_of(value: Value) -> str:
    example = HOLDS.get(value.kind, ("", "…"))[1]
    if value.constant is not None:
        return f"column = {value.name}"
    return f"{example} IN {value.name}" if value.kind == "list" else f"{value.name} = {example}"


def parse_number(text: str) -> int | float:
    if re.fullmatch(r"[+-]?\d{1,40}", text):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise Wrong(f"{text[:SHOWN]} is too large a number.")
    return number


def literal(number: int | float) -> Value:
    if isinstance(number, int) and -INT64 <= number < INT64:
        return Value(str(number), "int", str(number), number)
    return Value(f"CAST({float(number)!r} AS DOUBLE)", "float", repr(number), number)


def as_float(value: Value) -> str:
    return _to_float(value).sql


def _to_float(value: Value) -> Value:
    if value.kind == "float":
        return value
    return Value(f"CAST({value.sql} AS DOUBLE)", "float", value.name, value.constant)


def text_value(text: str) -> Value:
    quoted = "'" + text.replace("'", "''") + "'"
    return Value(quoted, "text", quoted, text)


def days_ago(arguments: list[Value]) -> Value:
    """A day so many days before today (UTC), as the text that a filter would name it by."""
    days = arguments[0].constant
    if len(arguments) > 1 or type(days) is not int or days < 0:
        raise Wrong("days_ago takes one whole number: days_ago(30).")
    try:
        day = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days)
    except OverflowError:
        raise Wrong(f"{days} days ago is before the year 1. Write fewer.") from None
    return Value(f"'{day.isoformat()}'", "text", f"days_ago({days})", day.isoformat())


def text_list(values: list[Value]) -> Value:
    for value in values:
        if value.kind != "text":
            raise Wrong(f"{value.name} stands in a list of texts. Write ['red', 'blue'].")
    listed = ", ".join(value.sql for value in values)
    return Value(f"make_array({listed})", "texts", f"[{listed}]")


def call(word: str, arguments: list[Value]) -> Condition:
    sql = _sql(word, arguments)
    return Condition(sql, f"NOT {sql}")


def computed(word: str, arguments: list[Value]) -> Value:
    names = ", ".join(value.name for value in arguments)
    return Value(_sql(word, arguments), CALLS[word][1], f"{word}({names})")


def _sql(word: str, arguments: list[Value]) -> str:
    kinds, _, template = CALLS[word]
    usage = f"{word}({', '.join(HOLDS.get(kind, ('', '[…]'))[0] or '[…]' for kind in kinds)})"
    if len(arguments) != len(kinds):
        raise Wrong(f"{word} takes {counted(len(kinds), 'value')}, not {len(arguments)}: {usage}.")
    texts = []
    for kind, value in zip(kinds, arguments, strict=True):
        fits = value.kind == kind or (kind == "float" and value.kind == "int")
        if not fits and not (kind == "timestamp" and value.kind == "date"):
            raise Wrong(f"{value.name} does not fit into {usage}.")
        texts.append(as_float(value) if kind == "float" else value.sql)
    return template.format(*texts)


def quote(column: str) -> str:
    """A column's name in the store's SQL."""
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else f"`{column}`"


def written_name(column: str) -> str:
    """A column's name as a filter writes it."""
    plain = re.fullmatch(r"[^\W\d]\w*", column) and column.lower() not in KEYWORDS
    return column if plain else '"' + column.replace('"', '""') + '"'
