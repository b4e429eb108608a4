"""The latency model: what is fitted is what the machine takes."""

from dataclasses import replace
from typing import Any

import pytest

from flowturbo_trt.calibration.endpoints import make_rows
from flowturbo_trt.calibration.tune.candidates import Space
from flowturbo_trt.calibration.tune.errors import TuneError
from flowturbo_trt.calibration.tune.latency import LatencyModel, measure_engines, probes, time_calls
from flowturbo_trt.evaluation.speed.latency import Stability
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.sampling.schedule import Schedule
from flowturbo_trt.sampling.trace import trace
from flowturbo_trt.tests.calibration.tune import steady

QUICK = Stability(at_least=2, at_least_seconds=0, at_most=2)


@pytest.mark.usefixtures("steady_machine")
def test_every_engine_is_told_apart(golden_space: Space, golden_pipeline: Pipeline) -> None:
    request = make_rows(golden_pipeline.manifest, 2, 0)
    found = measure_engines({"golden": golden_pipeline}, {"golden": golden_space}, request, QUICK)["golden"]
    assert found.batch == 2
    assert found.overhead == pytest.approx(steady.OVERHEAD)
    assert found.evaluations == pytest.approx({" ".join(e): s for e, s in steady.SECONDS.items()})
    # The last of three evaluations is unguided, and with it both of the refiner on its velocity.
    program = trace(Schedule.parse("H1P1R1:guided=0..0.4"), "guided")
    assert found.ms(program) == pytest.approx(1000 * (0.004 + 2 * 0.010 + 0.005 + 2 * 0.001) / 2)


@pytest.mark.usefixtures("steady_machine")
def test_small_spaces_are_timed_with_larger_probes(tiny_space: Space, tiny_pipeline: Pipeline) -> None:
    small = replace(tiny_space, evaluations=2, refined=1)
    request = make_rows(tiny_pipeline.manifest, 3, 0)
    found = measure_engines({"tiny": tiny_pipeline}, {"tiny": small}, request, QUICK)["tiny"]
    assert set(found.evaluations) == {"predictor guided", "refiner guided"}
    alone = measure_engines({"a": tiny_pipeline}, {"a": replace(small, refines=False)}, request, QUICK)["a"]
    assert set(alone.evaluations) == {"predictor guided"}


@pytest.mark.parametrize(("spread", "stable"), [(0.0, True), (0.3, False)])
def test_a_model_is_as_sure_as_its_probes(
    tiny_space: Space,
    tiny_pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    spread: float,
    stable: bool,
) -> None:
    def measure(calls: Any, stability: Stability, *, pause: float) -> Any:
        *_, last = calls
        rest = {name: call for name, call in calls.items() if name != last}
        return steady.measure(rest, stability) | steady.measure({last: calls[last]}, stability, spread=spread)

    monkeypatch.setattr(steady.MEASURE, measure)
    request = make_rows(tiny_pipeline.manifest, 1, 0)
    found = measure_engines({"tiny": tiny_pipeline}, {"tiny": tiny_space}, request, Stability())["tiny"]
    assert found.stable is stable


def test_probes_run(golden_space: Space, golden_pipeline: Pipeline) -> None:
    calls = {str(schedule): (golden_pipeline, schedule) for schedule in probes(golden_space)}
    timings = time_calls(calls, make_rows(golden_pipeline.manifest, 2, 0), QUICK)
    assert all(len(timing.samples) == 2 and timing.median > 0 for timing in timings.values())


def test_noise_is_no_overhead_below_zero() -> None:
    programs = {text: trace(Schedule.parse(text), "guided") for text in ("E2", "E10")}
    found = LatencyModel.fit(programs, {"E2": 0.019, "E10": 0.1}, 1)
    assert found.overhead == 0
    assert found.evaluations["predictor guided"] == pytest.approx(0.081 / 8)


def test_an_evaluation_that_takes_nothing() -> None:
    programs = {text: trace(Schedule.parse(text), "guided") for text in ("E2", "E10")}
    with pytest.raises(TuneError, match=r"predictor guided came out at -2\.5 ms: the machine is too busy"):
        LatencyModel.fit(programs, {"E2": 0.12, "E10": 0.1}, 1)
