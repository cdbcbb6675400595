"""Makes batches of documents from a file's columns: converts types and rejects bad rows.

It converts whole Arrow columns. A column that fails is halved until the bad rows stand alone.
"""

import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_pipelines import schemas
from embedding_pipelines.sources.base import ReadLog, Rejection, Source, SourceFile

BATCH_ROWS = 8192
BATCH_BYTES = 16 * 2**20

_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)
_VALUE_CHARACTERS = 60  # of a value in a reason

Reasons = dict[int, str]  # position in the batch -> why this row is rejected


def documents(
    source: Source,
    file: SourceFile,
    values: Mapping[str, pa.Array],
    rows: pa.Array,
    raw: Callable[[int], bytes],
    log: ReadLog,
    encoding: str = "UTF-8",
    whole_file: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Batches of documents from n ≤ BATCH_ROWS records; what does not convert goes to `log.reject`.

    values: an array of n values of any Arrow type for each of `source.columns`; rows: int64[n];
    raw(i): the bytes of record i; encoding: as a reason names it; whole_file: the file is one
    record, whose id is the file's name.
    """
    reasons: Reasons = {}
    names = source.text if source.id is None else (source.id, *source.text)
    strings = {name: _strings(name, values[name], encoding, reasons) for name in names}
    if source.id is not None:
        ids = strings[source.id]
        empty = pc.fill_null(pc.equal(ids, ""), True)
        for at in np.flatnonzero(empty.to_numpy(zero_copy_only=False)).tolist():
            reasons.setdefault(at, f"the id column {source.id!r} is empty")
    elif whole_file:
        ids = pa.array([file.name])
    else:
        ids = pc.binary_join_element_wise(file.name, pc.cast(rows, pa.string()), ":")
    metadata = [
        _convert(path, values[path], kind, encoding, reasons)
        for path, kind in source.metadata.items()
    ]
    text = _join([strings[name] for name in source.text])
    columns = [ids, text, pa.repeat(file.name, len(rows)), rows, *metadata]
    batch = pa.record_batch(columns, schema=source.schema)
    if reasons:
        good = np.ones(len(rows), dtype=bool)
        for at in sorted(reasons):
            good[at] = False
            log.reject(Rejection(file.name, rows[at].as_py(), reasons[at], raw(at)))
        batch = batch.filter(pa.array(good))
    yield from _slices(batch)


def _join(parts: list[pa.Array]) -> pa.Array:
    """Parts of the text with a line break between them, empty ones left out.

    Not by `null_handling="skip"`: in pyarrow 26 it leaves out rows of which all parts are null.
    """
    text, *others = [pc.fill_null(part, "") for part in parts]
    for other in others:
        both = pc.binary_join_element_wise(text, other, "\n")
        text = pc.if_else(pc.equal(other, ""), text, pc.if_else(pc.equal(text, ""), other, both))
    return text


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in slices within BATCH_BYTES; a single row may be larger."""
    half = batch.num_rows // 2
    if half and batch.nbytes > BATCH_BYTES:
        yield from _slices(batch.slice(0, half))
        yield from _slices(batch.slice(half))
    elif batch.num_rows:
        yield batch


def _strings(name: str, array: pa.Array, encoding: str, reasons: Reasons) -> pa.Array:
    def reason(value: pa.Scalar) -> str:
        if _is_bytes(value.type):
            return f"column {name!r} is not valid {encoding}"
        return f"column {name!r} is {_show(value)}, which is not text"

    return _each(array, pa.string(), lambda part: pc.cast(part, pa.string()), reason, reasons)


def _convert(name: str, array: pa.Array, kind: str, encoding: str, reasons: Reasons) -> pa.Array:
    """The array as METADATA_TYPES[kind]; an empty string is a missing value except in a string."""
    target = schemas.METADATA_TYPES[kind]
    if array.type == target:
        return array
    if _is_bytes(array.type):
        array = _strings(name, array, encoding, reasons)
    if pa.types.is_dictionary(array.type):
        array = pc.cast(array, array.type.value_type)
    if kind != "string" and _is_text(array.type):
        trimmed = pc.utf8_trim_whitespace(pc.cast(array, pa.string()))
        array = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    casts = {"timestamp": _timestamps, "list[string]": _lists}
    cast = casts.get(kind, lambda part: pc.cast(part, target))

    def reason(value: pa.Scalar) -> str:
        return f"column {name!r} is {_show(value)}, not {kind}"

    return _each(array, target, cast, reason, reasons)


def _each(
    array: pa.Array,
    target: pa.DataType,
    cast: Callable[[pa.Array], pa.Array],
    reason: Callable[[pa.Scalar], str],
    reasons: Reasons,
    first: int = 0,
) -> pa.Array:
    """`cast(array)`; if that fails, by halves, down to null and a reason for a single row."""
    try:
        return cast(array)
    except _ARROW_ERRORS:
        if len(array) == 1:
            reasons.setdefault(first, reason(array[0]))
            return pa.nulls(1, target)
    half = len(array) // 2
    left = _each(array[:half], target, cast, reason, reasons, first)
    right = _each(array[half:], target, cast, reason, reasons, first + half)
    return pa.concat_arrays([left, right])


def _timestamps(array: pa.Array) -> pa.Array:
    """A time without an offset is UTC."""
    target = schemas.METADATA_TYPES["timestamp"]
    try:
        return pc.cast(array, target)
    except pa.ArrowInvalid:
        return pc.assume_timezone(pc.cast(array, pa.timestamp("us")), "UTC")


def _lists(array: pa.Array) -> pa.Array:
    """Lists as they are; a string must hold a JSON array of strings."""
    target = schemas.METADATA_TYPES["list[string]"]
    if not _is_text(array.type):
        return pc.cast(array, target)
    try:
        return pa.array([value and json.loads(value) for value in array.to_pylist()], target)
    except ValueError as error:
        raise pa.ArrowInvalid(str(error)) from error


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _show(value: pa.Scalar) -> str:
    text = repr(value.as_py())
    return text if len(text) <= _VALUE_CHARACTERS else text[:_VALUE_CHARACTERS] + "…"
