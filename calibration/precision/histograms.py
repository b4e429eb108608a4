"""Streaming histograms of absolute values: what an engine's tensors really hold, in bounded memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import CalibrationError

Array = NDArray[np.float32]
# Enough for the 127 steps of a range that is 64 times smaller than the largest value.
BINS = 2**15
# Values looked at at a time: what is computed of them stays in the processor's cache.
CHUNK = 2**18
# Of 2: below it the limit stays, lest BINS / limit leave float32.
_SMALLEST_EXPONENT = -100


@dataclass
class Histogram:
    """Counts (BINS) of |x| in equal bins over [0, limit), and the largest |x| of each channel (C).

    The limit is the power of two above the largest value: it doubles when a value falls outside, two bins
    becoming one. So a value's bin is exact, and the same values give the same histogram in any order.
    Channels are the last axis. A limit of 0: no value but 0 so far.
    """

    limit: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    channel_maxima: Array | None = None

    def add(self, values: Array) -> None:
        """Count an array (…,C); raises CalibrationError where a value is not finite or there is none."""
        if values.size == 0:
            raise CalibrationError("there are no values to calibrate on; record at least one row")
        for sizes in _chunks(values):
            maxima = sizes.max(axis=0)
            largest = float(maxima.max())
            if not math.isfinite(largest):
                raise CalibrationError(
                    "holds values that are not finite; look at the bundle with `flowturbo_trt verify`"
                )
            known = self.channel_maxima
            self.channel_maxima = maxima if known is None else np.maximum(known, maxima)
            self._reach(largest)
            if self.limit:
                sizes *= np.float32(BINS / self.limit)
            self.counts += np.bincount(sizes.ravel().astype(np.intp), minlength=BINS)

    def _reach(self, largest: float) -> None:
        """Widen the range until it holds a value."""
        if largest < self.limit or largest == 0:
            return
        _, exponent = math.frexp(largest)
        limit = math.ldexp(1.0, max(exponent, _SMALLEST_EXPONENT))
        if self.limit:
            joined = min(round(limit / self.limit), BINS)
            narrow = self.counts.reshape(-1, joined).sum(axis=1)
            self.counts = np.concatenate([narrow, np.zeros(BINS - len(narrow), dtype=np.int64)])
        self.limit = limit

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def largest(self) -> float:
        """The largest |x| so far."""
        return 0.0 if self.channel_maxima is None else float(self.channel_maxima.max())

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin (BINS)."""
        centres: NDArray[np.float64] = (np.arange(BINS, dtype=np.float64) + 0.5) * (self.limit / BINS)
        return centres

    def quantile(self, share: float) -> float:
        """Return the upper edge of the bin that `share` of the values lie in or below."""
        reached = int(np.searchsorted(np.cumsum(self.counts), share * self.total))
        return min(self.largest, (reached + 1) * self.limit / BINS)


def _chunks(values: Array) -> Iterator[Array]:
    """Yield the absolute values (n,C) of some rows at a time, in an array of their own."""
    rows = values.reshape(-1, values.shape[-1])
    size = max(1, CHUNK // rows.shape[1])
    for start in range(0, len(rows), size):
        yield np.abs(rows[start : start + size])
