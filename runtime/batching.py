"""Splitting a request over the batch sizes that engines were built for."""

from functools import lru_cache


@lru_cache(maxsize=64)
def split(rows: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return batch sizes that together hold `rows`, largest first; the last may be padded.

    A run costs about its rows plus a constant; the constant is taken as one row, so that padding one
    batch beats many small ones, and small ones beat mostly empty batches.
    """
    costs, last = [0], [0]
    for n in range(1, rows + 1):
        cost, size = min((costs[max(0, n - size)] + size + 1, size) for size in sizes)
        costs.append(cost)
        last.append(size)
    parts = []
    while rows > 0:
        parts.append(last[rows])
        rows -= last[rows]
    return tuple(sorted(parts, reverse=True))
