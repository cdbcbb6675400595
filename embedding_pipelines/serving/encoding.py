"""Vectors as JSON: row by row, so that other threads get the floor in between."""

import base64
from collections.abc import Iterable

import numpy as np
from pydantic_core import to_json

from embedding_pipelines.vectors import Vectors

Numbers = list[float] | list[int] | str


def as_numbers(vectors: Vectors) -> Iterable[Numbers]:
    return (row.tolist() for row in vectors)


def as_base64(vectors: Vectors) -> Iterable[Numbers]:
    """The bytes of little-endian float32, as OpenAI's clients read them."""
    return (base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors)


def as_bits(vectors: Vectors, is_signed: bool) -> Iterable[Numbers]:
    """A bit per number, 1 if it is above 0, eight in a byte, as Cohere packs them."""
    packed = np.packbits(vectors > 0, axis=1)
    return ((row.astype(np.int16) - 128 * is_signed).tolist() for row in packed)


def json_array(values: Iterable[object]) -> bytes:
    return b"[" + b",".join(map(to_json, values)) + b"]"
