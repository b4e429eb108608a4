"""How fast a recipe makes trajectories: both engines in turn, on rows like those that are judged."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from flowturbo_trt.bundle.manifest import Model
from flowturbo_trt.calibration.endpoints import Progress
from flowturbo_trt.calibration.precision.gate_findings import Speed
from flowturbo_trt.evaluation.speed.latency import Call, Stability, Timing
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request, make_request

Timer = Callable[[Mapping[str, Call], Stability], Mapping[str, Timing]]
# A median of fewer samples has no interval (latency.median_interval), and proves nothing.
LEAST_SAMPLES = 6


def measure_speeds(
    pipelines: Sequence[Pipeline],
    request: Request,
    schedules: Sequence[str],
    stability: Stability,
    progress: Progress,
    timer: Timer,
) -> tuple[Speed, ...]:
    """Time trajectories without decoding, which is the same for both, at every batch that was built for.

    `pipelines` are of float32 and of 8-bit engines. Rows are like those of `request`: guided, where any of
    them is.
    """
    manifest = pipelines[0].manifest
    cases = [(schedule, batch) for schedule in schedules for batch in manifest.batches]
    speeds = []
    for number, (schedule, batch) in enumerate(cases):
        progress(f"timing {schedule} at batch {batch}, both in turn", number, len(cases))
        rows = batch_like(manifest.model, request, batch)
        calls = {name: _timed(p, rows, schedule) for name, p in zip("fq", pipelines, strict=True)}
        timings = _measure(calls, stability, timer)
        (a, a_interval), (b, b_interval) = (_milliseconds(timings[name]) for name in "fq")
        speeds.append(Speed(schedule, batch, a, b, a_interval, b_interval))
    progress("timed", len(cases), len(cases))
    return tuple(speeds)


def batch_like(model: Model, request: Request, batch: int) -> Request:
    """Return a request of `batch` rows that the same variant serves: rows with guidance come first."""
    rows = np.resize(np.argsort(request.guidance == 1, kind="stable"), batch)
    conditions = {name: values[rows] for name, values in request.conditions.items()}
    return make_request(model, conditions, None, request.guidance[rows], None)


def _measure(calls: Mapping[str, Call], stability: Stability, timer: Timer) -> Mapping[str, Timing]:
    """Time calls, past the time that is given for it where that is too short for a verdict."""
    timings = timer(calls, stability)
    missing = LEAST_SAMPLES - min(len(timing.samples) for timing in timings.values())
    if missing <= 0:
        return timings
    rest = replace(stability, at_least=missing, at_least_seconds=0.0, at_most=missing, seconds=math.inf)
    more = timer(calls, rest)
    return {name: Timing(t.samples + more[name].samples, stability) for name, t in timings.items()}


def _milliseconds(timing: Timing) -> tuple[float, tuple[float, float]]:
    low, high = timing.interval
    return 1000 * timing.median, (1000 * low, 1000 * high)


def _timed(pipeline: Pipeline, request: Request, schedule: str) -> Call:
    return lambda: pipeline.generate(request, schedule, decode=False)
