"""Columns of an array: types, mean and spread of finite values, and groups of columns and rows."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]
Mask = NDArray[np.bool_]

MAX_NUMBERS = 2**22  # numbers in a block of a computation, so that memory is bounded


def mean(values: FloatArray) -> FloatArray:
    """Compute the mean of the finite values of each column.

    Args:
        values: Rows x columns.

    Returns:
        One entry per column; NaN where no value is finite.

    Examples:
        >>> mean(np.array([[1.0, np.nan], [3.0, np.nan]]))
        array([ 2., nan])
    """
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", over="ignore"):
        means: FloatArray = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
    return means


def spread(values: FloatArray) -> FloatArray:
    """Compute the standard deviation of the finite values of each column.

    It has n - 1 degrees of freedom, and is 0 exactly where all values are equal.

    Args:
        values: Rows x columns.

    Returns:
        One entry per column; NaN with fewer than two finite values.

    Examples:
        >>> spread(np.array([[1.0, 0.1], [3.0, 0.1], [np.nan, 0.1]]))
        array([1.41421356, 0.        ])
    """
    known = np.isfinite(values)
    n = known.sum(axis=0)
    # The smallest value is subtracted, so that equal values have a spread of exactly 0.
    smallest = np.min(values, axis=0, where=known, initial=np.inf)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shifted = np.where(known, values - smallest, np.nan)
        largest = np.max(shifted, axis=0, where=known, initial=0)
        shifted /= np.where(largest > 0, largest, 1)  # squares of large values could overflow
        squares = np.where(known, shifted - mean(shifted), 0) ** 2
        return np.where(n > 1, largest * np.sqrt(squares.sum(axis=0) / (n - 1)), np.nan)


def patterns(known: Mask) -> Iterator[tuple[IntArray, IntArray]]:
    """Group the comparisons whose values come from the same pairs.

    Args:
        known: True where a pair has a value, pairs x comparisons.

    Yields:
        Rows of the pairs that have a value, and columns of the comparisons in which exactly these
        pairs have one. Comparisons without a pair are left out.

    Examples:
        >>> for rows, columns in patterns(np.array([[True, True, False], [True, True, True]])):
        ...     print(rows, columns)
        [0 1] [0 1]
        [1] [2]
    """
    columns = defaultdict(list)
    for column, pattern in enumerate(np.asarray(known, order="F").T):
        columns[pattern.tobytes()].append(column)
    for same in map(np.array, columns.values()):
        rows = np.flatnonzero(known[:, same[0]])
        if rows.size:
            yield rows, same


def group_rows(columns: Iterable[NDArray[Any]], num_rows: int = 0) -> IntArray:
    """Number the groups of rows that have the same values in all columns.

    Args:
        columns: Columns, of any type that can be sorted, each with one value per row.
        num_rows: Number of rows; needed only if there may be no columns.

    Returns:
        Number of the group of each row. Groups are numbered in the order of their values in the
        first column, then in the second, and so on.

    Examples:
        >>> group_rows([np.array([2, 4, 4, 2]), np.array(["a", "b", "a", "a"])])
        array([0, 2, 1, 0])
    """
    groups = np.zeros(num_rows, dtype=np.intp)
    for number, column in enumerate(columns):
        values, codes = np.unique(column, return_inverse=True)
        combined = groups * len(values) + codes if number else codes
        groups = np.unique(combined, return_inverse=True)[1].astype(np.intp)
    return groups
