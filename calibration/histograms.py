"""Streaming histograms of absolute values: what an engine's tensors really hold, in bounded memory."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.calibration.endpoints import CalibrationError

BINS = 2048


@dataclass
class Histogram:
    """Counts (BINS) of |x| in equal bins over [0, limit), and the largest |x| of each channel (C).

    The range doubles when a value falls outside it: two bins become one, so nothing is read twice and
    what was counted stays exact to the new bins. Channels are the last axis.
    """

    limit: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    channel_maxima: NDArray[np.float32] | None = None

    def add(self, values: NDArray[np.float32]) -> None:
        """Count an array (…,C); raises CalibrationError where a value is not finite or there is none."""
        if values.size == 0:
            raise CalibrationError("no values to calibrate on")
        sizes = np.abs(values).reshape(-1, values.shape[-1])
        maxima = sizes.max(axis=0)
        if not np.isfinite(maxima).all():
            raise CalibrationError("values that are not finite; look at the bundle with verify")
        known = self.channel_maxima
        self.channel_maxima = maxima if known is None else np.maximum(known, maxima)
        self._reach(float(maxima.max()))
        if self.limit:
            # Rounding may lift the largest value into the bin behind the last.
            bins = np.minimum((sizes.ravel() * np.float32(BINS / self.limit)).astype(np.int32), BINS - 1)
            self.counts += np.bincount(bins, minlength=BINS)
        else:
            self.counts[0] += sizes.size

    def _reach(self, largest: float) -> None:
        """Widen the range until it holds a value."""
        if largest < self.limit or largest == 0:
            return
        if self.limit == 0:
            # A little beyond, so that the values of the first array lie within. Zeros counted so far stay.
            self.limit = float(np.nextafter(np.float32(largest), np.float32(np.inf)))
            return
        while self.limit <= largest:
            self.limit *= 2
            self.counts = np.concatenate(
                [self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, dtype=np.int64)]
            )

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def largest(self) -> float:
        """The largest |x| so far."""
        return 0.0 if self.channel_maxima is None else float(self.channel_maxima.max())

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        centres: NDArray[np.float64] = (np.arange(BINS) + 0.5) * (self.limit / BINS)
        return centres

    def quantile(self, share: float) -> float:
        """Return the upper edge of the bin that `share` of the values lie in or below."""
        reached = np.searchsorted(np.cumsum(self.counts), share * self.total)
        return min(self.largest, float((reached + 1) * self.limit / BINS))

    def state(self) -> dict[str, Any]:
        """Return everything, ready for safetensors."""
        assert self.channel_maxima is not None
        return {
            "limit": np.array([self.limit]),
            "counts": self.counts,
            "channel_maxima": self.channel_maxima,
        }
