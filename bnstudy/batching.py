"""Division of samples into batches."""

MIN_SAMPLES = 2  # BatchNorm cannot normalize one sample, and `squeeze()` removes its axis


def batch_sizes(count: int, size: int, smallest: int = MIN_SAMPLES) -> list[int]:
    """Divide samples into batches of one size; a last batch that is too small joins the one before.

    Args:
        count: Number of samples, at least 1.
        size: Samples in a batch; raised to `smallest` if it is less.
        smallest: Minimum number of samples in the last batch, if there are so many.

    Returns:
        Number of samples in each batch; the last one has at most `size + smallest - 1`.

    Example:
        >>> batch_sizes(34, 16), batch_sizes(33, 16), batch_sizes(1, 16)
        ([16, 16, 2], [16, 17], [1])
    """
    size = max(size, smallest)
    whole, rest = divmod(count, size)
    number = max(1, whole + (rest >= smallest))
    return [size] * (number - 1) + [count - size * (number - 1)]
