"""The gate: what a recipe does to images, and whether it is worth it, measured on engines that apply it.

Errors are against the float32 engines, from the same noise and with the same schedules; the noise is none
that the recipe was made with. Times are of both in turn, in the same run. A promise that was not measured
is never taken for kept.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import Progress
from flowturbo_trt.calibration.precision.gate_findings import (
    Agreement,
    Drift,
    Gate,
    Speed,
    faster,
    keeps_agreement,
    within,
)
from flowturbo_trt.calibration.recording.replaying import velocity_errors
from flowturbo_trt.calibration.recording.trajectories import CallSite, Recording
from flowturbo_trt.evaluation.metrics import bootstrap_interval, frechet_distance, psnr
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.quality.extractor import Extractor, Outputs
from flowturbo_trt.evaluation.speed.latency import Call, Stability, Timing, measure
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.pipeline import Generated, Pipeline
from flowturbo_trt.runtime.request import Request, make_request

Pair = tuple[Bundle, Bundle]
Timer = Callable[[Mapping[str, Call], Stability], Mapping[str, Timing]]
# Images that an extractor sees at once.
EXTRACTED = 64


@dataclass(frozen=True)
class GateOptions:
    """How strict the gate is, and how long it may take.

    `rows` images are compared; class agreement may fall by `agreement_drop` (0.01: one point).
    """

    rows: int = 64
    agreement_drop: float = 0.01
    stability: Stability = field(default_factory=lambda: Stability(seconds=20.0))
    threads: int = 0


def judge(
    pair: Pair,
    recording: Recording,
    request: Request,
    budgets: Mapping[str, float],
    options: GateOptions,
    extractor: Extractor | None = None,
    *,
    is_timed: bool = True,
    notes: Sequence[str] = (),
    progress: Progress = lambda what, done, total: None,
    timer: Timer = measure,
) -> Gate:
    """Measure a pair: a bundle's float32 engines, and the same with a recipe applied (quantized_view).

    `request` has rows that the recipe was not made with; `budgets` are of trajectory errors, by schedule.
    Where it `is_timed`, not being faster is a check that does not hold; `notes` say what else is to be known.
    """
    backends = [OnnxRuntimeBackend(view, options.threads) for view in pair]
    pipelines = [Pipeline(view, backend) for view, backend in zip(pair, backends, strict=True)]
    drifts, agreements = [], []
    for number, (schedule, budget) in enumerate(budgets.items()):
        progress(f"generating {len(request)} images with {schedule}, twice", number, len(budgets))
        made = [generate(pipeline, request, schedule) for pipeline in pipelines]
        drifts.append(_drift(schedule, budget, *made))
        if extractor is not None and made[0].images is not None:
            agreements.append(_agreement(schedule, extractor, request, *made))
    progress("making recorded calls", len(budgets), len(budgets))
    velocity = _velocity(backends[1], pair[1].manifest, recording)
    speeds = _speeds(pipelines, list(budgets), options, progress, timer) if is_timed else []
    checks = [within(drift) for drift in drifts]
    checks += [keeps_agreement(a, options.agreement_drop) for a in agreements if a.float32 is not None]
    checks += [faster(speed) for speed in speeds]
    before, after = (_engine_bytes(view, pair[1]) for view in pair)
    return Gate(
        tuple(checks), velocity, tuple(drifts), tuple(agreements), tuple(speeds), before, after, tuple(notes)
    )


def generate(pipeline: Pipeline, request: Request, schedule: str) -> Generated:
    """Run a request, with images where the bundle has a decoder."""
    return pipeline.generate(request, schedule, decode=pipeline.manifest.model.image is not None)


def _drift(schedule: str, budget: float, float32: Generated, quantized: Generated) -> Drift:
    errors = row_relative_l2(quantized.latents, float32.latents)

    def mean(rows: NDArray[np.int64]) -> float:
        return float(errors[rows].mean())

    ratios = None
    if quantized.images is not None and float32.images is not None:
        pairs = zip(quantized.images, float32.images, strict=True)
        # An image that stays as it is counts as one with a single value off by one.
        most = 10 * math.log10(255**2 * float32.images[0].size)
        ratios = [min(psnr(found, expected), most) for found, expected in pairs]
    return Drift(
        schedule,
        budget,
        float(errors.mean()),
        bootstrap_interval(mean, len(errors)),
        float(errors.max()),
        None if ratios is None else float(np.mean(ratios)),
        None if ratios is None else min(ratios),
    )


def _agreement(
    schedule: str, extractor: Extractor, request: Request, float32: Generated, quantized: Generated
) -> Agreement:
    outputs = [_extract(extractor, made) for made in (float32, quantized)]
    distance = frechet_distance(outputs[1].features, outputs[0].features)
    labels = request.conditions.get("label")
    if labels is None or outputs[0].probabilities is None or not extractor.recognises_labels:
        return Agreement(schedule, None, None, None, distance)
    hits = [o.probabilities.argmax(axis=1) == labels for o in outputs if o.probabilities is not None]
    lost = hits[0].astype(np.float64) - hits[1]

    def drop(rows: NDArray[np.int64]) -> float:
        return float(lost[rows].mean())

    interval = bootstrap_interval(drop, len(lost))
    return Agreement(schedule, float(hits[0].mean()), float(hits[1].mean()), interval, distance)


def _extract(extractor: Extractor, made: Generated) -> Outputs:
    assert made.images is not None
    starts = range(0, len(made.images), EXTRACTED)
    parts = [extractor(made.images[start : start + EXTRACTED]) for start in starts]
    features = np.concatenate([part.features for part in parts])
    found = [part.probabilities for part in parts if part.probabilities is not None]
    return Outputs(features, None, np.concatenate(found) if found else None)


def _velocity(
    backend: OnnxRuntimeBackend, manifest: Manifest, recording: Recording
) -> tuple[Mapping[str, Any], ...]:
    """Return what each call of a quantised network gives, teacher-forced, over all recorded rows."""
    lowered = {engine.name for engine in manifest.engines if engine.precision != "fp32"}
    sites = [site for site in recording.sites if f"{site.network} {site.variant}" in lowered]
    found: dict[CallSite, list[NDArray[np.float64]]] = {site: [] for site in sites}
    for rows in recording.read(manifest):
        for site, errors in velocity_errors(backend, manifest, [rows], sites).items():
            found[site].append(errors)
    return tuple(
        {**asdict(site), "mean": float(np.mean(errors)), "worst": float(np.max(errors))}
        for site, parts in found.items()
        for errors in (np.concatenate(parts),)
    )


def _speeds(
    pipelines: Sequence[Pipeline],
    schedules: Sequence[str],
    options: GateOptions,
    progress: Progress,
    timer: Timer,
) -> list[Speed]:
    """Time trajectories without decoding, which is the same for both, at every batch that was built for."""
    manifest = pipelines[0].manifest
    cases = [(schedule, batch) for schedule in schedules for batch in manifest.batches]
    speeds = []
    for number, (schedule, batch) in enumerate(cases):
        progress(f"timing {schedule} at batch {batch}, both in turn", number, len(cases))
        first = {condition.name: [condition.minimum] * batch for condition in manifest.model.conditions}
        request = make_request(manifest.model, first, None, None, None)
        calls = {name: _timed(p, request, schedule) for name, p in zip("fq", pipelines, strict=True)}
        timings = timer(calls, options.stability)
        (a, a_interval), (b, b_interval) = (_milliseconds(timings[name]) for name in "fq")
        speeds.append(Speed(schedule, batch, a, b, a_interval, b_interval))
    progress("timed", len(cases), len(cases))
    return speeds


def _milliseconds(timing: Timing) -> tuple[float, tuple[float, float]]:
    low, high = timing.interval
    return 1000 * timing.median, (1000 * low, 1000 * high)


def _timed(pipeline: Pipeline, request: Request, schedule: str) -> Call:
    return lambda: pipeline.generate(request, schedule, decode=False)


def _engine_bytes(view: Bundle, quantized: Bundle) -> int:
    """Return the size of the engines that a recipe changes."""
    lowered = {engine.name for engine in quantized.manifest.engines if engine.precision != "fp32"}
    files = {file for engine in view.manifest.engines if engine.name in lowered for file in engine.files}
    return sum(view.manifest.files[file].bytes for file in files)
