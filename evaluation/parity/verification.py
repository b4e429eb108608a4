"""Verification: a bundle's engines against its own float32 graphs, call by call and end to end.

Each engine gets the inputs of every call of the reference trajectory (teacher-forced), so that an error
is found where it arises; each backend then runs its own trajectory, where errors add up as they will.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from flowturbo_trt.bundle.manifest import Manifest
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.evaluation.parity.backend_check import BackendCheck
from flowturbo_trt.evaluation.parity.build_side import against_torch, faults_in_files
from flowturbo_trt.evaluation.parity.options import ParityError, ParityOptions
from flowturbo_trt.evaluation.parity.recording import open_reference, record
from flowturbo_trt.evaluation.parity.results import EngineParity, ParityReport, TrajectoryParity
from flowturbo_trt.evaluation.parity.thresholds import bundle_thresholds, kept_budgets, thresholds
from flowturbo_trt.runtime.backend import BackendError, load_backend
from flowturbo_trt.runtime.backend_onnxruntime import NAME as REFERENCE

Progress = Callable[[str, int, int], None]


def verify(
    bundle: Bundle, options: ParityOptions, progress: Progress = lambda what, done, total: None
) -> ParityReport:
    """Hold every engine that runs here against the float32 graphs; raises ParityError if none does."""
    manifest = bundle.manifest
    options = _resolve(options, manifest)
    reference = open_reference(bundle, options.threads)
    wanted = [(s, v) for s in options.schedules for v in manifest.programs[manifest.default_schedule]]
    rows = max(options.images, *options.batches)
    tick = _Ticker(progress, _work(manifest, options, len(wanted)))
    recordings = []
    for schedule, variant in wanted:
        tick(f"{schedule} {variant} in float32, for reference")
        recordings.append(record(reference, manifest, schedule, variant, rows, options.seed))
    tick("the float32 graphs against torch")
    torch, notes = against_torch(bundle, recordings)
    faults, left_out = faults_in_files(bundle)
    engines: list[EngineParity] = []
    trajectories: list[TrajectoryParity] = []
    for name in options.backends:
        try:
            provider = options.provider if name == "onnxruntime" else None
            backend = load_backend(name, bundle, options.device, options.threads, provider)
        except BackendError as error:
            engines += _none_run(manifest, name, str(error))
            continue
        check = BackendCheck(manifest, name, backend, recordings, faults, options, tick)
        engines += check.engines()
        trajectories += check.trajectories()
    tick.finish()
    if all(result.status == "not run" for result in engines):
        reasons = "; ".join(dict.fromkeys(str(result.not_run) for result in engines))
        raise ParityError(f"no engine of the bundle could be run here: {reasons}")
    notes = (*notes, *left_out, *_identical(manifest, options), *_promised(manifest))
    return ParityReport(tuple(engines), tuple(trajectories), torch, notes, tuple(recordings))


def _identical(manifest: Manifest, options: ParityOptions) -> Iterator[str]:
    """Say where equality proves little: of the backend that runs the reference, and from the same files."""
    graphs = {graph.file for graph in manifest.graphs}
    alike = all(engine.file in graphs for engine in manifest.engines if engine.backend == REFERENCE)
    if alike and REFERENCE in options.backends:
        yield f"{REFERENCE} runs the float32 graphs themselves: only its batches and trajectories are tested"


def _promised(manifest: Manifest) -> Iterator[str]:
    """Say where a recipe's budget takes the place of narrower limits."""
    limits = bundle_thresholds(manifest)
    for kind, budget in kept_budgets(manifest).items():
        if kind in limits and limits[kind] != thresholds(kind):
            yield (
                f"limits of {kind} are wider than usual: its recipe's gate let a mean trajectory error of "
                f"{budget:.2g} pass"
            )


def _work(manifest: Manifest, options: ParityOptions, recordings: int) -> int:
    engines = sum(engine.backend in options.backends for engine in manifest.engines)
    return recordings + 1 + engines + recordings * len(options.batches) * len(options.backends)


def _resolve(options: ParityOptions, manifest: Manifest) -> ParityOptions:
    """Replace what was left open by what the bundle holds; refuse what it lacks."""
    held = tuple(dict.fromkeys(engine.backend for engine in manifest.engines))
    for backend in options.backends:
        if backend not in held:
            raise ParityError(f"backend {backend!r}: the bundle has engines for {', '.join(held) or 'none'}")
    for batch in options.batches:
        if batch not in manifest.batches:
            raise ParityError(
                f"batch {batch}: the bundle was built for {', '.join(map(str, manifest.batches))}"
            )
    # An engine of a precision without limits is found out before anything runs.
    bundle_thresholds(manifest)
    return replace(
        options,
        backends=tuple(dict.fromkeys(options.backends)) or held,
        schedules=tuple(dict.fromkeys(options.schedules)) or (manifest.default_schedule,),
        batches=tuple(sorted(set(options.batches))) or manifest.batches,
    )


def _none_run(manifest: Manifest, backend: str, reason: str) -> list[EngineParity]:
    limits = bundle_thresholds(manifest)
    engines = (engine for engine in manifest.engines if engine.backend == backend)
    return [EngineParity(engine, limits[engine.precision], not_run=reason) for engine in engines]


class _Ticker:
    """Progress over pieces of work of which some turn out not to run."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, what: str) -> None:
        self._progress(what, self._done, self._total)
        self._done += 1

    def finish(self) -> None:
        self._progress("verified", self._total, self._total)
