"""Differences within pairs, without the rounding errors of the values."""

import numpy as np

from bnstudy.study.inference.columns import MAX_NUMBERS, FloatArray

RESOLUTION = 2.0**-22  # of a difference of two float32 numbers, relative to the larger one


def measured_differences(
    treated: FloatArray, untreated: FloatArray, resolution: float = RESOLUTION
) -> FloatArray:
    """Compute differences within pairs, at the precision of the values.

    An accuracy of 972 of 1,000 is not exact in binary, so that two equal differences can become
    0.002 and 0.0019999743, which breaks ties. Here, differences whose sizes agree within the
    resolution get the same size, and differences up to the resolution become 0. Others are
    unchanged.

    Args:
        treated: Values of the treatment, pairs x comparisons.
        untreated: Values of the baseline, in the same shape.
        resolution: Largest rounding error of a difference, relative to the larger absolute value of
            the pair; the default is that of values that were computed or recorded in float32.

    Returns:
        Pairs x comparisons; NaN where a number is not finite.

    Examples:
        >>> accuracy = np.float32([[0.972], [0.981]]), np.float32([[0.970], [0.979]])
        >>> np.unique(accuracy[0] - accuracy[1]).size
        2
        >>> np.unique(measured_differences(*accuracy)).size
        1
    """
    differences = np.empty(treated.shape)
    size = max(1, MAX_NUMBERS // max(1, len(treated)))
    for start in range(0, treated.shape[1], size):
        block = slice(start, start + size)
        differences[:, block] = _subtract(
            treated[:, block].astype(np.float64), untreated[:, block].astype(np.float64), resolution
        )
    return differences


def _subtract(treated: FloatArray, untreated: FloatArray, resolution: float) -> FloatArray:
    with np.errstate(invalid="ignore", over="ignore"):
        differences = treated - untreated
        noise = _compute_noise(treated, untreated, resolution)
    differences[~np.isfinite(differences)] = np.nan
    sizes = np.abs(differences)
    sizes[sizes <= noise] = 0
    differences[sizes == 0] = 0
    order = sizes.argsort(axis=0)
    sizes, noise = (np.take_along_axis(array, order, axis=0) for array in (sizes, noise))
    steps = np.diff(sizes, axis=0)
    is_close = (steps > 0) & (steps <= np.maximum(noise[1:], noise[:-1]))
    columns = np.flatnonzero(is_close.any(axis=0))
    if columns.size:
        merged = np.empty_like(differences[:, columns])
        merged_in_order = _merge_close_sizes(sizes[:, columns], noise[:, columns])
        np.put_along_axis(merged, order[:, columns], merged_in_order, axis=0)
        differences[:, columns] = np.copysign(merged, differences[:, columns])
    return differences


def estimate_noise(
    treated: FloatArray, untreated: FloatArray, resolution: float = RESOLUTION
) -> FloatArray:
    """Estimate the size up to which a mean difference is only a rounding error.

    Args:
        treated: Values of the treatment, pairs x comparisons.
        untreated: Values of the baseline, in the same shape.
        resolution: As in `measured_differences`.

    Returns:
        Median over pairs of the largest rounding error of a difference, one entry per comparison; 0
        if no pair has a value.

    Examples:
        >>> estimate_noise(np.array([[1.0], [0.5]]), np.array([[0.5], [2.0]])) * 2**22
        array([1.5])
    """
    known = np.isfinite(treated) & np.isfinite(untreated)
    noise = np.where(known, _compute_noise(treated, untreated, resolution), np.nan)
    estimate = np.zeros(noise.shape[1])
    has_pair = known.any(axis=0)
    estimate[has_pair] = np.nanmedian(noise[:, has_pair], axis=0)
    return estimate


def _compute_noise(treated: FloatArray, untreated: FloatArray, resolution: float) -> FloatArray:
    """Compute the largest rounding error of each difference."""
    return resolution * np.maximum(np.abs(treated), np.abs(untreated))


def _merge_close_sizes(sizes: FloatArray, noise: FloatArray) -> FloatArray:
    """Replace sizes within the noise of the smallest one of a group by the group's midrange.

    Args:
        sizes: Sizes of differences in ascending order, pairs x comparisons.
        noise: Noise of each, in the same order.
    """
    first, reach = sizes.copy(), noise[0]
    for row in range(1, len(sizes)):
        reach = np.maximum(reach, noise[row])
        is_near = sizes[row] - first[row - 1] <= reach
        first[row] = np.where(is_near, first[row - 1], sizes[row])
        reach = np.where(is_near, reach, noise[row])
    last = sizes.copy()
    for row in range(len(sizes) - 2, -1, -1):
        last[row] = np.where(first[row] == first[row + 1], last[row + 1], sizes[row])
    return np.where(first == 0, 0, first + (last - first) / 2)
