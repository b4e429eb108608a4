"""From recorded trajectories to a recipe: scales, layers, and the gate's verdict on both."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.calibration.endpoints import CalibrationError, Progress, make_rows
from flowturbo_trt.calibration.precision.emulation import Layers
from flowturbo_trt.calibration.precision.gate import GateOptions, judge
from flowturbo_trt.calibration.precision.gate_findings import Gate
from flowturbo_trt.calibration.precision.groups import Group, Macs, find_candidates, make_groups
from flowturbo_trt.calibration.precision.mixed_precision import Choice, choose_groups
from flowturbo_trt.calibration.precision.quantized_view import quantized_view
from flowturbo_trt.calibration.precision.ranges import METHODS
from flowturbo_trt.calibration.precision.scales import Arrangement, Scales
from flowturbo_trt.calibration.precision.sensitivity import Sensitivity, measure_sensitivity
from flowturbo_trt.calibration.precision.trials import Errors, Trials, Truth, find_truth
from flowturbo_trt.calibration.recording.files import DESCRIPTION
from flowturbo_trt.calibration.recording.float32 import float32_view
from flowturbo_trt.calibration.recording.trajectories import (
    CallSite,
    Recording,
    open_recording,
    record,
    sources_of,
)
from flowturbo_trt.evaluation.quality.extractor import Extractor
from flowturbo_trt.export.quantization import Recipe
from flowturbo_trt.runtime.backend_onnxruntime import NAME


@dataclass(frozen=True)
class PrecisionOptions:
    """What precision is calibrated for, on what, and what is tried.

    Trajectories of `schedules` (none: the bundle's default) from `rows` noises are recorded, with scales of
    `guidance` in turn (none: the bundle's own). Ranges are chosen on all of them; sensitivity, and which
    layers run in 8 bits, on `trial_rows`. Of all `methods` (ranges.METHODS) and strengths of `smoothing`
    (None: without) the best by measurement is taken. Candidates are linear layers of the kinds `layers` in
    `networks`, in at most `groups` groups; of them `tries` are tried before one is put back.

    `budget_error` bounds the mean trajectory error, the relative L2 of the latents against the float32
    engines. None: for every schedule, `budget_share` of its own distance from the `reference` schedule in
    float32. With a half, 8 bits move images half as far as the schedule does; where these errors are
    independent, both together are an eighth farther off than the schedule alone. Layers are chosen for
    `margin` less than the budget, because the gate measures on other noise.
    """

    kind: str
    schedules: tuple[str, ...] = ()
    rows: int = 64
    trial_rows: int = 16
    guidance: tuple[float, ...] = ()
    seed: int = 0
    methods: tuple[str, ...] = tuple(METHODS)
    smoothing: tuple[float | None, ...] = (None, 0.5)
    layers: tuple[str, ...] = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    networks: tuple[str, ...] = ("predictor",)
    budget_error: float | None = None
    budget_share: float = 0.5
    reference: str = "H25"
    margin: float = 0.1
    groups: int = 48
    tries: int = 3
    gate: GateOptions = field(default_factory=GateOptions)


@dataclass(frozen=True)
class Calibrated:
    """A recipe, and everything that led to it.

    `arrangements` are the velocity errors with all candidates quantised, teacher-forced, for every way that
    was tried; `arrangement` is the best. `distances` are the schedules' own from the reference, if that was
    followed.
    """

    recipe: Recipe
    recording: Recording
    distances: Errors
    budgets: Errors
    arrangements: Mapping[Arrangement, float]
    arrangement: Arrangement
    sensitivity: Sensitivity
    choice: Choice
    gate: Gate

    def describe(self) -> dict[str, Any]:
        """Return this as plain data, without the scales."""
        return {
            "kind": self.recipe.kind,
            "rows": self.recording.rows,
            "guidance": list(self.recording.guidance),
            "schedule_distances": dict(self.distances),
            "budgets": dict(self.budgets),
            "arrangements": {str(a): error for a, error in self.arrangements.items()},
            "arrangement": str(self.arrangement),
            "choice": self.choice.describe(),
            "sensitivity": self.sensitivity.describe(),
            "gate": self.gate.describe(),
        }


def calibrate_precision(
    bundle: Bundle,
    options: PrecisionOptions,
    folder: Path,
    extractor: Extractor | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Calibrated:
    """Find a recipe for a bundle and judge it; `folder` holds a recording, or will.

    Raises CalibrationError, and what reading bundles, schedules and recordings raises.
    """
    view = float32_view(bundle)
    recording = find_recording(view, options, folder, progress)
    threads = options.gate.threads
    macs = find_candidates(view, recording.sites, options.networks, options.layers)
    reference = options.reference if options.budget_error is None else None
    truth = find_truth(view, recording, options.trial_rows, reference, threads, progress)
    budgets = _budgets(truth, options)
    groups = make_groups(macs, options.groups)
    scales = {name: Scales(view, recording, _network(name), threads, progress) for name in macs}
    sites = [site for site in recording.sites if f"{site.network} {site.variant}" in macs]
    arrangements = _try_all(truth, scales, macs, groups, sites, options, progress)
    best = min(arrangements, key=arrangements.__getitem__)
    layers = _layers(scales, macs, options.kind, best)
    trials = Trials(truth, layers, options.kind)
    sensitivity = measure_sensitivity(trials, groups, sites, progress)
    aims = {schedule: (1 - options.margin) * budget for schedule, budget in budgets.items()}
    choice = choose_groups(sensitivity, trials.trajectory_errors, aims, options.tries, progress)
    # From here on the memory is the engines'.
    del trials, scales
    chosen = _chosen(layers, choice.quantized)
    gate = _judge(bundle, chosen, recording, budgets, options, extractor, progress)
    findings = {"arrangement": str(best), "budgets": budgets, **_findings(gate)}
    recipe = Recipe(options.kind, chosen, sources_of(view.manifest), gate.passed, findings)
    return Calibrated(
        recipe, recording, truth.distances, budgets, arrangements, best, sensitivity, choice, gate
    )


def find_recording(view: Bundle, options: PrecisionOptions, folder: Path, progress: Progress) -> Recording:
    """Open the recording in a folder, or make one there; raises CalibrationError for one of other things."""
    manifest = view.manifest
    texts = options.schedules or (manifest.default_schedule,)
    schedules = tuple(dict.fromkeys(str(manifest.schedule(text)) for text in texts))
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
    """Return how large trajectory errors may be, by schedule."""
    if options.budget_error is not None:
        return dict.fromkeys(truth.ends, options.budget_error)
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
    budgets: Errors,
    options: PrecisionOptions,
    extractor: Extractor | None,
    progress: Progress,
) -> Gate:
    view = float32_view(bundle)
    request = make_rows(view.manifest, options.gate.rows, options.seed + recording.rows, options.guidance)
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
            notes=speed_notes(bundle, options.kind),
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
        f"speed on {backend}: not measured, {reason}; build with the recipe for the machine that it is for, "
        "and compare there with `flowturbo_trt bench`"
        for backend, reason in reasons.items()
    )


def _findings(gate: Gate) -> dict[str, Any]:
    """Return what a recipe tells of the gate."""
    return {"checks": [asdict(check) for check in gate.checks], "notes": list(gate.notes)}
