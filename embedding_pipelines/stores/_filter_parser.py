"""Reads a filter, a condition in the words of docs/search.md, and writes it for the store."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from embedding_pipelines.errors import did_you_mean
from embedding_pipelines.stores._filter_values import (
    CALLS,
    KEYWORDS,
    SHOWN,
    Condition,
    Value,
    Wrong,
    as_float,
    as_number,
    call,
    compare,
    computed,
    days_ago,
    example_of,
    join,
    literal,
    make_alike,
    mismatch,
    parse_number,
    quote,
    text_list,
    text_value,
    written_name,
)

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 30  # of parentheses, of NOT and of what is computed: a store recurses into each
TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<text>'(?:[^']|'')*') | (?P<quoted>"(?:[^"]|"")+" | `(?:[^`]|``)+`)
    | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?!\w)) | (?P<name>[^\W\d]\w*(?:\.\w+)*)
    | (?P<sign><=|>=|<>|!=|==|[=<>+\-*/(),\[\]])""",
    re.VERBOSE,
)
VALUE_FOLLOWS = {"=", "==", "<>", "!=", "<", "<=", ">", ">=", "like", "ilike", "between", ",", "["}
SIGNS = {"==": "=", "!=": "<>"}
DAYS_AGO = "days_ago"
CLOCKS = {  # how other dialects say the time
    "now", "today", "current_date", "current_timestamp", "getdate", "sysdate", "localtimestamp",
    "interval", "date_sub", "dateadd", "datediff",
}  # fmt: skip
DAYS_AGO_HINT = "Write days_ago(0) for today, days_ago(30) for 30 days ago (UTC)."


class Token(NamedTuple):
    kind: str  # a group of TOKEN, "keyword" or "end"
    text: str
    at: int  # first character in the filter

    @property
    def word(self) -> str:
        return self.text.lower() if self.kind in ("keyword", "sign") else ""


class Parser:
    """Reads one condition. Binds, loosest first: OR, AND, NOT, comparisons, + and -, * and /."""

    def __init__(self, filter: str, kinds: dict[str, str], names: Mapping[str, str]) -> None:
        self.kinds, self.names, self.depth, self.next = kinds, names, 0, 0
        self.tokens = read_tokens(filter)
        self.filter = filter

    def read(self) -> str:
        condition = self._condition(self._either())
        if self._now.kind != "end":
            rest = self.filter[self._now.at :][:SHOWN]
            closing = self._now.text == ")"
            raise Wrong(
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
            raise Wrong(f"{self._place()}, where {sign!r} has to close {what}.")

    def _place(self) -> str:
        token = self._now
        return "it ends" if token.kind == "end" else f"it has {token.text[:SHOWN]!r}"

    def _condition(self, value: Value | Condition) -> Condition:
        if isinstance(value, Condition):
            return value
        if value.kind != "bool":
            raise Wrong(
                f"{value.name} is no condition by itself. Compare it with something, as in "
                f"{example_of(value)}."
            )
        return Condition(value.sql, f"NOT {value.sql}")

    def _value(self, value: Value | Condition, where: str) -> Value:
        if isinstance(value, Condition):
            raise Wrong(f"a condition stands where a value belongs, {where}. Join by AND or OR.")
        return value

    def _either(self) -> Value | Condition:
        first = self._both()
        parts = [first]
        while self._take("or"):
            parts.append(self._both())
        return join("OR", [self._condition(part) for part in parts]) if parts[1:] else first

    def _both(self) -> Value | Condition:
        first = self._opposite()
        parts = [first]
        while self._take("and"):
            parts.append(self._opposite())
        return join("AND", [self._condition(part) for part in parts]) if parts[1:] else first

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
            raise Wrong(
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
            return compare(self._value(left, f"before {sign}"), sign, right)
        negated = bool(self._take("not"))
        word = self._take("in", "between", "like", "ilike")
        if not word:
            if negated:
                raise Wrong(f"{self._place()} after NOT. Write NOT IN, NOT LIKE or NOT BETWEEN.")
            return left
        value = self._value(left, f"before {word.upper()}")
        condition = self._in(value) if word == "in" else self._range_or_pattern(value, word)
        return Condition(condition.no, condition.yes) if negated else condition

    def _is(self, value: Value) -> Condition:
        negated, word = bool(self._take("not")), self._take("null", "true", "false")
        if not word:
            raise Wrong(f"{self._place()} after IS. Write IS NULL, IS NOT NULL or IS TRUE.")
        condition = Condition(f"{value.sql} IS NULL", f"{value.sql} IS NOT NULL")
        if word != "null":
            if value.kind != "bool":
                raise mismatch(value, word)
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
                return call("array_has", [right, value])
            raise Wrong(
                f"after IN stands {right.name}. Write a list, as in {value.name} IN (…, …), or a "
                "column that holds lists."
            )
        values = self._list(")", "the list after IN")
        if value.kind == "float":
            return join("OR", [compare(value, "=", other) for other in values])
        pairs = [make_alike(value, other, "=") for other in values]
        if len({left.sql for left, _ in pairs}) > 1:  # whole numbers, and others among them
            return join("OR", [compare(value, "=", other) for other in values])
        left, listed = pairs[0][0], ", ".join(right.sql for _, right in pairs)
        return Condition(f"{left.sql} IN ({listed})", f"{left.sql} NOT IN ({listed})")

    def _list(self, close: str, what: str) -> list[Value]:
        values: list[Value] = []
        while True:
            if self._now.word == close and not values:
                raise Wrong(f"{what} is empty. Write its values, separated by commas.")
            values.append(self._value(self._sum(), f"in {what}"))
            if not self._take(","):
                self._need(close, what)
                return values

    def _range_or_pattern(self, value: Value, word: str) -> Condition:
        if word == "between":
            low = self._value(self._sum(), "after BETWEEN")
            if not self._take("and"):
                raise Wrong(f"{self._place()} after BETWEEN. Write {value.name} BETWEEN … AND ….")
            high = self._value(self._sum(), "after AND")
            return join("AND", [compare(value, ">=", low), compare(value, "<=", high)])
        pattern = self._value(self._sum(), f"after {word.upper()}")
        if value.kind != "text":
            raise mismatch(value, pattern.name)
        if not isinstance(pattern.constant, str):
            raise Wrong(f"after {word.upper()} stands {pattern.name}. Write a text: '%red%'.")
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
            numbers = [as_float(as_number(one)), as_float(as_number(other))]
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
            value = as_number(self._value(self._single(), f"after {sign}"))
            self.depth = before
            if value.constant is not None:
                return literal(-value.constant if sign == "-" else value.constant)
            return Value(f"({sign}{as_float(value)})", "float", f"{sign}{value.name}")
        if self._take("("):
            before = self._deeper()
            result = self._either()
            self.depth = before
            self._need(")", "a parenthesis")
            if isinstance(result, Condition):
                return Condition(f"({result.yes})", f"({result.no})")
            return result
        if self._take("["):
            return text_list(self._list("]", "a list"))
        if word := self._take("true", "false", "null"):
            return Value(word.upper(), "null" if word == "null" else "bool", word, word)
        self.next += 1
        if token.kind == "text":
            return text_value(token.text[1:-1].replace("''", "'"))
        if token.kind == "number":
            return literal(parse_number(token.text))
        if token.kind in ("name", "quoted"):
            return self._column_or_call(token)
        self.next -= 1
        raise Wrong(f"{self._place()} where a column or a value belongs.")

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
            return Value(quote(column), self.kinds[column], written_name(column))
        raise Wrong(self._no_column(name, token.at))

    def _no_column(self, name: str, at: int) -> str:
        """What to write in place of a name at this place of the filter."""
        rest = self.filter[at:].lower()
        for column, here in self.names.items():
            plain = written_name(column) == column
            if name.lower() == column.lower() or (not plain and rest.startswith(column.lower())):
                what = "the id" if here == "document_id" else "in the text"
                example = "= 'A1'" if here == "document_id" else "ILIKE '%red%'"
                return (
                    f"{column!r} is {what}, which is {here} in filters. Write {here} {example}, or "
                    f"add {column!r} to source.metadata."
                )
        for column in self.kinds:
            if written_name(column) != column and rest.startswith(column.lower()):
                return f"{column!r} is no plain word. Write it in double quotes: {written_name(column)}."
        if name.lower() in CLOCKS:
            return f"there is no column {name!r}. {DAYS_AGO_HINT}"
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
        if word in CLOCKS:
            raise Wrong(f"there is no function {name!r}. {DAYS_AGO_HINT}")
        if word not in (*CALLS, DAYS_AGO):
            raise Wrong(
                f"there is no function {name!r}.{did_you_mean(word, CALLS)} There are: "
                f"{', '.join([*CALLS, DAYS_AGO])}."
            )
        self._take("(")
        before = self._deeper()
        arguments = self._list(")", f"the arguments of {name}")
        self.depth = before
        if word == DAYS_AGO:
            return days_ago(arguments)
        kinds = [value.kind for value in arguments]
        if word == "contains" and kinds[0] == "list":
            word = "array_has"
        if word == "length" and kinds[0] == "list":
            word = "array_length"
        if word in CALLS and CALLS[word][1] == "condition":
            return call(word, arguments)
        return computed(word, arguments)


def read_tokens(filter: str) -> list[Token]:
    if len(filter) > MAX_CHARACTERS:
        raise Wrong(f"it has more than {MAX_CHARACTERS:,} characters. Search by fewer values.")
    tokens, at = [], 0
    while at < len(filter):
        match = TOKEN.match(filter, at)
        if match is None or filter.startswith(("--", "/*"), at):
            raise Wrong(_unreadable(filter[at:]))
        kind, text = str(match.lastgroup), match[0]
        if kind == "name" and text.lower() in KEYWORDS:
            kind = "keyword"
        if kind != "space":
            tokens.append(Token(kind, text, at))
        at = match.end()
    if not tokens:
        raise Wrong("it is empty. Write a condition, or leave it out.")
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
