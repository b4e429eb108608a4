"""Latency measured side by side: machines drift, so alternatives take turns within one run."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

Call = Callable[[], object]
# A pause before another library's turn. Threads of torch's OpenMP spin for up to 0.2 s after a call and
# take 20 to 40 % of the next library's speed, if it starts within that time.
QUIET_SECONDS = 0.25
# After a pause caches and clocks are cold: one call goes uncounted, and then several are timed.
CALLS_AFTER_PAUSE = 3
# A call of this many seconds hardly notices, and is counted alone.
LONG_CALL = 1.0


@dataclass(frozen=True)
class Stability:
    """When a median is known well enough: its 95 % interval lies within ± `precision` of it.

    Measuring goes on until every call's median is, with `at_least` samples each and not before
    `at_least_seconds`: a machine drifts, and samples that follow each other are alike. It stops short
    at `at_most` samples or after `seconds`. What changes from run to run no single run can see.
    """

    precision: float = 0.02
    at_least: int = 11
    at_least_seconds: float = 3.0
    at_most: int = 2000
    seconds: float = 60.0


# Stretches of a measurement whose medians are compared; within one, samples may be alike.
BLOCKS = 12


def block_medians(values: Sequence[float]) -> list[float]:
    """Return the medians of up to BLOCKS stretches of samples in the order they were taken."""
    bounds = np.linspace(0, len(values), min(BLOCKS, len(values)) + 1).astype(int)
    return [statistics.median(values[a:b]) for a, b in pairwise(bounds)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a median from order statistics, whatever the distribution is.

    Fewer than six values have none: it is (−∞, ∞).
    """
    ordered, n = sorted(values), len(values)
    # The median lies below the k-th smallest value with the chance of fewer than k heads in n tosses.
    below, k = 1, 0
    while below * 40 <= 2**n:
        k += 1
        below += math.comb(n, k)
    return (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)


@dataclass(frozen=True)
class Timing:
    """The seconds that one call took, one sample each time; `stable` as its Stability asked for."""

    samples: tuple[float, ...]
    stability: Stability

    @cached_property
    def median(self) -> float:
        return statistics.median(self.samples)

    def quantile(self, q: float) -> float:
        """Return the q-quantile, 0 … 1, interpolated between samples."""
        return float(np.quantile(self.samples, q))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the median, as its stretches of time spread (block_medians)."""
        return median_interval(block_medians(self.samples))

    @property
    def stable(self) -> bool:
        low, high = self.interval
        spread = max(high - self.median, self.median - low)
        return (
            len(self.samples) >= self.stability.at_least and spread <= self.stability.precision * self.median
        )


@dataclass(frozen=True)
class Clock:
    """What is asked for the time and for a rest; tests have one of their own."""

    now: Callable[[], float] = time.perf_counter
    rest: Callable[[float], None] = time.sleep


def measure(
    calls: Mapping[str, Call],
    stability: Stability | None = None,
    *,
    pause: float = 0.0,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time calls in turn until their medians are stable, after one warm-up each.

    Give a `pause` of QUIET_SECONDS where several libraries take turns.
    """
    stability, clock = stability or Stability(), clock or Clock()
    for call in calls.values():
        call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    started = clock.now()
    while True:
        for name, call in calls.items():
            samples[name] += _turn(call, pause, clock)
        timings = {name: Timing(tuple(values), stability) for name, values in samples.items()}
        waited = clock.now() - started >= stability.at_least_seconds
        if (
            (waited and all(timing.stable for timing in timings.values()))
            or clock.now() - started >= stability.seconds
            or min(map(len, samples.values())) >= stability.at_most
        ):
            return timings


def _turn(call: Call, pause: float, clock: Clock) -> list[float]:
    if not pause:
        return [_timed(call, clock)]
    clock.rest(pause)
    first = _timed(call, clock)
    return [first] if first >= LONG_CALL else [_timed(call, clock) for _ in range(CALLS_AFTER_PAUSE)]


def _timed(call: Call, clock: Clock) -> float:
    started = clock.now()
    call()
    return clock.now() - started


def interleaved_medians(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Run the calls in turn `repeats` times after one warm-up each; return median seconds by name."""
    fixed = Stability(at_least=repeats, at_least_seconds=0, at_most=repeats, seconds=math.inf)
    return {name: timing.median for name, timing in measure(calls, fixed).items()}
