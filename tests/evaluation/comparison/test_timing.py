"""Latency and acceleration: closed forms on made-up timings, and the same noise for every schedule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.evaluation.comparison.findings import Figure
from flowturbo_trt.evaluation.comparison.samples import make_rows
from flowturbo_trt.evaluation.comparison.timing import acceleration, ms_per_image, time_schedules
from flowturbo_trt.evaluation.speed.latency import Stability, Timing
from flowturbo_trt.generation.options import GenerationOptions, make_plan
from flowturbo_trt.runtime.pipeline import Pipeline

from .comparisons import QUICK


def timing(*samples: float) -> Timing:
    return Timing(samples, Stability())


def test_acceleration_is_one_minus_the_ratio_of_times() -> None:
    """A machine that is three times slower for a while changes nothing: turns are compared."""
    baseline = timing(*[2.0] * 6, *[6.0] * 6, *[2.0] * 6)
    found = acceleration(timing(*[0.5] * 6, *[1.5] * 6, *[0.5] * 6), baseline)
    assert found == Figure(0.75, (0.75, 0.75))
    slower = acceleration(timing(*[3.0] * 6, *[9.0] * 6, *[3.0] * 6), baseline)
    assert slower.value == -0.5


def test_acceleration_is_known_as_well_as_its_turns_agree() -> None:
    ratios = [0.4, 0.6] * 6
    found = acceleration(timing(*ratios), timing(*[1.0] * 12))
    assert found.value == pytest.approx(0.5)
    assert found.interval == pytest.approx((0.4, 0.6))


def test_baseline_is_not_faster_than_itself() -> None:
    baseline = timing(1.0, 2.0, 3.0)
    assert acceleration(baseline, baseline) == Figure(0.0)


def test_milliseconds_are_of_an_image() -> None:
    assert ms_per_image(timing(*[0.08] * 12), 8).value == pytest.approx(10)
    assert ms_per_image(timing(*[0.08] * 12), 8).interval == pytest.approx((10, 10))
    # Of five samples an interval has no ends.
    assert ms_per_image(timing(*[0.08] * 5), 8).interval is None


def test_every_schedule_starts_from_the_same_noise(
    tiny_bundle: Path, tiny_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, calls = Pipeline.generate, []

    def record(self: Pipeline, request: Any, schedule: Any, **options: Any) -> Any:
        calls.append((schedule, request.noise.copy(), generate(self, request, schedule, **options)))
        return calls[-1][2]

    request = make_rows(tiny_pipeline, make_plan(tiny_bundle, GenerationOptions(num=3)), range(3))
    expected = tiny_pipeline.generate(request, "H2").latents
    monkeypatch.setattr(Pipeline, "generate", record)
    found = time_schedules(tiny_pipeline, request, ["H2", "H1P1R1"], QUICK)
    assert list(found) == ["H2", "H1P1R1"]
    # One call that warms up, then turn by turn.
    assert [name for name, _, _ in calls] == ["H2", "H1P1R1"] * 4
    assert [len(t.samples) for t in found.values()] == [3, 3]
    for _, noise, made in calls:
        assert np.array_equal(noise, calls[0][1])
        assert made.images is not None
    assert np.array_equal(calls[0][2].latents, expected)
