"""Vectors as replies write them, read with distrust: how many, of one length, of numbers, in the
range of their type.

A service's quantized types become float32 here, so that everything behind a provider sees one kind
of array.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.errors import InvalidReply
from embedding_pipelines.providers.common.http import ServiceModel
from embedding_pipelines.vectors import Vectors

ElementType = Literal["float", "int8", "uint8", "binary", "ubinary"]
# binary and ubinary are the same bits in two ways of writing a byte; both are asked for in the one
# without a sign.
WIRE_TYPES = {
    "float": "float",
    "int8": "int8",
    "uint8": "uint8",
    "binary": "ubinary",
    "ubinary": "ubinary",
}
DTYPES = {
    "float": "float32",
    "int8": "int8",
    "uint8": "uint8",
    "ubinary": "binary",
}  # as a `Space` names them
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "ubinary": (0, 255)}
ZERO_OF_UINT8 = 128  # uint8 is int8 moved up; left there, all vectors would point the same way and cosines near 1


def within(reply: Any, *path: str) -> Any:
    """The value at `path` in a reply's nested objects; None where there is none."""
    for name in path:
        reply = reply.get(name) if isinstance(reply, dict) else None
    return reply


def count_within(reply: Any, *path: str) -> int | None:
    """The number of tokens at `path`; None where there is none."""
    found = within(reply, *path)
    return int(found) if type(found) in (int, float) and math.isfinite(found) else None


def listed(service: ServiceModel, reply: Any, *path: str) -> list[Any]:
    """The list at `path`. Raises Unreachable, with what the reply says instead, where there is
    none."""
    found = within(reply, *path)
    if isinstance(found, list):
        return found
    words = service.quoted(json.dumps(reply))
    raise InvalidReply(
        f"{service.options.kind} at {service.address} answered without vectors: {words}"
    )


def in_order(
    service: ServiceModel,
    reply: Any,
    path: Sequence[str],
    count: int,
    read: Callable[[Any], Vectors],
) -> Vectors:
    """float32[count, d] of a list without an index, entry by entry; raises as `listed` and
    `stacked`."""
    found = listed(service, reply, *path)
    if len(found) != count:
        raise InvalidReply(
            f"{service.options.kind} at {service.address} returned {len(found)} vectors for {count} texts, and no index."
        )
    return stacked(service, found, read)


def placed(service: ServiceModel, entries: Sequence[Any], count: int) -> list[Any]:
    """The `embedding` of the entry for each of `count` texts, by its `index`; None for a text that
    was left out.

    Where no entry has an index, they are in order. Raises InvalidReply for an index that cannot be, and
    for another number of entries than texts where there is none.
    """
    where = f"{service.options.kind} at {service.address}"
    indices = [within(entry, "index") for entry in entries]
    vectors = [within(entry, "embedding") for entry in entries]
    if all(index is None for index in indices):
        if len(vectors) != count:
            raise InvalidReply(
                f"{where} returned {len(vectors)} vectors for {count} texts, and no index."
            )
        return vectors
    found: dict[int, Any] = {}
    for index, vector in zip(indices, vectors, strict=True):
        if type(index) is not int or not 0 <= index < count or index in found:
            raise InvalidReply(
                f"{where} returned the index {index!r} out of place, for {count} texts."
            )
        found[index] = vector
    return [found.get(row) for row in range(count)]


def stacked(service: ServiceModel, found: Sequence[Any], read: Callable[[Any], Vectors]) -> Vectors:
    """float32[n, d] of n entries, each read by `read`; a row of NaN for None.

    Raises Unreachable for entries that cannot be read, are empty, of different lengths, or all
    None.
    """
    where = f"{service.options.kind} at {service.address}"
    try:
        with np.errstate(over="ignore"):
            rows = [None if entry is None else read(entry) for entry in found]
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidReply(f"{where} returned a vector that cannot be read: {error}.") from error
    shapes = {row.shape for row in rows if row is not None}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or shape == (0,):
        raise InvalidReply(
            f"{where} returned no vectors, empty ones, or vectors of different lengths."
        )
    missing = np.full(shape, np.nan, np.float32)
    return np.stack([missing if row is None else row for row in rows])


def numbers(entry: Any) -> Vectors:
    """float32[d] of a list of numbers; NaN for null, as which some servers' JSON writes it."""
    if not isinstance(entry, list) or not all(
        type(value) in (float, int) or value is None for value in entry
    ):
        raise ValueError("it is no list of numbers")
    return np.array(entry, np.float64).astype(np.float32)


def as_float(service: ServiceModel, found: Vectors, dtype: str) -> Vectors:
    """float32[n, d] of what the service calls `dtype`, given its numbers as float32[n, d].

    float and int8 as they are; uint8 less 128; ubinary, whose numbers hold eight bits each, the
    first dimension in the highest: -1 and 1 per bit, whose dot product is d less twice the Hamming
    distance. Raises Unreachable for numbers that are none of `dtype`.
    """
    if dtype == "float":
        return found
    lowest, highest = RANGES[dtype]
    missing: NDArray[np.bool_] = np.asarray(np.isnan(found).any(axis=1))
    known = np.where(missing[:, None], 0, found)
    if ((known < lowest) | (known > highest) | (known != np.rint(known))).any():
        raise InvalidReply(
            f"{service.options.kind} at {service.address} returned numbers that are no {dtype}."
        )
    if dtype == "ubinary":
        vectors = np.unpackbits(known.astype(np.uint8), axis=1).astype(np.float32) * 2 - 1
    else:
        vectors = known - (ZERO_OF_UINT8 if dtype == "uint8" else 0)
    vectors[missing] = np.nan
    return vectors.astype(np.float32, copy=False)
