"""The gate: each figure by its definition, and what passes."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import make_rows
from flowturbo_trt.calibration.precision.activations import replay
from flowturbo_trt.calibration.precision.gate import GateOptions, generate, judge
from flowturbo_trt.calibration.precision.gate_findings import (
    Agreement,
    Drift,
    Gate,
    Speed,
    faster,
    keeps_agreement,
    within,
)
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
    slower = run(pair, tiny_recording, timer=timed(f=(0.1,) * 12, q=(0.2,) * 12))
    assert not slower.passed
    assert [check.met for check in slower.checks] == [True, False, False]


def test_what_is_not_measured(pair: Pair, tiny_recording: Recording) -> None:
    """Where speed cannot be had, errors decide, and it is said."""
    gate = run(pair, tiny_recording, is_timed=False, notes=["speed: not measured"])
    assert (gate.speeds, gate.notes, gate.passed) == ((), ("speed: not measured",), True)
    assert not run(pair, tiny_recording, 1e-9, is_timed=False).passed


def test_no_decoder(pair: Pair, tiny_recording: Recording, extractor: Extractor) -> None:
    without = [
        Bundle(view.path, replace(view.manifest, model=replace(view.manifest.model, image=None)))
        for view in pair
    ]
    gate = run((without[0], without[1]), tiny_recording, extractor=extractor)
    assert gate.drifts[0].psnr_mean is None
    assert gate.agreements == ()


@pytest.mark.parametrize(("mean", "met"), [(0.1, True), (0.1001, False), (math.nan, False)])
def test_within(mean: float, met: bool) -> None:
    check = within(Drift("H1", 0.1, mean, (0.0, 1.0), 1.0, None, None))
    assert check.met is met
    assert check.limit == "at most 0.1"


@pytest.mark.parametrize(("quantized", "met"), [(0.98, True), (0.97, True), (0.969, False), (1.0, True)])
def test_keeps_agreement(quantized: float, met: bool) -> None:
    check = keeps_agreement(Agreement("H1", 0.98, quantized, (0.0, 0.1), 0.0), 0.01)
    assert check.met is met
    assert check.value == pytest.approx(0.98 - quantized)


@pytest.mark.parametrize(
    ("float32", "quantized", "met"),
    [((9.0, 11.0), (7.0, 8.0), True), ((9.0, 11.0), (7.0, 9.5), False), ((1.0, 2.0), (3.0, 4.0), False)],
)
def test_faster(float32: tuple[float, float], quantized: tuple[float, float], met: bool) -> None:
    """Only where the intervals lie apart."""
    check = faster(Speed("H1", 1, sum(float32) / 2, sum(quantized) / 2, float32, quantized))
    assert check.met is met
    assert check.interval == pytest.approx((float32[0] / quantized[1], float32[1] / quantized[0]))


def test_unstable_times_prove_nothing(pair: Pair, tiny_recording: Recording) -> None:
    """Too few samples have no interval, and so no verdict."""
    gate = run(pair, tiny_recording, timer=timed(f=(0.2,) * 2, q=(0.1,) * 2))
    assert not gate.passed
