"""One backend's engines and trajectories against the recorded float32 ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowturbo_trt.bundle.manifest import BundleError, Engine, Manifest
from flowturbo_trt.evaluation.parity.comparison import (
    amplification,
    compare_call,
    compare_images,
    row_relative_l2,
    windows,
)
from flowturbo_trt.evaluation.parity.options import ParityOptions
from flowturbo_trt.evaluation.parity.recording import Recording
from flowturbo_trt.evaluation.parity.results import (
    CallError,
    EngineParity,
    ImageError,
    TrajectoryParity,
    by_psnr,
)
from flowturbo_trt.evaluation.parity.thresholds import bundle_thresholds, loosest
from flowturbo_trt.runtime.backend import Backend, BackendError, Inputs, Run, Trajectory, UnsupportedError
from flowturbo_trt.runtime.conditioning import needed_engines
from flowturbo_trt.sampling.errors import FlowTurboError
from flowturbo_trt.sampling.program import StepMark

Result = TypeVar("Result", EngineParity, TrajectoryParity)
UNUSED = "none of the schedules evaluates it"


class BackendCheck:
    """All engines of one backend, and the trajectories they make."""

    def __init__(
        self,
        manifest: Manifest,
        name: str,
        backend: Backend,
        recordings: Sequence[Recording],
        faults: Mapping[str, str],
        options: ParityOptions,
        tick: Callable[[str], None],
    ) -> None:
        self._manifest = manifest
        self._limits = bundle_thresholds(manifest)
        self._name = name
        self._backend = backend
        self._recordings = recordings
        self._faults = faults
        self._options = options
        self._tick = tick

    def engines(self) -> list[EngineParity]:
        """Hold every engine against the recorded calls (teacher-forced)."""
        return [self._engine(engine) for engine in self._manifest.engines if engine.backend == self._name]

    def trajectories(self) -> list[TrajectoryParity]:
        """Let the backend run on its own (free-running), at every batch size."""
        return [self._trajectory(r, batch) for r in self._recordings for batch in self._options.batches]

    def _engine(self, engine: Engine) -> EngineParity:
        self._tick(f"{engine.name} on {self._name}, call by call")
        result = EngineParity(
            engine, self._limits[engine.precision], file_fault=self._faults.get(engine.file)
        )
        batches = [batch for batch in self._options.batches if batch in engine.batches]
        if engine.is_conditioner:
            # It knows no batches of images: its rows are times and labels.
            batches = list(engine.batches)
        if not batches:
            return replace(result, not_run=f"built for batch {_join(engine.batches)}, which is not asked for")
        try:
            if engine.network == "decoder":
                return replace(result, images=tuple(self._decoded(batches)))
            calls = tuple(self._called(engine, batches))
        except FlowTurboError as error:
            return _unfinished(result, error)
        return replace(result, calls=calls) if calls else replace(result, not_run=UNUSED)

    def _called(self, engine: Engine, batches: Sequence[int]) -> Iterator[CallError]:
        if engine.is_conditioner:
            yield from self._conditioned(engine)
            return
        for recording, batch, rows in self._parts(batches):
            for call in recording.calls_of(engine.network, engine.variant):
                inputs = {name: array[rows] for name, array in call.inputs.items()}
                found = self._backend.evaluate(engine.network, engine.variant, inputs)
                expected = call.output[rows]
                _check_shape(found, expected)
                yield from compare_call(call, found, expected, rows, batch)

    def _conditioned(self, engine: Engine) -> Iterator[CallError]:
        """Call a conditioner on all rows of each recorded call, padded to what it was built for."""
        built = max(engine.batches)
        for recording in self._recordings:
            for call in recording.calls_of(engine.network, None):
                rows, padded = len(call.output), -(-len(call.output) // built) * built
                inputs = {name: np.resize(array, padded) for name, array in call.inputs.items()}
                parts = (
                    self._backend.evaluate(
                        engine.network, None, {n: a[start : start + built] for n, a in inputs.items()}
                    )
                    for start in range(0, padded, built)
                )
                found = np.concatenate(list(parts))[:rows, None]
                _check_shape(found, call.output)
                yield from compare_call(call, found, call.output, slice(0, rows), rows)

    def _decoded(self, batches: Sequence[int]) -> Iterator[ImageError]:
        for recording, batch, rows in self._parts(batches):
            found = self._backend.evaluate("decoder", None, {"state": recording.latents[rows]})
            assert recording.images is not None
            expected = recording.images[rows]
            _check_shape(found, expected)
            yield compare_images(recording, found, expected, rows, batch)

    def _parts(self, batches: Sequence[int]) -> Iterator[tuple[Recording, int, slice]]:
        """Yield every row once at the largest batch size, and the first rows at the others."""
        for recording in self._recordings:
            for batch in batches:
                for rows in windows(len(recording.request), batch, everything=batch == max(batches)):
                    yield recording, batch, rows

    def _trajectory(self, recording: Recording, batch: int) -> TrajectoryParity:
        self._tick(f"{recording.schedule} {recording.variant} on {self._name}, batch {batch}")
        where = (recording.schedule, recording.variant, self._name)
        try:
            used = {
                self._manifest.engine(network, variant, self._name, batch if variant else None).precision
                for network, variant in needed_engines(self._manifest, recording.program, self._name)
            }
        except BundleError as error:
            return TrajectoryParity(*where, "", batch, None, failure=str(error))
        precision = loosest(used, self._limits)
        result = TrajectoryParity(*where, precision, batch, self._limits[precision])
        if len(recording.program.steps) != len(recording.states):
            found, expected = len(recording.program.steps), len(recording.states)
            return replace(result, failure=f"its program has {found} steps, the schedule {expected}")
        try:
            return self._run(recording, result)
        except FlowTurboError as error:
            return _unfinished(result, error)

    def _run(self, recording: Recording, result: TrajectoryParity) -> TrajectoryParity:
        batch, everything = result.batch, result.batch == max(self._options.batches)
        trajectory = self._backend.bind(recording.program, batch)
        errors: list[NDArray[np.float64]] = []
        images: list[ImageError] = []
        parts = list(windows(len(recording.request), batch, everything=everything))
        for rows in parts:
            found, run = _run_rows(trajectory, recording, rows)
            errors.append(found)
            if recording.images is not None:
                images.append(compare_images(recording, run.images(), recording.images[rows], rows, batch))
        trajectory.close()
        every_row = np.concatenate(errors, axis=1)
        rows_run = np.concatenate([np.arange(rows.start, rows.stop) for rows in parts])
        factors = amplification(recording.request.guidance[rows_run])
        # argmax takes a NaN for the largest.
        worst = int(np.argmax(every_row[-1] / factors))
        *per_step, latents = map(float, every_row[:, worst])
        return replace(
            result,
            row=int(rows_run[worst]),
            amplification=float(factors[worst]),
            per_step=tuple(per_step),
            relative_l2=latents,
            image=min(images, key=by_psnr, default=None),
        )


def _unfinished(result: Result, error: FlowTurboError) -> Result:
    if isinstance(error, UnsupportedError):
        return replace(result, not_run=str(error))
    return replace(result, failure=str(error))


def _run_rows(trajectory: Trajectory, recording: Recording, rows: slice) -> tuple[NDArray[np.float64], Run]:
    """Run some rows (n); return the relative L2 (steps+1,n) after every step, then of the latents."""
    errors: list[NDArray[np.float64]] = []

    def compare(mark: StepMark, index: int) -> None:
        expected = recording.states[index][rows]
        errors.append(row_relative_l2(trajectory.state_after(index), expected))

    _fill(trajectory.inputs, recording, rows)
    run = trajectory.start(decode=recording.images is not None, on_step=compare)
    if trajectory.is_captured:
        # What will be shipped is the graph of the whole.
        run.latents()
        _fill(trajectory.inputs, recording, rows)
        run = trajectory.start(decode=recording.images is not None)
    return np.stack([*errors, row_relative_l2(run.latents(), recording.latents[rows])]), run


def _fill(inputs: Inputs, recording: Recording, rows: slice) -> None:
    request = recording.request
    request.fill_noise(rows, inputs.noise)
    inputs.guidance[:] = request.guidance[rows]
    for name, values in request.conditions.items():
        inputs.conditions[name][:] = values[rows]


def _check_shape(found: NDArray[Any], expected: NDArray[Any]) -> None:
    if found.shape != expected.shape:
        raise BackendError(f"gives an output of shape {found.shape}, expected {expected.shape}; rebuild it")


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
