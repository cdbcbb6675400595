"""Arithmetic on a matrix of vectors: unit length, cosines, conversion from and to Arrow columns."""

import sys
import zlib
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Distance = Literal["cosine", "hamming"]

SMALLEST = 1e-30  # a sum of squares that float32 holds to its last digit


def unit(vectors: NDArray[Any]) -> NDArray[Any]:
    """The rows of [n, d] at length 1, from any length.

    A zero row stays zero; a row with NaN or infinity becomes NaN. float64 stays float64; float32
    and smaller types give float32.
    """
    rows = np.asarray(vectors, np.result_type(vectors, np.float32))
    with np.errstate(all="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows)
        units: NDArray[Any] = rows / np.sqrt(squares)[:, None]
        extreme = np.flatnonzero(~((squares > SMALLEST) & (squares < np.inf)))
        if extreme.size:  # divide by the greatest number first: squares would over- or underflow
            greatest = np.abs(rows[extreme]).max(axis=1, keepdims=True, initial=0)
            scaled = rows[extreme] / np.where(greatest == 0, 1, greatest)
            lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
            units[extreme] = scaled / np.where(lengths == 0, 1, lengths)
    return units


def cosine(left: NDArray[Any], right: NDArray[Any], both_zero: float = 0) -> NDArray[Any]:
    """Cosine [n] of each row of [n, d] with the same row of the other, in [-1, 1].

    0 if one of the two is a zero row, `both_zero` if both are; NaN if one holds NaN or infinity.
    """
    cosines: NDArray[Any] = np.clip(np.einsum("ij,ij->i", unit(left), unit(right)), -1, 1)
    cosines[~left.any(axis=1) & ~right.any(axis=1)] = both_zero
    return cosines


def checksums(column: pa.FixedSizeListArray) -> list[int]:
    """CRC-32 of each vector's bytes in a column of fixed_size_list<float32>[d]; of null, of
    whatever lies there."""
    rows = column.values.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    rows = np.ascontiguousarray(rows[column.offset : column.offset + len(column)])
    return [zlib.crc32(row) for row in rows]


def to_matrix(column: pa.FixedSizeListArray | pa.ChunkedArray) -> NDArray[Any]:
    """A column of fixed_size_list<number>[d] as [n, d], read-only; a copy only of several chunks.

    Raises ValueError for null rows: drop them first, with their ids.
    """
    if column.null_count:
        raise ValueError(f"{column.null_count} of {len(column)} vectors are null: drop them first.")
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    matrix: NDArray[Any] = from_numbers(column.flatten())
    return matrix.reshape(len(column), column.type.list_size)


def from_numbers(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """A column of numbers, none of them null, as [n], read-only.

    Not by `to_numpy`, nor the way back by `pa.array`: these import pandas where that is installed,
    0.3 s of processor time, which a search on the command line can do without.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return np.from_dlpack(column)


def to_numbers(numbers: NDArray[Any]) -> pa.Array:
    """Numbers [n] as an Arrow array; see `from_numbers`."""
    numbers = np.ascontiguousarray(numbers)
    buffers = [None, pa.py_buffer(numbers.data)]
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), buffers)


def do_without_pandas() -> None:
    """Have pyarrow leave pandas alone until it is asked for something of it. It imports pandas, where
    that is installed, with the first list that it makes an array of, to tell whether that is a series:
    0.4 s of processor time."""
    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(_NoPandas)


class _NoPandas:
    """Finds no pandas, among the finders of modules."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def to_column(
    matrix: NDArray[Any],
    type: pa.FixedSizeListType | None = None,
    nulls: NDArray[np.bool_] | None = None,
) -> pa.FixedSizeListArray:
    """[n, d] as a column of `type`, by default of the matrix's own numbers; null where `nulls` [n]
    is true.

    Copies only to convert numbers. Raises ValueError if `type` has another width.
    """
    type = type or pa.list_(pa.from_numpy_dtype(matrix.dtype), matrix.shape[1])
    if matrix.shape[1] != type.list_size:
        raise ValueError(f"Vectors of {matrix.shape[1]} numbers do not fit a column of {type}.")
    number = type.value_type
    values = pa.array(matrix.astype(number.to_pandas_dtype(), copy=False).ravel(), number)
    mask = None if nulls is None or not nulls.any() else pa.array(nulls)
    return pa.FixedSizeListArray.from_arrays(values, type=type, mask=mask)
