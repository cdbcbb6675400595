"""The filter of a search: a condition on a table's columns, checked and written anew for the store.

Only what README says is taken: a store's own SQL has functions that run for minutes, and it ignores
what follows a complete condition. Texts become the days, times and numbers of the column that they
are compared with. NaN is as null: no comparison holds for it, nor the opposite of one.
"""

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from embedding_pipelines.errors import StoreError, did_you_mean

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 30  # of parentheses, of NOT and of what is computed: a store recurses into each
SHOWN = 200  # characters of a filter in an error
INT64 = 2**63

TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<text>'(?:[^']|'')*') | (?P<quoted>"(?:[^"]|"")+" | `(?:[^`]|``)+`)
    | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?!\w)) | (?P<name>[^\W\d]\w*(?:\.\w+)*)
    | (?P<sign><=|>=|<>|!=|==|[=<>+\-*/(),\[\]])""",
    re.VERBOSE,
)
KEYWORDS = {"and", "or", "not", "in", "between", "is", "null", "like", "ilike", "true", "false"}
VALUE_FOLLOWS = {"=", "==", "<>", "!=", "<", "<=", ">", ">=", "like", "ilike", "between", ",", "["}
OPPOSITE = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
SIGNS = {"==": "=", "!=": "<>"}
NUMBERS = ("int", "float")
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
COMPARISONS = {  # of a filter that is a mapping, in signs and in the usual words
    "=": "=", "eq": "=", "!=": "<>", "<>": "<>", "ne": "<>", "<": "<", "lt": "<", "<=": "<=",
    "lte": "<=", ">": ">", "gt": ">", ">=": ">=", "gte": ">=", "in": "IN", "not in": "NOT IN",
    "nin": "NOT IN", "like": "LIKE", "ilike": "ILIKE",
}  # fmt: skip


class Token(NamedTuple):
    kind: str  # a group of TOKEN, "keyword" or "end"
    text: str
    at: int  # first character in the filter

    @property
    def word(self) -> str:
        return self.text.lower() if self.kind in ("keyword", "sign") else ""


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


def store_filter(
    filter: str, schema: pa.Schema, columns: list[str], names: Mapping[str, str] | None = None
) -> str:
    """The same condition in the store's SQL; `columns` are those of `schema` that it may name.

    `names` are columns of the source that have another name here, and that name. Raises StoreError,
    which says where it is wrong and what to write.
    """
    kinds = {name: _kind(schema.field(name).type) for name in columns}
    try:
        return _Parser(filter, kinds, names or {}).read()
    except _Wrong as error:
        raise filter_error(filter, schema, columns, str(error)) from None


def filter_error(filter: str, schema: pa.Schema, columns: list[str], what: str) -> StoreError:
    """The error for a wrong filter: what is wrong, the columns, and an example that works."""
    shown = filter if len(filter) <= SHOWN else filter[:SHOWN] + "…"
    kinds = {name: _kind(schema.field(name).type) for name in columns}
    fields = ", ".join(f"{_name(name)} ({kind})" for name, kind in kinds.items())
    name, kind = list(kinds.items())[-1]
    example = HOLDS[kind][1]
    condition = {"list": f"{example} IN {_name(name)}", "bool": _name(name)}
    sign = ">" if kind in ("int", "float", "date", "timestamp") else "="
    usual = f"{_name(name)} {sign} {example}"
    return StoreError(
        f"The filter {shown!r} cannot be used: {what} Columns: {fields}. "
        f'Example: "{condition.get(kind, usual)}".'
    )


def filter_of(conditions: Mapping[str, Any]) -> str:
    """The filter that a mapping means; all of its conditions hold.

    A value by a column's name is what the column equals, one of a list, or null for None; a mapping
    holds comparisons: `{"brand": ["Acme", "Apex"], "price": {">=": 5, "<": 9}, "tags":
    {"contains": "new"}}`. Signs or words (`gt`, `gte`, `lt`, `lte`, `ne`, `in`, `nin`, `like`);
    `contains` is a part of a text or an element of a list. Values are texts, numbers, booleans,
    dates, times. Raises StoreError for anything else.
    """
    parts = [part for name, value in conditions.items() for part in _parts(name, value)]
    return " AND ".join(parts) or "true"


def _parts(name: object, value: Any) -> list[str]:
    if not isinstance(name, str) or not name:
        raise StoreError(f"The filter has the key {name!r}. Write the name of a column.")
    column = '"' + name.replace('"', '""') + '"'
    value = _plain(value)
    if not isinstance(value, Mapping):
        value = {"in" if isinstance(value, list | tuple | set | frozenset) else "=": value}
    if not value:
        raise StoreError(f"The filter on {name!r} compares with nothing. Leave it out.")
    parts = []
    for word, operand in ((word, _plain(operand)) for word, operand in value.items()):
        sign = COMPARISONS.get(str(word).lower().removeprefix("$"))
        if word == "contains":
            parts.append(f"contains({column}, {_constant(name, operand)})")
        elif sign is None:
            words = ", ".join([*COMPARISONS, "contains"])
            raise StoreError(f"The filter on {name!r} has {word!r}. Write one of: {words}.")
        elif sign.endswith("IN"):
            if not isinstance(operand, list | tuple | set | frozenset) or not operand:
                raise StoreError(f"The filter on {name!r}: {word!r} takes a list of values.")
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
    raise StoreError(
        f"The filter on {name!r} has the value {value!r}. Write a text, a number, true or false, a "
        "date or a time."
    )


class _Wrong(Exception):
    """What is wrong with a filter, in sentences."""


class _Parser:
    """Reads one condition. Binds, loosest first: OR, AND, NOT, comparisons, + and -, * and /."""

    def __init__(self, filter: str, kinds: dict[str, str], names: Mapping[str, str]) -> None:
        self.kinds, self.names, self.depth, self.next = kinds, names, 0, 0
        self.tokens = _tokens(filter)
        self.filter = filter

    def read(self) -> str:
        condition = self._condition(self._either())
        if self._now.kind != "end":
            rest = self.filter[self._now.at :][:SHOWN]
            closing = self._now.text == ")"
            raise _Wrong(
                f"{rest!r} closes a parenthesis that none opens. Remove it, or open one."
                if closing
                else f"{rest!r} follows a complete condition. Join conditions by AND or OR; results "
                "come in the order of their scores."
            )
        return condition.yes

    @property
    def _now(self) -> Token:
        return self.tokens[self.next]

    def _take(self, *words: str) -> str:
        """The next token's word, if it is one of these; it is then behind us."""
        word = self._now.word
        if word not in words:
            return ""
        self.next += 1
        return word

    def _need(self, sign: str, what: str) -> None:
        if not self._take(sign):
            raise _Wrong(f"{self._place()}, where {sign!r} has to close {what}.")

    def _place(self) -> str:
        token = self._now
        return "it ends" if token.kind == "end" else f"it has {token.text[:SHOWN]!r}"

    def _condition(self, value: Value | Condition) -> Condition:
        if isinstance(value, Condition):
            return value
        if value.kind != "bool":
            raise _Wrong(
                f"{value.name} is no condition by itself. Compare it with something, as in "
                f"{_example(value)}."
            )
        return Condition(value.sql, f"NOT {value.sql}")

    def _value(self, value: Value | Condition, where: str) -> Value:
        if isinstance(value, Condition):
            raise _Wrong(f"a condition stands where a value belongs, {where}. Join by AND or OR.")
        return value

    def _either(self) -> Value | Condition:
        first = self._both()
        parts = [first]
        while self._take("or"):
            parts.append(self._both())
        return _join("OR", [self._condition(part) for part in parts]) if parts[1:] else first

    def _both(self) -> Value | Condition:
        first = self._opposite()
        parts = [first]
        while self._take("and"):
            parts.append(self._opposite())
        return _join("AND", [self._condition(part) for part in parts]) if parts[1:] else first

    def _opposite(self) -> Value | Condition:
        if not self._take("not"):
            return self._comparison()
        with_depth = self._deeper()
        condition = self._condition(self._opposite())
        self.depth = with_depth
        return Condition(condition.no, condition.yes)

    def _deeper(self) -> int:
        """Go one level down; the level to come back to."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Wrong(
                f"more than {MAX_DEPTH} levels of parentheses, NOT or arithmetic. Write it flatter."
            )
        return self.depth - 1

    def _comparison(self) -> Value | Condition:
        left = self._sum()
        if self._take("is"):
            return self._is(self._value(left, "before IS"))
        sign = self._take("=", "==", "<>", "!=", "<", "<=", ">", ">=")
        if sign:
            sign = SIGNS.get(sign, sign)
            right = self._value(self._sum(), f"after {sign}")
            return _compare(self._value(left, f"before {sign}"), sign, right)
        negated = bool(self._take("not"))
        word = self._take("in", "between", "like", "ilike")
        if not word:
            if negated:
                raise _Wrong(f"{self._place()} after NOT. Write NOT IN, NOT LIKE or NOT BETWEEN.")
            return left
        value = self._value(left, f"before {word.upper()}")
        condition = self._in(value) if word == "in" else self._range_or_pattern(value, word)
        return Condition(condition.no, condition.yes) if negated else condition

    def _is(self, value: Value) -> Condition:
        negated, word = bool(self._take("not")), self._take("null", "true", "false")
        if not word:
            raise _Wrong(f"{self._place()} after IS. Write IS NULL, IS NOT NULL or IS TRUE.")
        condition = Condition(f"{value.sql} IS NULL", f"{value.sql} IS NOT NULL")
        if word != "null":
            if value.kind != "bool":
                raise _mismatch(value, word)
            word = word.upper()
            condition = Condition(f"{value.sql} IS {word}", f"{value.sql} IS NOT {word}")
        elif value.kind == "float":
            is_nan = f"isnan({value.sql})"
            yes, no = f"({condition.yes} OR {is_nan})", f"({condition.no} AND NOT {is_nan})"
            condition = Condition(yes, no)
        return Condition(condition.no, condition.yes) if negated else condition

    def _in(self, value: Value) -> Condition:
        if not self._take("("):
            right = self._value(self._sum(), "after IN")
            if right.kind == "list":
                return _call("array_has", [right, value])
            raise _Wrong(
                f"after IN stands {right.name}. Write a list, as in {value.name} IN (…, …), or a "
                "column that holds lists."
            )
        values = self._list(")", "the list after IN")
        if value.kind == "float":
            return _join("OR", [_compare(value, "=", other) for other in values])
        pairs = [_alike(value, other, "=") for other in values]
        if len({left.sql for left, _ in pairs}) > 1:  # whole numbers, and others among them
            return _join("OR", [_compare(value, "=", other) for other in values])
        left, listed = pairs[0][0], ", ".join(right.sql for _, right in pairs)
        return Condition(f"{left.sql} IN ({listed})", f"{left.sql} NOT IN ({listed})")

    def _list(self, close: str, what: str) -> list[Value]:
        values: list[Value] = []
        while True:
            if self._now.word == close and not values:
                raise _Wrong(f"{what} is empty. Write its values, separated by commas.")
            values.append(self._value(self._sum(), f"in {what}"))
            if not self._take(","):
                self._need(close, what)
                return values

    def _range_or_pattern(self, value: Value, word: str) -> Condition:
        if word == "between":
            low = self._value(self._sum(), "after BETWEEN")
            if not self._take("and"):
                raise _Wrong(f"{self._place()} after BETWEEN. Write {value.name} BETWEEN … AND ….")
            high = self._value(self._sum(), "after AND")
            return _join("AND", [_compare(value, ">=", low), _compare(value, "<=", high)])
        pattern = self._value(self._sum(), f"after {word.upper()}")
        if value.kind != "text":
            raise _mismatch(value, pattern.name)
        if not isinstance(pattern.constant, str):
            raise _Wrong(f"after {word.upper()} stands {pattern.name}. Write a text: '%red%'.")
        yes = f"{value.sql} {word.upper()} {pattern.sql}"
        return Condition(yes, f"{value.sql} NOT {word.upper()} {pattern.sql}")

    def _sum(self) -> Value | Condition:
        return self._chain(self._product, "+", "-")

    def _product(self) -> Value | Condition:
        return self._chain(self._single, "*", "/")

    def _chain(self, part: Any, *signs: str) -> Value | Condition:
        left: Value | Condition = part()
        before = self.depth
        while sign := self._take(*signs):
            self._deeper()  # as a + b + c is (a + b) + c
            one = self._value(left, f"before {sign}")
            other = self._value(part(), f"after {sign}")
            numbers = [_as_float(_number(one)), _as_float(_number(other))]
            if sign == "/":
                numbers[1] = f"nullif({numbers[1]}, CAST(0 AS DOUBLE))"
            sql = f"({numbers[0]} {sign} {numbers[1]})"
            left = Value(sql, "float", f"{one.name} {sign} {other.name}")
        self.depth = before
        return left

    def _single(self) -> Value | Condition:
        token = self._now
        if sign := self._take("-", "+"):
            before = self._deeper()
            value = _number(self._value(self._single(), f"after {sign}"))
            self.depth = before
            if value.constant is not None:
                return _literal(-value.constant if sign == "-" else value.constant)
            return Value(f"({sign}{_as_float(value)})", "float", f"{sign}{value.name}")
        if self._take("("):
            before = self._deeper()
            result = self._either()
            self.depth = before
            self._need(")", "a parenthesis")
            if isinstance(result, Condition):
                return Condition(f"({result.yes})", f"({result.no})")
            return result
        if self._take("["):
            return _texts(self._list("]", "a list"))
        if word := self._take("true", "false", "null"):
            return Value(word.upper(), "null" if word == "null" else "bool", word, word)
        self.next += 1
        if token.kind == "text":
            return _text(token.text[1:-1].replace("''", "'"))
        if token.kind == "number":
            return _literal(_constant_of(token.text))
        if token.kind in ("name", "quoted"):
            return self._column_or_call(token)
        self.next -= 1
        raise _Wrong(f"{self._place()} where a column or a value belongs.")

    def _column_or_call(self, token: Token) -> Value | Condition:
        name = token.text
        if token.kind == "quoted":
            name = name[1:-1].replace(name[0] * 2, name[0])
        elif self._now.text == "(":
            return self._function(name)
        elif name.lower() in ("date", "timestamp") and self._now.kind == "text":
            return self._single()  # DATE '2024-01-31' is '2024-01-31'
        column = self._find(name)
        if column is not None:
            return Value(_quote(column), self.kinds[column], _name(column))
        raise _Wrong(self._no_column(name, token.at))

    def _no_column(self, name: str, at: int) -> str:
        """What to write in place of a name at this place of the filter."""
        rest = self.filter[at:].lower()
        for column, here in self.names.items():
            plain = _name(column) == column
            if name.lower() == column.lower() or (not plain and rest.startswith(column.lower())):
                what = "the id" if here == "document_id" else "in the text"
                example = "= 'A1'" if here == "document_id" else "LIKE '%red%'"
                return (
                    f"{column!r} is {what}, which is {here} in filters. Write {here} {example}, or "
                    f"add {column!r} to source.metadata."
                )
        for column in self.kinds:
            if _name(column) != column and rest.startswith(column.lower()):
                return f"{column!r} is no plain word. Write it in double quotes: {_name(column)}."
        near = did_you_mean(name, self.kinds)
        if name.lower() == "id" and "document_id" in self.kinds:
            near = " Did you mean 'document_id'?"
        before = [token.word or token.text for token in self.tokens if token.at < at][-2:]
        is_value = before == ["in", "("] or not VALUE_FOLLOWS.isdisjoint(before[-1:])
        quotes = f" Texts stand in single quotes: '{name}'." if is_value else ""
        return (
            f"there is no column {name!r}.{near}{quotes} Other columns of the source have to be in "
            "source.metadata."
        )

    def _find(self, name: str) -> str | None:
        """The column of a name; `a.b` of a file is `a_b`, and case is minded only where two
        columns differ by it alone."""
        for written in (name, name.replace(".", "_")):
            if written in self.kinds:
                return written
            alike = [column for column in self.kinds if column.lower() == written.lower()]
            if len(alike) == 1:
                return alike[0]
        return None

    def _function(self, name: str) -> Value | Condition:
        aliases = {"array_contains": "array_has", "list_contains": "array_has"}
        word = aliases.get(name.lower(), name.lower())
        if word not in CALLS:
            raise _Wrong(
                f"there is no function {name!r}.{did_you_mean(word, CALLS)} There are: "
                f"{', '.join(CALLS)}."
            )
        self._take("(")
        before = self._deeper()
        arguments = self._list(")", f"the arguments of {name}")
        self.depth = before
        kinds = [value.kind for value in arguments]
        if word == "contains" and kinds[0] == "list":
            word = "array_has"
        if word == "length" and kinds[0] == "list":
            word = "array_length"
        if word in CALLS and CALLS[word][1] == "condition":
            return _call(word, arguments)
        return _computed(word, arguments)


def _tokens(filter: str) -> list[Token]:
    if len(filter) > MAX_CHARACTERS:
        raise _Wrong(f"it has more than {MAX_CHARACTERS:,} characters. Search by fewer values.")
    tokens, at = [], 0
    while at < len(filter):
        match = TOKEN.match(filter, at)
        if match is None or filter.startswith(("--", "/*"), at):
            raise _Wrong(_unreadable(filter[at:]))
        kind, text = str(match.lastgroup), match[0]
        if kind == "name" and text.lower() in KEYWORDS:
            kind = "keyword"
        if kind != "space":
            tokens.append(Token(kind, text, at))
        at = match.end()
    if not tokens:
        raise _Wrong("it is empty. Write a condition, or leave it out.")
    return [*tokens, Token("end", "", at)]


def _unreadable(rest: str) -> str:
    if rest[0] in "'\"`":
        return f"the quote of {rest[:SHOWN]} is not closed. Close it; a quote in a text is ''."
    if rest[0] in "‘’“”„":
        return f"{rest[0]!r} is a quote of prose. Write texts in straight single quotes: 'red'."
    if rest[:2] in ("&&", "||"):
        return f"{rest[:2]!r} stands in it. Write {'AND' if rest[0] == '&' else 'OR'}."
    if rest[0].isdigit() or rest[0] == ".":
        return f"{rest.split()[0][:SHOWN]!r} is no number. Texts stand in single quotes."
    if rest[:2] in ("--", "/*"):
        return f"{rest[:SHOWN]!r} is a comment. Leave it out; write 1 - -1 with a space."
    if rest[0] == ";":
        return f"{rest[:SHOWN]!r} follows. Write one condition, without a ';'."
    return f"{rest[0]!r} stands in it. Texts stand in single quotes."


def _join(word: str, parts: list[Condition]) -> Condition:
    """All parts or one of them. Halved again and again: a store recurses into each join."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = _join(word, parts[:middle]), _join(word, parts[middle:])
    other = "OR" if word == "AND" else "AND"
    return Condition(f"({left.yes} {word} {right.yes})", f"({left.no} {other} {right.no})")


def _compare(left: Value, sign: str, right: Value) -> Condition:
    left, right = _alike(left, right, sign)
    values = [value for value in (left, right) if value.kind == "float" and value.constant is None]
    guards = [f" AND NOT isnan({value.sql})" for value in values]
    texts = [f"{left.sql} {one} {right.sql}{''.join(guards)}" for one in (sign, OPPOSITE[sign])]
    yes, no = (f"({text})" if guards else text for text in texts)
    return Condition(yes, no)


def _alike(left: Value, right: Value, sign: str) -> tuple[Value, Value]:
    """Both values, made comparable."""
    for one, other in ((left, right), (right, left)):
        if one.kind == "null":
            word = "IS NOT NULL" if sign == "<>" else "IS NULL"
            raise _Wrong(f"nothing equals null. Write {other.name} {word}.")
        if one.kind in ("list", "texts"):
            element = other.name if other.kind == "text" else "'red'"
            column = one.name if one.kind == "list" else other.name
            raise _Wrong(
                f"{column} holds lists of texts. Write {element} IN {column}, or in a mapping "
                f"'contains'."
            )
    kinds = {left.kind, right.kind}
    if kinds & {"date", "timestamp"}:
        return _alike_times(left, right, sign)
    if kinds & {*NUMBERS}:
        left, right = _number(left, right), _number(right, left)
        if left.kind == right.kind == "int":
            return left, right
        return _to_float(left), _to_float(right)
    if len(kinds) > 1:
        first, second = (right, left) if left.constant is not None else (left, right)
        raise _mismatch(first, second.name, _declare("bool", left, right))
    if kinds == {"bool"} and sign not in ("=", "<>"):
        raise _Wrong(f"true and false have no order. Write = or <> instead of {sign}.")
    return left, right


def _alike_times(left: Value, right: Value, sign: str) -> tuple[Value, Value]:
    values = []
    for one, other in ((left, right), (right, left)):
        if one.kind == "text" and isinstance(one.constant, str):
            one = _time(one, other, sign)
        elif one.kind not in ("date", "timestamp"):
            raise _mismatch(other, one.name)
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
        raise _Wrong(f"{value.name} is no day or time, and {other.name} holds {what}. Write "
                     f"{example}.") from None  # fmt: skip
    is_day = re.fullmatch(r"\d{4}-?\d\d-?\d\d", text) is not None
    if other.kind == "date" and is_day:
        return Value(f"DATE '{moment.date().isoformat()}'", "date", value.name, moment)
    if is_day and sign in ("=", "<>"):
        after = moment.date() + datetime.timedelta(1) if moment.year < 9999 else moment.date()
        raise _Wrong(
            f"{other.name} holds times, and {value.name} is a whole day. Write {other.name} >= "
            f"{value.name} AND {other.name} < '{after.isoformat()}'."
        )
    time = moment.isoformat(sep=" ", timespec="microseconds")
    return Value(f"TIMESTAMP '{time}'", "timestamp", value.name, moment)


def _number(value: Value, other: Value | None = None) -> Value:
    """A number; a text that is one counts where it stands beside a number."""
    if value.kind in NUMBERS:
        return value
    if isinstance(value.constant, str) and value.kind == "text" and other is not None:
        text = value.constant.strip()
        if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", text):
            return _literal(_constant_of(text))
    if other is None:
        declare = _declare("float", value)
        raise _Wrong(f"{value.name} is no number, and only numbers can be computed with.{declare}")
    column, wrong = (other, value) if other.constant is None else (value, other)
    raise _mismatch(column, wrong.name, _declare("float", value, other))


def _mismatch(column: Value, other: str, remedy: str = "") -> _Wrong:
    what, _ = HOLDS.get(column.kind, ("something else", ""))
    return _Wrong(
        f"{column.name} holds {what}, and {other} is none. Write {_example(column)}.{remedy}"
    )


def _declare(kind: str, *values: Value) -> str:
    """A remedy, where a column of texts is taken for one of this kind."""
    for value in values:
        if value.kind == "text" and value.constant is None and "(" not in value.name:
            return (
                f" If {value.name} holds {HOLDS[kind][0]}, declare it as {kind} in source.metadata."
            )
    return ""


def _example(value: Value) -> str:
    example = HOLDS.get(value.kind, ("", "…"))[1]
    if value.constant is not None:
        return f"column = {value.name}"
    return f"{example} IN {value.name}" if value.kind == "list" else f"{value.name} = {example}"


def _constant_of(text: str) -> int | float:
    if re.fullmatch(r"[+-]?\d{1,40}", text):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise _Wrong(f"{text[:SHOWN]} is too large a number.")
    return number


def _literal(number: int | float) -> Value:
    if isinstance(number, int) and -INT64 <= number < INT64:
        return Value(str(number), "int", str(number), number)
    return Value(f"CAST({float(number)!r} AS DOUBLE)", "float", repr(number), number)


def _as_float(value: Value) -> str:
    return _to_float(value).sql


def _to_float(value: Value) -> Value:
    if value.kind == "float":
        return value
    return Value(f"CAST({value.sql} AS DOUBLE)", "float", value.name, value.constant)


def _text(text: str) -> Value:
    quoted = "'" + text.replace("'", "''") + "'"
    return Value(quoted, "text", quoted, text)


def _texts(values: list[Value]) -> Value:
    for value in values:
        if value.kind != "text":
            raise _Wrong(f"{value.name} stands in a list of texts. Write ['red', 'blue'].")
    listed = ", ".join(value.sql for value in values)
    return Value(f"make_array({listed})", "texts", f"[{listed}]")


def _call(word: str, arguments: list[Value]) -> Condition:
    sql = _sql(word, arguments)
    return Condition(sql, f"NOT {sql}")


def _computed(word: str, arguments: list[Value]) -> Value:
    names = ", ".join(value.name for value in arguments)
    return Value(_sql(word, arguments), CALLS[word][1], f"{word}({names})")


def _sql(word: str, arguments: list[Value]) -> str:
    kinds, _, template = CALLS[word]
    usage = f"{word}({', '.join(HOLDS.get(kind, ('', '[…]'))[0] or '[…]' for kind in kinds)})"
    if len(arguments) != len(kinds):
        raise _Wrong(f"{word} takes {len(kinds)} values, not {len(arguments)}: {usage}.")
    texts = []
    for kind, value in zip(kinds, arguments, strict=True):
        fits = value.kind == kind or (kind == "float" and value.kind == "int")
        if not fits and not (kind == "timestamp" and value.kind == "date"):
            raise _Wrong(f"{value.name} does not fit into {usage}.")
        texts.append(_as_float(value) if kind == "float" else value.sql)
    return template.format(*texts)


def _quote(column: str) -> str:
    """A column's name in the store's SQL."""
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else f"`{column}`"


def _name(column: str) -> str:
    """A column's name as a filter writes it."""
    plain = re.fullmatch(r"[^\W\d]\w*", column) and column.lower() not in KEYWORDS
    return column if plain else '"' + column.replace('"', '""') + '"'


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
