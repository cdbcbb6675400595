"""What always holds of unit length, cosines, and matrices that become columns and come back."""

import subprocess
import sys
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from embedding_pipelines.vectors import cosine, to_column, to_matrix, unit

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)
MATRICES = arrays(np.float32, SHAPES, elements=NUMBERS)
CODES = st.sampled_from([np.float64, np.float32, np.float16, np.int8, np.uint8]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=2, max_dims=2, max_side=9))
)


@given(MATRICES)
def test_rows_have_length_one_and_keep_their_direction_and_zero_rows_stay_zero(
    matrix: np.ndarray,
) -> None:
    units = unit(matrix)
    assert (units.shape, units.dtype) == (matrix.shape, np.float32)
    lengths = np.linalg.norm(matrix.astype(np.float64), axis=1)  # float64 holds these squares
    assert np.allclose(np.linalg.norm(units, axis=1), lengths > 0, atol=1e-5)
    assert np.allclose(units * lengths[:, None], matrix, rtol=1e-5, atol=1e-5 * lengths[:, None])


@given(MATRICES, st.randoms())
def test_a_row_does_not_depend_on_the_rows_beside_it(matrix: np.ndarray, chance: Random) -> None:
    rows = [row for row in range(len(matrix)) if chance.random() < 0.5]
    assert (unit(matrix)[rows] == unit(matrix[rows])).all()


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_float64_stays_float64_and_its_range_is_not_left(scale: float) -> None:
    units = unit(np.array([[3.0, 4.0], [0.0, 0.0]]) * scale)
    assert units.dtype == np.float64
    assert units == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8])
def test_small_numbers_give_float32(dtype: type) -> None:
    assert unit(np.array([[3, 4]], dtype)).dtype == np.float32


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_becomes_nan_and_spoils_no_other(wrong: float) -> None:
    units = unit(np.array([[wrong, 1, 0], [3, 4, 0]], np.float32))
    assert np.isnan(units[0]).all()
    assert units[1] == pytest.approx([0.6, 0.8, 0])


@given(MATRICES, st.data())
def test_cosines_lie_in_their_range_and_are_the_same_both_ways(
    left: np.ndarray, data: st.DataObject
) -> None:
    right = data.draw(arrays(np.float32, left.shape, elements=NUMBERS))
    cosines = cosine(left, right)
    assert cosines.shape == (len(left),)
    assert ((cosines >= -1) & (cosines <= 1)).all()
    assert (cosines == cosine(right, left)).all()
    assert np.allclose(cosine(left, left), left.any(axis=1), atol=1e-5)
    assert np.allclose(cosine(left, -left), -left.any(axis=1).astype(float), atol=1e-5)


def test_two_zero_rows_have_the_cosine_that_the_caller_says() -> None:
    zero, one = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert [cosine(zero, zero)[0], cosine(zero, zero, both_zero=1)[0]] == [0, 1]
    assert [cosine(zero, one, both_zero=1)[0], cosine(one, zero, both_zero=1)[0]] == [0, 0]
    assert np.isnan(cosine(one, np.array([[np.nan, 0, 0]], np.float32))[0])


@given(CODES, st.integers(0, 9), st.integers(0, 9))
def test_a_matrix_comes_back_from_its_column_and_from_any_slice_of_it(
    matrix: np.ndarray, start: int, length: int
) -> None:
    column = to_column(matrix)
    assert column.type == pa.list_(pa.from_numpy_dtype(matrix.dtype), matrix.shape[1])
    back = to_matrix(column.slice(start, length))
    assert back.dtype == matrix.dtype
    assert np.array_equal(back, matrix[start : start + length], equal_nan=matrix.dtype.kind == "f")


def test_nothing_is_copied_on_the_way_to_a_column_and_back() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = to_column(matrix)
    assert np.shares_memory(to_matrix(column), matrix)
    assert np.shares_memory(to_matrix(pa.chunked_array([column])), matrix)


def test_chunks_become_one_matrix() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = to_column(matrix)
    assert (to_matrix(pa.chunked_array([column.slice(0, 1), column.slice(1)])) == matrix).all()
    assert to_matrix(pa.chunked_array([], column.type)).shape == (0, 3)


def test_nulls_have_to_be_dropped_first() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    column = to_column(matrix, nulls=np.array([False, True, False]))
    assert column.to_pylist() == [[0, 1], None, [4, 5]]
    with pytest.raises(ValueError, match="1 of 3 vectors are null: drop them first"):
        to_matrix(column)
    assert (to_matrix(column.drop_null()) == matrix[[0, 2]]).all()
    assert to_column(matrix, nulls=np.zeros(3, bool)).null_count == 0


def test_numbers_are_converted_to_those_of_the_column() -> None:
    column = to_column(np.array([[-1, 0, 127]], np.int8), pa.list_(pa.float16(), 3))
    assert column.type == pa.list_(pa.float16(), 3)
    assert column.to_pylist() == [[-1, 0, 127]]
    with pytest.raises(ValueError, match="Vectors of 3 numbers do not fit"):
        to_column(np.zeros((2, 3), np.float32), pa.list_(pa.float32(), 2))


def test_pandas_is_imported_for_who_asks_for_it_and_for_no_list() -> None:
    code = (
        "import sys, pyarrow as pa\n"
        "from embedding_pipelines.vectors import do_without_pandas\n"
        "do_without_pandas()\n"
        "rows = pa.RecordBatch.from_pydict({'a': [1, None], 'b': ['x', 'y']})\n"
        "print('pandas' in sys.modules, rows.to_pandas()['b'].tolist(), 'pandas' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["False", "['x', 'y'] True\n"]
