"""Reads vectors from replies and checks them: their number, one length, numbers in range.

A service's quantized types become float32, so that everything behind a provider sees one kind of
array. A reply that makes no sense raises InvalidReply.
"""

import base64
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import InvalidReply, counted
from embedding_pipelines.providers.common.http import ServiceModel
from embedding_pipelines.vectors import Vectors

ElementType = Literal["float", "int8", "uint8", "binary", "ubinary"]
# Each type as requests name it. binary and ubinary are the same bits, in signed and unsigned bytes;
# requests ask for unsigned ones.
WIRE_TYPES = {name: name for name in ("float", "int8", "uint8", "ubinary")} | {"binary": "ubinary"}
# A request's type as a `Space` names it.
DTYPES = {"float": "float32", "int8": "int8", "uint8": "uint8", "ubinary": "binary"}
NUMPY_TYPES = {"float": "<f4", "int8": "<i1", "uint8": "<u1", "ubinary": "<u1"}  # in base64
# uint8 is int8 moved up; unmoved, all vectors would point the same way with cosines near 1.
ZERO_OF_UINT8 = 128


def value_at(reply: Any, *path: str) -> Any:
    """The value at `path` in a reply's nested objects, else None."""
    for name in path:
        reply = reply.get(name) if isinstance(reply, dict) else None
    return reply


def count_at(reply: Any, *path: str) -> int | None:
    """The number of tokens at `path`, else None."""
    value = value_at(reply, *path)
    return int(value) if type(value) in (int, float) and math.isfinite(value) else None


def list_at(service: ServiceModel, reply: Any, *path: str) -> list[Any]:
    """The list at `path`. Raises InvalidReply with the reply's own words."""
    value = value_at(reply, *path)
    if isinstance(value, list):
        return value
    words = service.quote(json.dumps(reply))
    raise InvalidReply(f"{service.where} answered without vectors: {words}")


def vectors_at(
    service: ServiceModel,
    reply: Any,
    path: Sequence[str],
    count: int,
    read: Callable[[Any], Vectors],
) -> Vectors:
    """float32[count, d] of the list at `path`, whose entries are in order."""
    entries = list_at(service, reply, *path)
    _check_count(service, entries, count)
    return stack(service, entries, read)


def order_by_index(service: ServiceModel, entries: Sequence[Any], count: int) -> list[Any]:
    """The `embedding` of each of `count` texts, by its entry's `index`; None for a text without.

    Entries without any index are in order. Raises InvalidReply for an impossible index, and for
    entries without any whose number is not that of the texts.
    """
    indices = [value_at(entry, "index") for entry in entries]
    vectors = [value_at(entry, "embedding") for entry in entries]
    if all(index is None for index in indices):
        _check_count(service, vectors, count)
        return vectors
    rows: dict[int, Any] = {}
    for index, vector in zip(indices, vectors, strict=True):
        if type(index) is not int or not 0 <= index < count or index in rows:
            raise InvalidReply(
                f"{service.where} returned the impossible index {index!r} for {count} texts."
            )
        rows[index] = vector
    return [rows.get(row) for row in range(count)]


def stack(service: ServiceModel, entries: Sequence[Any], read: Callable[[Any], Vectors]) -> Vectors:
    """float32[n, d] of n entries, each read by `read`; a row of NaN for None.

    Raises InvalidReply for entries that are unreadable, empty, of different lengths, or all None.
    """
    try:
        with np.errstate(over="ignore"):
            rows = [None if entry is None else read(entry) for entry in entries]
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidReply(f"{service.where} returned an unreadable vector: {error}.") from error
    shapes = {row.shape for row in rows if row is not None}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or shape == (0,):
        raise InvalidReply(
            f"{service.where} returned no vectors, empty ones, or vectors of different lengths."
        )
    missing = np.full(shape, np.nan, np.float32)
    return np.stack([missing if row is None else row for row in rows])


def read_numbers(entry: Any) -> Vectors:
    """float32[d] of a list of numbers; NaN for null, which some servers write instead."""
    if not isinstance(entry, list) or not all(
        type(value) in (float, int) or value is None for value in entry
    ):
        raise ValueError("it is not a list of numbers")
    return np.array(entry, np.float64).astype(np.float32)


def read_base64(entry: Any, dtype: str = "<f4") -> Vectors:
    """float32[d] of numbers of `dtype` in base64: a quarter of the bytes of decimal numbers."""
    if not isinstance(entry, str):
        raise ValueError("it is not in base64")
    return np.frombuffer(base64.b64decode(entry, validate=True), dtype).astype(np.float32)


def as_float(service: ServiceModel, vectors: Vectors, dtype: str) -> Vectors:
    """float32[n, d] of numbers float32[n, d] of the service's type `dtype`.

    float and int8 unchanged; uint8 less 128; of ubinary -1 and 1 for each of eight bits in a
    number, the highest first, so that the dot product is d less twice the Hamming distance. Raises
    InvalidReply for numbers outside `dtype`.
    """
    if dtype == "float":
        return vectors
    numbers = np.iinfo(NUMPY_TYPES[dtype])
    missing: NDArray[np.bool_] = np.asarray(np.isnan(vectors).any(axis=1))
    codes = np.where(missing[:, None], 0, vectors)
    if ((codes < numbers.min) | (codes > numbers.max) | (codes != np.rint(codes))).any():
        raise InvalidReply(f"{service.where} returned numbers that are not {dtype}.")
    if dtype == "ubinary":
        floats = np.unpackbits(codes.astype(np.uint8), axis=1).astype(np.float32) * 2 - 1
    else:
        floats = codes - (ZERO_OF_UINT8 if dtype == "uint8" else 0)
    floats[missing] = np.nan
    return floats.astype(np.float32, copy=False)


def _check_count(service: ServiceModel, entries: Sequence[Any], count: int) -> None:
    if len(entries) != count:
        raise InvalidReply(
            f"{service.where} returned {counted(len(entries), 'vector')} for {counted(count, 'text')}, and no index."
        )
