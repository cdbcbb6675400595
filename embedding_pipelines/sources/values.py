"""Converts the values of a column to text or to a declared type: exactly, or not and with a reason.

A value means what its text says, and so the same in every format: whole floats and decimals are
whole numbers, NaN and infinity are no value, a time is written as in ISO 8601. What Arrow converts
exactly is left to it; the rest goes by the text.
"""

import contextlib
import decimal
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines.schemas import METADATA_TYPES

Mask = npt.NDArray[np.bool_]
Reasons = dict[int, str]  # position in the batch -> why this row is rejected
Reason = Callable[[int], str]  # of the row at a position

UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)
_SHOWN_CHARACTERS = 60  # of a value in a reason
_INT64 = range(-(2**63), 2**63)
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799  # of the years 1 and 9999
_DAY_SECONDS = 86_400
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_LARGEST_EXPONENT = 30  # of ten; a number beyond is no int64 and no time
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# 1.234,50 and $12: digits, what may stand between them, and a sign before or after.
_OTHER_NUMBER = re.compile(r"[^\w.+-]?\s*[+-]?\d[\d.,'’_\s]*[^\w.,'’]?")
_OTHER_DATE = re.compile(r"^\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|^\d{4}[./]\d|^\d{4}-\d(?!\d)")
_TIME_OF_DAY = re.compile(r"^\d{4}-\d\d-\d\d[Tt ]\d\d")
_NOT_FINITE = frozenset({"inf", "infinity", "nan"})
_JSON = json.JSONDecoder(parse_int=str, parse_float=str)
_OFFSET = r"(Z|[+-]\d\d(?::?\d\d)?)"
# Arrow writes a fraction for each unit but seconds; the text shall not depend on the unit.
_SHORTER_TIMES = ((rf"(\.\d*?)0+{_OFFSET}?$", r"\1\2"), (rf"\.{_OFFSET}?$", r"\1"))
# What says the same time as a form that Arrow reads.
_TIME_FORMS = (
    (r"^(\d{4}-\d\d-\d\d)t", r"\1T"),
    (r"(\d\d:\d\d:\d\d),(\d)", r"\1.\2"),
    (r"(?i)\s*(?:[+-]00:?00\s+)?(?:z|utc|gmt)$", "Z"),
    (r"\s+([+-]\d\d(?::?\d\d)?)$", r"\1"),
    (rf"(:\d\d\.\d{{6}})0+{_OFFSET}?$", r"\1\2"),
)
_TOO_FINE = rf"(:\d\d\.\d{{6}})\d+{_OFFSET}?$"
# What databases and spreadsheets write beside true, false, 1 and 0; 1.0 is pandas', beside a null.
_BOOLS = ((r"(?i)^(t|yes|y|on|1\.0)$", "true"), (r"(?i)^(f|no|n|off|0\.0)$", "false"))
_MIDNIGHT = rf"^(\d{{4}}-\d\d-\d\d)[Tt ]00:00(?::00(?:\.0+)?)?\s*(?:[zZ]|UTC|GMT|{_OFFSET})?$"


@dataclass
class Column:
    """A column of a file that is being converted, and what is wrong with its values.

    encoding: as a reason names it; missing: words, in lower case, that stand for no value where a
    number, a boolean or a time is declared; cut_nanoseconds: what a microsecond cannot hold is
    dropped, not rejected; reasons: why rows are rejected; absent: how often which word was no value;
    join: makes a text of the parts of a list.
    """

    name: str
    encoding: str = "UTF-8"
    missing: frozenset[str] = frozenset()
    cut_nanoseconds: bool = False
    reasons: Reasons = field(default_factory=dict)
    absent: Counter[str] = field(default_factory=Counter)
    join: Callable[[Sequence[str]], str] = "\n".join

    def text(self, array: pa.Array) -> pa.Array:
        """The values as string; lists as their parts joined."""
        array = _plain(array)
        if not _is_list(array.type):
            return self._texts(array)
        rows = self._lists(array).to_pylist()
        texts = [None if row is None else self.join(list(filter(None, row))) for row in rows]
        return pa.array(texts, pa.string())

    def convert(self, array: pa.Array, declared: str) -> pa.Array:
        """The values as METADATA_TYPES[declared], where `timestamp[s]` and such also say the unit
        of numbers. An empty text is no value except in a string."""
        array, (declared, unit) = _plain(array), split_unit(declared)
        if declared == "list[string]":
            return self._lists(array)
        if declared == "string":
            return self._texts(array)
        native = self._native(array, declared)
        if native is not None:
            return native
        texts = self._without_missing(pc.utf8_trim_whitespace(self._texts(array)))
        parsers = {
            "int": self._ints,
            "float": self._floats,
            "bool": self._bools,
            "date": self._dates,
            "timestamp": self._timestamps,
        }
        return self._counted_times(texts, unit) if unit else parsers[declared](texts)

    # Values as texts.

    def _texts(self, array: pa.Array) -> pa.Array:
        kind, types = array.type, pa.types
        if _is_text(kind) or _is_bytes(kind):
            return self._decoded(array)
        if types.is_floating(kind):
            return self._float_texts(array)
        if types.is_decimal(kind):
            return _decimal_texts(array)
        if types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind):
            return pc.cast(array, pa.string())
        if types.is_duration(kind):
            return self._refuse_all(array, "is a duration; write it as a number or as text")
        if types.is_temporal(kind):
            return self._time_texts(array)
        return self._refuse_all(array, f"is {kind}, not text or a number")

    def _decoded(self, array: pa.Array) -> pa.Array:
        """Bytes, and texts whose bytes may be wrong, as UTF-8."""
        is_fixed = pa.types.is_fixed_size_binary(array.type)  # mostly numbers, keys and hashes
        is_large = array.type in (pa.large_string(), pa.large_binary())
        data = pc.cast(array, pa.large_binary() if is_large else pa.binary())

        def decode(part: pa.Array) -> pa.Array:
            texts = pc.cast(pc.cast(part, pa.large_string()) if is_large else part, pa.string())
            if is_fixed and pc.any(pc.match_substring(texts, "\0")).as_py():
                raise pa.ArrowInvalid("a zero byte")
            return texts

        def reason(at: int) -> str:
            try:
                data[at].as_py().decode()
            except UnicodeDecodeError:
                return f"column {self.name!r} is not valid {self.encoding}"
            return f"column {self.name!r} is binary data, not text"

        return self._each(data, pa.string(), decode, reason)

    def _float_texts(self, array: pa.Array) -> pa.Array:
        array = self._finite(array)
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        if pa.types.is_float16(array.type):  # Arrow writes more digits than it takes
            texts = pa.array([str(value) for value in values], pa.string())
        else:
            texts = pc.cast(array, pa.string())
        values = values.astype(np.float64)
        whole = values == np.trunc(values)
        small = whole & (np.abs(values) < 2.0**63)
        digits = pc.cast(pa.array(np.where(small, values, 0).astype(np.int64)), pa.string())
        if (whole & ~small).any():
            rows = zip(digits.to_pylist(), values.tolist(), (whole & ~small).tolist(), strict=True)
            digits = pa.array([str(int(value)) if large else row for row, value, large in rows])
        texts = pc.if_else(pa.array(whole), digits, texts)
        return pc.if_else(pc.is_valid(array), texts, pa.scalar(None, pa.string()))

    def _time_texts(self, array: pa.Array) -> pa.Array:
        is_time_of_day = pa.types.is_time(array.type)
        array = array if is_time_of_day else self._within_years(array)
        is_date64 = pa.types.is_date64(array.type)
        if is_date64:
            array = pc.cast(array, pa.timestamp("ms"))
        try:
            texts = pc.cast(array, pa.string())
        except _ARROW_ERRORS as error:
            return self._refuse_all(array, f"cannot be written as text ({_line(error)})")
        for pattern, form in () if pa.types.is_date(array.type) else _SHORTER_TIMES:
            texts = pc.replace_substring_regex(texts, pattern, form)
        return pc.replace_substring_regex(texts, " 00:00:00$", "") if is_date64 else texts

    # Declared types.

    def _native(self, array: pa.Array, declared: str) -> pa.Array | None:
        """What Arrow and numpy convert exactly; None where the text decides."""
        kind, types, target = array.type, pa.types, METADATA_TYPES[declared]
        if types.is_null(kind) or (declared == "bool" and kind == target):
            return pc.cast(array, target)
        if declared == "int" and types.is_signed_integer(kind):
            return pc.cast(array, target)
        if declared == "float" and types.is_floating(kind):
            return pc.cast(self._finite(array), target)
        if declared == "float" and types.is_integer(kind):
            return pc.cast(array, target, safe=False)  # the nearest
        if declared in ("date", "timestamp") and (types.is_date(kind) or types.is_timestamp(kind)):
            array = self._within_years(array)
            return self._days(array) if declared == "date" else self._microseconds(array)
        return None

    def _days(self, array: pa.Array) -> pa.Array:
        """Dates, and timestamps at midnight in their own zone, as dates."""
        if pa.types.is_date32(array.type):
            return array
        shown = self._time_texts(array)
        if pa.types.is_timestamp(array.type) and array.type.tz is not None:
            if shown.null_count > array.null_count:  # a zone that nobody knows, which is told
                return pa.nulls(len(array), pa.date32())
            array = pc.local_timestamp(array)
        per_day = _DAY_SECONDS * _PER_SECOND[_unit(array.type)]
        days, rest = np.divmod(_counts(array), per_day)
        dates = pa.array(days.astype(np.int32), mask=_true(pc.is_null(array))).cast(pa.date32())
        reason = self._reason(shown, "date")
        return self._refuse(dates, rest != 0, reason)

    def _microseconds(self, array: pa.Array) -> pa.Array:
        """Dates and timestamps of any unit, within the years, as UTC timestamps."""
        counts = _counts(array)
        if pa.types.is_date32(array.type):
            counts = counts * _DAY_SECONDS * 10**6
        elif _unit(array.type) == "ns":
            counts, rest = np.divmod(counts, 1000)
            if not self.cut_nanoseconds:
                fine = rest != 0
                shown = self._time_texts(array) if fine.any() else array
                array = self._refuse(array, fine, lambda at: self.too_fine(shown[at].as_py()))
        else:
            counts = counts * (10**6 // _PER_SECOND[_unit(array.type)])
        nulls = _true(pc.is_null(array))
        return pa.array(counts, mask=nulls).cast(METADATA_TYPES["timestamp"])

    def _within_years(self, array: pa.Array) -> pa.Array:
        """Python, and with it most of what reads a table, knows the years 1 to 9999."""
        counts, kind = _counts(array), array.type
        if pa.types.is_date32(kind):
            first, last = _FIRST_SECOND // _DAY_SECONDS, _LAST_SECOND // _DAY_SECONDS
        else:
            first = _FIRST_SECOND * _PER_SECOND[_unit(kind)]
            last = (_LAST_SECOND + 1) * _PER_SECOND[_unit(kind)] - 1
        mask = (counts < max(first, _INT64[0])) | (counts > min(last, _INT64[-1]))
        return self._refuse(
            array, mask, lambda _: f"column {self.name!r} is beyond the years 1 to 9999"
        )

    def _finite(self, array: pa.Array) -> pa.Array:
        """NaN and infinity are no value."""
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        return self._drop(array, ~np.isfinite(values), lambda at: _not_finite_word(values[at]))

    def _without_missing(self, texts: pa.Array) -> pa.Array:
        texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
        if not self.missing:
            return texts
        mask = _true(pc.is_in(pc.utf8_lower(texts), pa.array(sorted(self.missing), pa.string())))
        return self._drop(texts, mask, lambda at: texts[at].as_py())

    def _ints(self, texts: pa.Array) -> pa.Array:
        if not pc.any(pc.match_substring(texts, "x", ignore_case=True)).as_py():
            with contextlib.suppress(*_ARROW_ERRORS):  # most often all are plain
                return pc.cast(texts, pa.int64())
        plain = pc.replace_substring_regex(texts, r"^\+?(-?\d+)(?:\.0*)?$", r"\1")

        def parse(part: pa.Array) -> pa.Array:
            if len(part) == 1:
                return pa.array([_whole_number(part[0].as_py())], pa.int64())
            if not pc.all(pc.match_substring_regex(part, r"^-?\d+$")).as_py():
                raise pa.ArrowInvalid("another form of a number")
            return pc.cast(part, pa.int64())

        return self._each(plain, pa.int64(), parse, self._reason(texts, "int"))

    def _floats(self, texts: pa.Array) -> pa.Array:
        values = self._parsed(texts, "float")
        numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
        mask = ~np.isfinite(numbers)
        if not mask.any():
            return values
        words = [(text or "").lstrip("+-").lower() in _NOT_FINITE for text in texts.to_pylist()]
        is_word = np.array(words, dtype=bool)
        values = self._drop(values, mask & is_word, lambda at: _not_finite_word(numbers[at]))
        reason = self._reason(texts, "float")
        return self._refuse(values, mask & ~is_word, lambda at: f"{reason(at)}: it is too large")

    def _bools(self, texts: pa.Array) -> pa.Array:
        with contextlib.suppress(*_ARROW_ERRORS):  # most often all are true and false
            return pc.cast(texts, pa.bool_())
        words = texts
        for pattern, word in _BOOLS:
            words = pc.replace_substring_regex(words, pattern, word)
        return self._parsed(words, "bool", texts)

    def _dates(self, texts: pa.Array) -> pa.Array:
        days = pc.replace_substring_regex(texts, _MIDNIGHT, r"\1")
        return self._within_years(self._parsed(days, "date", texts))

    def _timestamps(self, texts: pa.Array) -> pa.Array:
        """A time without an offset is UTC."""
        for cast in (_with_offset, _assume_utc):  # most often all are of one kind
            with contextlib.suppress(*_ARROW_ERRORS):
                return self._within_years(cast(texts))
        forms = texts
        for pattern, form in _TIME_FORMS:
            forms = pc.replace_substring_regex(forms, pattern, form)
        fine = _true(pc.match_substring_regex(forms, _TOO_FINE))
        if fine.any():
            if not self.cut_nanoseconds:
                forms = self._refuse(forms, fine, lambda at: self.too_fine(texts[at].as_py()))
            forms = pc.replace_substring_regex(forms, _TOO_FINE, r"\1\2")
        null, has_offset = (
            pa.scalar(None, pa.string()),
            pc.match_substring_regex(forms, rf"[T ]\d.*{_OFFSET}$"),
        )
        with_offset = pc.if_else(has_offset, forms, null)
        without = pc.if_else(has_offset, null, forms)
        target, reason = METADATA_TYPES["timestamp"], self._reason(texts, "timestamp")

        times = pc.coalesce(
            self._each(with_offset, target, _with_offset, reason),
            self._each(without, target, _assume_utc, reason),
        )
        return self._within_years(times)

    def _counted_times(self, texts: pa.Array, unit: str) -> pa.Array:
        """Numbers as times since 1970 in this unit; other texts as `_timestamps` reads them."""
        counts: list[int | None] = []
        others: list[str | None] = []
        for at, text in enumerate(texts.to_pylist()):
            is_number = text is not None and _NUMBER.fullmatch(text) is not None
            counts.append(self._count(at, text, unit) if is_number else None)
            others.append(None if is_number else text)
        times = pa.array(counts, pa.int64()).cast(METADATA_TYPES["timestamp"])
        return pc.coalesce(times, self._timestamps(pa.array(others, pa.string())))

    def _count(self, at: int, text: str, unit: str) -> int | None:
        """Microseconds; None and a reason if there is no such time."""
        micros = _scaled(text, 10**6, _PER_SECOND[unit])
        if micros is None or not _FIRST_SECOND * 10**6 <= micros[0] < (_LAST_SECOND + 1) * 10**6:
            reason = f"column {self.name!r} is {_show(text)} {UNITS[unit]} since 1970, which is "
            self.reasons.setdefault(at, reason + "beyond the years 1 to 9999")
            return None
        if not micros[1] and not self.cut_nanoseconds:
            self.reasons.setdefault(at, self.too_fine(text))
            return None
        return micros[0]

    def _lists(self, array: pa.Array) -> pa.Array:
        """Lists of texts; a text must hold a JSON array."""
        if _is_list(array.type):
            return self._list_texts(array)
        rows: list[list[str | None] | None] = []
        for at, text in enumerate(self._texts(array).to_pylist()):
            try:
                rows.append(parse_list(text))
            except ValueError as error:
                self.reasons.setdefault(at, f"column {self.name!r} {error}")
                rows.append(None)
        return pa.array(rows, METADATA_TYPES["list[string]"])

    def _list_texts(self, array: pa.Array) -> pa.Array:
        """A list array as list<string>; a part that is no text rejects its row."""
        if not pa.types.is_list(array.type):  # pyarrow 26 casts views of lists wrongly
            array = pa.array(array.to_pylist(), pa.list_(array.type.value_type))
        parts = Column(self.name, self.encoding, absent=self.absent)
        texts = parts._texts(_plain(pc.list_flatten(array)))
        if parts.reasons:
            parents = pc.list_parent_indices(array)
            for at, reason in parts.reasons.items():
                self.reasons.setdefault(parents[at].as_py(), reason)
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), texts, mask=pc.is_null(array))

    # Values that do not convert.

    def _parsed(self, texts: pa.Array, declared: str, shown: pa.Array | None = None) -> pa.Array:
        target = METADATA_TYPES[declared]
        reason = self._reason(texts if shown is None else shown, declared)
        return self._each(texts, target, lambda part: pc.cast(part, target), reason)

    def _each(
        self,
        array: pa.Array,
        target: pa.DataType,
        cast: Callable[[pa.Array], pa.Array],
        reason: Reason,
        first: int = 0,
    ) -> pa.Array:
        """`cast(array)`; if that fails, by halves, down to null and a reason for a single row."""
        try:
            return cast(array)
        except _ARROW_ERRORS:
            if len(array) == 1:
                self.reasons.setdefault(first, reason(first))
                return pa.nulls(1, target)
        half = len(array) // 2
        left = self._each(array[:half], target, cast, reason, first)
        right = self._each(array[half:], target, cast, reason, first + half)
        return pa.concat_arrays([left, right])

    def _refuse(self, array: pa.Array, mask: Mask, reason: Reason) -> pa.Array:
        """The array with null where the mask is true, and a reason for each of these rows."""
        for at in np.flatnonzero(mask).tolist():
            self.reasons.setdefault(at, reason(at))
        return _without(array, mask)

    def _refuse_all(self, array: pa.Array, problem: str) -> pa.Array:
        reason = f"column {self.name!r} {problem}"
        texts = pa.nulls(len(array), pa.string())
        return self._refuse(texts, _true(pc.is_valid(array)), lambda _: reason)

    def _drop(self, array: pa.Array, mask: Mask, word: Callable[[int], str]) -> pa.Array:
        """The array with null where the mask is true; the words are counted."""
        self.absent.update(word(at) for at in np.flatnonzero(mask).tolist())
        return _without(array, mask)

    def _reason(self, texts: pa.Array, declared: str) -> Reason:
        def reason(at: int) -> str:
            text = texts[at].as_py()
            problem = f"column {self.name!r} is {_show(text)}, not {declared}"
            if declared in ("date", "timestamp") and _NUMBER.fullmatch(text):
                guess = "" if declared == "date" else f"timestamp[{_likely_unit(text)}] or "
                return f"{problem}: a number has no unit; declare it as {guess}int"
            if declared == "date" and _TIME_OF_DAY.search(text):
                problem += "; declare it as timestamp"
            if declared == "bool":
                problem += ": it is none of true, false, yes, no, t, f, y, n, on, off, 1 and 0"
            elif declared in ("int", "float") and _is_other_number(text):
                problem += ": a number is written as 1234.5; else declare it as string"
            elif declared in ("date", "timestamp") and _OTHER_DATE.search(text):
                problem += ": a day is written as 2024-01-31; else declare it as string"
            if not any(map(str.isdigit, text)) and text.lower() not in ("true", "false"):
                problem += "; if it stands for no value, add it to source.missing"
            return problem

        return reason

    def too_fine(self, text: str) -> str:
        """The reason to reject a time with nanoseconds."""
        return (
            f"column {self.name!r} is {_show(text)}, and a timestamp holds microseconds; set "
            "source.nanoseconds to cut, or declare it as string"
        )


def split_unit(declared: str) -> tuple[str, str]:
    """`timestamp[ms]` is `timestamp` and `ms`; of other types the unit is empty."""
    name, bracket, unit = declared.partition("[")
    return (name, unit.removesuffix("]")) if bracket and unit[:-1] in UNITS else (declared, "")


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Without dictionaries, runs and extension types; a UUID as its text."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    while True:
        kind = array.type
        if pa.types.is_dictionary(kind):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(kind):
            array = pc.run_end_decode(array)
        elif isinstance(array, pa.ExtensionArray):
            is_uuid = kind.extension_name == "arrow.uuid"
            array = _uuid_texts(array.storage) if is_uuid else array.storage
        elif pa.types.is_string_view(kind):
            array = pc.cast(array, pa.large_string())
        elif pa.types.is_binary_view(kind):
            array = pc.cast(array, pa.large_binary())
        else:
            return array


def _uuid_texts(array: pa.Array) -> pa.Array:
    values = [None if value is None else str(uuid.UUID(bytes=value)) for value in array.to_pylist()]
    return pa.array(values, pa.string())


def _decimal_texts(array: pa.Array) -> pa.Array:
    if 0 <= array.type.scale <= 6:  # beyond it Arrow writes exponents
        texts = pc.cast(array, pa.string())
    else:
        values = array.to_pylist()
        texts = pa.array([None if each is None else f"{each:f}" for each in values], pa.string())
    return pc.replace_substring_regex(texts, r"\.0+$", "")


def _with_offset(texts: pa.Array) -> pa.Array:
    return pc.cast(texts, METADATA_TYPES["timestamp"])


def _assume_utc(texts: pa.Array) -> pa.Array:
    return pc.assume_timezone(pc.cast(texts, pa.timestamp("us")), "UTC")


def _counts(array: pa.Array) -> npt.NDArray[np.int64]:
    """Days of a date32, else units since 1970; 0 for null."""
    width = pa.int32() if pa.types.is_date32(array.type) else pa.int64()
    counts = pc.fill_null(pc.cast(array, width), 0).to_numpy(zero_copy_only=False)
    return np.asarray(counts, dtype=np.int64)


def _unit(kind: pa.DataType) -> str:
    return "ms" if pa.types.is_date64(kind) else str(kind.unit)


def _whole_number(text: str | None) -> int | None:
    """Raises ArrowInvalid if there is no such int64."""
    if text is None:
        return None
    exact = _scaled(text, 1, 1) if _NUMBER.fullmatch(text) else None
    if exact is None or not exact[1] or exact[0] not in _INT64:
        raise pa.ArrowInvalid(f"{text!r} is no int64")
    return exact[0]


def _scaled(text: str, factor: int, divisor: int) -> tuple[int, bool] | None:
    """A number times factor / divisor: the largest whole number that is not above it, and whether
    it is that; None beyond all that could be meant."""
    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:  # an exponent of 19 digits or more
        return None
    if not number:
        return 0, True
    if number.adjusted() > _LARGEST_EXPONENT:
        return None
    if number.adjusted() < -_LARGEST_EXPONENT:
        return (-1 if number < 0 else 0), False
    numerator, denominator = number.as_integer_ratio()
    whole, rest = divmod(numerator * factor, denominator * divisor)
    return whole, not rest


def parse_list(text: str | None) -> list[str | None] | None:
    """The list that a text says as JSON; None for an empty text. Raises ValueError unless it is an
    array of texts, numbers, booleans and nulls."""
    if text is None or not text.strip():
        return None
    values: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        values = _JSON.decode(text)
    if not isinstance(values, list):
        raise ValueError(f"is {_show(text)}, not list[string]")
    words = {True: "true", False: "false", None: None}
    parts = [
        words[part] if part is None or part is True or part is False else part for part in values
    ]
    if not all(part is None or isinstance(part, str) for part in parts):
        raise ValueError(f"is {_show(text)}, not list[string]")
    return parts


def _is_other_number(text: str) -> bool:
    """Whether a text is a number as some countries and spreadsheets write it."""
    return _OTHER_NUMBER.fullmatch(text) is not None and _NUMBER.fullmatch(text) is None


def _likely_unit(text: str) -> str:
    """The unit in which a number since 1970 is a time of our days."""
    for unit, most in (("s", 10**11), ("ms", 10**14), ("us", 10**17)):
        if abs(float(text)) < most:
            return unit
    return "ns"


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    is_variable = types.is_binary(kind) or types.is_large_binary(kind)
    return bool(is_variable or types.is_fixed_size_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    is_view = types.is_list_view(kind) or types.is_large_list_view(kind)
    is_large = types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(types.is_list(kind) or is_large or is_view)


def _true(mask: pa.Array) -> Mask:
    """Null counts as false."""
    result: Mask = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
    return result


def _without(array: pa.Array, mask: Mask) -> pa.Array:
    if not mask.any():
        return array
    return pc.if_else(pa.array(mask), pa.scalar(None, array.type), array)


def _not_finite_word(value: float) -> str:
    return "NaN" if np.isnan(value) else "inf" if value > 0 else "-inf"


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _show(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")
