"""Splitting requests over batch sizes: all rows, at the least cost."""

import itertools
import tracemalloc

import pytest

from flowturbo_trt.runtime.batching import split

SIZES = [(1,), (4,), (1, 2), (1, 8), (2, 3), (3, 5, 8), (1, 2, 4, 8), (4, 6, 9), (16, 64)]


def cost(parts: tuple[int, ...]) -> int:
    """A run's rows, padding included, and a constant of one row."""
    return sum(size + 1 for size in parts)


@pytest.mark.parametrize("sizes", SIZES)
def test_covers_rows(sizes: tuple[int, ...]) -> None:
    for rows in range(1, 60):
        parts = split(rows, sizes)
        assert set(parts) <= set(sizes)
        assert list(parts) == sorted(parts, reverse=True)
        # Only the last batch is padded, and none is empty.
        assert sum(parts[:-1]) < rows <= sum(parts)


@pytest.mark.parametrize("sizes", SIZES)
def test_costs_least(sizes: tuple[int, ...]) -> None:
    for rows in range(1, 13):
        candidates = itertools.chain.from_iterable(
            itertools.combinations_with_replacement(sizes, count) for count in range(1, rows + 1)
        )
        assert cost(split(rows, sizes)) == min(cost(parts) for parts in candidates if sum(parts) >= rows)


@pytest.mark.parametrize(
    ("rows", "sizes", "expected"),
    [
        (1, (1, 8), (1,)),
        (8, (1, 8), (8,)),
        (7, (1, 8), (8,)),  # one row of padding is cheaper than seven runs
        (9, (1, 8), (8, 1)),
        (11, (1, 8), (8, 1, 1, 1)),
        (17, (8, 1), (8, 8, 1)),
        (3, (1, 2), (2, 1)),
        (5, (4,), (4, 4)),
        (3, (4,), (4,)),
    ],
)
def test_cases(rows: int, sizes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert split(rows, sizes) == expected


def test_large_requests() -> None:
    """Memory grows with the rows, not with their square: 20,000 images of batch 1 are a usual request."""
    tracemalloc.start()
    try:
        assert split(20_000, (1,)) == (1,) * 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        split.cache_clear()
    assert peak < 5_000_000
