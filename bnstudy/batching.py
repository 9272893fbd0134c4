"""Division of samples into batches."""

MIN_BATCH_SIZE = 2  # BatchNorm cannot normalize one sample, and `squeeze()` removes an axis of 1


def batch_sizes(count: int, size: int, smallest: int = MIN_BATCH_SIZE) -> list[int]:
    """Divide samples into batches of one size; a last batch that is too small joins the one before.

    Args:
        count: Number of samples, at least 1.
        size: Samples in a batch; raised to `smallest` if it is less.
        smallest: Minimum number of samples in each batch, unless `count` is less.

    Returns:
        Number of samples in each batch; the last one has at most `size + smallest - 1`.

    Example:
        >>> batch_sizes(34, 16), batch_sizes(33, 16), batch_sizes(1, 16)
        ([16, 16, 2], [16, 17], [1])
    """
    size = max(size, smallest)
    num_full, rest = divmod(count, size)
    num_batches = max(1, num_full + (rest >= smallest))
    return [size] * (num_batches - 1) + [count - size * (num_batches - 1)]
