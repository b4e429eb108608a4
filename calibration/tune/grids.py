"""Time grids, and ways from one to another: all keep the ends at 0 and 1."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

# Schedules are read and typed by people: more digits change no image that can be told apart.
DIGITS = 4
LEAST_STEP = 0.002

Grid = tuple[float, ...]
Warp = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def shift(a: float) -> Warp:
    """Return t → t / (t + a·(1 − t)) (Esser et al., 2024, Eq. 23): a > 1 puts more steps near the noise."""
    return lambda t: t / (t + a * (1 - t))


def power(p: float) -> Warp:
    """Return t → tᵖ: p > 1 puts more steps near the noise."""
    return lambda t: t**p


def warp(times: Sequence[float], by: Warp) -> Grid | None:
    """Move every time of a grid; None where steps would become too short."""
    return tidy(by(np.asarray(times, dtype=np.float64)))


def from_lengths(lengths: Sequence[float]) -> Grid | None:
    """Return the grid of steps in proportion to `lengths`; None where one would be too short."""
    ends = np.cumsum(lengths)
    return tidy(np.concatenate([[0.0], ends / ends[-1]]))


def tidy(times: Sequence[float] | NDArray[np.float64]) -> Grid | None:
    """Round a grid: () where it is the uniform one, None where a step is too short."""
    N = len(times) - 1
    grid = (0.0, *(round(float(time), DIGITS) for time in times[1:-1]), 1.0)
    if any(s - t < LEAST_STEP for t, s in pairwise(grid)):
        return None
    is_uniform = all(abs(time - i / N) < 10.0**-DIGITS for i, time in enumerate(grid))
    return () if is_uniform else grid
