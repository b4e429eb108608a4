"""The gate: each figure by its definition, and what passes."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, make_rows
from flowturbo_trt.calibration.precision.activations import replay
from flowturbo_trt.calibration.precision.gate import generate, judge
from flowturbo_trt.calibration.precision.gate_findings import (
    Agreement,
    Drift,
    Gate,
    Speed,
    faster,
    keeps_agreement,
    within,
)
from flowturbo_trt.calibration.precision.options import GateOptions
from flowturbo_trt.calibration.precision.quantized_view import quantized_view
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.evaluation.metrics import frechet_distance, psnr
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.quality.extractor import Extractor, open_extractor
from flowturbo_trt.evaluation.speed.latency import Call, Stability, Timing
from flowturbo_trt.evaluation.velocity.networks import EngineField
from flowturbo_trt.export.quantization import QuantizedLinear
from flowturbo_trt.runtime.backend_onnxruntime import NAME, OnnxRuntimeBackend
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.tests.evaluation.quality.extractors import write_extractor

ROWS = 7
SCHEDULE = "H1P1R1"
# Coarse enough to be seen in images.
LAYERS = {"predictor guided": {"blocks.0.mlp.fc1": QuantizedLinear(0.2)}}
SURELY = "surely at most 0.01"
Pair = tuple[Bundle, Bundle]


@pytest.fixture(scope="module")
def pair(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    view = float32_view(Bundle.open(tiny_bundle))
    return view, quantized_view(view, LAYERS, "int8", tmp_path_factory.mktemp("quantized"))


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return open_extractor(write_extractor(tmp_path_factory.mktemp("extractor") / "e.onnx"), threads=1)


def timed(**seconds: tuple[float, ...]) -> Any:
    """Return a timer that measures what it is told, after calling both once."""

    def timer(calls: Mapping[str, Call], stability: Stability) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(seconds[name], stability) for name in calls}

    return timer


FASTER = timed(f=(0.2,) * 12, q=(0.1,) * 12)


def run(
    pair: Pair,
    recording: Recording,
    budget: float = 1.0,
    extractor: Extractor | None = None,
    timer: Any = FASTER,
    **given: Any,
) -> Gate:
    request = make_rows(pair[0].manifest, ROWS, 50)
    options = GateOptions(ROWS, threads=1)
    return judge(pair, recording, request, {SCHEDULE: budget}, options, extractor, timer=timer, **given)


def test_figures(pair: Pair, tiny_recording: Recording, extractor: Extractor) -> None:
    """Latents, images and features are those of pipelines on both engines, from the same noise."""
    gate = run(pair, tiny_recording, extractor=extractor)
    request = make_rows(pair[0].manifest, ROWS, 50)
    plain, changed = (
        generate(Pipeline(view, OnnxRuntimeBackend(view, 1)), request, SCHEDULE) for view in pair
    )
    errors = row_relative_l2(changed.latents, plain.latents)
    (drift,) = gate.drifts
    assert drift.mean == pytest.approx(errors.mean())
    assert drift.worst == pytest.approx(errors.max())
    assert 0.001 < drift.interval[0] < drift.mean < drift.interval[1]
    assert plain.images is not None
    assert changed.images is not None
    ratios = [psnr(a, b) for a, b in zip(changed.images, plain.images, strict=True)]
    assert drift.psnr_worst == pytest.approx(min(ratios))
    assert drift.psnr_mean == pytest.approx(np.mean([min(r, 70.97) for r in ratios]), rel=1e-3)
    (agreement,) = gate.agreements
    features = [extractor(made.images).features for made in (changed, plain) if made.images is not None]
    assert agreement.frechet_distance == pytest.approx(frechet_distance(*features))
    probabilities = extractor(plain.images).probabilities
    assert probabilities is not None
    hits = probabilities.argmax(axis=1) == request.conditions["label"]
    assert agreement.float32 == pytest.approx(hits.mean())


def test_velocity_by_call(pair: Pair, tiny_recording: Recording) -> None:
    """Of the quantised network alone, on the inputs that were recorded."""
    gate = run(pair, tiny_recording)
    view = pair[1]
    expected = {}
    for rows in tiny_recording.read(view.manifest):
        field = EngineField(OnnxRuntimeBackend(view, 1), view.manifest, NAME, "guided", rows.request)
        for call in rows.calls:
            errors = row_relative_l2(replay(field, call), call.output)
            expected.setdefault(call.site, []).append(errors)
    predictor = [site for site in tiny_recording.sites if site.network == "predictor"]
    assert [(v["index"], v["t"]) for v in gate.velocity] == [(site.index, site.t) for site in predictor]
    for found, site in zip(gate.velocity, predictor, strict=True):
        errors = np.concatenate(expected[site])
        assert found["mean"] == pytest.approx(errors.mean())
        assert found["worst"] == pytest.approx(errors.max())


def test_sizes(pair: Pair, tiny_recording: Recording) -> None:
    gate = run(pair, tiny_recording)
    files = [view.manifest.engine("predictor", "guided", NAME).file for view in pair]
    assert files[0] != files[1]
    sizes = [(view.path / file).stat().st_size for view, file in zip(pair, files, strict=True)]
    assert [gate.float32_bytes, gate.quantized_bytes] == sizes
    assert pair[1].manifest.engine("predictor", "guided", NAME).precision == "int8"
    assert pair[1].manifest.engine("refiner", "guided", NAME).precision == "fp32"


def test_speed_at_every_batch(pair: Pair, tiny_recording: Recording) -> None:
    gate = run(pair, tiny_recording)
    assert [(speed.schedule, speed.batch) for speed in gate.speeds] == [(SCHEDULE, 1), (SCHEDULE, 3)]
    assert [(speed.float32, speed.quantized) for speed in gate.speeds] == [(200, 100), (200, 100)]
    assert gate.passed
    assert gate.timed == ("onnxruntime",)
    slower = run(pair, tiny_recording, timer=timed(f=(0.1,) * 12, q=(0.2,) * 12))
    assert not slower.passed
    assert slower.timed == ()
    assert [check.met for check in slower.checks] == [True, False, False]


def test_what_is_not_measured(pair: Pair, tiny_recording: Recording) -> None:
    """Where speed cannot be had, errors decide, and it is said."""
    gate = run(pair, tiny_recording, is_timed=False, notes=["speed: not measured"])
    assert (gate.speeds, gate.notes, gate.passed) == ((), ("speed: not measured",), True)
    assert gate.timed == ()
    assert not run(pair, tiny_recording, 1e-9, is_timed=False).passed


def test_no_decoder(pair: Pair, tiny_recording: Recording) -> None:
    without = [
        Bundle(view.path, replace(view.manifest, model=replace(view.manifest.model, image=None)))
        for view in pair
    ]
    gate = run((without[0], without[1]), tiny_recording)
    assert gate.drifts[0].psnr_mean is None
    assert gate.agreements == ()


def test_classes_that_are_not_told(pair: Pair, tiny_recording: Recording, tmp_path: Path) -> None:
    """Features alone promise nothing, and it is said."""
    features = write_extractor(tmp_path / "e.onnx", outputs=("features",))
    gate = run(pair, tiny_recording, extractor=open_extractor(features, threads=1))
    assert gate.notes == (f"class agreement not measured: {features} does not tell the bundle's classes",)
    assert next(check.name for check in gate.checks) == f"{SCHEDULE}, trajectory error"
    assert not any("agreement" in check.name for check in gate.checks)
    assert gate.agreements[0].frechet_distance > 0


def test_all_8_bits_are_judged(golden_bundle: Path, golden_recording: Recording, tmp_path: Path) -> None:
    """Rows without guidance run other engines than those that were changed."""
    view = float32_view(Bundle.open(golden_bundle))
    changed = quantized_view(view, LAYERS, "int8", tmp_path)
    request = make_rows(view.manifest, 2, 50, (1.0,))
    options = GateOptions(2, threads=1)
    with pytest.raises(CalibrationError, match="predictor guided: is in 8 bits, and no trajectory to judge"):
        judge((view, changed), golden_recording, request, {SCHEDULE: 1.0}, options, timer=FASTER)


def test_schedules_that_change_nothing_are_not_timed(
    tiny_bundle: Path, tiny_recording: Recording, tmp_path: Path
) -> None:
    """They cannot be faster: H2 does without the refiner."""
    view = float32_view(Bundle.open(tiny_bundle))
    layers = {"refiner guided": {"blocks.0.mlp.fc1": QuantizedLinear(0.2)}}
    changed = quantized_view(view, layers, "int8", tmp_path)
    request = make_rows(view.manifest, 2, 50)
    budgets = {"H2": 1.0, SCHEDULE: 1.0}
    gate = judge((view, changed), tiny_recording, request, budgets, GateOptions(2, threads=1), timer=FASTER)
    assert {speed.schedule for speed in gate.speeds} == {SCHEDULE}
    assert [drift.schedule for drift in gate.drifts] == ["H2", SCHEDULE]
    assert gate.passed


def test_one_pipeline_at_a_time(
    pair: Pair, tiny_recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of both precisions are held together for timing only."""
    opened: list[Bundle] = []

    class Counted(OnnxRuntimeBackend):
        def __init__(self, view: Bundle, threads: int) -> None:
            super().__init__(view, threads)
            opened.append(view)
            most.append(len(opened))
            self._view = view

        def close(self) -> None:
            super().close()
            opened.remove(self._view)

    most: list[int] = []
    monkeypatch.setattr("flowturbo_trt.calibration.precision.gate.OnnxRuntimeBackend", Counted)
    run(pair, tiny_recording, is_timed=False)
    assert most == [1, 1, 1]
    assert opened == []
    run(pair, tiny_recording)
    assert max(most) == 2
    assert opened == []


def test_figures_that_are_not_finite(pair: Pair, tiny_recording: Recording) -> None:
    """Are null in JSON, which knows no NaN, and no promise kept."""
    drift = Drift("H1", 0.1, math.nan, (math.nan, math.inf), math.inf, None, None)
    gate = Gate((within(drift),), ({"mean": math.nan},), (drift,), (), (), 1, 1, ())
    described = json.loads(json.dumps(gate.describe(), allow_nan=False))
    assert described["passed"] is False
    assert described["checks"][0]["interval"] == [None, None]
    assert described["velocity"] == [{"mean": None}]


@pytest.mark.parametrize(("mean", "met"), [(0.1, True), (0.1001, False), (math.nan, False)])
def test_within(mean: float, met: bool) -> None:
    check = within(Drift("H1", 0.1, mean, (0.0, 1.0), 1.0, None, None))
    assert check.met is met
    assert check.limit == "at most 0.1"


@pytest.mark.parametrize(
    ("images", "lost", "high", "met", "told"),
    [
        (300, 0.0, 0.0, True, SURELY),
        (299, 0.0, 0.0, False, f"{SURELY}; cannot be told with 299 images, raise --judged-rows"),
        (500, 0.002, 0.01, True, SURELY),
        (
            500,
            0.002,
            0.011,
            False,
            f"{SURELY}; cannot be told with 500 images, raise --judged-rows",
        ),
        (500, 0.011, 0.02, False, SURELY),
        (500, -0.02, -0.01, True, SURELY),
    ],
)
def test_keeps_agreement(images: int, lost: float, high: float, met: bool, told: str) -> None:
    """Only where its interval is within the limit, and images are enough to see a loss at all."""
    check = keeps_agreement(Agreement("H1", images, 0.98, 0.98 - lost, (-0.1, high), 0.0), 0.01)
    assert (check.met, check.limit) == (met, told)
    assert check.value == pytest.approx(lost)


@pytest.mark.parametrize(
    ("float32", "quantized", "met"),
    [((9.0, 11.0), (7.0, 8.0), True), ((9.0, 11.0), (7.0, 9.5), False), ((1.0, 2.0), (3.0, 4.0), False)],
)
def test_faster(float32: tuple[float, float], quantized: tuple[float, float], met: bool) -> None:
    """Only where the intervals lie apart."""
    check = faster(Speed("H1", 1, sum(float32) / 2, sum(quantized) / 2, float32, quantized))
    assert check.met is met
    assert ("raise --max-seconds" in check.limit) is (check.value > 1 and not met)
    assert check.interval == pytest.approx((float32[0] / quantized[1], float32[1] / quantized[0]))
