"""The filter of a search: a condition on a table's columns, checked and written anew for the store.

Only what docs/search.md says is taken: a store's own SQL has functions that run for minutes, and it
ignores what follows a complete condition. A mapping is a filter, too.
"""

import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from embedding_pipelines.errors import FilterError
from embedding_pipelines.stores._filter_parser import Parser
from embedding_pipelines.stores._filter_values import HOLDS, SHOWN, Wrong, written_name
from embedding_pipelines.stores.base import Filter

COMPARISONS = {  # of a filter that is a mapping, in signs and in the usual words
    "=": "=", "eq": "=", "!=": "<>", "<>": "<>", "ne": "<>", "<": "<", "lt": "<", "<=": "<=",
    "lte": "<=", ">": ">", "gt": ">", ">=": ">=", "gte": ">=", "in": "IN", "not in": "NOT IN",
    "nin": "NOT IN", "like": "LIKE", "ilike": "ILIKE",
}  # fmt: skip


ORDERED = ("int", "float", "date", "timestamp")
OPERATORS = (  # those that a filter in words has
    "= <> < <= > >=, IN, LIKE, ILIKE, BETWEEN, IS NULL, AND, OR, NOT, + - * /"
)


def store_filter(
    filter: Filter, schema: pa.Schema, columns: list[str], names: Mapping[str, str] | None = None
) -> str:
    """The same condition in the store's SQL; `columns` are those of `schema` that it may name.

    `names` are columns of the source that have another name here, and that name. Raises FilterError,
    which says where it is wrong and what to write.
    """
    kinds = {name: _kind(schema.field(name).type) for name in columns}
    try:
        condition = filter if isinstance(filter, str) else filter_of(filter)
        return Parser(condition, kinds, names or {}).read()
    except Wrong as error:
        raise filter_error(filter, schema, columns, str(error)) from None


def filter_error(filter: Filter, schema: pa.Schema, columns: list[str], what: str) -> FilterError:
    """The error for a wrong filter: what is wrong, the columns, and an example that works."""
    text = filter if isinstance(filter, str) else repr(filter)
    text = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    shown = repr(text) if isinstance(filter, str) else text
    kinds = {name: _kind(schema.field(name).type) for name in columns}
    fields = ", ".join(f"{written_name(name)} ({kind})" for name, kind in kinds.items())
    is_mapping = isinstance(filter, Mapping)
    operators = ", ".join([*COMPARISONS, "contains"]) if is_mapping else OPERATORS
    example = (_mapping if is_mapping else _condition)(*list(kinds.items())[-1])
    return FilterError(
        f"The filter {shown} cannot be used: {what} Columns: {fields}. Operators: {operators}. "
        f"Example: {example}."
    )


def _condition(name: str, kind: str) -> str:
    """One on a column, in quotes."""
    example, column = HOLDS[kind][1], written_name(name)
    sign = ">" if kind in ORDERED else "="
    by_kind = {"list": f"{example} IN {column}", "bool": column}
    return f'"{by_kind.get(kind, f"{column} {sign} {example}")}"'


def _mapping(name: str, kind: str) -> str:
    """The same as a mapping."""
    value = {"int": 5, "float": 5, "bool": True}.get(kind, HOLDS[kind][1].strip("'"))
    sign = ">" if kind in ORDERED else "contains" if kind == "list" else ""
    return json.dumps({name: {sign: value} if sign else value}, ensure_ascii=False)


def filter_of(conditions: Mapping[str, Any]) -> str:
    """The filter that a mapping means; all of its conditions hold.

    A value by a column's name is what the column equals, one of a list, or null for None; a mapping
    holds comparisons: `{"brand": ["Acme", "Apex"], "price": {">=": 5, "<": 9}, "tags":
    {"contains": "new"}}`. Signs or words (`gt`, `gte`, `lt`, `lte`, `ne`, `in`, `nin`, `like`);
    `contains` is a part of a text or an element of a list. Values are texts, numbers, booleans,
    dates, times. Raises Wrong for anything else.
    """
    if not isinstance(conditions, Mapping):
        raise Wrong(
            'it is none. Write a condition, as in "price < 9", or a mapping, as in {"brand": '
            '["Acme", "Apex"]}.'
        )
    parts = [part for name, value in conditions.items() for part in _parts(name, value)]
    return " AND ".join(parts) or "true"


def _parts(name: object, value: Any) -> list[str]:
    if not isinstance(name, str) or not name:
        raise Wrong(f"{name!r} is no key. Write the name of a column.")
    column = '"' + name.replace('"', '""') + '"'
    value = _plain(value)
    if not isinstance(value, Mapping):
        value = {"in" if isinstance(value, list | tuple | set | frozenset) else "=": value}
    if not value:
        raise Wrong(f"{name!r} is compared with nothing. Leave it out.")
    parts = []
    for word, operand in ((word, _plain(operand)) for word, operand in value.items()):
        sign = COMPARISONS.get(str(word).lower().removeprefix("$"))
        if word == "contains":
            parts.append(f"contains({column}, {_constant(name, operand)})")
        elif sign is None:
            raise Wrong(f"{name!r} has {word!r}, which is no operator.")
        elif sign.endswith("IN"):
            if not isinstance(operand, list | tuple | set | frozenset) or not operand:
                raise Wrong(f"{name!r} has {word!r}, which takes a list of values.")
            values = ", ".join(_constant(name, element) for element in operand)
            parts.append(f"{column} {sign} ({values})")
        elif operand is None and sign in ("=", "<>"):
            parts.append(f"{column} IS {'NOT ' * (sign == '<>')}NULL")
        else:
            parts.append(f"{column} {sign} {_constant(name, operand)}")
    return parts


def _plain(value: Any) -> Any:
    """A column or an array as a list."""
    return value.tolist() if getattr(value, "ndim", 0) else value


def _constant(name: str, value: Any) -> str:
    value = getattr(value, "item", lambda: value)()  # numpy's scalars
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, datetime.date | datetime.time):
        value = value.isoformat()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    raise Wrong(
        f"{name!r} has the value {value!r}. Write a text, a number, true or false, a date or a time."
    )


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return "list"
    if pa.types.is_timestamp(type_):
        return "timestamp"
    if pa.types.is_date(type_):
        return "date"
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_):
        return "int"
    return "float" if pa.types.is_floating(type_) else "text"
