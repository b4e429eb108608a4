"""The gate: what a recipe does to images, and whether it is worth it, measured on engines that apply it.

Trajectory errors are against the float32 engines, from the same noise and with the same schedules; the
noise is none that the recipe was made with. Velocity errors, which nothing is promised of, are of the
recorded calls that ranges were chosen on. Times are of both engines in turn, in the same run. The verdict
is on what was measured, and what was not is said: in notes, and by the backends in Gate.timed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, Progress
from flowturbo_trt.calibration.precision.gate_findings import (
    Agreement,
    Drift,
    Gate,
    Speed,
    faster,
    keeps_agreement,
    within,
)
from flowturbo_trt.calibration.precision.gate_speed import Timer, measure_speeds
from flowturbo_trt.calibration.precision.options import GateOptions
from flowturbo_trt.calibration.recording.call_sites import CallSite
from flowturbo_trt.calibration.recording.replaying import velocity_errors
from flowturbo_trt.calibration.recording.trajectories import Recording
from flowturbo_trt.evaluation.metrics import bootstrap_interval, frechet_distance, psnr
from flowturbo_trt.evaluation.parity.comparison import row_relative_l2
from flowturbo_trt.evaluation.quality.extractor import Extractor, Outputs
from flowturbo_trt.evaluation.speed.latency import measure
from flowturbo_trt.runtime.backend_onnxruntime import OnnxRuntimeBackend
from flowturbo_trt.runtime.pipeline import Generated, Pipeline
from flowturbo_trt.runtime.programs import choose_variant, find_program
from flowturbo_trt.runtime.request import Request

Pair = tuple[Bundle, Bundle]
# Images that an extractor sees at once.
EXTRACTED = 64


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
    Where it `is_timed`, not being faster is a check that does not hold, for every schedule that evaluates
    something in 8 bits; `notes` say what else is to be known. With an extractor the bundle has a decoder.
    Raises CalibrationError where no schedule evaluates something that is in 8 bits.
    """
    changed = _changed(pair[1].manifest, request, list(budgets))
    drifts, agreements = [], []
    for schedule, *made in _generated(pair, request, list(budgets), options.threads, progress):
        drifts.append(_drift(schedule, budgets[schedule], *made))
        if extractor is not None:
            agreements.append(_agreement(schedule, extractor, request, *made))
    progress("making recorded calls", 0, 1)
    with closing(OnnxRuntimeBackend(pair[1], options.threads)) as backend:
        velocity = _velocity(backend, pair[1].manifest, recording)
    progress("recorded calls made", 1, 1)
    speeds: tuple[Speed, ...] = ()
    if is_timed:
        with _open(pair[0], options.threads) as float32, _open(pair[1], options.threads) as quantized:
            speeds = measure_speeds(
                (float32, quantized), request, changed, options.stability, progress, timer
            )
    told = [a for a in agreements if a.float32 is not None]
    if extractor is not None and not told:
        notes = [*notes, f"class agreement not measured: {extractor.path} does not tell the bundle's classes"]
    checks = [within(drift) for drift in drifts]
    checks += [keeps_agreement(agreement, options.agreement_drop) for agreement in told]
    checks += [faster(speed) for speed in speeds]
    before, after = (_engine_bytes(view, pair[1]) for view in pair)
    return Gate(
        tuple(checks), velocity, tuple(drifts), tuple(agreements), speeds, before, after, tuple(notes)
    )


def _changed(manifest: Manifest, request: Request, schedules: Sequence[str]) -> list[str]:
    """Return the schedules that evaluate something in 8 bits.

    Raises CalibrationError where something in 8 bits is evaluated by none.
    """
    lowered = _lowered(manifest)
    variant = choose_variant(manifest, is_unguided=request.is_unguided)
    evaluated = {
        schedule: {" ".join(engine) for engine in find_program(manifest, schedule, variant).evaluations()}
        for schedule in schedules
    }
    if left := lowered.difference(*evaluated.values()):
        raise CalibrationError(
            f"{min(left)}: is in 8 bits, and no trajectory to judge evaluates it; judge rows with the "
            "guidance that was calibrated for"
        )
    return [schedule for schedule in schedules if evaluated[schedule] & lowered]


def _lowered(manifest: Manifest) -> set[str]:
    """Return the names of the engines that a recipe changed."""
    return {engine.name for engine in manifest.engines if engine.precision != "fp32"}


def _open(view: Bundle, threads: int) -> Pipeline:
    return Pipeline(view, OnnxRuntimeBackend(view, threads))


def _generated(
    pair: Pair, request: Request, schedules: Sequence[str], threads: int, progress: Progress
) -> Iterator[tuple[str, Generated, Generated]]:
    """Yield what float32 and 8-bit engines make of a request, by schedule; never are both open."""
    total = 2 * len(schedules)
    made = {}
    with _open(pair[0], threads) as pipeline:
        for number, schedule in enumerate(schedules):
            progress(f"generating {len(request)} images with {schedule} in float32", number, total)
            made[schedule] = generate(pipeline, request, schedule)
    with _open(pair[1], threads) as pipeline:
        for number, schedule in enumerate(schedules, len(schedules)):
            progress(f"generating {len(request)} images with {schedule} in 8 bits", number, total)
            yield schedule, made.pop(schedule), generate(pipeline, request, schedule)
    progress("images generated", total, total)


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
        return Agreement(schedule, len(outputs[0].features), None, None, None, distance)
    hits = [o.probabilities.argmax(axis=1) == labels for o in outputs if o.probabilities is not None]
    lost = hits[0].astype(np.float64) - hits[1]

    def drop(rows: NDArray[np.int64]) -> float:
        return float(lost[rows].mean())

    interval = bootstrap_interval(drop, len(lost))
    recognised = [float(of.mean()) for of in hits]
    return Agreement(schedule, len(lost), recognised[0], recognised[1], interval, distance)


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
    lowered = _lowered(manifest)
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


def _engine_bytes(view: Bundle, quantized: Bundle) -> int:
    """Return the size of the engines that a recipe changes."""
    lowered = _lowered(quantized.manifest)
    files = {file for engine in view.manifest.engines if engine.name in lowered for file in engine.files}
    return sum(view.manifest.files[file].bytes for file in files)
