"""Where to cut an activation's range off: percentile, entropy or squared error, from its histogram.

The range is [−r, r], with a scale of r/127 for INT8 and r/448 for FP8 (E4M3, whose largest number is 448).
A smaller r cuts rare large values off, and has finer steps for all others.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.precision.histograms import Histogram
from flowturbo_trt.export.quantization import KINDS, LARGEST

Values = NDArray[np.float64]
PERCENTILE = 0.9999
# Ranges tried by squared error, as shares of the largest value; of equally good ones the first.
SHARES = np.geomspace(1, 1 / 64, 121)
# Entropy compares coarser histograms, lest most bins hold a value or two; a range has 128 of their bins.
ENTROPY_BINS = 2048
FEWEST_BINS = 128


def choose_range(histogram: Histogram, kind: str, method: str) -> float:
    """Return r for a kind of KINDS by a method of METHODS; raises CalibrationError.

    Where all values are zero r is 1: they stay zero in any range.
    """
    if kind not in KINDS:
        raise CalibrationError(f"kind {kind!r} is not known; use {' or '.join(KINDS)}")
    if method not in METHODS:
        raise CalibrationError(f"method {method!r} is not known; use {', '.join(METHODS)}")
    if histogram.total == 0:
        raise CalibrationError("there are no values to choose a range by; record at least one row")
    return METHODS[method](histogram, kind) if histogram.largest > 0 else 1.0


def by_maximum(histogram: Histogram, kind: str) -> float:
    """Cut nothing off."""
    return histogram.largest


def by_percentile(histogram: Histogram, kind: str) -> float:
    """Cut off all but PERCENTILE of the values."""
    return histogram.quantile(PERCENTILE)


def by_error(histogram: Histogram, kind: str) -> float:
    """Make the mean squared error of rounding and cutting off the least."""
    held = histogram.counts > 0
    x, weights = histogram.centres[held], histogram.counts[held].astype(np.float64)
    candidates = SHARES * histogram.largest
    errors = [float(weights @ (round_to(x, r, kind) - x) ** 2) for r in candidates]
    return float(candidates[int(np.argmin(errors))])


def by_entropy(histogram: Histogram, kind: str) -> float:
    """Make the divergence of the values from their rounded ones the least (Migacz, GTC 2017).

    For every range that ends with a bin: P has the values within it, and all others in its last bin. Q
    knows only how many values within it round to each number of the kind, and spreads them evenly over
    the bins these come from. The range of the least KL(P ‖ Q) is taken. It says how well the shape is
    kept, not how far values move.
    """
    counts = histogram.counts.reshape(ENTROPY_BINS, -1).sum(axis=1).astype(np.float64)
    width = histogram.limit / ENTROPY_BINS
    # In a range that ends with an empty bin, P has values where Q has none.
    ends = np.flatnonzero(counts) + 1
    ends = ends[ends >= min(FEWEST_BINS, ends[-1])]
    divergences = [_divergence(counts, int(end), width, kind) for end in ends]
    return min(histogram.largest, float(ends[int(np.argmin(divergences))]) * width)


def _divergence(counts: Values, end: int, width: float, kind: str) -> float:
    """Return KL(P ‖ Q) of a range of `end` bins."""
    within = counts[:end]
    rounded = round_to((np.arange(end, dtype=np.float64) + 0.5) * width, end * width, kind)
    # Bins that round to one number are neighbours.
    number = np.concatenate([[0], np.cumsum(np.diff(rounded) > 0)])
    held = within > 0
    share = np.bincount(number, within) / np.maximum(np.bincount(number, held), 1)
    p, q = within.copy(), share[number]
    p[-1] += counts[end:].sum()
    p, q = p[held] / p.sum(), q[held] / within.sum()
    return float(p @ np.log(p / q))


def round_to(x: Values, r: float, kind: str) -> Values:
    """Return values as INT8 or FP8 (E4M3) with a range of r holds them, ties to even."""
    scale = r / LARGEST[kind]
    steps = np.clip(x / scale, -LARGEST[kind], LARGEST[kind])
    # A cast to integers would cut off.
    rounded: Values = np.rint(steps) if kind == "int8" else steps.astype(KINDS[kind].numpy()).astype(x.dtype)
    return rounded * scale


METHODS: dict[str, Callable[[Histogram, str], float]] = {
    "maximum": by_maximum,
    "percentile": by_percentile,
    "entropy": by_entropy,
    "error": by_error,
}
