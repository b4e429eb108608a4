"""A machine whose times are known: a call takes what its evaluations cost, always."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from flowturbo_trt.evaluation.speed.latency import Stability, Timing
from flowturbo_trt.sampling.trace import trace

OVERHEAD = 0.004
SECONDS = {
    ("predictor", "guided"): 0.010,
    ("predictor", "unguided"): 0.005,
    ("refiner", "guided"): 0.002,
    ("refiner", "unguided"): 0.001,
}
MEASURE = "flowturbo_trt.calibration.tune.latency.measure"


def measure(
    calls: Mapping[str, "partial[Any]"],
    stability: Stability,
    *,
    pause: float = 0.0,
    slower: float = 1.0,
    spread: float = 0.0,
) -> dict[str, Timing]:
    """Stand in for evaluation.speed.latency.measure: no clock is read; with a `spread` nothing is stable."""
    around = [1 + spread * (-1) ** i for i in range(12)]
    return {
        name: Timing(tuple(slower * (OVERHEAD + _engines(call)) * by for by in around), stability)
        for name, call in calls.items()
    }


def _engines(call: "partial[Any]") -> float:
    program = trace(call.args[1], "guided")
    return sum(count * SECONDS[engine] for engine, count in program.evaluations().items())
