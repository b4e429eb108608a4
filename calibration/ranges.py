"""Where to cut an activation's range off: percentile, entropy or squared error, from its histogram.

The range is [−r, r] with a scale of r/127 for INT8, and r/448 for FP8 (E4M3, whose largest number is 448).
A smaller r cuts rare large values off, and has finer steps for all others.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import CalibrationError
from flowturbo_trt.calibration.histograms import BINS, Histogram

Values = NDArray[np.float64]
# The largest number of each kind, in steps of its scale.
LARGEST = {"int8": 127.0, "fp8": 448.0}
PERCENTILE = 0.9999
# Ranges tried by squared error and entropy, as shares of the largest value.
CANDIDATES = np.linspace(0.05, 1.0, 96)
# Levels that entropy compares: the magnitudes that INT8 tells apart.
LEVELS = 128


def choose_range(histogram: Histogram, kind: str, method: str) -> float:
    """Return r by a method of METHODS; raises CalibrationError for an empty histogram."""
    if histogram.total == 0:
        raise CalibrationError("no values to calibrate on")
    if histogram.largest == 0:
        # Zeros stay zeros in every range.
        return 1.0
    return METHODS[method](histogram, kind)


def by_maximum(histogram: Histogram, kind: str) -> float:
    """Cut nothing off."""
    return histogram.largest


def by_percentile(histogram: Histogram, kind: str) -> float:
    """Cut off all but PERCENTILE of the values."""
    return histogram.quantile(PERCENTILE)


def by_error(histogram: Histogram, kind: str) -> float:
    """Make the mean squared error of rounding and cutting off the least."""
    candidates = CANDIDATES * histogram.largest
    x, weights = histogram.centres, histogram.counts
    errors = [float(weights @ (round_to(x, r, kind) - x) ** 2) for r in candidates]
    return float(candidates[int(np.argmin(errors))])


def by_entropy(histogram: Histogram, kind: str) -> float:
    """Make the divergence KL(values ‖ their LEVELS levels) the least (Migacz, GTC 2017).

    What lies beyond the range counts to its last bin. The levels are those of INT8; for FP8, whose steps
    grow with the value, they say as much of where to cut off.
    """
    counts = histogram.counts.astype(np.float64)
    used = int(np.searchsorted(np.cumsum(counts), counts.sum())) + 1
    ends = np.unique(np.clip((CANDIDATES * used).round().astype(int), LEVELS, BINS))
    divergences = [_divergence(counts, int(end)) for end in ends]
    best = int(ends[int(np.argmin(divergences))])
    return min(histogram.largest, best * histogram.limit / BINS)


def _divergence(counts: Values, end: int) -> float:
    """Return KL of the first `end` bins, with all others in the last, from what LEVELS of them tell."""
    kept = counts[:end].copy()
    held = kept.copy()
    kept[-1] += counts[end:].sum()
    level = (np.arange(end) * LEVELS) // end
    filled = held > 0
    totals = np.bincount(level, held, LEVELS)
    sizes = np.bincount(level, filled, LEVELS)
    spread = np.where(filled, totals[level] / np.maximum(sizes[level], 1), 0.0)
    p, q = kept / kept.sum(), spread / max(spread.sum(), 1.0)
    both = (p > 0) & (q > 0)
    # Values that no level stands for are as far as can be.
    lost = float(p[(p > 0) & (q == 0)].sum())
    return float((p[both] * np.log(p[both] / q[both])).sum()) + 100 * lost


def round_to(x: Values, largest: float, kind: str) -> Values:
    """Return values as INT8 or FP8 (E4M3) with a range of `largest` holds them."""
    scale = largest / LARGEST[kind]
    steps = np.clip(x / scale, -LARGEST[kind], LARGEST[kind])
    if kind == "int8":
        rounded: Values = np.round(steps) * scale
        return rounded
    # Three bits behind the leading one; below 2⁻⁶ steps are of 2⁻⁹.
    exponent = np.floor(np.log2(np.maximum(np.abs(steps), 2.0**-6)))
    quantum = 2.0 ** (exponent - 3)
    fp8: Values = np.round(steps / quantum) * quantum * scale
    return fp8


METHODS: dict[str, Callable[[Histogram, str], float]] = {
    "maximum": by_maximum,
    "percentile": by_percentile,
    "entropy": by_entropy,
    "error": by_error,
}
