"""Splitting a request over the batch sizes that engines were built for."""

from functools import lru_cache


@lru_cache(maxsize=64)
def split(rows: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return batch sizes that together hold `rows`, largest first; the last may be padded.

    A run costs about its rows plus a constant; the constant is taken as one row, so that padding one
    batch beats many small ones, and small ones beat mostly empty batches.
    """
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for n in range(1, rows + 1):
        options = ((best[max(0, n - size)], size) for size in sizes)
        best.append(min((cost + size + 1, (*parts, size)) for (cost, parts), size in options))
    return tuple(sorted(best[rows][1], reverse=True))
