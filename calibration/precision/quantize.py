"""From recorded trajectories to a recipe: scales, layers, and the gate's verdict on both."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, Progress, make_rows
from flowturbo_trt.calibration.precision.emulation import Layers
from flowturbo_trt.calibration.precision.gate import judge
from flowturbo_trt.calibration.precision.gate_findings import Gate
from flowturbo_trt.calibration.precision.groups import Group, Macs, make_groups
from flowturbo_trt.calibration.precision.mixed_precision import Choice, choose_groups
from flowturbo_trt.calibration.precision.options import PrecisionOptions
from flowturbo_trt.calibration.precision.plain_data import plain
from flowturbo_trt.calibration.precision.preparation import class_notes, prepare
from flowturbo_trt.calibration.precision.quantized_view import quantized_view
from flowturbo_trt.calibration.precision.scales import Arrangement, Scales
from flowturbo_trt.calibration.precision.sensitivity import Sensitivity, measure_sensitivity
from flowturbo_trt.calibration.precision.trials import Errors, Trials, Truth, find_truth
from flowturbo_trt.calibration.recording.call_sites import CallSite
from flowturbo_trt.calibration.recording.files import DESCRIPTION
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.trajectories import Recording, open_recording, record, sources_of
from flowturbo_trt.evaluation.quality.extractor import Extractor
from flowturbo_trt.export.quantization import Recipe
from flowturbo_trt.runtime.backend_onnxruntime import NAME
from flowturbo_trt.runtime.request import Request


@dataclass(frozen=True)
class Calibrated:
    """A recipe, and everything that led to it.

    `arrangements` are the velocity errors with all candidates quantised, teacher-forced, for every way that
    was tried; `arrangement` is the best. `distances` are the schedules' own from the reference, if that was
    followed; layers were chosen for `aims`, below the budgets.
    """

    recipe: Recipe
    recording: Recording
    distances: Errors
    budgets: Errors
    aims: Errors
    arrangements: Mapping[Arrangement, float]
    arrangement: Arrangement
    sensitivity: Sensitivity
    choice: Choice
    gate: Gate

    def describe(self) -> dict[str, Any]:
        """Return this as plain data, without the scales."""
        described: dict[str, Any] = {
            "kind": self.recipe.kind,
            "rows": self.recording.rows,
            "guidance": list(self.recording.guidance),
            "schedule_distances": dict(self.distances),
            "budgets": dict(self.budgets),
            "aims": dict(self.aims),
            "arrangements": {str(a): error for a, error in self.arrangements.items()},
            "arrangement": str(self.arrangement),
            "choice": self.choice.describe(),
            "sensitivity": self.sensitivity.describe(),
            "gate": self.gate.describe(),
        }
        return {name: plain(value) for name, value in described.items()}


def calibrate_precision(
    bundle: Bundle,
    options: PrecisionOptions,
    folder: Path,
    extractor: Extractor | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Calibrated:
    """Find a recipe for a bundle and judge it; `folder` holds a recording, or will.

    Raises CalibrationError, ExtractorError, and what reading bundles, schedules and recordings raises.
    """
    view = float32_view(bundle)
    prepared = prepare(view, options, extractor)
    macs = prepared.candidates
    recording = find_recording(view, prepared.schedules, options, folder, progress)
    threads = options.gate.threads
    reference = options.reference if options.budget_error is None else None
    truth = find_truth(view, recording, options.trial_rows, reference, threads, progress)
    budgets = _budgets(truth, options)
    aims = {schedule: (1 - options.margin) * budget for schedule, budget in budgets.items()}
    groups = make_groups(macs, options.groups)
    scales = {name: Scales(view, recording, _network(name), threads, progress) for name in macs}
    sites = [site for site in recording.sites if f"{site.network} {site.variant}" in macs]
    arrangements = _try_all(truth, scales, macs, groups, sites, options, progress)
    best = min(arrangements, key=arrangements.__getitem__)
    layers = _layers(scales, macs, options.kind, best)
    trials = Trials(truth, layers, options.kind)
    sensitivity = measure_sensitivity(trials, groups, sites, recording.schedules, progress)
    choice = choose_groups(sensitivity, trials.trajectory_errors, aims, options.tries, progress)
    # From here on the memory is the engines'.
    del trials, scales
    chosen = _chosen(layers, choice.quantized)
    gate = _judge(bundle, chosen, recording, prepared.judged, budgets, options, extractor, progress)
    recipe = _recipe(
        view.manifest, options.kind, chosen, gate, {"arrangement": str(best), "budgets": budgets}
    )
    return Calibrated(
        recipe, recording, truth.distances, budgets, aims, arrangements, best, sensitivity, choice, gate
    )


def _recipe(manifest: Manifest, kind: str, layers: Layers, gate: Gate, findings: Mapping[str, Any]) -> Recipe:
    """Return a recipe that says what it was judged on."""
    checks = [asdict(check) for check in gate.checks]
    return Recipe(
        kind,
        layers,
        sources_of(manifest),
        gate.passed,
        plain({**findings, "checks": checks, "notes": gate.notes}),
        guided_channels=manifest.model.guidance.channels,
        schedules=tuple(drift.schedule for drift in gate.drifts),
        timed=gate.timed,
    )


def find_recording(
    view: Bundle, schedules: tuple[str, ...], options: PrecisionOptions, folder: Path, progress: Progress
) -> Recording:
    """Open the recording in a folder, or make one there; raises CalibrationError for one of other things."""
    manifest = view.manifest
    if not (folder / DESCRIPTION).exists():
        return record(
            view,
            schedules,
            folder,
            rows=options.rows,
            seed=options.seed,
            guidance=options.guidance,
            threads=options.gate.threads,
            progress=progress,
        )
    recording = open_recording(folder).of(manifest)
    scales = make_rows(manifest, options.rows, options.seed, options.guidance).guidance
    for name, found, asked in (
        ("schedules", recording.schedules, schedules),
        ("guidance", recording.guidance, tuple(dict.fromkeys(scales.tolist()))),
        ("rows", (recording.rows,), (options.rows,)),
        ("seed", (recording.seed,), (options.seed,)),
    ):
        if found != asked:
            raise CalibrationError(
                f"{folder}: was recorded with {name} {_words(found)}, asked for is {_words(asked)}; ask for "
                "the same, or give another folder"
            )
    return recording


def _words(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _network(graph: str) -> tuple[str, str]:
    network, variant = graph.split(" ")
    return network, variant


def _budgets(truth: Truth, options: PrecisionOptions) -> dict[str, float]:
    """Return how large trajectory errors may be, by schedule.

    Raises CalibrationError where a schedule's distance from the reference is no measure.
    """
    if options.budget_error is not None:
        return dict.fromkeys(truth.ends, options.budget_error)
    for schedule, distance in truth.distances.items():
        if not 0 < distance < math.inf:
            raise CalibrationError(
                f"{schedule}: its distance from {options.reference} is {distance:g}, which makes no budget; "
                "give --budget-error"
            )
    return {schedule: options.budget_share * distance for schedule, distance in truth.distances.items()}


def _layers(scales: Mapping[str, Scales], macs: Macs, kind: str, arrangement: Arrangement) -> Layers:
    return {name: of_graph.arrange(macs[name], kind, arrangement) for name, of_graph in scales.items()}


def _try_all(
    truth: Truth,
    scales: Mapping[str, Scales],
    macs: Macs,
    groups: Sequence[Group],
    sites: Sequence[CallSite],
    options: PrecisionOptions,
    progress: Progress,
) -> dict[Arrangement, float]:
    """Quantise all candidates in every way, and return the mean errors of the velocity.

    They tell ways apart that the ends of few trajectories do not.
    """
    tried = [Arrangement(method, strength) for strength in options.smoothing for method in options.methods]
    found = {}
    for number, arrangement in enumerate(tried):
        layers = _layers(scales, macs, options.kind, arrangement)
        progress(f"trying {arrangement}", number, len(tried))
        errors = Trials(truth, layers, options.kind).velocity_errors(groups, sites)
        found[arrangement] = float(np.mean(list(errors.values())))
    progress("ranges chosen", len(tried), len(tried))
    return found


def _chosen(layers: Layers, groups: Sequence[Group]) -> Layers:
    """Return the layers of some groups, in their order in the graphs."""
    quantized = {(name, layer) for group in groups for name, of in group.layers.items() for layer in of}
    chosen = {
        name: {layer: how for layer, how in of_graph.items() if (name, layer) in quantized}
        for name, of_graph in layers.items()
    }
    return {name: of_graph for name, of_graph in chosen.items() if of_graph}


def _judge(
    bundle: Bundle,
    layers: Layers,
    recording: Recording,
    request: Request,
    budgets: Errors,
    options: PrecisionOptions,
    extractor: Extractor | None,
    progress: Progress,
) -> Gate:
    view = float32_view(bundle)
    with tempfile.TemporaryDirectory() as place:
        quantized = quantized_view(view, layers, options.kind, Path(place))
        return judge(
            (view, quantized),
            recording,
            request,
            budgets,
            options.gate,
            extractor,
            is_timed=is_timed(bundle, options.kind),
            notes=[*class_notes(view.manifest, recording.rows), *speed_notes(bundle, options.kind)],
            progress=progress,
        )


def is_timed(bundle: Bundle, kind: str) -> bool:
    """Tell whether the speed of a kind can be measured with a bundle here."""
    return kind == "int8" and any(engine.backend == NAME for engine in bundle.manifest.engines)


def speed_notes(bundle: Bundle, kind: str) -> tuple[str, ...]:
    """Say on which of a bundle's backends the speed of a kind is not measured, and what to do about it."""
    reasons = {engine.backend: f"recipes are timed on {NAME} alone" for engine in bundle.manifest.engines}
    if is_timed(bundle, kind):
        del reasons[NAME]
    elif NAME in reasons:
        reasons[NAME] = f"its CPU provider only emulates {kind}"
    return tuple(
        f"speed not measured on {backend}: {reason}; build with the recipe for the machine that it is for, "
        "and compare there with `flowturbo_trt bench`"
        for backend, reason in reasons.items()
    )
