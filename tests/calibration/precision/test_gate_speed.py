"""Timing for the gate: enough samples for a verdict, of rows that run what is judged."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import make_rows
from flowturbo_trt.calibration.precision.gate_findings import Gate, Speed
from flowturbo_trt.calibration.precision.gate_speed import batch_like, measure_speeds
from flowturbo_trt.evaluation.speed.latency import Call, Stability, Timing
from flowturbo_trt.runtime.pipeline import Pipeline

STABILITY = Stability(seconds=20.0)


class SlowTimer:
    """Stops after as many samples as its time allows, and does as many as are asked for without a limit."""

    def __init__(self, in_time: int) -> None:
        self.in_time = in_time
        self.asked: list[Stability] = []

    def __call__(self, calls: Mapping[str, Call], stability: Stability) -> dict[str, Timing]:
        self.asked.append(stability)
        count = stability.at_most if math.isinf(stability.seconds) else self.in_time
        seconds = {"f": 8.0, "q": 3.5}
        return {name: Timing((seconds[name],) * count, stability) for name in calls}


def silent(what: str, done: int, total: int) -> None:
    """Say nothing."""


@pytest.fixture
def measured(tiny_pipeline: Pipeline) -> Callable[[SlowTimer], tuple[Speed, ...]]:
    request = make_rows(tiny_pipeline.manifest, 3, 0)
    pipelines = (tiny_pipeline, tiny_pipeline)
    return lambda timer: measure_speeds(pipelines, request, ["H2"], STABILITY, silent, timer)


@pytest.mark.parametrize("in_time", [1, 2, 5])
def test_slow_models_get_enough_samples(
    measured: Callable[[SlowTimer], tuple[Speed, ...]], in_time: int
) -> None:
    """A trajectory of seconds: the time for it is over before there is an interval."""
    timer = SlowTimer(in_time)
    speeds = measured(timer)
    assert [asked.at_most for asked in timer.asked] == [STABILITY.at_most, 6 - in_time] * len(speeds)
    assert all(speed.float32_interval == (8000, 8000) for speed in speeds)
    assert Gate((), (), (), (), speeds, 0, 0, ()).timed == ("onnxruntime",)


def test_no_more_than_asked_for(measured: Callable[[SlowTimer], tuple[Speed, ...]]) -> None:
    timer = SlowTimer(6)
    assert len(measured(timer)) == len(timer.asked)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_rows_that_are_timed(golden_bundle: Path, batch: int) -> None:
    """Guided where the judged rows are: one of scale 1 alone would be served by the unguided engines."""
    model = Bundle.open(golden_bundle).manifest.model
    request = make_rows(Bundle.open(golden_bundle).manifest, 4, 0, (1.0, 4.0))
    assert request.guidance[0] == 1
    found = batch_like(model, request, batch)
    assert len(found) == batch
    assert found.guidance[0] == 4
    assert not found.is_unguided
    unguided = batch_like(model, make_rows(Bundle.open(golden_bundle).manifest, 4, 0, (1.0,)), batch)
    assert np.all(unguided.guidance == 1)
