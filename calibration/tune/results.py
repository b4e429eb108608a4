"""What a search has found: schedules, their errors on noises that it did not see, and their times.

The front and the winner are chosen by these errors: of schedules that hardly differ, the one that these
noises favour is taken, and its error is told a little too small.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.calibration.tune.candidates import Candidate
from flowturbo_trt.calibration.tune.latency import LatencyModel
from flowturbo_trt.calibration.tune.search import Tried
from flowturbo_trt.evaluation.metrics import bootstrap_interval
from flowturbo_trt.evaluation.pareto import pareto_front

Interval = tuple[float, float]


@dataclass(frozen=True)
class Latency:
    """The median milliseconds of an image with its interval; `stable` when it was known well enough."""

    ms: float
    interval: Interval
    stable: bool


@dataclass(frozen=True)
class Result:
    """A schedule that was judged: its errors (N) on held-out noises, its measured and its expected time."""

    candidate: Candidate
    evaluations: Mapping[str, int]
    errors: NDArray[np.float64]
    latency: Latency
    expected_ms: float
    fid: float | None = None

    @property
    def name(self) -> str:
        return str(self.candidate.schedule)

    @cached_property
    def error(self) -> float:
        return float(self.errors.mean())

    @cached_property
    def error_interval(self) -> Interval:
        """The 95 % interval of the mean error."""
        return bootstrap_interval(lambda rows: float(self.errors[rows].mean()), len(self.errors))

    @property
    def values(self) -> tuple[float, float]:
        return (self.latency.ms, self.error)

    def dominates(self, other: "Result") -> bool:
        """Whether it is not slower and more exact, beyond what other noises could change."""
        return self.latency.ms <= other.latency.ms and self.error_ratio(other)[1][1] < 1

    def error_ratio(self, other: "Result") -> tuple[float, Interval]:
        """Return its mean error over another's, noise by noise the same, with its 95 % interval."""

        def ratio(rows: NDArray[np.int64]) -> float:
            return float(self.errors[rows].mean() / other.errors[rows].mean())

        return ratio(np.arange(len(self.errors))), bootstrap_interval(ratio, len(self.errors))


@dataclass(frozen=True)
class Tuned:
    """The results of a search: `own` are the bundle's schedules, its default first; `tried` all."""

    models: Mapping[str, LatencyModel]
    found: Sequence[Result]
    own: Sequence[Result]
    tried: Sequence[Tried]

    @property
    def baseline(self) -> Result:
        """The bundle's default schedule as it was when the search began."""
        return self.own[0]

    @cached_property
    def front(self) -> list[Result]:
        """The Pareto front by measured times and held-out errors, the bundle's own schedules among it."""
        return pareto_front([*self.own, *self.found], lambda result: result.values)

    @cached_property
    def dominating(self) -> list[Result]:
        """What dominates the baseline, the most exact first."""
        better = [result for result in self.front if result.dominates(self.baseline)]
        return sorted(better, key=lambda result: result.error)

    @cached_property
    def model_error(self) -> float:
        """The largest relative error of the expected times, the drift taken off."""
        results = (*self.own, *self.found)
        return max(abs(self.drift * r.expected_ms / r.latency.ms - 1) for r in results)

    @cached_property
    def drift(self) -> float:
        """How many times slower the machine was at the end than when its engines were timed: the median."""
        return statistics.median(r.latency.ms / r.expected_ms for r in (*self.own, *self.found))
